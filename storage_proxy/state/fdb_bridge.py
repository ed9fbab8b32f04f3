"""FoundationDB's futures awaited in asyncio, without a thread for each and without the binding's own event model.

The law: the loop never blocks on a future; a cancelled wait cancels the future; a loop that has been closed is not an
error of the network thread; and whoever waits keeps the future's transaction referenced, as a dropped transaction
cancels its futures (error 1025).
"""

import asyncio
from typing import Any, Protocol


class NativeFuture(Protocol):
    """What is used of `fdb.Future`."""

    def is_ready(self) -> bool: ...

    def on_ready(self, callback: Any, /) -> None: ...

    def wait(self) -> Any: ...

    def cancel(self) -> None: ...


async def outcome(future: NativeFuture) -> Any:
    """What ``future.wait()`` returns or raises, once it does so at once.

    For a value this is the lazy value itself, ready: look at its ``value``, which is None where the key is absent.
    """
    if not future.is_ready():
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def on_ready(_: NativeFuture) -> None:  # in the network thread, or at once in this one
            try:
                loop.call_soon_threadsafe(_wake, woken)
            except RuntimeError:  # the loop is closed: nobody waits
                return

        future.on_ready(on_ready)
        try:
            await woken
        except asyncio.CancelledError:
            future.cancel()
            raise
    return future.wait()


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
