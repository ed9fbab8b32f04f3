"""The bytes of a response: a blob, or a slice of a planned archive, checked while they pass.

The law: an entry that is streamed whole is compared with its CRC-32 before its last bytes are given out, so a body
that ends cleanly is right.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Self

from isal.isal_zlib import crc32

from storage_proxy.common.errors import BlobChanged, BlobNotFound, StorageError
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET
from storage_proxy.downloads.manifests import PlannedZip
from storage_proxy.downloads.sources import Chunk, Pin, Sources
from storage_proxy.formats.layout import Framing, Section
from storage_proxy.formats.zip_block import ZipBlock

_COALESCED_BYTES = 64 << 10

Heal = Callable[[], bool]


class Body:
    """The bytes of one response, begun before its headers are sent."""

    def __init__(self, make: Callable[[Heal], AsyncGenerator[Chunk, None]]) -> None:
        """``make`` gives the chunks; the function it is given says whether the body has begun."""
        self._chunks = make(self._has_begun)
        self._first: Chunk = b""
        self._begun = False

    async def begin(self) -> None:
        """Get the first bytes; what fails here can still be told. A later failure has to abort."""
        self._first = await anext(self._chunks, b"")
        self._begun = True

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        yield self._first
        async for chunk in self._chunks:
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chunks.aclose()

    def _has_begun(self) -> bool:
        return self._begun


async def blob_bytes(
    sources: Sources, pin: Pin, crc: int | None, start: int, stop: int, heal: Heal
) -> AsyncGenerator[Chunk, None]:
    """Bytes ``start`` to ``stop`` of a blob."""
    learned: dict[int, int] = {}
    async with aclosing(
        _checked(sources.read(pin, start, stop, heal=heal), 0, pin.size, crc, start, learned)
    ) as chunks:
        async for chunk in chunks:
            yield chunk


class ArchiveBody:
    """A slice of a planned zip. CRC-32s that the plan does not know are learned on the way to where they are needed."""

    def __init__(self, archive: PlannedZip, sources: Sources, heal: Heal) -> None:
        self._archive = archive
        self._sources = sources
        self._heal = heal
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
            for segment in slice_of(begin, end, self._learned.__getitem__):
                if isinstance(segment, Framing):
                    yield segment.render()
                    continue
                async with aclosing(self._content(block, *segment)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def _content(
        self, block: ZipBlock, index: int, row: int, start: int, stop: int
    ) -> AsyncGenerator[Chunk, None]:
        entry = block.block[row]
        if entry.bucket == OWN_TEXT_BUCKET:
            while start < stop:
                text = await self._archive.own_text(start, stop)
                start += len(text)
                yield text
            return
        pin = Pin(entry.bucket, entry.key, entry.etag, entry.size)
        read = self._sources.read(pin, start, stop, heal=self._heal)
        try:
            async with aclosing(_checked(read, index, entry.size, entry.crc32, start, self._learned)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except BlobNotFound as error:
            raise BlobChanged from error


async def _checked(
    read: AsyncGenerator[Chunk, None], index: int, size: int, expected: int | None, start: int, learned: dict[int, int]
) -> AsyncGenerator[Chunk, None]:
    """The chunks of ``read``; one that is whole is compared with ``expected``, or its CRC-32 goes to ``learned``."""
    position, crc = 0, 0
    async with aclosing(read):
        async for chunk in read:
            if start == 0:
                crc = crc32(chunk, crc)
                position += len(chunk)
                if position == size:
                    if expected is not None and crc != expected:
                        raise StorageError("A blob's content contradicts its CRC-32")
                    learned[index] = crc
            yield chunk
