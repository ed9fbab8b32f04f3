"""The life of a serving process: start, serve until a signal, drain, end.

The law: SIGTERM turns readiness false, then stops accepting, then lets what runs finish for a bounded time; the
process ends with 0.
"""

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health

_log = logging.getLogger(__name__)


class AddressTaken(Exception):
    """A listener could not have its address."""


async def serve_until_signal(
    listeners: Sequence[Listener], *, health: Health, drain_seconds: float, operations: Listener | None = None
) -> None:
    """Run ``listeners`` until SIGTERM or SIGINT, then drain; ``operations`` answers until the end.

    A second signal ends the drain at once. Raises `AddressTaken`.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, signals.put_nowait, each)
    async with AsyncExitStack() as stack:
        for listener in (*([operations] if operations else []), *listeners):
            stack.push_async_callback(listener.aclose)
            await _start(listener)
        health.started()
        received = await signals.get()
        health.draining()
        _log.info("draining", extra={"signal": received.name, "seconds": drain_seconds})
        await _drain(listeners, drain_seconds, signals)
    _log.info("stopped")


async def _start(listener: Listener) -> None:
    try:
        await listener.start()
    except OSError as error:
        raise AddressTaken(f"{listener.name}: {error.strerror or error}") from error


async def _drain(listeners: Sequence[Listener], seconds: float, signals: asyncio.Queue[signal.Signals]) -> None:
    drained = asyncio.ensure_future(asyncio.gather(*(listener.drain(seconds) for listener in listeners)))
    again = asyncio.create_task(signals.get())
    both: list[asyncio.Future[Any]] = [drained, again]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not again.cancel():  # it is done: a second signal came
        for listener in listeners:
            listener.in_flight.cancel_all()
    cut = sum(await drained)
    if cut:
        _log.warning("downloads were cut", extra={"count": cut})
