"""How often others have their turn on the event loop while something is done."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


async def turns_beside(work: Awaitable[_T]) -> tuple[int, _T]:
    """The turns of another task while ``work`` is awaited, and its result."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        result = await work
        return turns, result
    finally:
        counting.cancel()
