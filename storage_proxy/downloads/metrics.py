"""What the read path counts."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from storage_proxy.downloads.cache import BytesBoundedCache

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 20, 60, 300, 1800, float("inf"))


class DownloadMetrics:
    """The metrics of downloads, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.active = Gauge("storage_proxy_downloads_active", "Downloads being streamed now", registry=registry)
        self.finished = Counter(
            "storage_proxy_downloads", "Downloads that ended, by how", ["op", "outcome"], registry=registry
        )
        self.aborted = Counter(
            "storage_proxy_downloads_aborted", "Downloads cut after their first byte", ["reason"], registry=registry
        )
        self.sent_bytes = Counter(
            "storage_proxy_download_bytes", "Body bytes handed to clients", ["op"], registry=registry
        )
        self.seconds = Histogram(
            "storage_proxy_download_seconds", "Duration of downloads", ["op"], buckets=_SECONDS, registry=registry
        )
        self.upstream_errors = Counter(
            "storage_proxy_upstream_errors", "Failed reads of a bucket", ["bucket", "code"], registry=registry
        )
        self.reopened = Counter(
            "storage_proxy_upstream_reopened", "Reads resumed at their offset", ["bucket"], registry=registry
        )
        self.learned_crcs = Counter(
            "storage_proxy_learned_crcs",
            "CRC-32s learned by streaming, written to the state store or dropped",
            ["outcome"],
            registry=registry,
        )
        self.batch_parts = Counter(
            "storage_proxy_batch_parts", "Parts of blob batches, by how they ended", ["outcome"], registry=registry
        )
        self._registry = registry

    def watch_prefetch(self, taken_bytes: Callable[[], int], requests: Callable[[], int]) -> None:
        """Show what is on its way in the process, and how much is asked for ahead of its turn."""
        figures = {
            "buffer_bytes": ("Bytes held by buffers and prefetched blobs", taken_bytes),
            "prefetch_requests": ("Reads of buckets under way ahead of their turn", requests),
        }
        for name, (text, figure) in figures.items():
            Gauge(f"storage_proxy_{name}", text, registry=self._registry).set_function(figure)

    def watch_plan_cache(self, cache: BytesBoundedCache[Any]) -> None:
        """Show the cache's figures."""
        figures = {
            "bytes": ("Bytes held by compiled plans", lambda: float(cache.nbytes)),
            "hits": ("Look-ups of compiled plans that were answered", lambda: float(cache.hits)),
            "misses": ("Look-ups of compiled plans that were not", lambda: float(cache.misses)),
        }
        for name, (text, figure) in figures.items():
            Gauge(f"storage_proxy_plan_cache_{name}", text, registry=self._registry).set_function(figure)
