"""Reading pinned blobs: a source that breaks is reopened at its offset, a bounded number of times.

The law: every byte is of the pinned version; what cannot be had of that version raises.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Self

from storage_proxy.common.errors import StorageTimeout, StorageUnavailable
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.formats.entries import Entry
from storage_proxy.stores.buckets import Buckets

Chunk = bytes | memoryview

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


class Sources:
    """Opens pins in the buckets."""

    def __init__(self, buckets: Buckets, policy: HealPolicy, metrics: DownloadMetrics) -> None:
        self._buckets = buckets
        self._policy = policy
        self._metrics = metrics

    async def read(
        self, pin: Pin, start: int, stop: int, *, heal: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[Chunk, None]:
        """Bytes ``start`` to ``stop`` of the pinned version; each chunk is valid until the next is asked for.

        ``heal`` says whether a failure to open may be waited out; before a response has begun it is better told
        at once. A body that breaks is always resumed. Raises `BlobChanged`, `BlobNotFound`, `StorageError`,
        `StorageUnavailable` and `StorageTimeout`.
        """
        store = self._buckets.get(pin.bucket)
        position = healthy = start
        failures, failing_since = 0, 0.0
        while position < stop:
            try:
                reader = await store.open(pin.key, start=position, stop=stop, if_match=pin.etag or None)
                try:
                    while chunk := await reader.read():
                        position += len(chunk)
                        yield chunk
                finally:
                    await reader.aclose()
            except (StorageUnavailable, StorageTimeout) as error:
                if position >= stop:
                    return
                self._metrics.upstream_errors.labels(pin.bucket, error.code).inc()
                if position - healthy >= _PROGRESS_BYTES:
                    failures, healthy = 0, position
                if not failures:
                    failing_since = time.monotonic()
                failures += 1
                may_heal = position > start or heal()
                if not may_heal or self._exhausted(failures, failing_since):
                    raise
                await asyncio.sleep(self._policy.delay(failures))
                self._metrics.reopened.labels(pin.bucket).inc()

    def _exhausted(self, failures: int, failing_since: float) -> bool:
        return failures > self._policy.attempts or time.monotonic() - failing_since > self._policy.seconds
