"""The bytes of a zip with deflated entries: compressed while they pass, off the event loop, their length unknown.

The law: an entry is compared with its CRC-32 before its end is given out, and nothing is compressed or kept ahead of
what the client has taken, nor read but for the download's window.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import TypeVar

from storage_proxy.common.errors import StorageError
from storage_proxy.downloads.bodies import Progress, next_of_entry
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET
from storage_proxy.downloads.manifests import OpenedArchive
from storage_proxy.downloads.prefetch import Prefetch, WindowRead
from storage_proxy.downloads.sources import BlobRead, Chunk, Pin, Sources
from storage_proxy.formats.deflated_zip import DeflatedEntry, DeflatedZip
from storage_proxy.formats.entries import Entry

_SLICE_BYTES = 128 << 10
"""What one download may compress before another has its turn: a few milliseconds of a thread."""
_COALESCED_BYTES = 64 << 10
_FOOTER_RECORDS = 500

_Result = TypeVar("_Result")


def deflated_etag(etag: str) -> str:
    """The ETag of an archive's deflated form: weak, because another version of zlib may compress to other bytes.

    So it answers If-None-Match, and never vouches for a part of the whole (RFC 9110 section 8.8.1).
    """
    return f'W/"{sha256(f"deflated 1 {etag}".encode()).hexdigest()[:32]}"'


class DeflateThreads:
    """The threads that compress, for all downloads of a process; work comes in turn."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deflate")

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """``work()`` in a thread. When this ends, by cancellation too, the thread has let go of it."""
        submitted = self._pool.submit(work)
        done = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not submitted.cancel():
                await _settled(done)
            raise

    def close(self) -> None:
        """Give the threads back, after what they are doing."""
        self._pool.shutdown(cancel_futures=True)


class DeflatedBody:
    """A planned zip, deflated. ``learn`` is told the CRC-32s that the plan does not know."""

    def __init__(
        self,
        archive: OpenedArchive,
        sources: Sources,
        prefetch: Prefetch,
        progress: Progress,
        threads: DeflateThreads,
        *,
        learn: Callable[[Pin, int], None],
    ) -> None:
        self._archive = archive
        self._sources = sources
        self._prefetch = prefetch
        self._progress = progress
        self._threads = threads
        self._learn = learn

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """All of it; small pieces are joined.

        Raises `BlobChanged` for an entry whose version is gone, `StorageError` for one that contradicts its CRC-32,
        and as `BlobRead`.
        """
        pending = bytearray()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                pending += piece
                opened = self._progress.has_content and not self._progress.begun
                if pending and (opened or len(pending) >= _COALESCED_BYTES):
                    yield bytes(pending)
                    pending.clear()
        if pending:
            yield bytes(pending)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        made = DeflatedZip()
        async with self._prefetch.window(self._entries()) as window:
            while (found := await window.next()) is not None:
                entry, read = found
                with closing(made.entry(entry)) as deflated:
                    content = self._own_text(entry) if read is None else _content_of(read)
                    async with aclosing(self._deflated(entry, deflated, content)) as pieces:
                        async for piece in pieces:
                            yield piece
        records = made.footer()
        while piece := await self._threads.run(lambda: b"".join(islice(records, _FOOTER_RECORDS))):
            yield piece

    async def _entries(self) -> AsyncGenerator[tuple[Entry, BlobRead | None], None]:
        """The entries, each with the read of its blob; what is the archive's own has none."""
        is_first = True
        for index in range(self._archive.head.blocks):
            block = (await self._archive.block(index, heal=self._progress.heals(is_first=is_first))).block
            for row in range(len(block)):
                entry = block[row]
                if entry.bucket == OWN_TEXT_BUCKET or not entry.size:
                    yield entry, None
                    continue
                yield entry, self._read(entry, is_first)
                is_first = False

    def _read(self, entry: Entry, is_first: bool) -> BlobRead:
        pin, heal = Pin.of(entry), self._progress.heals(is_first=is_first)
        return self._sources.read(
            pin, 0, entry.size, crc=entry.crc32, learned=lambda crc: self._learn(pin, crc), heal=heal
        )

    async def _deflated(
        self, entry: Entry, deflated: DeflatedEntry, content: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[bytes, None]:
        position, end = 0, b""
        async with aclosing(content) as chunks:
            async for chunk in chunks:
                self._progress.has_content = True
                for start in range(0, len(chunk), _SLICE_BYTES):
                    part = memoryview(chunk)[start : start + _SLICE_BYTES]
                    position += len(part)
                    if position < entry.size:
                        yield await self._threads.run(partial(deflated.feed, part))
                    else:
                        end = await self._threads.run(partial(_last, deflated, part))
        if not entry.size:
            end = deflated.finish()
        if position != entry.size or entry.crc32 not in (None, deflated.crc32):
            raise StorageError("An entry is not what was to be compressed")
        yield end

    async def _own_text(self, entry: Entry) -> AsyncGenerator[Chunk, None]:
        position = 0
        while position < entry.size:
            text = await self._archive.own_text(position, entry.size, heal=self._progress.heals(is_first=True))
            position += len(text)
            yield text


async def _content_of(read: WindowRead) -> AsyncGenerator[Chunk, None]:
    while chunk := await next_of_entry(read):
        yield chunk


def _last(deflated: DeflatedEntry, content: memoryview) -> bytes:
    return deflated.feed(content) + deflated.finish()


async def _settled(done: "asyncio.Future[_Result]") -> None:
    """Wait until ``done`` is done, whatever else happens meanwhile: a thread is at it for milliseconds."""
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            continue
    if not done.cancelled():
        done.exception()  # seen, so nobody reports it
