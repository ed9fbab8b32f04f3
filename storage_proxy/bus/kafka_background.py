"""Work on clients that goes on behind whoever no longer waits for it: connecting, and closing.

The law: what is begun here ends by itself, by the client's own timeouts. aiokafka loses a connection that is being made
when its maker is cancelled, so a maker is left alone instead.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Client(Protocol):
    """One of aiokafka's."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Background:
    """Tasks that are waited for at the end, for ``seconds`` at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What ``work`` returns. It goes on when its caller is cancelled."""
        return await asyncio.shield(self.begin(work))

    @asynccontextmanager
    async def running(self, client: Client) -> AsyncIterator[None]:
        """Start a client, and stop it in the end; after it has started, however it is left."""
        starting = self.begin(client.start())
        try:
            await asyncio.shield(starting)
            yield
        finally:
            await self.closed(_stopped(client, starting))

    def close(self, closing: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Close a client that is of no use any more."""
        return self.begin(_closed(closing))

    async def closed(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close a client, and wait for it as long as that is bearable."""
        await asyncio.wait({self.close(closing)}, timeout=self._seconds)

    async def aclose(self) -> None:
        """Wait for all, then give up on what still hangs."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def begin(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """A task whose failure is nobody's duty to look at."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waited has it too


async def _stopped(client: Client, starting: "asyncio.Task[None]") -> None:
    await asyncio.wait({starting})
    await client.stop()


async def _closed(closing: Coroutine[Any, Any, None]) -> None:
    try:
        await closing
    except Exception:  # noqa: BLE001 it is of no use any more
        _log.warning("a Kafka client did not close well", exc_info=True)
