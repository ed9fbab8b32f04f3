"""The life of a serving process: start, serve until a signal, drain, end.

The law: SIGTERM turns readiness false, then stops accepting, then lets what runs finish for a bounded time; the
process ends with 0.
"""

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health

_log = logging.getLogger(__name__)


class AddressTaken(Exception):
    """A listener could not have its address."""


class Life:
    """What happens to a process once: it has started, it is to stop, it is to stop at once."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.stopping = asyncio.Event()
        self.ending = asyncio.Event()
        self.cause = ""
        """What began the drain, for the log."""

    def stop(self, cause: str) -> None:
        """Begin the drain, if it has not begun."""
        self.cause = self.cause or cause
        self.stopping.set()

    def stop_at_once(self, cause: str) -> None:
        """Do not wait for what runs, or not any longer."""
        self.stop(cause)
        self.ending.set()

    def obey_signals(self) -> None:
        """SIGTERM and SIGINT begin the drain, the second of them ends it."""

        def received(number: signal.Signals) -> None:
            (self.stop_at_once if self.stopping.is_set() else self.stop)(number.name)

        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, received, each)


async def serve_until_signal(
    listeners: Sequence[Listener],
    *,
    health: Health,
    drain_seconds: float,
    unready_seconds: float = 0.0,
    operations: Listener | None = None,
    work: Sequence[AbstractAsyncContextManager[None]] = (),
    life: Life | None = None,
) -> None:
    """Run ``listeners`` until SIGTERM or SIGINT, then drain; ``operations`` answers until the end.

    ``work`` goes on beside them: entered once they listen, left at the signal.

    For ``unready_seconds`` after the signal connections are still accepted, so that balancers can learn that this
    process is not ready any more. A second signal ends the drain at once. With ``life`` others decide about that, and
    signals are theirs. Raises `AddressTaken`.
    """
    if life is None:
        life = Life()
        life.obey_signals()
    async with AsyncExitStack() as stack:
        for listener in (*([operations] if operations else []), *listeners):
            stack.push_async_callback(listener.aclose)
            await start_listener(listener)
        async with AsyncExitStack() as working:
            gc.freeze()  # what is there by now stays: looking through it again and again takes 30 ms each time
            for each_work in work:
                await working.enter_async_context(each_work)
            health.started()
            life.started.set()
            await life.stopping.wait()
            health.draining()
            _log.info("draining", extra={"cause": life.cause, "seconds": drain_seconds})
        await _drain(listeners, unready_seconds, drain_seconds, life)
    _log.info("stopped")


async def start_listener(listener: Listener) -> None:
    """Listen. Raises `AddressTaken`."""
    try:
        await listener.start()
    except OSError as error:
        raise AddressTaken(f"{listener.name}: {error.strerror or error}") from error


async def _drain(listeners: Sequence[Listener], unready_seconds: float, seconds: float, life: Life) -> None:
    async def drain() -> int:
        await asyncio.sleep(unready_seconds)
        return sum(await asyncio.gather(*(listener.drain(seconds) for listener in listeners)))

    drained = asyncio.create_task(drain())
    ending = asyncio.create_task(life.ending.wait())
    both: list[asyncio.Future[Any]] = [drained, ending]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if ending.cancel():
        cut = await drained
    else:  # it is done: there is no more time
        drained.cancel()
        cut = sum([await listener.drain(0) for listener in listeners])
    if cut:
        _log.warning("downloads were cut", extra={"count": cut})
