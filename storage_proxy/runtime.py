"""The composition root: settings in, wired objects out, closed in reverse order.

The law: nothing else constructs a client or a backend; one of each kind per process.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aioboto3
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

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
from storage_proxy.settings import ClientSettings, FdbStateSettings, ProxySettings, RpcSettings, S3BucketSettings
from storage_proxy.state.fdb_client import FdbOptions
from storage_proxy.state.fdb_engine import open_foundationdb
from storage_proxy.state.port import KeyValueStore
from storage_proxy.state.records import Records
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStore
from storage_proxy.stores.s3 import S3Options, open_s3_store


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
        buckets = await _open_buckets(settings, stack)
        registry = CollectorRegistry()
        health = Health({f"bucket {name}": store.probe for name, store in buckets})
        store, records = await open_state(settings, stack)
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


async def open_state(settings: ProxySettings, stack: AsyncExitStack) -> tuple[KeyValueStore, Records]:
    """The state store and the layout of its keys. Raises `StateUnavailable` where there can be none."""
    if isinstance(settings.state, FdbStateSettings):
        options = FdbOptions(settings.state.cluster_file, settings.state.api_version)
        return await stack.enter_async_context(open_foundationdb(options)), Records(settings.state.prefix)
    settings.state.path.parent.mkdir(parents=True, exist_ok=True)
    return await stack.enter_async_context(open_sqlite(SqliteOptions(settings.state.path))), Records()


async def _open_buckets(settings: ProxySettings, stack: AsyncExitStack) -> Buckets:
    stores: dict[str, BlobStore] = {}
    session = aioboto3.Session()  # one for all buckets: each reads the model of S3 again, 200 ms
    for name, bucket in settings.buckets.items():
        if isinstance(bucket, S3BucketSettings):
            options = _s3_options(bucket, only_reads=settings.rpc is None)
            stores[name] = await stack.enter_async_context(open_s3_store(options, session=session))
        else:
            stores[name] = LocalBlobStore(bucket.root)
            stack.push_async_callback(stores[name].aclose)
    return Buckets(stores)


def _s3_options(bucket: S3BucketSettings, *, only_reads: bool) -> S3Options:
    access_key, secret_key = bucket.access_key, bucket.secret_key
    if only_reads and bucket.reader_access_key is not None:
        access_key, secret_key = bucket.reader_access_key, bucket.reader_secret_key
    return S3Options(
        bucket=bucket.bucket,
        endpoint=bucket.endpoint,
        public_endpoint=bucket.public_endpoint,
        prefix=bucket.prefix,
        region=bucket.region,
        access_key=_revealed(access_key),
        secret_key=_revealed(secret_key),
        addressing=bucket.addressing,
        max_connections=bucket.max_connections,
        connect_timeout=bucket.connect_timeout_seconds,
        read_timeout=bucket.read_timeout_seconds,
        request_timeout=bucket.request_timeout_seconds,
        max_attempts=bucket.max_attempts,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


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
