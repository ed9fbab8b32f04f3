"""When to look at the bus file again: at once after this process has written, within the poll after another has.

The law: whoever listens before looking misses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from storage_proxy.bus.embedded_worker import Worker
from storage_proxy.common.errors import BusUnavailable

_UPKEEP_SECONDS = 60.0


class Watch:
    """Tells all who wait of every change. The file is polled while anyone is `polling`; so is ``upkeep`` done then."""

    def __init__(self, worker: Worker, *, poll_seconds: float, upkeep: Callable[[], Awaitable[None]]) -> None:
        self._worker = worker
        self._poll_seconds = poll_seconds
        self._upkeep = upkeep
        self._next = asyncio.Event()
        self._users = 0
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self) -> asyncio.Event:
        """Set by the first change from now on."""
        return self._next

    def ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    async def change(self, heard: asyncio.Event, *, seconds: float) -> None:
        """Wait until ``heard`` is set, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await heard.wait()

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        self._users += 1
        if self._users == 1:
            self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._keep_up())]
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                tasks, self._tasks = self._tasks, []
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _poll(self) -> None:
        seen: int | None = None
        while True:
            with suppress(BusUnavailable):  # whoever waits for the file says so
                found = await self._worker.changes()
                if found != seen:
                    seen = found
                    self.ring()
            await asyncio.sleep(self._poll_seconds)

    async def _keep_up(self) -> None:
        while True:
            with suppress(BusUnavailable):
                await self._upkeep()
            await asyncio.sleep(_UPKEEP_SECONDS)
