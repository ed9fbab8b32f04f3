"""Manifests in a store of the test's, read without pauses between the attempts."""

from prometheus_client import CollectorRegistry

from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifests import ManifestStore, PlanCache
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import HealPolicy, Sources
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStore

QUICK = HealPolicy(attempts=3, seconds=5, first_delay=0.0, max_delay=0.0)


def manifests_in(store: BlobStore, cache: PlanCache | None = None) -> ManifestStore:
    """Those of ``store``; with a cache of their own unless one is given."""
    sources = Sources(Buckets({"default": store}), QUICK, DownloadMetrics(CollectorRegistry()))
    return ManifestStore(sources, "default", BytesBoundedCache(1 << 20) if cache is None else cache)
