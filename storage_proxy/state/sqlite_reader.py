"""Snapshots of the state file: each is an open read transaction on a connection with a thread of its own.

The law: a connection is used by its own thread only, in the order in which it was asked, so a reader can be given
back while it still works: its rollback stands behind that in the queue.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state.port import Row
from storage_proxy.state.ranges import Range
from storage_proxy.state.sqlite_file import Connection, StateFile, translated

_T = TypeVar("_T")

BATCH_BYTES = 2**20

_ASCENDING = "SELECT key, value FROM rows WHERE key >= ? AND key < ? ORDER BY key"
_DESCENDING = _ASCENDING + " DESC"


class Reader:
    """One connection; ``snapshot`` is the version of the last commit that it sees."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._executor = ThreadPoolExecutor(1, "state-reader")
        self._connection: Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What ``work`` returns; the file is opened if it is not."""
        return await asyncio.wrap_future(self._submit(lambda: self._with_connection(work)))

    def roll_back(self) -> None:
        """End the snapshot, after whatever is still asked of it."""
        with suppress(StateUnavailable):
            self._submit(self._roll_back)

    def close(self) -> "Future[None]":
        closed = self._submit(self._disconnect)
        self._executor.shutdown(wait=False)
        return closed

    def _submit(self, work: Callable[[], _T]) -> "Future[_T]":
        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # shut down
            raise StateUnavailable("The state store is closed") from error

    # What follows runs in the thread.

    def _with_connection(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            with translated():
                if self._connection is None:
                    self._connection = self._file.connect()
                raw = self._connection.raw
                return self._file.patiently(lambda: work(raw))
        except StateUnavailable:
            self._disconnect()
            raise

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.raw.in_transaction:
            try:
                self._connection.raw.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class ReaderPool:
    """At most ``size`` readers; who comes later waits."""

    def __init__(self, file: StateFile, size: int) -> None:
        self._file = file
        self._free = asyncio.Semaphore(size)
        self._idle: list[Reader] = []
        self._closed = False
        self.busy = 0

    async def acquire(self) -> Reader:
        await self._free.acquire()
        if self._closed:
            self._free.release()
            raise StateUnavailable("The state store is closed")
        self.busy += 1
        return self._idle.pop() if self._idle else Reader(self._file)

    def release(self, reader: Reader) -> None:
        self.busy -= 1
        reader.roll_back()
        if self._closed:
            reader.close()
        else:
            self._idle.append(reader)
        self._free.release()

    def extra(self) -> Reader:
        """One more, which the caller closes."""
        if self._closed:
            raise StateUnavailable("The state store is closed")
        return Reader(self._file)

    async def aclose(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(asyncio.wrap_future(reader.close()) for reader in idle))


def begin(raw: sqlite3.Connection) -> int:
    """Begin a snapshot: the version of the last commit in it."""
    if raw.in_transaction:  # a first try that met a lock
        raw.execute("ROLLBACK")
    raw.execute("BEGIN")
    (version,) = raw.execute("SELECT max(version) FROM commits").fetchone()
    return int(version or 0)


def get(raw: sqlite3.Connection, key: bytes) -> bytes | None:
    row = raw.execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def get_many(raw: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
    return {key: get(raw, key) for key in keys}


def scan(raw: sqlite3.Connection, ranges: Sequence[Range], limit: int, *, reverse: bool) -> tuple[list[Row], bool]:
    """Rows of the ranges, which are in ascending order, up to ``limit`` or a batch's bytes; whether there is more."""
    rows: list[Row] = []
    size = 0
    query = _DESCENDING if reverse else _ASCENDING
    for bounds in reversed(ranges) if reverse else ranges:
        cursor = raw.execute(query, bounds)
        try:
            for row in cursor:
                rows.append(row)
                size += len(row[0]) + len(row[1])
                if len(rows) >= limit or size >= BATCH_BYTES:
                    return rows, True
        finally:
            cursor.close()
    return rows, False
