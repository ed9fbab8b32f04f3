"""Looking at a blob, and holding it against what was announced.

The law: a CRC-32 is known when the store says it or when the very version was read here; what a producer says of it is
never more than a claim to be checked.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from isal.isal_zlib import crc32

from storage_proxy.common.errors import BlobChanged, BlobNotFound, ChecksumMismatch, ServiceError, SizeMismatch
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import LearnedCrc, Records, version_key
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat, BlobStore, ReadsCrc32

_LOOKS = 3
"""So often a blob that changes while it is read is looked at; then its CRC-32 stays unknown."""
_READ_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A blob as it was found; ``crc32`` is the store's word or our own reading's, None where there is neither."""

    stat: BlobStat
    crc32: int | None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The object is not what was announced. ``reason`` is for an operator; ``kind`` is what a caller is told."""

    reason: str
    kind: type[ServiceError]


def contradiction(announced: Announced, seen: Seen) -> Contradiction | None:
    """How ``seen`` contradicts what was announced; None when it does not, as far as it is known."""
    if announced.size is not None and announced.size != seen.stat.size:
        return Contradiction(f"the size {announced.size} was announced, the object has {seen.stat.size}", SizeMismatch)
    if announced.crc32 is not None and seen.crc32 is not None and announced.crc32 != seen.crc32:
        return Contradiction(
            f"the CRC-32 {announced.crc32:08x} was announced, the object has {seen.crc32:08x}", ChecksumMismatch
        )
    return None


class Verifier:
    """Looks at blobs in the buckets, and remembers the CRC-32s that it read."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        *,
        options: IngestOptions,
        metrics: IngestMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._reading = asyncio.Semaphore(options.parallel_reads)

    async def look(self, place: Place, *, size: int | None = None) -> Seen | None:
        """The blob as it is now, None where there is none. Of another size than ``size`` it is not worth reading.

        Raises `BucketNotFound`, and as the bucket's store and the state store do.
        """
        bucket = self._buckets.get(place.bucket)
        stat = None
        for _ in range(_LOOKS):
            stat = await bucket.stat(place.key)
            if stat is None:
                return None
            if stat.crc32 is not None or size not in (None, stat.size):
                return Seen(stat, stat.crc32)
            try:
                return Seen(stat, await self._learn(place.bucket, bucket, stat))
            except (BlobChanged, BlobNotFound):
                continue
        assert stat is not None
        return Seen(stat, None)

    async def _learn(self, name: str, bucket: BlobStore, stat: BlobStat) -> int | None:
        if stat.size == 0:
            return 0
        if stat.size > self._options.crc32_read_bytes:
            return await self._remembered(name, stat)
        async with self._reading:
            known = await self._remembered(name, stat)
            if known is not None:
                return known
            known = await _sum(bucket, stat)
            self._metrics.crc32_bytes.labels(name).inc(stat.size)
            await self._remember(name, stat, known)
            return known

    async def _remembered(self, name: str, stat: BlobStat) -> int | None:
        row = await self._store.transact(
            lambda transaction: self._records.crc32s.get(
                transaction, *version_key(name, stat.key, stat.etag, stat.size)
            )
        )
        return None if row is None else row.crc32

    async def _remember(self, name: str, stat: BlobStat, known: int) -> None:
        """At once, so that a batch which comes again goes on where it was."""
        row = LearnedCrc(known, int(self._clock()))

        async def write(transaction: Transaction) -> None:
            self._records.crc32s.set(transaction, row, *version_key(name, stat.key, stat.etag, stat.size))

        await self._store.transact(write)


async def _sum(bucket: BlobStore, stat: BlobStat) -> int:
    """The CRC-32 of one version, read whole. Raises `BlobChanged` and `BlobNotFound` when it is not there any more."""
    if isinstance(bucket, ReadsCrc32):
        (known,) = await bucket.read_crc32s([(stat.key, stat.etag)], timeout=_READ_SECONDS)
        if known is None:  # gone, or slower than the time
            raise BlobChanged
        return known
    reader = await bucket.open(stat.key, start=0, stop=stat.size, if_match=stat.etag)
    value = 0
    try:
        while chunk := await reader.read():
            value = crc32(chunk, value)
    finally:
        await reader.aclose()
    return value
