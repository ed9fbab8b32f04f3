"""A body on its way into a bucket: cut into pieces, counted, summed, and held to what was announced of it.

The law: the pieces end without an error only when the size and the CRC-32 are those of the terms.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from isal import isal_zlib

from storage_proxy.common.errors import ChecksumMismatch, PayloadTooLarge, SizeMismatch
from storage_proxy.stores.port import UploadTerms

_T = TypeVar("_T")


class IncomingBody:
    """Reads ``body`` once. ``size`` (bytes) and ``crc32`` are those of what was read so far."""

    def __init__(self, body: AsyncIterable[bytes | memoryview], terms: UploadTerms, *, max_bytes: int) -> None:
        self._body = body
        self._terms = terms
        self._max_bytes = max_bytes
        self.size = 0
        self.crc32 = 0

    @property
    def most_bytes(self) -> int:
        """What it can be long, as far as is known before it is read."""
        return self._max_bytes if self._terms.size is None else self._terms.size

    async def pieces(self, size: int) -> AsyncGenerator[bytearray, None]:
        """The body in pieces of ``size`` bytes, the last one shorter but not empty; each is the caller's to keep.

        Raises `PayloadTooLarge`, `SizeMismatch` and `ChecksumMismatch`, as soon as they are known, and what the body
        raises.
        """
        if self._terms.size is not None and self._terms.size > self._max_bytes:
            raise PayloadTooLarge
        piece = bytearray()
        async for chunk in self._body:
            self._count(chunk)
            rest = memoryview(chunk)
            while len(piece) + len(rest) >= size:
                taken = size - len(piece)
                piece += rest[:taken]
                rest = rest[taken:]
                yield piece
                piece = bytearray()
            piece += rest
        self._check_end()
        if piece:
            yield piece

    def _count(self, chunk: bytes | memoryview) -> None:
        self.size += len(chunk)
        if self._terms.size is not None and self.size > self._terms.size:
            raise SizeMismatch
        if self.size > self._max_bytes:
            raise PayloadTooLarge
        self.crc32 = isal_zlib.crc32(chunk, self.crc32)

    def _check_end(self) -> None:
        if self._terms.size not in {None, self.size}:
            raise SizeMismatch
        if self._terms.crc32 not in {None, self.crc32}:
            raise ChecksumMismatch


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end, also in a task that is cancelled, once or again: it is what cleans up.

    Whoever calls this sees to it that ``work`` has a deadline. An exception of it is dropped: another one, or the
    cancellation, is on its way.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def settled(work: Coroutine[Any, Any, _T], undo: Callable[[_T], Coroutine[Any, Any, None]]) -> _T:
    """What ``work`` returns. A cancellation meanwhile waits for that, and ends when it is undone.

    It is for what cannot be told by half: a request whose effect is there or not. ``work`` and ``undo`` have deadlines.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await finish(_undone(task, undo))
        raise


async def _undone(task: "asyncio.Future[_T]", undo: Callable[[_T], Coroutine[Any, Any, None]]) -> None:
    await undo(await task)
