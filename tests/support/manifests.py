"""Manifests in a store of the test's."""

from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifests import ManifestStore, PlanCache
from storage_proxy.stores.port import BlobStore
from tests.support.sources import sources_of


def manifests_in(store: BlobStore, cache: PlanCache | None = None) -> ManifestStore:
    """Those of ``store``; with a cache of their own unless one is given."""
    return ManifestStore(sources_of(store), "default", BytesBoundedCache(1 << 20) if cache is None else cache)
