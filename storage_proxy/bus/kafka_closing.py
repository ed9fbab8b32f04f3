"""Clients that are being closed: what waits for a bus that may be away, bounded."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Closing:
    """Closes clients, for ``seconds`` each at most in the way of whoever waits, and goes on behind them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def later(self, closing: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Close, and let nobody wait."""
        task = asyncio.create_task(self._close(closing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def now(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close, and wait for it as long as that is bearable."""
        await asyncio.wait({self.later(closing)}, timeout=self._seconds)

    async def aclose(self) -> None:
        """Wait for all, then give up on what still hangs."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @staticmethod
    async def _close(closing: Coroutine[Any, Any, None]) -> None:
        try:
            await closing
        except Exception:  # noqa: BLE001 it is of no use any more
            _log.warning("a Kafka client did not close well", exc_info=True)
