"""Many blobs named by encrypted URIs, one after the other in their order, the next ones fetched meanwhile.

The law: a URI that cannot be served is a problem in its place; what has begun ends whole or raises. Memory is bounded
by the window, whatever the blobs' sizes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from storage_proxy.common.errors import BlobChanged, BlobNotFound, InvalidRequest, SelectionTooLarge, ServiceError
from storage_proxy.common.events import parse_run_key
from storage_proxy.downloads.blob_uris import BlobTarget, BlobUris
from storage_proxy.downloads.bodies import Body, blob_bytes
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.downloads.sources import Pin, Sources
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat

MAX_BATCH_URIS = 1000


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch: ``window`` parts are prepared ahead, and fetched whole up to ``small_bytes`` each, so
    their product is its memory; the blobs of all parts together have at most ``max_bytes``.
    """

    window: int = 16
    small_bytes: int = 64 << 10
    max_bytes: int = 10 << 30


@dataclass(frozen=True, slots=True)
class BatchPart:
    """One URI's answer: ``problem``, or a blob of which ``content`` is all, or which ``body`` streams."""

    index: int
    target: BlobTarget | None = None
    stat: BlobStat | None = None
    problem: ServiceError | None = None
    content: bytes | None = None
    body: Body | None = field(default=None, compare=False)


class BlobBatches:
    """Serves batches from the buckets; what is visible is asked of the records for each blob when its turn is near."""

    def __init__(
        self, uris: BlobUris, runs: RunBlobs, buckets: Buckets, sources: Sources, limits: BatchLimits | None = None
    ) -> None:
        self._uris = uris
        self._runs = runs
        self._buckets = buckets
        self._sources = sources
        self._limits = limits or BatchLimits()

    async def parts(self, uris: Sequence[str]) -> AsyncGenerator[BatchPart, None]:
        """The part of each URI, in order; a part is good until the next is asked for.

        A body that a part has is begun: what can be told before its first byte is its problem instead.
        """
        left = enumerate(uris)
        waiting: deque[asyncio.Task[BatchPart]] = deque()
        served = 0
        try:
            for index, uri in islice(left, self._limits.window):
                waiting.append(asyncio.create_task(self._prepare(index, uri)))
            while waiting:
                part = await waiting[0]
                waiting.popleft()
                for index, uri in islice(left, 1):
                    waiting.append(asyncio.create_task(self._prepare(index, uri)))
                served += part.stat.size if part.stat is not None else 0
                if part.stat is not None and served > self._limits.max_bytes:
                    served -= part.stat.size
                    part = _refused(part, SelectionTooLarge(f"The batch is over {self._limits.max_bytes} bytes"))
                async with AsyncExitStack() as stack:
                    if part.body is not None:
                        await stack.enter_async_context(part.body)
                        part = await _begun(part, part.body)
                    yield part
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _prepare(self, index: int, uri: str) -> BatchPart:
        part = BatchPart(index)
        try:
            target = self._uris.decrypt(uri)
            part = BatchPart(index, target)
            stat = await self._visible(target)
            pin = Pin(target.bucket, stat.key, stat.etag, stat.size)
            body = Body(partial(blob_bytes, self._sources, pin, stat.crc32, 0, stat.size))
            if stat.size > self._limits.small_bytes:
                return BatchPart(index, target, stat, body=body)
            async with body:
                content = b"".join([bytes(chunk) async for chunk in body])
            return BatchPart(index, target, stat, content=content)
        except ServiceError as error:
            return _refused(part, error)

    async def _visible(self, target: BlobTarget) -> BlobStat:
        self._buckets.get(target.bucket)
        path = parse_run_key(target.key)
        if path is None or path[0] != target.run_id:
            raise InvalidRequest("The URI is not valid")
        stat = await self._runs.resolve(target.bucket, target.key)
        if stat is None:
            raise BlobNotFound
        if stat.etag != target.etag:
            raise BlobChanged
        return stat


async def _begun(part: BatchPart, body: Body) -> BatchPart:
    try:
        await body.begin()
    except ServiceError as error:
        return _refused(part, error)
    return part


def _refused(part: BatchPart, error: ServiceError) -> BatchPart:
    return BatchPart(part.index, part.target, problem=error)
