"""The one thread of a process that uses the bus file: reads in their turn, writes that wait together share one fsync.

The law: what a write returned is on the disk; a write is all there or not at all, whatever happens to those beside it.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storage_proxy.bus.embedded_file import BusFile, translated
from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.sqlite_file import Connection

_T = TypeVar("_T")

Work = Callable[[sqlite3.Connection], _T]

_MAX_WRITES = 256


@dataclass(frozen=True, slots=True)
class _Write:
    work: Work[Any]
    future: "Future[Any]" = field(default_factory=Future)


class Worker:
    """Runs work in the thread. Every call raises `BusUnavailable`, and whatever its work raises."""

    def __init__(self, file: BusFile) -> None:
        self._file = file
        self._executor = ThreadPoolExecutor(1, "bus")
        self._writes: deque[_Write] = deque()
        self._connection: Connection | None = None

    async def read(self, work: Work[_T]) -> _T:
        """What ``work`` returns in a transaction that sees one moment."""
        return await asyncio.wrap_future(self._submit(lambda: self._read(work)))

    async def write(self, work: Work[_T]) -> _T:
        """What ``work`` returned in a transaction that is on the disk."""
        write = _Write(work)
        self._writes.append(write)
        self._submit(self._write_waiting)
        result: _T = await asyncio.wrap_future(write.future)
        return result

    async def changes(self) -> int:
        """A number that is another one after another process has written."""
        return await asyncio.wrap_future(self._submit(lambda: self._outside_transaction(_data_version)))

    async def probe(self) -> None:
        """Return if the file could be written to now."""
        await self.write(lambda _: None)

    async def aclose(self) -> None:
        """Finish what is asked, then close. Idempotent."""
        with suppress(BusUnavailable):
            closed = self._submit(self._disconnect)
            self._executor.shutdown(wait=False)
            await asyncio.wrap_future(closed)

    def _submit(self, work: Callable[[], _T]) -> "Future[_T]":
        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # shut down
            raise BusUnavailable("The bus is closed") from error

    # What follows runs in the thread.

    def _read(self, work: Work[_T]) -> _T:
        def reading(raw: sqlite3.Connection) -> _T:
            assert self._connection is not None
            with self._connection.reading():
                return work(raw)

        return self._outside_transaction(reading)

    def _outside_transaction(self, work: Work[_T]) -> _T:
        try:
            with translated():
                return work(self._connected().raw)
        except BusUnavailable:
            self._disconnect()
            raise

    def _write_waiting(self) -> None:
        writes = self._take()
        if not writes:  # an earlier call took them
            return
        try:
            with translated():
                outcomes = self._apply(writes)
        except Exception as error:  # noqa: BLE001 whatever it is, somebody waits for it
            self._disconnect()
            detail = error.detail if isinstance(error, BusUnavailable) else "The bus failed in a write"
            for write in writes:
                write.future.set_exception(_caused(BusUnavailable(detail), error))
            return
        for write, (result, refusal) in zip(writes, outcomes, strict=True):
            if refusal is None:
                write.future.set_result(result)
            else:
                write.future.set_exception(refusal)

    def _take(self) -> list[_Write]:
        taken: list[_Write] = []
        while self._writes and len(taken) < _MAX_WRITES:
            write = self._writes.popleft()
            if write.future.set_running_or_notify_cancel():
                taken.append(write)
        return taken

    def _apply(self, writes: list[_Write]) -> list[tuple[Any, Exception | None]]:
        """For each write its result, or what it raised instead of writing."""
        connection = self._connected()
        connection.check_file()
        outcomes: list[tuple[Any, Exception | None]] = []
        with connection.writing() as raw:
            for write in writes:
                raw.execute("SAVEPOINT one")
                try:
                    outcomes.append((write.work(raw), None))
                except sqlite3.Error:
                    raise  # the file's fault, not the work's: nothing of this transaction can be trusted
                except Exception as refusal:  # noqa: BLE001 its caller's concern, not the others'
                    raw.execute("ROLLBACK TO one")
                    outcomes.append((None, refusal))
                raw.execute("RELEASE one")
        return outcomes

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._file.connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _data_version(raw: sqlite3.Connection) -> int:
    (version,) = raw.execute("PRAGMA data_version").fetchone()
    return int(version)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error
