"""Bodies that arrive in chunks, break off, or wait for the test; and what uploads leave behind."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass


class Gone(Exception):
    """The client went away in the middle of its body."""


async def chunks(content: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes | memoryview]:
    for start in range(0, len(content), size):
        yield memoryview(content)[start : start + size]


async def cut(content: bytes, after: int, size: int = 64 * 1024) -> AsyncIterator[bytes | memoryview]:
    """The first ``after`` bytes, and then an exception."""
    async for chunk in chunks(content[:after], size):
        yield chunk
    raise Gone


@dataclass
class Held:
    """A body that stops after ``after`` bytes until the test says ``release``; ``reached`` is set there."""

    content: bytes
    after: int

    def __post_init__(self) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in chunks(self.content[: self.after]):
            yield chunk
        self.reached.set()
        await self.release.wait()
        async for chunk in chunks(self.content[self.after :]):
            yield chunk


def content_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 20.0) -> None:
    """Ask again and again, for lack of anything that would tell."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)
