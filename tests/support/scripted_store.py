"""A BlobStore in memory that fails by script. A fake: what real stores do is proven in tests/contracts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from storage_proxy.common.errors import BlobChanged, BlobNotFound
from storage_proxy.stores.port import BlobReader, BlobStat

Break = Callable[[], BaseException | None]


@dataclass
class Blob:
    content: bytes
    etag: str = '"v1"'
    last_modified: int = 1_700_000_000
    crc32: int | None = None


@dataclass
class ScriptedStore:
    """``breaks`` are raised, one an attempt, after the given number of bytes of that attempt."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    breaks: list[tuple[int, BaseException]] = field(default_factory=list)
    chunk: int = 7
    opened: list[tuple[str, int, int, str | None]] = field(default_factory=list)
    open_readers: int = 0
    stats: int = 0

    async def stat(self, key: str) -> BlobStat | None:
        self.stats += 1
        blob = self.blobs.get(key)
        return blob and BlobStat(key, len(blob.content), blob.etag, blob.last_modified, crc32=blob.crc32)

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        self.opened.append((key, start, stop, if_match))
        broken = self.breaks.pop(0) if self.breaks else None
        if broken is not None and broken[0] < 0:
            raise broken[1]
        if key not in self.blobs:
            raise BlobNotFound
        blob = self.blobs[key]
        if stop > len(blob.content) or (if_match is not None and blob.etag != if_match):
            raise BlobChanged
        self.open_readers += 1
        return _Reader(self, blob.content[start:stop], broken)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        keys = sorted((k for k in self.blobs if k.startswith(prefix) and k > start_after), key=str.encode)
        for first in range(0, len(keys), 1000):
            page = [await self.stat(key) for key in keys[first : first + 1000]]
            yield [BlobStat(s.key, s.size, s.etag, s.last_modified) for s in page if s]

    async def put(self, key: str, body: bytes) -> None:
        self.blobs[key] = Blob(body)

    async def probe(self) -> None:
        return

    async def aclose(self) -> None:
        return


class _Reader:
    def __init__(self, store: ScriptedStore, content: bytes, broken: tuple[int, BaseException] | None) -> None:
        self._store = store
        self._content = content
        self._broken = broken
        self._given = 0
        self._closed = False

    async def read(self) -> bytes | memoryview:
        await asyncio.sleep(0)
        limit = len(self._content)
        if self._broken is not None:
            limit = min(limit, self._broken[0])
            if self._given >= limit:
                raise self._broken[1]
        chunk = self._content[self._given : min(self._given + self._store.chunk, limit)]
        self._given += len(chunk)
        return memoryview(chunk)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.open_readers -= 1
