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


async def serve_until_signal(
    listeners: Sequence[Listener],
    *,
    health: Health,
    drain_seconds: float,
    unready_seconds: float = 0.0,
    operations: Listener | None = None,
    work: Sequence[AbstractAsyncContextManager[None]] = (),
) -> None:
    """Run ``listeners`` until SIGTERM or SIGINT, then drain; ``operations`` answers until the end.

    ``work`` goes on beside them: entered once they listen, left at the signal.

    For ``unready_seconds`` after the signal connections are still accepted, so that balancers can learn that this
    process is not ready any more. A second signal ends the drain at once. Raises `AddressTaken`.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, signals.put_nowait, each)
    async with AsyncExitStack() as stack:
        for listener in (*([operations] if operations else []), *listeners):
            stack.push_async_callback(listener.aclose)
            await _start(listener)
        async with AsyncExitStack() as working:
            gc.freeze()  # what is there by now stays: looking through it again and again takes 30 ms each time
            for each_work in work:
                await working.enter_async_context(each_work)
            health.started()
            received = await signals.get()
            health.draining()
            _log.info("draining", extra={"signal": received.name, "seconds": drain_seconds})
        await _drain(listeners, unready_seconds, drain_seconds, signals)
    _log.info("stopped")


async def _start(listener: Listener) -> None:
    try:
        await listener.start()
    except OSError as error:
        raise AddressTaken(f"{listener.name}: {error.strerror or error}") from error


async def _drain(
    listeners: Sequence[Listener], unready_seconds: float, seconds: float, signals: asyncio.Queue[signal.Signals]
) -> None:
    async def drain() -> int:
        await asyncio.sleep(unready_seconds)
        return sum(await asyncio.gather(*(listener.drain(seconds) for listener in listeners)))

    drained = asyncio.create_task(drain())
    again = asyncio.create_task(signals.get())
    both: list[asyncio.Future[Any]] = [drained, again]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if again.cancel():
        cut = await drained
    else:  # it is done: a second signal came
        drained.cancel()
        cut = sum([await listener.drain(0) for listener in listeners])
    if cut:
        _log.warning("downloads were cut", extra={"count": cut})
