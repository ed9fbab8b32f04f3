"""What every process of the storage proxy has: its buckets, its state, its metrics."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.verification import Verifier
from storage_proxy.runtime.backends import open_buckets, open_state
from storage_proxy.settings import ProxySettings
from storage_proxy.state.port import KeyValueStore
from storage_proxy.state.records import Records
from storage_proxy.stores.buckets import Buckets


@dataclass(frozen=True, slots=True)
class Core:
    """One of each for the process, whatever its role."""

    settings: ProxySettings
    budget: ByteBudget
    buckets: Buckets
    store: KeyValueStore
    records: Records
    registry: CollectorRegistry
    ingest_options: IngestOptions
    ingest_metrics: IngestMetrics
    verifier: Verifier


@asynccontextmanager
async def open_core(settings: ProxySettings, *, only_reads: bool = False) -> AsyncIterator[Core]:
    """Open what ``settings`` name; closed on leaving. ``only_reads`` takes the buckets' reader keys where they are.

    Raises `StateUnavailable` where the state can never be opened as configured.
    """
    async with AsyncExitStack() as stack:
        budget = ByteBudget(settings.limits.buffer_bytes)
        buckets = await open_buckets(settings, stack, budget, only_reads=only_reads)
        store, records = await open_state(settings, stack)
        registry = CollectorRegistry()
        options = _ingest_options(settings)
        metrics = IngestMetrics(registry)
        verifier = Verifier(store, records, buckets, options=options, metrics=metrics)
        yield Core(settings, budget, buckets, store, records, registry, options, metrics, verifier)


def process_name() -> str:
    """How a lock names its holder: for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _ingest_options(settings: ProxySettings) -> IngestOptions:
    ingest = settings.ingest
    return IngestOptions(
        max_upload_bytes=settings.limits.max_upload_bytes,
        parallel_requests=ingest.parallel_requests,
        crc32_read_bytes=ingest.crc32_read_bytes,
        pending_seconds=ingest.pending_seconds,
        first_look_seconds=ingest.first_look_seconds,
        max_look_seconds=ingest.max_look_seconds,
    )
