"""The listeners of a serving process, wired."""

from collections.abc import Sequence
from contextlib import AsyncExitStack, closing

from storage_proxy.common.events import run_key
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.metrics import RequestMetrics
from storage_proxy.common.service.middleware import require_bearer
from storage_proxy.common.service.operations import HEALTH_PATHS, Health, HealthHandlers
from storage_proxy.common.service.request_log import log_requests
from storage_proxy.common.tokens import TokenVerifier
from storage_proxy.common.wire import MAX_RPC_BODY_BYTES
from storage_proxy.downloads.archive_crcs import ArchiveCrcs
from storage_proxy.downloads.blob_batches import BlobBatches
from storage_proxy.downloads.blob_uris import BlobUris
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.deflated import DeflateThreads
from storage_proxy.downloads.downloads import Downloads
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifests import ManifestStore, PlanCache
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.planner import ArchivePlanner, PlanLimits
from storage_proxy.downloads.prefetch import Prefetch
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.downloads.sources import HealPolicy, Sources
from storage_proxy.http.batch_api import MAX_BATCH_BODY_BYTES, BatchHandlers
from storage_proxy.http.client_api import ClientHandlers, claims_from
from storage_proxy.http.rpc_api import RPC_HEALTH_PATH, RpcHandlers
from storage_proxy.http.runs_rpc import MakeUri, RunHandlers
from storage_proxy.http.transfers import Transfers
from storage_proxy.http.uploads_api import UploadHandlers
from storage_proxy.http.uploads_rpc import UploadRpcHandlers
from storage_proxy.ingest.uploads import Uploads
from storage_proxy.lifecycle.runs import Runs
from storage_proxy.runtime.core import Core
from storage_proxy.settings import ClientSettings, ProxySettings, RpcSettings, S3BucketSettings


async def open_listeners(core: Core, health: Health, stack: AsyncExitStack) -> list[Listener]:
    """The listeners that the settings ask for, not started yet."""
    settings, buckets, store, records = core.settings, core.buckets, core.store, core.records
    metrics = DownloadMetrics(core.registry)
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
    crcs = ArchiveCrcs(learned)
    policy = HealPolicy(settings.heal.attempts, settings.heal.seconds)
    sources = Sources(buckets, policy, metrics, contradicted=crcs.contradicted)
    manifests = ManifestStore(sources, settings.manifests_bucket, cache)
    uris = _blob_uris(settings)
    uploads = Uploads(store, records, buckets, core.verifier, options=core.ingest_options, metrics=core.ingest_metrics)
    requests = RequestMetrics(core.registry)
    listeners = []
    if settings.rpc is not None:
        runs = Runs(store, records, second_pass_seconds=settings.lifecycle.second_pass_seconds)
        listeners.append(
            _rpc_listener(
                settings.rpc,
                requests,
                [
                    RpcHandlers(blobs, planner, manifests),
                    UploadRpcHandlers(uploads),
                    RunHandlers(runs, _make_uri(uris) if settings.blob_uris.keys else None),
                ],
            )
        )
    if settings.client is not None:
        metrics.watch_plan_cache(cache)
        prefetch = Prefetch(core.budget)
        metrics.watch_prefetch(lambda: core.budget.taken, lambda: prefetch.requests)
        threads = stack.enter_context(closing(DeflateThreads(settings.limits.deflate_threads)))
        downloads = Downloads(
            blobs,
            sources,
            prefetch,
            manifests,
            planner,
            cache,
            crcs,
            threads,
            redirecting=_redirecting(settings),
        )
        slots = DownloadSlots(
            max_downloads=settings.limits.max_concurrent_downloads,
            max_per_token=settings.limits.max_concurrent_downloads_per_token,
        )
        stall_seconds = settings.client.stall_seconds
        transfers = Transfers(metrics, stall_seconds=stall_seconds)
        batches = BlobBatches(uris, blobs.runs, buckets, sources, prefetch)
        listeners.append(
            _client_listener(
                settings,
                settings.client,
                requests,
                [
                    ClientHandlers(downloads, slots, transfers),
                    BatchHandlers(batches, slots, transfers, metrics),
                    UploadHandlers(uploads, slots, core.ingest_metrics, stall_seconds=stall_seconds),
                ],
                health,
            )
        )
    return listeners


def _redirecting(settings: ProxySettings) -> frozenset[str]:
    return frozenset(
        name
        for name, bucket in settings.buckets.items()
        if isinstance(bucket, S3BucketSettings) and bucket.delivery == "redirect"
    )


def _blob_uris(settings: ProxySettings) -> BlobUris:
    keys = [key.get_secret_value() for key in settings.blob_uris.keys]
    return BlobUris(keys, ttl_seconds=settings.blob_uris.ttl_seconds)


def _make_uri(uris: BlobUris) -> MakeUri:
    return lambda run_id, path, record: uris.encrypt(record.bucket, run_key(run_id, path), record.etag, run_id)


def _rpc_listener(rpc: RpcSettings, requests: RequestMetrics, handlers: Sequence[object]) -> Listener:
    secrets = {f"secret {index}": secret.get_secret_value() for index, secret in enumerate(rpc.secrets)}
    middlewares = (
        log_requests("rpc", quiet_paths=frozenset({RPC_HEALTH_PATH})),
        requests.middleware("rpc"),
        require_bearer(secrets),
    )
    listener = Listener("rpc", rpc.listen, *middlewares, max_body_bytes=MAX_RPC_BODY_BYTES)
    for each in handlers:
        add_endpoints(listener.app, endpoints_of(each))
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
