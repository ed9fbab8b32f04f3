"""The bytes of a response: a blob, or a slice of a planned archive whose next entries are fetched meanwhile.

The law: what can be told before the headers is told, and a body that ends cleanly is right.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from storage_proxy.common.errors import BlobChanged, BlobNotFound
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET
from storage_proxy.downloads.manifests import OpenedArchive
from storage_proxy.downloads.prefetch import Prefetch, WindowRead
from storage_proxy.downloads.sources import BlobRead, Chunk, Heal, Pin, Sources
from storage_proxy.formats.entries import Entry
from storage_proxy.formats.layout import Framing, Section, SourceRange

_JOINED_BYTES = 64 << 10
"""Small pieces are joined to as much: each write costs, and each client holds what is written and not sent."""

_BLOCKS_AHEAD = 2
"""Blocks of a plan that a download may use at once: the one being sent, and the one that the window looks into."""

_MAX_FRAMING_BYTES = 8 << 20


@dataclass(slots=True)
class Progress:
    """How far a body is: ``has_content`` once a blob has been opened for it, ``begun`` once its headers may be sent."""

    has_content: bool = False
    begun: bool = False

    def heals(self, *, is_first: bool) -> Heal:
        """Whether a failure to open may be waited out: that of the first blob is told while the headers wait for it."""
        return lambda: self.begun or not is_first


class Body:
    """The bytes of one response, begun before its headers are sent."""

    def __init__(self, make: Callable[[Progress], AsyncGenerator[Chunk, None]]) -> None:
        """``make`` gives the chunks and keeps the progress it is given."""
        self._progress = Progress()
        self._chunks = make(self._progress)
        self._first: deque[Chunk] = deque()

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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        return self._first.popleft() if self._first else await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chunks.aclose()


async def blob_bytes(
    sources: Sources, pin: Pin, crc: int | None, start: int, stop: int, progress: Progress
) -> AsyncGenerator[Chunk, None]:
    """Bytes ``start`` to ``stop`` of a blob. Raises as `BlobRead`."""
    read = sources.read(pin, start, stop, crc=crc, heal=progress.heals(is_first=True))
    try:
        while chunk := await read.read():
            progress.has_content = True
            yield chunk
    finally:
        await read.aclose()


class _OwnText(NamedTuple):
    """Bytes ``start`` to ``stop`` of the archive's own text."""

    start: int
    stop: int


class _BlockEnd(NamedTuple):
    """All of a block has been sent."""


_Item = Framing | SourceRange | _OwnText | _BlockEnd


class ArchiveBody:
    """A slice of a planned archive. CRC-32s that the plan lacks are learned on the way to where they are needed.

    ``remembered`` has them by the entries' index when all were learned before; any slice can be streamed then.
    ``learn`` is told what this body learns.
    """

    def __init__(
        self,
        archive: OpenedArchive,
        sources: Sources,
        prefetch: Prefetch,
        progress: Progress,
        *,
        remembered: Sequence[int] | None = None,
        learn: Callable[[Pin, int], None] | None = None,
    ) -> None:
        self._archive = archive
        self._sources = sources
        self._prefetch = prefetch
        self._progress = progress
        self._remembered = remembered
        self._learn = learn
        self._learned: dict[int, int] = {}
        self._blocks = asyncio.Semaphore(_BLOCKS_AHEAD)

    async def chunks(self, start: int, stop: int) -> AsyncGenerator[Chunk, None]:
        """Bytes ``start`` to ``stop``; small pieces are joined, but what the headers wait for is given out at once.

        Raises `BlobChanged` for an entry whose version is gone, and as `BlobRead`.
        """
        joined = _Joined()
        async with self._prefetch.window(self._items(start, stop)) as window:
            while (found := await window.next()) is not None:
                item, read = found
                if isinstance(item, Framing):
                    for chunk in joined.add(item.render()):
                        yield chunk
                    if item.length >= _JOINED_BYTES // 2:
                        await asyncio.sleep(0)  # rendering much takes milliseconds: let others have their turn
                elif isinstance(item, _OwnText):
                    position, heal = item.start, self._progress.heals(is_first=True)
                    while position < item.stop:
                        text = await self._archive.own_text(position, item.stop, heal=heal)
                        position += len(text)
                        for chunk in joined.add(text, at_once=self._first_content()):
                            yield chunk
                elif read is not None:
                    while piece := await next_of_entry(read):
                        for chunk in joined.add(piece, at_once=self._first_content()):
                            yield chunk
                else:
                    self._blocks.release()
        for chunk in joined.flush():
            yield chunk

    def _first_content(self) -> bool:
        self._progress.has_content = True
        return not self._progress.begun

    async def _items(self, start: int, stop: int) -> AsyncGenerator[tuple[_Item, BlobRead | None], None]:
        """The segments, each range of a blob with its read. Framing is rendered only at its turn."""
        plan = self._archive.head.plan
        is_first = True
        for section, index, begin, end in plan.parts(start, stop):
            if section is Section.END:
                yield Framing(end - begin, partial(_slice, plan.end_records, begin, end)), None
                continue
            await self._blocks.acquire()
            block = await self._archive.block(index, heal=self._progress.heals(is_first=is_first))
            slice_of = block.local_segments if section is Section.LOCAL else block.central_segments
            for segment in slice_of(begin, end, self._crc):
                if isinstance(segment, Framing):
                    yield segment, None
                    continue
                entry = block.block[segment.row]
                if entry.bucket == OWN_TEXT_BUCKET:
                    yield _OwnText(segment.start, segment.stop), None
                else:
                    yield segment, self._read(entry, segment, is_first)
                is_first = False
            yield _BlockEnd(), None

    def _crc(self, index: int) -> int:
        """The CRC-32 of an entry that the plan has none of, whose content was streamed or is remembered."""
        return self._learned[index] if self._remembered is None else self._remembered[index]

    def _read(self, entry: Entry, segment: SourceRange, is_first: bool) -> BlobRead:
        """The read of an entry's bytes."""
        pin, expected = Pin.of(entry), entry.crc32
        if expected is None and self._remembered is not None:
            expected = self._remembered[segment.entry]

        def learned(crc: int) -> None:
            if self._archive.head.plan.unknown_crcs:  # else no byte of the archive depends on it
                self._learned[segment.entry] = crc
            if self._learn is not None:
                self._learn(pin, crc)

        heal = self._progress.heals(is_first=is_first)
        return self._sources.read(pin, segment.start, segment.stop, crc=expected, learned=learned, heal=heal)


def _slice(render: Callable[[], bytes], begin: int, end: int) -> bytes:
    return render()[begin:end]


async def next_of_entry(read: WindowRead) -> Chunk:
    """As `WindowRead.read`, of an entry: an archive pins its blobs, so one that is gone has changed."""
    try:
        return await read.read()
    except BlobNotFound as error:
        raise BlobChanged from error


class _Joined:
    """Joins small pieces; larger ones pass as they are."""

    def __init__(self) -> None:
        self._pieces: list[Chunk] = []
        self._length = 0

    def add(self, piece: Chunk, *, at_once: bool = False) -> Sequence[Chunk]:
        """What is to be given out now that ``piece`` has come, all that there is where ``at_once``.

        What is kept of a memoryview is a copy.
        """
        length = len(piece)
        if length >= _JOINED_BYTES // 4 and (at_once or self._length + length > _JOINED_BYTES):
            return (*self.flush(), piece)
        ready = self.flush() if self._length + length > _JOINED_BYTES else ()
        self._pieces.append(piece if isinstance(piece, bytes) else bytes(piece))
        self._length += length
        return (*ready, *self.flush()) if at_once else ready

    def flush(self) -> Sequence[Chunk]:
        """What is kept."""
        if not self._pieces:
            return ()
        joined = b"".join(self._pieces)
        self._pieces.clear()
        self._length = 0
        return (joined,)
