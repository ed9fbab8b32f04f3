"""What every engine's transaction has in common: limits, the count of bytes, and the memory of the first failure.

The law: nothing reaches an engine that FoundationDB would refuse, and an attempt in which anything failed is never
committed, even if the function that it ran swallowed the exception.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from storage_proxy.state import limits
from storage_proxy.state.port import Row
from storage_proxy.state.ranges import Range


@dataclass(frozen=True, slots=True)
class RangeRead:
    """What is still to be read of a range that is not empty: ``limit`` rows of it, or all (None).

    ``iteration`` counts the batches, from 1.
    """

    begin: bytes
    end: bytes
    limit: int | None
    reverse: bool
    snapshot: bool
    iteration: int = 1


class BoundedTransaction(ABC):
    """The `Transaction` over what an engine does; ``failure`` is the first exception of any of its methods."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.wrote = False
        self._size = 0
        self._open = True

    # What an engine does. Arguments are within the limits, ranges are not empty.

    @abstractmethod
    async def _get(self, key: bytes, snapshot: bool) -> bytes | None: ...

    @abstractmethod
    async def _get_many(self, keys: Sequence[bytes], snapshot: bool) -> Sequence[bytes | None]: ...

    @abstractmethod
    async def _batch(self, read: RangeRead) -> tuple[Sequence[Row], Range | None]:
        """The next rows, at most ``limit``, and what is left of the range: None at its end."""

    @abstractmethod
    def _add_read_conflict(self, begin: bytes, end: bytes) -> None: ...

    @abstractmethod
    def _set(self, key: bytes, value: bytes) -> None: ...

    @abstractmethod
    def _clear(self, key: bytes) -> None: ...

    @abstractmethod
    def _clear_range(self, begin: bytes, end: bytes) -> None: ...

    @abstractmethod
    async def _commit(self) -> None:
        """Make the writes durable, if there are any. Raises `AttemptFailed` when the attempt conflicts."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what the attempt holds, whatever it is doing. Called once; never raises."""

    # The port.

    @property
    def size(self) -> int:
        return self._size

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        with self._operation():
            limits.check_key(key)
            if not snapshot:
                self._size += limits.range_size(key, key) + 1
            value = await self._get(key, snapshot)
            self._check_open()
            return value

    async def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> Sequence[bytes | None]:
        with self._operation():
            for key in keys:
                limits.check_key(key)
                if not snapshot:
                    self._size += limits.range_size(key, key) + 1
            values = await self._get_many(keys, snapshot) if keys else ()
            self._check_open()
            return values

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int, reverse: bool = False, snapshot: bool = False
    ) -> Sequence[Row]:
        if limit < 1:
            raise ValueError("A range read needs a limit of at least 1")
        found: list[Row] = []
        left: RangeRead | None = RangeRead(begin, end, limit, reverse, snapshot)
        while left is not None:
            rows, left = await self._read(left)
            found += rows
        return found

    async def get_batches(
        self, begin: bytes, end: bytes, *, reverse: bool = False, snapshot: bool = False
    ) -> AsyncIterator[Sequence[Row]]:
        left: RangeRead | None = RangeRead(begin, end, None, reverse, snapshot)
        while left is not None:
            rows, left = await self._read(left)
            if rows:
                yield rows

    async def _read(self, read: RangeRead) -> tuple[Sequence[Row], RangeRead | None]:
        with self._operation():
            limits.check_bounds(read.begin, read.end)
            if read.begin >= read.end:
                return (), None
            rows, rest = await self._batch(read)
            self._check_open()
            if not read.snapshot:
                first, last = (rows[0][0], rows[-1][0]) if rows else (b"", b"")
                self._size += limits.range_size(read.begin, read.end) + limits.range_size(first, last)
        limit = None if read.limit is None else read.limit - len(rows)
        if rest is None or limit == 0:
            return rows, None
        return rows, replace(read, begin=rest[0], end=rest[1], limit=limit, iteration=read.iteration + 1)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        with self._operation():
            limits.check_bounds(begin, end)
            if begin < end:
                self._size += limits.range_size(begin, end)
                self._add_read_conflict(begin, end)

    def set(self, key: bytes, value: bytes) -> None:
        with self._operation():
            limits.check_key(key)
            limits.check_value(value)
            self._count_write(limits.set_size(key, value))
            self._set(key, value)

    def clear(self, key: bytes) -> None:
        with self._operation():
            limits.check_key(key)
            self._count_write(limits.clear_size(key, key) + 3)
            self._clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        if begin > end:
            raise ValueError("A range to clear must not end before it begins")
        with self._operation():
            limits.check_bounds(begin, end)
            if begin < end:
                self._count_write(limits.clear_size(begin, end))
                self._clear_range(begin, end)

    # What the retry loop calls.

    async def commit(self) -> None:
        """Commit what was written; the attempt is used up, whatever comes of it."""
        self._check_open()
        self._open = False
        if self.failure is not None:
            raise self.failure
        if self.wrote:
            limits.check_size(self._size)  # reads after the last write count, too
        await self._commit()

    def end(self) -> None:
        """The attempt is over, committed or not. Never raises."""
        self._open = False
        self._release()

    def _count_write(self, size: int) -> None:
        limits.check_size(self._size + size)
        self._size += size
        self.wrote = True

    def _check_open(self) -> None:
        if not self._open:
            raise limits.TransactionFinished("A transaction was used after its end")

    @contextmanager
    def _operation(self) -> Iterator[None]:
        self._check_open()
        if self.failure is not None:
            raise self.failure
        try:
            yield
        except Exception as error:
            if self.failure is None:
                self.failure = error
            raise
