"""Where manifests are kept, and archives opened from them: heads and blocks, loaded when needed, checked, cached.

The law: a manifest is written again at each mint, so its age is that of its youngest token; what is read is believed
only after its digest, and a running download waits out a fault of it as of any blob.
"""

import asyncio
from collections.abc import Awaitable, Callable

from storage_proxy.common.errors import BlobChanged, BlobNotFound, StorageError
from storage_proxy.common.names import MANIFESTS_PREFIX
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifest import (
    DAMAGED,
    MAX_HEAD_BYTES,
    PREAMBLE_BYTES,
    Manifest,
    ManifestHead,
    decode_head,
    decode_piece,
    head_length,
)
from storage_proxy.downloads.sources import Heal, Pin, Sources
from storage_proxy.formats.archives import ArchiveBlock
from storage_proxy.formats.entries import EntryBlock

_FIRST_READ_BYTES = 64 << 10

PlanCache = BytesBoundedCache[ManifestHead | ArchiveBlock]
FetchPiece = Callable[[int, Heal], Awaitable[bytes]]


def _at_once() -> bool:
    """Tell a failure at once."""
    return False


class OpenedArchive:
    """An archive that can be streamed: its head, and its blocks as they are needed."""

    def __init__(self, head: ManifestHead, fetch: FetchPiece, cache: PlanCache) -> None:
        """``fetch`` gives a piece's stored bytes; see `Heal`."""
        self.head = head
        self._fetch = fetch
        self._cache = cache

    async def block(self, index: int, *, heal: Heal = _at_once) -> ArchiveBlock:
        """Block ``index``, compiled. Raises `StorageError` when it is damaged, and as the store does."""
        key = (self.head.digest, index)
        cached = self._cache.get(key)
        if cached is not None and not isinstance(cached, ManifestHead):
            return cached
        raw = decode_piece(self.head.pieces[index], await self._fetch(index, heal))
        plan = self.head.plan
        try:
            block = self.head.layout.block(EntryBlock.decode(raw), plan.local_start(index), plan.first_entry(index))
        except ValueError as error:
            raise StorageError(DAMAGED) from error
        self._cache.put(key, block)
        return block

    async def own_text(self, start: int, stop: int, *, heal: Heal = _at_once) -> bytes:
        """Bytes ``start`` to ``stop`` of the archive's own text that lie in the piece where ``start`` is."""
        offset = 0
        for index in range(self.head.blocks, len(self.head.pieces)):
            piece = self.head.pieces[index]
            if start < offset + piece.raw:
                raw = decode_piece(piece, await self._fetch(index, heal))
                return raw[start - offset : stop - offset]
            offset += piece.raw
        raise StorageError(DAMAGED)


class ManifestStore:
    """Manifests in ``bucket``, under ``.storage-proxy/manifests/``."""

    def __init__(self, sources: Sources, bucket: str, cache: PlanCache) -> None:
        self._sources = sources
        self._bucket = bucket
        self._store = sources.buckets.get(bucket)
        self._cache = cache

    async def write(self, manifest: Manifest) -> None:
        """Keep ``manifest``, durably, and as of now."""
        await self._store.put(_key(manifest.head.digest), manifest.encode())

    async def open(self, name: str) -> OpenedArchive:
        """The archive of the manifest that a token names (``sha256:<hex>``).

        Raises `BlobNotFound` when it is not kept any more, `StorageError` when it is damaged.
        """
        digest = name.removeprefix("sha256:")
        head = self._cache.get(digest)
        if not isinstance(head, ManifestHead):
            head = await self._read_head(digest)
            self._cache.put(digest, head)

        async def fetch(index: int, heal: Heal) -> bytes:
            piece = head.pieces[index]
            return await self._read(digest, piece.offset, piece.offset + piece.stored, heal)

        return OpenedArchive(head, fetch, self._cache)

    async def _read_head(self, digest: str) -> ManifestHead:
        stat = await self._store.stat(_key(digest))
        if stat is None:
            raise BlobNotFound("The archive's manifest is not kept any more")
        if stat.size < PREAMBLE_BYTES:
            raise StorageError(DAMAGED)
        start = await self._read(digest, 0, min(stat.size, _FIRST_READ_BYTES))
        try:
            needed = PREAMBLE_BYTES + head_length(start)
        except ValueError as error:
            raise StorageError(DAMAGED) from error
        if needed > min(stat.size, MAX_HEAD_BYTES):
            raise StorageError(DAMAGED)
        if needed > len(start):
            start += await self._read(digest, len(start), needed)
        if needed <= _FIRST_READ_BYTES:
            return decode_head(start, digest)
        return await asyncio.to_thread(decode_head, start, digest)  # as large as this for its many runs

    async def _read(self, digest: str, start: int, stop: int, heal: Heal = _at_once) -> bytes:
        pin = Pin(self._bucket, _key(digest), "", stop)
        try:
            return await self._sources.read(pin, start, stop, heal=heal).content()
        except BlobChanged as error:  # shorter than its head says
            raise StorageError(DAMAGED) from error


def in_memory(manifest: Manifest, cache: PlanCache) -> OpenedArchive:
    """An archive whose manifest is kept nowhere: for tokens that list their files themselves."""

    async def fetch(index: int, _: Heal) -> bytes:
        return manifest.pieces[index]

    return OpenedArchive(manifest.head, fetch, cache)


def _key(digest: str) -> str:
    return f"{MANIFESTS_PREFIX}{digest}"
