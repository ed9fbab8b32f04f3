"""Reading pinned blobs: a source that breaks is reopened at its offset, a bounded number of times.

The law: every byte is of the pinned version, and of one that is read whole the last bytes are given out only when the
CRC-32 is right; what cannot be had so raises.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from isal.isal_zlib import crc32

from storage_proxy.common.errors import StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.formats.entries import Entry
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobReader

Chunk = bytes | memoryview
Heal = Callable[[], bool]
"""Whether a failure to open may be waited out. While headers wait for it, it is better told at once."""

_PROGRESS_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Pin:
    """One version of one blob. An empty ``etag`` means that the key alone pins the content."""

    bucket: str
    key: str
    etag: str
    size: int

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """The version that the entry pins."""
        return cls(entry.bucket, entry.key, entry.etag, entry.size)


@dataclass(frozen=True, slots=True)
class HealPolicy:
    """How long a broken source is tried again: so many times in a row, for so many seconds (since its last progress).

    Delays double from ``first_delay`` to ``max_delay`` seconds, each with jitter.
    """

    attempts: int = 20
    seconds: float = 30.0
    first_delay: float = 0.1
    max_delay: float = 2.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.max_delay, self.first_delay * 2.0 ** (failures - 1)) * random.uniform(0.5, 1)  # noqa: S311


@dataclass(frozen=True, slots=True)
class Sources:
    """Where pins are read: the buckets, for how long a broken one is tried, what counts it.

    ``contradicted`` is told of a version whose content is not of the CRC-32 that was believed of it.
    """

    buckets: Buckets
    policy: HealPolicy
    metrics: DownloadMetrics
    contradicted: Callable[[Pin], None] = lambda _: None

    def read(
        self,
        pin: Pin,
        start: int,
        stop: int,
        *,
        crc: int | None = None,
        learned: Callable[[int], None] | None = None,
        heal: Heal = lambda: True,
    ) -> "BlobRead":
        """Bytes ``start`` to ``stop`` of the pinned version, not opened yet.

        Where they are all of it they are compared with ``crc``, or ``learned`` is told their CRC-32. ``heal`` is of
        failures to open; a body that breaks is always resumed.
        """
        return BlobRead(self, pin, start, stop, crc=crc, learned=learned, heal=heal)


class BlobRead:
    """A read of a pinned version, given out in order. Whoever has one calls ``aclose`` on every path.

    Every method raises `BlobChanged`, `BlobNotFound`, `StorageError`, `StorageUnavailable` and `StorageTimeout`.
    """

    __slots__ = (
        "_crc",
        "_expected",
        "_failing_since",
        "_failures",
        "_heal",
        "_healthy",
        "_learned",
        "_pin",
        "_position",
        "_reader",
        "_sources",
        "_start",
        "_stop",
        "_sums",
    )

    def __init__(
        self,
        sources: Sources,
        pin: Pin,
        start: int,
        stop: int,
        *,
        crc: int | None,
        learned: Callable[[int], None] | None,
        heal: Heal,
    ) -> None:
        """Made by `Sources.read`."""
        self._sources = sources
        self._pin = pin
        self._start = self._position = self._healthy = start
        self._stop = stop
        self._expected = crc
        self._learned = learned
        self._heal = heal
        self._sums = start == 0 and stop == pin.size and (crc is not None or learned is not None)
        self._crc = 0
        self._reader: BlobReader | None = None
        self._failures = 0
        self._failing_since = 0.0

    @property
    def length(self) -> int:
        """Bytes of all of it."""
        return self._stop - self._start

    async def open(self) -> None:
        """Open the source if it is not open, so that its first bytes are on their way."""
        while self._reader is None and self._position < self._stop:
            try:
                self._reader = await self._open()
            except (StorageUnavailable, StorageTimeout) as error:
                await self._wait_out(error)

    async def read(self) -> Chunk:
        """The next bytes, valid until the next call; empty when all of them have been given."""
        while True:
            try:
                reader = self._reader
                if reader is None:
                    if self._position >= self._stop:
                        return b""
                    reader = self._reader = await self._open()
                chunk = await reader.read()
                if not chunk and self._position < self._stop:
                    raise StorageUnavailable("The source ended early")
            except (StorageUnavailable, StorageTimeout) as error:
                await self.aclose()
                if self._position < self._stop:
                    await self._wait_out(error)
                continue
            if not chunk:
                await self.aclose()
                return b""
            self._position += len(chunk)
            if self._sums:
                self._sum(chunk)
            return chunk

    async def content(self) -> bytes:
        """All of it, in memory of its own; closed afterwards."""
        try:
            chunks = []
            while chunk := await self.read():
                chunks.append(chunk if isinstance(chunk, bytes) else bytes(chunk))
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Release the source. Idempotent, and returns at once."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.aclose()

    async def _open(self) -> BlobReader:
        pin = self._pin
        store = self._sources.buckets.get(pin.bucket)
        return await store.open(pin.key, start=self._position, stop=self._stop, if_match=pin.etag or None)

    def _sum(self, chunk: Chunk) -> None:
        self._crc = crc32(chunk, self._crc)
        if self._position == self._stop:
            if self._expected is None:
                assert self._learned is not None
                self._learned(self._crc)
            elif self._crc != self._expected:
                self._sources.contradicted(self._pin)
                raise StorageError("A blob's content contradicts its CRC-32")

    async def _wait_out(self, error: StorageUnavailable | StorageTimeout) -> None:
        """Wait until the source may be tried again; raise ``error`` where it may not."""
        metrics, policy = self._sources.metrics, self._sources.policy
        metrics.upstream_errors.labels(self._pin.bucket, error.code).inc()
        if self._position - self._healthy >= _PROGRESS_BYTES:
            self._failures, self._healthy = 0, self._position
        if not self._failures:
            self._failing_since = time.monotonic()
        self._failures += 1
        exhausted = self._failures > policy.attempts or time.monotonic() - self._failing_since > policy.seconds
        if exhausted or not (self._position > self._start or self._heal()):
            raise error
        await asyncio.sleep(policy.delay(self._failures))
        metrics.reopened.labels(self._pin.bucket).inc()
