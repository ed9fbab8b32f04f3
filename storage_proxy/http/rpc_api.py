"""The RPC listener: what the manager asks of the storage."""

from storage_proxy.common.errors import (
    BlobNotFound,
    BucketNotFound,
    DuplicateName,
    RunNotFound,
    SelectionTooLarge,
    StateUnavailable,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.operations import Liveness
from storage_proxy.common.tokens import Compression
from storage_proxy.common.values import crc32_hex, moment
from storage_proxy.common.wire import BlobAddress, BlobDescription, PlannedArchive, PlanRequest
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.deflated import deflated_etag
from storage_proxy.downloads.downloads import DEFAULT_CONTENT_TYPE
from storage_proxy.downloads.manifests import ManifestStore
from storage_proxy.downloads.planner import ArchivePlanner

RPC_HEALTH_PATH = "/rpc/v1/health"


class RpcHandlers:
    """The endpoints of the RPC listener."""

    def __init__(self, blobs: Blobs, planner: ArchivePlanner, manifests: ManifestStore) -> None:
        self._blobs = blobs
        self._planner = planner
        self._manifests = manifests

    @endpoint("GET", RPC_HEALTH_PATH)
    async def health(self) -> Liveness:
        """Whether this listener answers and the secret is right."""
        return Liveness()

    @endpoint(
        "GET",
        "/rpc/v1/blobs",
        errors=(UnsafeName, BlobNotFound, BucketNotFound, StorageUnavailable, StateUnavailable),
    )
    async def stat_blob(self, query: BlobAddress) -> BlobDescription:
        """One blob as it is now."""
        stat = await self._blobs.require(query.bucket, query.key)
        return BlobDescription(
            bucket=query.bucket,
            key=query.key,
            size=stat.size,
            etag=stat.etag,
            last_modified=moment(stat.last_modified),
            content_type=stat.content_type or DEFAULT_CONTENT_TYPE,
            crc32=crc32_hex(stat.crc32),
        )

    @endpoint(
        "POST",
        "/rpc/v1/archives",
        errors=(
            UnsafeName,
            BlobNotFound,
            BucketNotFound,
            RunNotFound,
            DuplicateName,
            SelectionTooLarge,
            StorageUnavailable,
            StateUnavailable,
        ),
    )
    async def plan_archive(self, body: PlanRequest) -> PlannedArchive:
        """Decide an archive and keep its manifest. Asking again for the same archive gives the same manifest."""
        manifest, skipped = await self._planner.plan(body, access=body)
        await self._manifests.write(manifest)
        head = manifest.head
        deflated = body.compression is Compression.DEFLATE
        return PlannedArchive.model_construct(  # what is skipped may be much, and is our own word
            manifest=head.name,
            entries=head.plan.entries,
            size=None if deflated else head.plan.size,
            etag=deflated_etag(head.etag) if deflated else head.etag,
            resumable=not deflated and not head.plan.unknown_crcs,
            skipped=skipped,
        )
