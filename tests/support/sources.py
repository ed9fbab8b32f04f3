"""Reads of a store of the test's, without pauses between the attempts."""

from prometheus_client import CollectorRegistry

from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import HealPolicy, Sources
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStore

QUICK = HealPolicy(attempts=3, seconds=5, first_delay=0.0, max_delay=0.0)


def sources_of(store: BlobStore, policy: HealPolicy = QUICK) -> Sources:
    """The bucket `default` is ``store``."""
    return Sources(Buckets({"default": store}), policy, DownloadMetrics(CollectorRegistry()))
