"""The routes of runs and their uploads.

The law: what this program can refuse itself is refused before the proxy is asked; which bucket a run lives in, and
whether this caller may know of it, the proxy decides.
"""

from aiohttp import web

from manager_api.access import BucketAccess
from manager_api.links import Link, LinkMaker
from manager_api.models import Nothing, RunPath, StartedUpload, StartUpload, UploadPath
from manager_api.proxy_client import ProxyClient
from storage_proxy.common.errors import (
    BlobExists,
    BucketNotFound,
    Busy,
    ChecksumMismatch,
    InvalidRequest,
    NotFound,
    RunBucketMismatch,
    RunDeleted,
    RunNotFound,
    SizeMismatch,
    StateUnavailable,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    UnsafeName,
    UploadIncomplete,
)
from storage_proxy.common.events import run_key, unsafe_path_reason
from storage_proxy.common.names import unsafe_key_reason
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import CALLER, REQUEST_ID
from storage_proxy.common.tokens import UploadGrant
from storage_proxy.common.wire import (
    PreparedUpload,
    RunBlob,
    RunBlobs,
    RunBlobsPage,
    RunDescription,
    UploadOrder,
    UploadTarget,
)

_PROXY_ERRORS = (StorageError, StorageUnavailable, StateUnavailable, StorageTimeout)
_START_ERRORS = (UnsafeName, BucketNotFound, BlobExists, RunBucketMismatch, RunDeleted, Busy, *_PROXY_ERRORS)
_COMPLETE_ERRORS = (
    *(NotFound, UploadIncomplete, SizeMismatch, ChecksumMismatch, RunBucketMismatch, RunDeleted, Busy),
    *_PROXY_ERRORS,
)
_RUN_ERRORS = (RunNotFound, *_PROXY_ERRORS)


class RunHandlers:
    """The endpoints of runs, their blobs and the uploads of these."""

    def __init__(self, proxy: ProxyClient, links: LinkMaker, access: BucketAccess) -> None:
        self._proxy = proxy
        self._links = links
        self._access = access

    @endpoint("POST", "/v1/uploads", status=201, errors=_START_ERRORS)
    async def start_upload(self, request: web.Request, query: Nothing, body: StartUpload) -> StartedUpload:
        """Start the upload of a blob.

        The answer is where to send it, without an API key. The blob is announced: once it is uploaded it becomes
        visible by itself, or at once by completing the upload. Starting an upload again gives a new URL.
        """
        _require_safe_path(body)
        expires_in = self._links.lifetime(body.expires_in)
        self._access.require(request[CALLER], body.bucket)
        order = UploadOrder(
            run_id=body.run_id,
            path=body.path,
            bucket=body.bucket,
            content_type=body.content_type,
            size=body.size,
            crc32=body.crc32,
            via=body.via,
            expires_in=expires_in,
        )
        prepared = await self._proxy.prepare_upload(order, request_id=request[REQUEST_ID])
        url, expires_at = prepared.url, prepared.expires_at
        if url is None:
            link = self._upload_link(order, prepared)
            url, expires_at = link.url, link.expires_at
        return StartedUpload(
            upload_id=prepared.upload_id,
            url=url,
            headers=prepared.headers,
            key=prepared.key,
            expires_at=expires_at,
        )

    @endpoint("POST", "/v1/uploads/{upload_id}/complete", errors=_COMPLETE_ERRORS)
    async def complete_upload(self, request: web.Request, path: UploadPath, query: Nothing, body: Nothing) -> RunBlob:
        """Complete an upload.

        What was uploaded is verified now, and visible with this answer. Completing again gives the same record.
        The body is empty, or an empty object.
        """
        access = self._access.to_runs(request[CALLER])
        return await self._proxy.complete_upload(path.upload_id, access, request_id=request[REQUEST_ID])

    @endpoint("GET", "/v1/runs/{run_id}", errors=_RUN_ERRORS)
    async def describe_run(self, request: web.Request, path: RunPath, query: Nothing) -> RunDescription:
        """Describe a run.

        Its bucket, its state, and how many verified blobs it has.
        """
        access = self._access.to_runs(request[CALLER])
        return await self._proxy.describe_run(path.run_id, access, request_id=request[REQUEST_ID])

    @endpoint("GET", "/v1/runs/{run_id}/blobs", errors=_RUN_ERRORS)
    async def list_run_blobs(self, request: web.Request, path: RunPath, query: RunBlobsPage) -> RunBlobs:
        """List the blobs of a run.

        In byte order of their paths, a page at a time: `next_cursor` is the next page's `cursor`, null at the end.
        """
        access = self._access.to_runs(request[CALLER])
        return await self._proxy.list_run_blobs(path.run_id, query, access, request_id=request[REQUEST_ID])

    @endpoint("DELETE", "/v1/runs/{run_id}", status=202, errors=_RUN_ERRORS)
    async def delete_run(self, request: web.Request, path: RunPath, query: Nothing) -> RunDescription:
        """Delete a run.

        It is hidden at once and nothing is written to it again; its objects are removed in the background. Deleting
        again, or a run that never was, is the same answer.
        """
        access = self._access.to_runs(request[CALLER])
        return await self._proxy.delete_run(path.run_id, access, request_id=request[REQUEST_ID])

    def _upload_link(self, order: UploadOrder, prepared: PreparedUpload) -> Link:
        grant = UploadGrant(
            bucket=prepared.bucket,
            key=prepared.key,
            run_id=order.run_id,
            path=order.path,
            content_type=order.content_type,
            size=order.size,
            crc32=order.crc32,
        )
        try:
            return self._links.make(grant, expires_in=order.expires_in)
        except InvalidRequest as error:
            message = "makes the token too long"
            raise InvalidRequest(f"The path {message}", errors=[{"loc": ["path"], "msg": message}]) from error


def _require_safe_path(target: UploadTarget) -> None:
    reason = unsafe_path_reason(target.path) or unsafe_key_reason(run_key(target.run_id, target.path))
    if reason:
        raise UnsafeName(f"The path {reason}", errors=[{"loc": ["path"], "msg": reason}])
