"""The KeyValueStore in one SQLite file: optimistic transactions that see FoundationDB's conflicts.

The law: a transaction reads one snapshot and writes to memory; only its commit takes the file's write lock, for as
long as checking and writing last. docs/decisions/0007 says why.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state import attempts, limits, sqlite_reader
from storage_proxy.state.attempts import RetryPolicy, TooOld
from storage_proxy.state.keys import after
from storage_proxy.state.overlay import Overlay
from storage_proxy.state.port import AttemptFailed, Row, Transaction
from storage_proxy.state.ranges import Range
from storage_proxy.state.sqlite_commits import Reads
from storage_proxy.state.sqlite_file import StateFile
from storage_proxy.state.sqlite_reader import Reader, ReaderPool
from storage_proxy.state.sqlite_writer import Commit, Writer
from storage_proxy.state.transaction import BoundedTransaction, RangeRead

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SqliteOptions:
    """``path`` is made if it does not exist, its directory is not. Times are in seconds.

    ``readers`` transactions of this process may read at once. ``busy_seconds`` is how long a commit waits for other
    processes' commits, ``start_seconds`` and ``probe_seconds`` how long the file may take to answer at the start and
    later. A read fetches ``batch_rows`` at once, or a MiB of them.
    """

    path: Path
    readers: int = 8
    busy_seconds: float = 5.0
    start_seconds: float = 10.0
    probe_seconds: float = 1.5
    batch_rows: int = 1_000
    retries: RetryPolicy = field(default_factory=RetryPolicy)


@asynccontextmanager
async def open_sqlite(
    options: SqliteOptions,
    *,
    clock: Callable[[], float] = time.monotonic,
    jitter: random.Random | None = None,
) -> AsyncIterator["SqliteKeyValueStore"]:
    """The store, closed on leaving. Call it in the process that uses it, not before a fork.

    Raises `StateUnavailable` where the file cannot be what it has to be.
    """
    store = SqliteKeyValueStore(options, clock=clock, jitter=jitter or random.SystemRandom())
    try:
        await store.start()
        yield store
    finally:
        await store.aclose()


class SqliteKeyValueStore:
    """The `KeyValueStore` over one file, which any number of processes may have open."""

    def __init__(self, options: SqliteOptions, *, clock: Callable[[], float], jitter: random.Random) -> None:
        self._options = options
        self._clock = clock
        self._jitter = jitter
        file = StateFile(options.path, busy_seconds=options.busy_seconds, jitter=jitter)
        self._readers = ReaderPool(file, options.readers)
        self._writer = Writer(file)

    async def transact(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        return await attempts.run(fn, begin=self._begin, recover=self._pause, policy=self._options.retries)

    async def read_snapshot(self, begin: bytes, end: bytes) -> AsyncIterator[Sequence[Row]]:
        limits.check_bounds(begin, end)
        reader = self._readers.extra()  # it may take long, and transactions need theirs
        try:
            more = True
            while more:
                work = partial(sqlite_reader.scan, ranges=[(begin, end)], limit=self._options.batch_rows, reverse=False)
                rows, more = await self._patiently_read(reader, work)
                if rows:
                    yield rows
                    begin = after(rows[-1][0])
        finally:
            reader.close()

    async def start(self) -> None:
        """As `probe`, with more patience: a disk that is slow for a moment is no reason not to start."""
        await self._within(self._options.start_seconds, asyncio.wrap_future(self._writer.probe()))

    async def probe(self) -> None:
        await self._within(self._options.probe_seconds, asyncio.wrap_future(self._writer.probe()))

    async def aclose(self) -> None:
        # The writer may wait for other processes, and then finishes or fails what is queued.
        await asyncio.gather(self._readers.aclose(), asyncio.wrap_future(self._writer.close()))

    def _begin(self) -> "SqliteTransaction":
        return SqliteTransaction(self._readers, self._writer, self._clock, self._options.batch_rows)

    async def _pause(self, failure: AttemptFailed, number: int) -> None:
        await asyncio.sleep(self._jitter.uniform(0, min(0.25, 0.001 * 2 ** min(number, 10))))

    async def _patiently_read(self, reader: Reader, work: Callable[..., _T]) -> _T:
        _, result = await self._within(self._options.retries.deadline_seconds, reader.read(work))
        return result

    async def _within(self, seconds: float, work: Awaitable[_T]) -> _T:
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError as error:
            raise StateUnavailable(f"The state store did not answer in {seconds:g} s") from error


class SqliteTransaction(BoundedTransaction):
    """One attempt. It holds a reader from its first read to its end."""

    def __init__(self, readers: ReaderPool, writer: Writer, clock: Callable[[], float], batch_rows: int) -> None:
        super().__init__()
        self._readers = readers
        self._writer = writer
        self._clock = clock
        self._batch_rows = batch_rows
        self._acquiring = asyncio.Lock()
        self._reader: Reader | None = None
        self._snapshot: int | None = None
        self._began: float | None = None
        self._ended = False
        self._reads = Reads()
        self._writes = Overlay()

    async def _get(self, key: bytes, snapshot: bool) -> bytes | None:
        if self._writes.decides(key):
            return self._writes.get(key)
        if not snapshot:
            self._reads.keys.add(key)
        return await self._ask(partial(sqlite_reader.get, key=key))

    async def _get_many(self, keys: Sequence[bytes], snapshot: bool) -> Sequence[bytes | None]:
        undecided = [key for key in keys if not self._writes.decides(key)]
        if not snapshot:
            self._reads.keys.update(undecided)
        stored: dict[bytes, bytes | None] = {}
        if undecided:
            stored = await self._ask(partial(sqlite_reader.get_many, keys=undecided))
        return [stored[key] if key in stored else self._writes.get(key) for key in keys]

    async def _batch(self, read: RangeRead) -> tuple[Sequence[Row], Range | None]:
        begin, end = read.begin, read.end
        stored: list[Row] = []
        more = False
        if self._writes.undecided(begin, end):
            ranges = self._writes.undecided_ranges(begin, end)
            # Of the rows that are read, single keys may have been cleared: ask for so many more.
            wanted = self._batch_rows if read.limit is None else read.limit + len(self._writes.keys(begin, end))
            work = partial(sqlite_reader.scan, ranges=ranges, limit=min(wanted, self._batch_rows), reverse=read.reverse)
            stored, more = await self._ask(work)
        if more:
            begin, end = _upto(read, stored[-1][0])
        rows = self._writes.merged(stored, begin, end, reverse=read.reverse)
        if read.limit is not None and len(rows) >= read.limit:
            del rows[read.limit :]
            begin, end = _upto(read, rows[-1][0])
        if not read.snapshot:
            for each in self._writes.undecided(begin, end):
                self._reads.ranges.add(*each)
        rest = (read.begin, begin) if read.reverse else (end, read.end)
        return rows, rest if rest[0] < rest[1] else None

    def _add_read_conflict(self, begin: bytes, end: bytes) -> None:
        self._reads.ranges.add(begin, end)

    def _set(self, key: bytes, value: bytes) -> None:
        self._writes.set(key, value)

    def _clear(self, key: bytes) -> None:
        self._writes.set(key, None)

    def _clear_range(self, begin: bytes, end: bytes) -> None:
        self._writes.clear_range(begin, end)

    async def _commit(self) -> None:
        if not self.wrote:
            return
        if self._snapshot is None and self._reads:  # a conflict range and no read: as of now
            await self._ask(lambda _: None)
        self._check_age()
        self._give_back_reader()  # others may read while this one waits for its turn to write
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.submit(Commit(self._snapshot or 0, self._reads, self._writes, self._size, done))
        await done

    def _release(self) -> None:
        self._ended = True
        self._give_back_reader()

    def _give_back_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._readers.release(reader)

    async def _ask(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What ``work`` returns from the snapshot, which the first call takes."""
        reader = self._reader or await self._acquire()
        self._check_age()
        self._snapshot, result = await reader.read(work)
        return result

    async def _acquire(self) -> Reader:
        async with self._acquiring:
            if self._reader is None:
                reader = await self._readers.acquire()
                if self._ended:  # while this task waited
                    self._readers.release(reader)
                    raise limits.TransactionFinished("A transaction was used after its end")
                self._reader = reader
                self._began = self._clock()
            return self._reader

    def _check_age(self) -> None:
        if self._began is not None and self._clock() - self._began > limits.MAX_TRANSACTION_SECONDS:
            raise TooOld(f"it took more than {limits.MAX_TRANSACTION_SECONDS:g} s")


def _upto(read: RangeRead, last: bytes) -> Range:
    """The part of the range that ends with the row of key ``last``."""
    return (last, read.end) if read.reverse else (read.begin, after(last))
