"""The RPC listener's endpoints for uploads: prepare one, complete one."""

from storage_proxy.common.errors import (
    BlobExists,
    BucketNotFound,
    Busy,
    ChecksumMismatch,
    NotFound,
    PayloadTooLarge,
    RunBucketMismatch,
    RunDeleted,
    SizeMismatch,
    StateUnavailable,
    StorageUnavailable,
    UnsafeName,
    UploadIncomplete,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.wire import PreparedUpload, RunAccess, RunBlob, UploadOrder, Wire
from storage_proxy.http.run_blobs import run_blob
from storage_proxy.ingest.uploads import Uploads


class UploadAddress(Wire):
    """Which upload."""

    upload_id: str


class UploadRpcHandlers:
    """Uploads for the manager."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    @endpoint(
        "POST",
        "/rpc/v1/uploads",
        errors=(
            UnsafeName,
            BucketNotFound,
            PayloadTooLarge,
            RunDeleted,
            RunBucketMismatch,
            BlobExists,
            StateUnavailable,
            Busy,
        ),
    )
    async def prepare(self, body: UploadOrder) -> PreparedUpload:
        """Announce an upload and say where to send it. Again for a path that is pending: a new URL, the same id."""
        return await self._uploads.prepare(body)

    @endpoint(
        "POST",
        "/rpc/v1/uploads/{upload_id}/complete",
        errors=(
            NotFound,
            RunDeleted,
            UploadIncomplete,
            SizeMismatch,
            ChecksumMismatch,
            StorageUnavailable,
            StateUnavailable,
            Busy,
        ),
    )
    async def complete(self, path: UploadAddress, query: RunAccess) -> RunBlob:
        """Verify an upload now. Asking again gives the record again."""
        run_id, blob_path, record = await self._uploads.complete(path.upload_id, query)
        return run_blob(run_id, blob_path, record)
