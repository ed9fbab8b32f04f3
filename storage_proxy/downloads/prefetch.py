"""What a download will need next, fetched ahead of its turn: its window, in order.

The law: a window holds no more than its share, and gives back all that it took; where it may hold nothing more it goes
on with one read at a time, and never waits for another download.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.concurrency import cancel_and_wait
from storage_proxy.downloads.sources import BlobRead, Chunk

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """What may be ahead of what is being sent.

    A read is begun when it begins within ``window_bytes`` of content, so that no source waits long for its turn. One
    of ``small_bytes`` or less is fetched whole, a larger one is opened. ``requests`` bounds those under way for one
    download, ``all_requests`` those of the process; ``items`` bounds what is neither bytes nor requests. ``opened``
    bounds the larger ones of a download: each keeps a connection until its turn, which what is needed now may lack.
    """

    window_bytes: int = 8 << 20
    small_bytes: int = 1 << 20
    requests: int = 48
    opened: int = 4
    all_requests: int = 256
    items: int = 256


class Prefetch:
    """The windows of a process. What they hold is taken from ``budget``: half of it at most, in equal shares."""

    def __init__(self, budget: ByteBudget, limits: WindowLimits | None = None) -> None:
        self.budget = budget
        self.limits = limits or WindowLimits()
        self.windows = 0
        """Windows that are open."""
        self.requests = 0
        """Reads that are under way ahead of their turn."""

    @property
    def share_bytes(self) -> int:
        """Bytes that each window may hold."""
        return min(self.limits.window_bytes, self.budget.total // (2 * max(1, self.windows)))

    @property
    def share_requests(self) -> int:
        """Reads that each window may have under way."""
        return max(1, min(self.limits.requests, self.limits.all_requests // max(1, self.windows)))

    def window(self, items: AsyncGenerator[tuple[_Item, BlobRead | None], None]) -> "Window[_Item]":
        """The window over a download's items in their order, each with the read that its content comes from, if any.

        ``items`` is asked for more as the window has room, and is closed with it. So are the reads.
        """
        return Window(self, items)


class Window(Generic[_Item]):
    """Gives a download its items in order; entered while the download runs."""

    def __init__(self, prefetch: Prefetch, items: AsyncGenerator[tuple[_Item, BlobRead | None], None]) -> None:
        self._prefetch = prefetch
        self._items = items
        self._coming: deque[tuple[_Item, WindowRead | None]] = deque()
        self._current: WindowRead | None = None
        self._starved = False
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self.ahead = 0
        """Bytes of the reads in the window that have not been sent, those of the current one included."""
        self.requests = 0
        """Reads of the window that are under way and not its current one."""
        self.opened = 0
        """Those of them that keep a connection until their turn."""

    async def __aenter__(self) -> Self:
        self._prefetch.windows += 1
        self._filler = asyncio.create_task(self._fill())
        return self

    async def __aexit__(self, *_: object) -> None:
        reads = [read for _, read in self._coming if read is not None]
        if self._current is not None:
            reads.append(self._current)
        self._coming.clear()
        tasks = [read.task for read in reads if read.task is not None]
        if self._filler is not None:
            tasks.append(self._filler)
        try:
            await cancel_and_wait(*tasks)
        finally:  # also when this is cancelled: the tasks end by themselves then
            self._prefetch.windows -= 1
            for read in reads:
                await read.aclose()

    async def next(self) -> "tuple[_Item, WindowRead | None] | None":
        """The next item, None after the last; the one before is left, whether it was read to its end or not.

        Raises what ``items`` raised, after what came before it.
        """
        if self._current is not None:
            await self._current.leave()
            self._current = None
        while not self._coming:
            assert self._filler is not None
            if self._filler.done():
                self._filler.result()
                return None
            self._starved = True
            self._arrived.clear()
            self._room.set()
            await self._arrived.wait()
        item = self._coming.popleft()
        self._current = item[1]
        if self._current is not None:
            self._current.turn()
        self._room.set()
        return item

    def sent(self, count: int) -> None:
        """Bytes of a read have gone, or will not."""
        self.ahead -= count
        self._room.set()

    def counted(self, change: int, *, whole: bool) -> None:
        """A read came under way ahead of its turn, or is not any more."""
        self.requests += change
        self.opened += 0 if whole else change
        self._prefetch.requests += change
        self._room.set()

    async def _fill(self) -> None:
        try:
            async with aclosing(self._items) as items:
                async for item, source in items:
                    read = None if source is None else WindowRead(self, self._prefetch.budget, source)
                    while not self._admits(read):
                        self._room.clear()
                        await self._room.wait()
                    if read is not None:
                        self.ahead += read.length
                    self._coming.append((item, read))
                    self._starved = False
                    self._arrived.set()
        finally:
            self._arrived.set()

    def _admits(self, read: "WindowRead | None") -> bool:
        """Whether the next item may come into the window now; ``read`` is begun then if that is allowed.

        It has to come where nothing else does.
        """
        if len(self._coming) >= self._prefetch.limits.items:
            return False
        return read is None or self._begins(read) or self._starved

    def _begins(self, read: "WindowRead") -> bool:
        prefetch = self._prefetch
        if not read.length:
            return True
        if self.requests >= prefetch.share_requests or prefetch.requests >= prefetch.limits.all_requests:
            return False
        if read.length > prefetch.limits.small_bytes:
            if self.ahead >= prefetch.share_bytes or self.opened >= prefetch.limits.opened:
                return False
            read.open_ahead()
            return True
        return self.ahead + read.length <= prefetch.share_bytes and read.fetch_whole()


class WindowRead:
    """One read of a window. What fails ahead of its turn is raised at its turn; errors are those of `BlobRead`."""

    __slots__ = ("_budget", "_given", "_held", "_is_ahead", "_read", "_task", "_unsent", "_whole", "_window", "length")

    def __init__(self, window: "Window[_Item]", budget: ByteBudget, read: BlobRead) -> None:
        """Made by its window."""
        self._window = window
        self._budget = budget
        self._read = read
        self._task: asyncio.Task[bytes | None] | None = None
        self._whole = False
        self._is_ahead = False
        self._held = 0
        self._given = 0
        self.length = self._unsent = read.length

    @property
    def task(self) -> "asyncio.Task[bytes | None] | None":
        """What is done ahead, if anything is."""
        return self._task

    async def open(self) -> None:
        """Wait until the source is open, or all of a small read here."""
        if self._task is None:
            await self._read.open()
        else:
            await self._task

    async def read(self) -> Chunk:
        """The next bytes, valid until the next call; empty when all of them have been given."""
        if self._given:
            self._sent(self._given)
            self._given = 0
        if self._whole:
            assert self._task is not None
            chunk: Chunk = (await self._task or b"") if self._unsent else b""
        else:
            if self._task is not None:
                await self._task
                self._task = None
            chunk = await self._read.read()
        self._given = len(chunk)
        return chunk

    def fetch_whole(self) -> bool:
        """Begin to fetch all of it, if the budget has as much."""
        if not self._budget.take(self.length):
            return False
        self._held = self.length
        self._whole = True
        self._begin(asyncio.create_task(self._read.content()))
        return True

    def open_ahead(self) -> None:
        """Begin to open it: its first bytes wait where the source is read."""
        self._begin(asyncio.create_task(self._read.open()))

    def turn(self) -> None:
        """It is what is being sent now: no request ahead any more, unless it is still being fetched."""
        if not self._whole:
            self._not_ahead()

    async def leave(self) -> None:
        """End it, whether it was read to its end or not."""
        if self._whole and not self._unsent:
            return
        try:
            if self._task is not None:
                await cancel_and_wait(self._task)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Give back what it holds. Returns at once; its task is ended by whoever has it."""
        self._not_ahead()
        self._sent(self._unsent)
        await self._read.aclose()

    def _begin(self, task: "asyncio.Task[bytes | None]") -> None:
        self._task = task
        self._is_ahead = True
        self._window.counted(+1, whole=self._whole)
        if self._whole:
            task.add_done_callback(self._not_ahead)

    def _not_ahead(self, _: object = None) -> None:
        if self._is_ahead:
            self._is_ahead = False
            self._window.counted(-1, whole=self._whole)

    def _sent(self, count: int) -> None:
        self._unsent -= count
        self._window.sent(count)
        if not self._unsent and self._held:
            self._budget.give(self._held)
            self._held = 0
