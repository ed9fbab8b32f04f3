"""The RPC listener: what the manager asks of the storage."""

from storage_proxy.common.errors import (
    BlobNotFound,
    BucketNotFound,
    DuplicateName,
    SelectionTooLarge,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.operations import Liveness
from storage_proxy.common.values import crc32_hex, moment
from storage_proxy.common.wire import ArchiveSelection, BlobAddress, BlobDescription, PlannedArchive
from storage_proxy.downloads.downloads import DEFAULT_CONTENT_TYPE, stat_blob
from storage_proxy.downloads.manifests import ManifestStore
from storage_proxy.downloads.planner import ArchivePlanner
from storage_proxy.stores.buckets import Buckets

RPC_HEALTH_PATH = "/rpc/v1/health"


class RpcHandlers:
    """The endpoints of the RPC listener."""

    def __init__(self, buckets: Buckets, planner: ArchivePlanner, manifests: ManifestStore) -> None:
        self._buckets = buckets
        self._planner = planner
        self._manifests = manifests

    @endpoint("GET", RPC_HEALTH_PATH)
    async def health(self) -> Liveness:
        """Whether this listener answers and the secret is right."""
        return Liveness()

    @endpoint("GET", "/rpc/v1/blobs", errors=(UnsafeName, BlobNotFound, BucketNotFound, StorageUnavailable))
    async def stat_blob(self, query: BlobAddress) -> BlobDescription:
        """One blob as it is now."""
        stat = await stat_blob(self._buckets.get(query.bucket), query.key)
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
        errors=(UnsafeName, BlobNotFound, BucketNotFound, DuplicateName, SelectionTooLarge, StorageUnavailable),
    )
    async def plan_archive(self, body: ArchiveSelection) -> PlannedArchive:
        """Decide an archive and keep its manifest. Asking again for the same archive gives the same manifest."""
        manifest, skipped = await self._planner.plan(body)
        await self._manifests.write(manifest)
        head = manifest.head
        return PlannedArchive(
            manifest=head.name,
            entries=head.plan.entries,
            size=head.plan.size,
            etag=head.etag,
            resumable=not head.plan.unknown_crcs,
            skipped=skipped,
        )
