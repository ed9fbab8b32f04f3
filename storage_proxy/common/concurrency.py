"""Work side by side with a bound, results in order; the end of tasks; and whose cancellation one is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


async def map_bounded(
    limit: int, function: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item]
) -> list[_Result]:
    """``[await function(item) for item in items]`` with at most ``limit`` under way.

    The first failure cancels the rest and is raised as it is.
    """
    results: dict[int, _Result] = {}
    queue = iter(enumerate(items))

    async def work() -> None:
        for index, item in queue:
            results[index] = await function(item)

    workers = [asyncio.create_task(work()) for _ in range(limit)]
    try:
        await asyncio.gather(*workers)
    finally:
        await cancel_and_wait(*workers)
    return [results[index] for index in range(len(results))]


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until all have ended. What they raise is nobody's concern any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Interrupted(RuntimeError):
    """Something that a task waited for was cancelled, and not the task."""


@contextmanager
def only_own_cancellation() -> Iterator[None]:
    """Raise `Interrupted` for a `CancelledError` that nobody meant for the current task.

    A future or a task of a library's tells by the same exception that it was cancelled. What has to go on for ever
    would end by it, silently.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Interrupted from error
