"""Snapshots of the state file: each is an open read transaction on a connection with a thread of its own.

The law: a connection is used by its own thread only, in the order in which it was asked, so a reader can be given
back while it still works: its rollback stands behind that in the queue. What is asked in one turn of the event loop
goes to the thread together, and comes back together: of a small read, the way there is most of the cost.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.sqlite_file import Connection
from storage_proxy.state.limits import TransactionFinished
from storage_proxy.state.port import Row
from storage_proxy.state.ranges import Range
from storage_proxy.state.sqlite_answers import deliver, settle
from storage_proxy.state.sqlite_file import StateFile, translated

_T = TypeVar("_T")

BATCH_BYTES = 2**20

_ASCENDING = "SELECT key, value FROM rows WHERE key >= ? AND key < ? ORDER BY key"
_DESCENDING = _ASCENDING + " DESC"


_Read = Callable[[sqlite3.Connection], Any]
_Asked = tuple["asyncio.Future[Any]", _Read]


class Reader:
    """One connection, and its snapshot from the first read until it is rolled back. For one event loop."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._executor = ThreadPoolExecutor(1, "state-reader")
        self._asked: list[_Asked] = []
        # Of the thread:
        self._connection: Connection | None = None
        self._version: int | None = None

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> tuple[int, _T]:
        """The version of the last commit in the snapshot, and what ``work`` returns from it."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._send)
        answer: asyncio.Future[tuple[int, _T]] = loop.create_future()
        self._asked.append((answer, work))
        return await answer

    def roll_back(self) -> None:
        """End the snapshot, after whatever is still asked of it; what was not sent yet is given up."""
        self._give_up()
        with suppress(StateUnavailable):
            self._submit(self._roll_back)

    def close(self) -> "Future[None]":
        self._give_up()
        closed = self._submit(self._disconnect)
        self._executor.shutdown(wait=False)
        return closed

    def _send(self) -> None:
        asked = [each for each in self._asked if not each[0].done()]
        self._asked = []
        if not asked:
            return
        try:
            self._submit(lambda: deliver([(answer, *self._outcome(work)) for answer, work in asked]))
        except StateUnavailable as error:
            settle([(answer, None, error) for answer, _ in asked])

    def _give_up(self) -> None:
        asked, self._asked = self._asked, []
        error = TransactionFinished("A transaction was used after its end")
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            settle([(answer, None, error) for answer, _ in asked])

    def _submit(self, work: Callable[[], _T]) -> "Future[_T]":
        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # shut down
            raise StateUnavailable("The state store is closed") from error

    # What follows runs in the thread.

    def _outcome(self, work: _Read) -> tuple[Any, Exception | None]:
        try:
            return self._from_snapshot(work), None
        except Exception as error:  # noqa: BLE001 whatever it is, somebody waits for it
            return None, error

    def _from_snapshot(self, work: _Read) -> tuple[int, Any]:
        try:
            with translated():
                if self._connection is None:
                    self._connection = self._file.connect()
                raw = self._connection.raw
                if self._version is None:
                    self._version = self._file.patiently(lambda: _begin(raw))
                elif not raw.in_transaction:
                    raise StateUnavailable("The state file failed in an earlier read of the same snapshot")
                return self._version, self._file.patiently(lambda: work(raw))
        except StateUnavailable:
            self._disconnect()
            raise

    def _roll_back(self) -> None:
        self._version = None
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


def _begin(raw: sqlite3.Connection) -> int:
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
