"""Work that goes on beside the listeners for as long as the process lives.

The law: a loop that fails is begun again after a pause that grows with each failure, never given up; leaving cancels
it and waits for its end.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from storage_proxy.common.concurrency import cancel_and_wait, only_own_cancellation
from storage_proxy.common.errors import ServiceError
from storage_proxy.common.pauses import PausePolicy, Pauses

_log = logging.getLogger(__name__)

Loop = Callable[[], Awaitable[None]]
"""Runs until it is cancelled."""

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0


@asynccontextmanager
async def in_background(loops: Mapping[str, Loop]) -> AsyncIterator[None]:
    """Run ``loops`` (name -> loop) while entered."""
    tasks = [asyncio.create_task(_forever(name, loop), name=name) for name, loop in loops.items()]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)


class Restarts:
    """The pauses before what ended is begun again: growing, and short again after it went well for a minute."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._pauses = Pauses(PausePolicy(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS), random.SystemRandom())
        self._began = 0.0

    def begins(self) -> None:
        """It is begun now."""
        self._began = self._clock()

    def pause(self) -> float:
        """It has ended now: the seconds to wait."""
        if self._clock() - self._began > _HEALTHY_SECONDS:
            self._pauses.reset()
        return self._pauses.next()


async def _forever(name: str, loop: Loop) -> None:
    restarts = Restarts()
    while True:
        restarts.begins()
        try:
            with only_own_cancellation():
                await loop()
        except ServiceError as error:
            _log.warning("a loop waits", extra={"loop": name, "code": error.code, "reason": error.detail})
        except Exception:  # noqa: BLE001 whatever it is, the work must go on
            _log.exception("a loop failed", extra={"loop": name})
        await asyncio.sleep(restarts.pause())
