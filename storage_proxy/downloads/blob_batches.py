"""Many blobs named by encrypted URIs, one after the other in their order, the next ones fetched meanwhile.

The law: a URI that cannot be served is a problem in its place; what has begun ends whole or raises. Memory is bounded
by the window, whatever the blobs' sizes.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from storage_proxy.common.errors import BlobChanged, BlobNotFound, InvalidRequest, SelectionTooLarge, ServiceError
from storage_proxy.common.events import parse_run_key
from storage_proxy.downloads.blob_uris import BlobTarget, BlobUris
from storage_proxy.downloads.bodies import Progress
from storage_proxy.downloads.prefetch import Prefetch, WindowRead
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.downloads.sources import BlobRead, Pin, Sources
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat

MAX_BATCH_URIS = 1000
_RESOLVED_AT_ONCE = 32
"""URIs looked up in one transaction: fewer than are fetched at once, so that a deletion soon holds for the rest."""


@dataclass(frozen=True, slots=True)
class BatchPart:
    """One URI's answer: ``problem``, or a blob whose bytes ``body`` gives."""

    index: int
    target: BlobTarget | None = None
    stat: BlobStat | None = None
    problem: ServiceError | None = None
    body: WindowRead | None = field(default=None, compare=False)


class BlobBatches:
    """Serves batches from the buckets; what is visible is asked of the records for each blob when its turn is near.

    The blobs of all parts of a batch together have at most ``max_bytes``.
    """

    def __init__(
        self,
        uris: BlobUris,
        runs: RunBlobs,
        buckets: Buckets,
        sources: Sources,
        prefetch: Prefetch,
        *,
        max_bytes: int = 10 << 30,
    ) -> None:
        self._uris = uris
        self._runs = runs
        self._buckets = buckets
        self._sources = sources
        self._prefetch = prefetch
        self._max_bytes = max_bytes

    async def parts(self, uris: Sequence[str]) -> AsyncGenerator[BatchPart, None]:
        """The part of each URI, in order; a part is good until the next is asked for.

        The source of a body is open: what can be told before its first byte is its problem instead.
        """
        async with self._prefetch.window(self._items(uris)) as window:
            while (found := await window.next()) is not None:
                (part, progress), read = found
                if read is not None:
                    try:
                        await read.open()
                    except ServiceError as error:
                        part = _refused(part, error)
                    else:
                        progress.begun = True
                        part = BatchPart(part.index, part.target, part.stat, body=read)
                yield part

    async def _items(
        self, uris: Sequence[str]
    ) -> AsyncGenerator[tuple[tuple[BatchPart, Progress], BlobRead | None], None]:
        """Each part as it is before its source is open, with how far it is and the read of its blob."""
        total = 0
        for first in range(0, len(uris), _RESOLVED_AT_ONCE):
            for part in await self._resolved(first, uris[first : first + _RESOLVED_AT_ONCE]):
                progress, read = Progress(), None
                if part.stat is not None and total + part.stat.size > self._max_bytes:
                    yield (
                        (_refused(part, SelectionTooLarge(f"The batch is over {self._max_bytes} bytes")), progress),
                        None,
                    )
                    continue
                if part.target is not None and part.stat is not None:
                    total += part.stat.size
                    read = self._read(part.target, part.stat, progress)
                yield (part, progress), read

    def _read(self, target: BlobTarget, stat: BlobStat, progress: Progress) -> BlobRead:
        pin = Pin(target.bucket, stat.key, stat.etag, stat.size)
        return self._sources.read(pin, 0, stat.size, crc=stat.crc32, heal=progress.heals(is_first=True))

    async def _resolved(self, first: int, uris: Sequence[str]) -> list[BatchPart]:
        """The parts of ``uris``, the first of which has the index ``first``: a visible blob or a problem."""
        parts = [self._decrypted(index, uri) for index, uri in enumerate(uris, first)]
        named = [part.target for part in parts if part.target is not None and part.problem is None]
        try:
            found = await self._runs.resolve_many([(target.bucket, target.key) for target in named])
        except ServiceError as error:
            return [part if part.problem else _refused(part, error) for part in parts]
        stats = iter(found)
        return [part if part.problem else _visible(part, next(stats)) for part in parts]

    def _decrypted(self, index: int, uri: str) -> BatchPart:
        part = BatchPart(index)
        try:
            target = self._uris.decrypt(uri)
            part = BatchPart(index, target)
            self._buckets.get(target.bucket)
            path = parse_run_key(target.key)
            if path is None or path[0] != target.run_id:
                raise InvalidRequest("The URI is not valid")
        except ServiceError as error:
            return _refused(part, error)
        return part


def _visible(part: BatchPart, stat: BlobStat | None) -> BatchPart:
    if stat is None:
        return _refused(part, BlobNotFound())
    if part.target is None or stat.etag != part.target.etag:
        return _refused(part, BlobChanged())
    return BatchPart(part.index, part.target, stat)


def _refused(part: BatchPart, error: ServiceError) -> BatchPart:
    return BatchPart(part.index, part.target, problem=error)
