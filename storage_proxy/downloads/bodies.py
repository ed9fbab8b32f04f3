"""The bytes of a response: a blob, or a slice of a planned archive, checked while they pass.

The law: an entry that is streamed whole is compared with its CRC-32 before its last bytes are given out, so a body
that ends cleanly is right.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

from isal.isal_zlib import crc32

from storage_proxy.common.errors import BlobChanged, BlobNotFound, StorageError
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET
from storage_proxy.downloads.manifests import PlannedZip
from storage_proxy.downloads.sources import Chunk, Pin, Sources
from storage_proxy.formats.archives import ArchiveBlock
from storage_proxy.formats.layout import Framing, Section

_COALESCED_BYTES = 64 << 10

_MAX_FRAMING_BYTES = 8 << 20


@dataclass(slots=True)
class Progress:
    """How far a body is: ``has_content`` once a blob has been opened for it, ``begun`` once its headers may be sent."""

    has_content: bool = False
    begun: bool = False


class Body:
    """The bytes of one response, begun before its headers are sent."""

    def __init__(self, make: Callable[[Progress], AsyncGenerator[Chunk, None]]) -> None:
        """``make`` gives the chunks and keeps the progress it is given."""
        self._progress = Progress()
        self._chunks = make(self._progress)
        self._first: list[Chunk] = []

    async def begin(self) -> None:
        """Open the first blob that the body needs; what fails here can still be told. A later failure has to abort.

        Framing before it is held back, up to 8 MiB.
        """
        held = 0
        while not self._progress.has_content and held < _MAX_FRAMING_BYTES:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            self._first.append(chunk)
            held += len(chunk)
        self._progress.begun = True

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for chunk in self._first:
            yield chunk
        self._first.clear()
        async for chunk in self._chunks:
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chunks.aclose()


async def blob_bytes(
    sources: Sources, pin: Pin, crc: int | None, start: int, stop: int, progress: Progress
) -> AsyncGenerator[Chunk, None]:
    """Bytes ``start`` to ``stop`` of a blob."""
    read = sources.read(pin, start, stop, heal=lambda: progress.begun)
    async with aclosing(_checked(read, pin.size, crc, start)) as chunks:
        async for chunk in chunks:
            progress.has_content = True
            yield chunk


class ArchiveBody:
    """A slice of a planned archive. CRC-32s that the plan lacks are learned on the way to where they are needed.

    ``remembered`` has them by the entries' index when all were learned before; any slice can be streamed then.
    ``learn`` is told what this body learns.
    """

    def __init__(
        self,
        archive: PlannedZip,
        sources: Sources,
        progress: Progress,
        *,
        remembered: Sequence[int] | None = None,
        learn: Callable[[Pin, int], None] | None = None,
    ) -> None:
        self._archive = archive
        self._sources = sources
        self._progress = progress
        self._remembered = remembered
        self._learn = learn
        self._learned: dict[int, int] = {}

    async def chunks(self, start: int, stop: int) -> AsyncGenerator[Chunk, None]:
        """Bytes ``start`` to ``stop``; small pieces are joined.

        Raises `BlobChanged` for an entry whose version is gone, and as `Sources.read`.
        """
        pending = bytearray()
        async with aclosing(self._pieces(start, stop)) as pieces:
            async for piece in pieces:
                if len(pending) + len(piece) <= _COALESCED_BYTES:
                    pending += piece
                    continue
                if pending:
                    yield bytes(pending)
                    pending.clear()
                if len(piece) < _COALESCED_BYTES // 4:
                    pending += piece
                else:
                    yield piece
        if pending:
            yield bytes(pending)

    async def _pieces(self, start: int, stop: int) -> AsyncGenerator[Chunk, None]:
        plan = self._archive.head.plan
        for section, index, begin, end in plan.parts(start, stop):
            if section is Section.END:
                yield plan.end_records()[begin:end]
                continue
            block = await self._archive.block(index)
            slice_of = block.local_segments if section is Section.LOCAL else block.central_segments
            for segment in slice_of(begin, end, self._crc):
                if isinstance(segment, Framing):
                    yield segment.render()
                    if segment.length >= _COALESCED_BYTES // 2:
                        await asyncio.sleep(0)  # rendering much takes milliseconds: let others have their turn
                    continue
                async with aclosing(self._content(block, *segment)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    def _crc(self, index: int) -> int:
        """The CRC-32 of an entry that the plan has none of, whose content was streamed or is remembered."""
        return self._learned[index] if self._remembered is None else self._remembered[index]

    async def _content(
        self, block: ArchiveBlock, index: int, row: int, start: int, stop: int
    ) -> AsyncGenerator[Chunk, None]:
        entry = block.block[row]
        if entry.bucket == OWN_TEXT_BUCKET:
            while start < stop:
                text = await self._archive.own_text(start, stop)
                start += len(text)
                self._progress.has_content = True
                yield text
            return
        pin, expected = Pin.of(entry), entry.crc32
        if expected is None and self._remembered is not None:
            expected = self._remembered[index]

        def learned(crc: int) -> None:
            self._learned[index] = crc
            if self._learn is not None:
                self._learn(pin, crc)

        read = self._sources.read(pin, start, stop, heal=lambda: self._progress.begun)
        try:
            async with aclosing(_checked(read, entry.size, expected, start, learned)) as chunks:
                async for chunk in chunks:
                    self._progress.has_content = True
                    yield chunk
        except BlobNotFound as error:
            raise BlobChanged from error


async def _checked(
    read: AsyncGenerator[Chunk, None],
    size: int,
    expected: int | None,
    start: int,
    learned: Callable[[int], None] | None = None,
) -> AsyncGenerator[Chunk, None]:
    """The chunks of ``read``; one that is whole is compared with ``expected``, or ``learned`` is told its CRC-32."""
    position, crc = 0, 0
    async with aclosing(read):
        async for chunk in read:
            if start == 0:
                crc = crc32(chunk, crc)
                position += len(chunk)
                if position == size:
                    if expected is not None and crc != expected:
                        raise StorageError("A blob's content contradicts its CRC-32")
                    if expected is None and learned is not None:
                        learned(crc)
            yield chunk
