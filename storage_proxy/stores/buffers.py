"""The buffers that bytes of blobs pass through: from one pool for the process, larger for who reads faster.

The law: what is leased counts against the process's `ByteBudget` until it is given back, once; a buffer whose bytes
somebody may still look at is not filled again.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from storage_proxy.common.byte_budget import ByteBudget

LEAST = 64 << 10
"""Every reader may have a buffer of this size (less for less), also beyond the budget."""

_SMALLEST = 16 << 10
_MAX_IDLE_BYTES = 16 << 20
_DEFAULT_BUDGET = 128 << 20

Levels = Sequence[tuple[int, int]]
"""From the slowest reader to the fastest: bytes of a buffer, and how many of them take turns."""

RECEIVED: Levels = ((LEAST, 1), (256 << 10, 1), (1 << 20, 1), (4 << 20, 1), (4 << 20, 2))
"""For sockets: the kernel receives what comes next while one is being sent; the fastest fill a second meanwhile."""

READ_AHEAD: Levels = ((LEAST, 1), (256 << 10, 1), (256 << 10, 2), (1 << 20, 2))
"""For files: a thread fills the next while one is being sent."""

_QUICK = 0.05
_SLOW = 0.5
"""Seconds until a reader asks again: below the first it may grow, above the second it has to shrink."""


class Buffer:
    """So many bytes, and the view through which they are filled and given out.

    They are pages of their own, back with the system when nobody has them any more: of what is freed, malloc keeps
    tens of MiB.
    """

    __slots__ = ("bytes", "view")

    def __init__(self, size: int) -> None:
        self.bytes = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self.view = memoryview(self.bytes)

    def __len__(self) -> int:
        return len(self.view)


class BufferPool:
    """Leases buffers. Up to 16 MiB that nobody leases are kept for the next, and do not count against the budget."""

    def __init__(self, budget: ByteBudget | None = None) -> None:
        self.budget = budget or ByteBudget(_DEFAULT_BUDGET)
        self.readers = 0
        """Readers that have buffers, or may ask for one."""
        self.grown = 0
        """Those that may have more than their least."""
        self._idle: dict[int, list[Buffer]] = defaultdict(list)
        self._idle_bytes = 0

    @property
    def share(self) -> int:
        """Bytes that one more fast reader may have: together they have half of the budget, the slow ones the rest."""
        return self.budget.total // 2 // (self.grown + 1)

    def lease(self, size: int, *, anyway: bool = False) -> Buffer | None:
        """A buffer of ``size`` bytes; None when the budget has not so many left, unless it has to be ``anyway``."""
        if anyway:
            self.budget.take_anyway(size)
        elif not self.budget.take(size):
            return None
        if idle := self._idle[size]:
            self._idle_bytes -= size
            return idle.pop()
        return Buffer(size)

    def give_back(self, buffer: Buffer, *, seen: bool = False) -> None:
        """End a lease; ``seen`` when somebody may still look at the bytes: then they are left as they are."""
        size = len(buffer)
        self.budget.give(size)
        if not seen and self._idle_bytes + size <= _MAX_IDLE_BYTES:
            self._idle_bytes += size
            self._idle[size].append(buffer)


class ReaderBuffers:
    """The buffers of one reader of ``length`` bytes: one of 64 KiB at first, larger ones when it is fast."""

    def __init__(self, pool: BufferPool, length: int, levels: Levels = RECEIVED) -> None:
        self._pool = pool
        self._levels = levels
        self._least = min(LEAST, _size_for(length))
        self._level = 0
        self._held: list[Buffer] = []
        self._spare: Buffer | None = None
        self._closed = False
        pool.readers += 1

    @property
    def held_bytes(self) -> int:
        return sum(map(len, self._held))

    def paced(self, filled: int, of: int, seconds: float) -> None:
        """Learn that a reader took ``seconds`` over ``filled`` bytes from a buffer of the size ``of``."""
        level = self._level
        if seconds > _SLOW:
            level = 0
        elif seconds < _QUICK and 2 * filled >= of:
            level = min(level + 1, len(self._levels) - 1)
        self._settle(level)

    def _settle(self, level: int) -> None:
        """Have ``level``, or the highest below it that the pool's share allows."""
        self._pool.grown -= self._level > 0
        while level and math.prod(self._levels[level]) > self._pool.share:
            level -= 1
        self._level = level
        self._pool.grown += level > 0

    def obtain(self, expected: int | None) -> Buffer | None:
        """A buffer to fill, for ``expected`` bytes at most; None when those that are held have to do."""
        if self._spare is not None:
            buffer, self._spare = self._spare, None
            return buffer
        size, count = self._levels[self._level]
        if len(self._held) >= count:
            return None
        wanted = size if expected is None else min(size, _size_for(expected))
        new = None
        if self._level:
            new = self._pool.lease(wanted)
        if new is None and not self._held:
            new = self._pool.lease(min(self._least, wanted), anyway=True)
        if new is not None:
            self._held.append(new)
        return new

    def spend(self, buffer: Buffer, expected: int | None) -> None:
        """Take back what has been read: it is filled again, or given back when another size suits better."""
        if self._closed:
            return
        size, count = self._levels[self._level]
        wanted = size if expected is None else min(size, _size_for(expected))
        if self._spare is None and len(self._held) <= count and wanted <= len(buffer) <= size:
            self._spare = buffer
            return
        self._held.remove(buffer)
        self._pool.give_back(buffer)

    def close(self, *seen: Buffer | None) -> None:
        """Give everything back; ``seen`` are the buffers that somebody may still look at, or fill. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._pool.readers -= 1
        self._settle(0)
        for buffer in self._held:
            self._pool.give_back(buffer, seen=any(buffer is each for each in seen))
        self._held.clear()
        self._spare = None


def _size_for(expected: int) -> int:
    """The least power of two, from 16 KiB, that has room for so many bytes and an answer's usual head."""
    return max(_SMALLEST, 1 << (expected + 1024 - 1).bit_length())
