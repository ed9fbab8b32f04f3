"""The way back from a thread of the SQLite engine: the answers for all who wait, in one hop to their event loop.

The law: who has stopped waiting is passed over, and a loop that has been closed is not an error of the thread.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

Answer = tuple["asyncio.Future[Any]", Any, Exception | None]
"""Who waits, and the result or the error."""


def deliver(answers: Sequence[Answer]) -> None:
    """Called in any thread."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_loop[answer[0].get_loop()].append(answer)
    for loop, given in by_loop.items():
        with suppress(RuntimeError):  # it is closed: nobody waits
            loop.call_soon_threadsafe(settle, given)


def settle(answers: Sequence[Answer]) -> None:
    """Called in the event loop."""
    for waiting, result, error in answers:
        if waiting.done():  # cancelled
            continue
        if error is None:
            waiting.set_result(result)
        else:
            waiting.set_exception(error)
