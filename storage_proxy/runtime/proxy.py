"""The serving process: its listeners, wired from the settings."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.metrics import RequestMetrics
from storage_proxy.common.service.middleware import require_bearer
from storage_proxy.common.service.operations import HEALTH_PATHS, Health, HealthHandlers, MetricsHandlers
from storage_proxy.common.service.process import serve_until_signal
from storage_proxy.common.service.request_log import log_requests
from storage_proxy.common.tokens import TokenVerifier
from storage_proxy.common.wire import MAX_RPC_BODY_BYTES
from storage_proxy.downloads.archive_crcs import ArchiveCrcs
from storage_proxy.downloads.blob_batches import BlobBatches
from storage_proxy.downloads.blob_uris import BlobUris
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.downloads import Downloads
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifests import ManifestStore, PlanCache
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.planner import ArchivePlanner, PlanLimits
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.downloads.sources import HealPolicy, Sources
from storage_proxy.http.batch_api import MAX_BATCH_BODY_BYTES, BatchHandlers
from storage_proxy.http.client_api import ClientHandlers, claims_from
from storage_proxy.http.rpc_api import RPC_HEALTH_PATH, RpcHandlers
from storage_proxy.http.transfers import Transfers
from storage_proxy.runtime.backends import open_buckets, open_state
from storage_proxy.settings import ClientSettings, ProxySettings, RpcSettings, S3BucketSettings


@dataclass(frozen=True, slots=True)
class Proxy:
    """A wired proxy: its listeners, not started yet."""

    listeners: list[Listener]
    operations: Listener
    health: Health


async def serve(settings: ProxySettings) -> None:
    """Run the listeners of ``settings`` until a signal. Raises `AddressTaken`."""
    async with open_proxy(settings) as proxy:
        await serve_until_signal(
            proxy.listeners,
            health=proxy.health,
            drain_seconds=settings.shutdown.drain_seconds,
            unready_seconds=settings.shutdown.unready_seconds,
            operations=proxy.operations,
        )


@asynccontextmanager
async def open_proxy(settings: ProxySettings) -> AsyncIterator[Proxy]:
    """Wire the proxy; its clients are closed on leaving."""
    async with AsyncExitStack() as stack:
        buckets = await open_buckets(settings, stack)
        store, records = await open_state(settings, stack)
        registry = CollectorRegistry()
        health = Health({"state": store.probe} | {f"bucket {name}": each.probe for name, each in buckets})
        metrics = DownloadMetrics(registry)
        learned = LearnedCrcs(store, records, metrics)
        await stack.enter_async_context(learned.writing())
        blobs = Blobs(buckets, RunBlobs(store, records))
        cache: PlanCache = BytesBoundedCache(settings.limits.plan_cache_bytes)
        planner = ArchivePlanner(
            blobs,
            learned,
            PlanLimits(
                max_entries=settings.limits.max_archive_entries,
                parallel_requests=settings.mint.parallel_requests,
                crc32_read_bytes=settings.mint.crc32_read_bytes,
                crc32_seconds=settings.mint.crc32_seconds,
            ),
        )
        manifests = ManifestStore(buckets.get(settings.manifests_bucket), cache)
        requests = RequestMetrics(registry)
        listeners = []
        if settings.rpc is not None:
            listeners.append(_rpc_listener(settings.rpc, requests, RpcHandlers(blobs, planner, manifests)))
        if settings.client is not None:
            metrics.watch_plan_cache(cache)
            sources = Sources(buckets, HealPolicy(settings.heal.attempts, settings.heal.seconds), metrics)
            downloads = Downloads(
                blobs, sources, manifests, planner, cache, ArchiveCrcs(learned), redirecting=_redirecting(settings)
            )
            batches = BlobBatches(_blob_uris(settings), blobs.runs, buckets, sources)
            slots = DownloadSlots(
                max_downloads=settings.limits.max_concurrent_downloads,
                max_per_token=settings.limits.max_concurrent_downloads_per_token,
            )
            transfers = Transfers(metrics, stall_seconds=settings.client.stall_seconds)
            handlers = [ClientHandlers(downloads, slots, transfers), BatchHandlers(batches, slots, transfers, metrics)]
            listeners.append(_client_listener(settings, settings.client, requests, handlers, health))
        operations = Listener("operations", settings.operations.listen)
        add_endpoints(operations.app, [*endpoints_of(HealthHandlers(health)), *endpoints_of(MetricsHandlers(registry))])
        yield Proxy(listeners, operations, health)


def _redirecting(settings: ProxySettings) -> frozenset[str]:
    return frozenset(
        name
        for name, bucket in settings.buckets.items()
        if isinstance(bucket, S3BucketSettings) and bucket.delivery == "redirect"
    )


def _blob_uris(settings: ProxySettings) -> BlobUris:
    keys = [key.get_secret_value() for key in settings.blob_uris.keys]
    return BlobUris(keys, ttl_seconds=settings.blob_uris.ttl_seconds)


def _rpc_listener(rpc: RpcSettings, requests: RequestMetrics, handlers: RpcHandlers) -> Listener:
    secrets = {f"secret {index}": secret.get_secret_value() for index, secret in enumerate(rpc.secrets)}
    middlewares = (
        log_requests("rpc", quiet_paths=frozenset({RPC_HEALTH_PATH})),
        requests.middleware("rpc"),
        require_bearer(secrets),
    )
    listener = Listener("rpc", rpc.listen, *middlewares, max_body_bytes=MAX_RPC_BODY_BYTES)
    add_endpoints(listener.app, endpoints_of(handlers))
    return listener


def _client_listener(
    settings: ProxySettings,
    client: ClientSettings,
    requests: RequestMetrics,
    handlers: Sequence[object],
    health: Health,
) -> Listener:
    verifier = TokenVerifier(
        settings.tokens.key_ring(), issuer=settings.tokens.issuer, audience=settings.tokens.audience
    )
    middlewares = log_requests("client", quiet_paths=HEALTH_PATHS), requests.middleware("client")
    listener = Listener("client", client.listen, *middlewares, max_body_bytes=MAX_BATCH_BODY_BYTES)
    for each in handlers:
        add_endpoints(listener.app, endpoints_of(each, claims_of=claims_from(verifier)))
    add_endpoints(listener.app, endpoints_of(HealthHandlers(health)))
    return listener
