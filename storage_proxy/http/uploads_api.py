"""The client listener's endpoint for uploads: a token and a body come in, a blob is there.

The law: what can be refused is refused before the body is invited; a body that breaks off or stalls leaves nothing.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from storage_proxy.common.errors import (
    BlobExists,
    BucketNotFound,
    Busy,
    ChecksumMismatch,
    InvalidRequest,
    LengthRequired,
    PayloadTooLarge,
    RunBucketMismatch,
    RunDeleted,
    ServiceError,
    SizeMismatch,
    StateUnavailable,
    StorageUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenWrongOperation,
    UnsupportedMediaType,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.expectations import send_continue
from storage_proxy.common.service.middleware import REQUEST_ID, abort
from storage_proxy.common.service.request_log import LOGGED
from storage_proxy.common.tokens import UploadClaims
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.http.client_api import GUARDS
from storage_proxy.http.run_blobs import run_blob
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.uploads import Uploads

_log = logging.getLogger(__name__)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(slots=True)
class _Transfer:
    """What the log line of one upload says. ``received`` counts the bytes of the body that came."""

    received: int = 0
    stalled: bool = False
    outcome: str = "complete"
    began: float = field(default_factory=time.monotonic)

    @property
    def gone(self) -> str:
        """Why the connection ended when the drain did not end it."""
        return "client-stalled" if self.stalled else "client-gone"


class UploadHandlers:
    """Uploads of clients. ``stall_seconds`` bounds the wait for a client that sends nothing.

    ``slots`` are those of downloads: an upload takes one of the same process's connections.
    """

    def __init__(self, uploads: Uploads, slots: DownloadSlots, metrics: IngestMetrics, *, stall_seconds: float) -> None:
        self._uploads = uploads
        self._slots = slots
        self._metrics = metrics
        self._stall_seconds = stall_seconds

    @endpoint(
        "PUT",
        "/upload",
        status=201,
        errors=(
            InvalidRequest,
            TokenMissing,
            TokenInvalid,
            TokenExpired,
            TokenWrongOperation,
            BucketNotFound,
            LengthRequired,
            PayloadTooLarge,
            SizeMismatch,
            ChecksumMismatch,
            RunDeleted,
            RunBucketMismatch,
            BlobExists,
            StorageUnavailable,
            StateUnavailable,
            Busy,
        ),
    )
    async def upload(self, request: web.Request, claims: UploadClaims) -> web.StreamResponse:
        """Upload one blob.

        The blob is there when all of it has arrived, or not at all. The answer is its record, with its ETag.
        """
        length = _length(request)
        transfer = _Transfer()
        with self._slots.taken(claims.jti):
            try:
                async with aclosing(self._body(request, transfer)) as body:
                    record = await self._uploads.receive(claims, body, length)
            except ServiceError as error:
                transfer.outcome = error.code
                raise
            except ConnectionError:  # nobody is left to be told
                transfer.outcome = transfer.gone
                abort(request)
                raise InvalidRequest("The body broke off") from None
            except asyncio.CancelledError:
                transfer.outcome = transfer.gone if request.transport is None else "drained"
                raise
            except BaseException:
                transfer.outcome = "internal"
                raise
            finally:
                self._finished(request, claims, transfer)
        answer = run_blob(claims.run_id, claims.path, record)
        return web.Response(
            status=201,
            body=answer.model_dump_json().encode(),
            content_type="application/json",
            headers={**GUARDS, "ETag": record.etag},
        )

    async def _body(self, request: web.Request, transfer: _Transfer) -> AsyncGenerator[bytes, None]:
        """The chunks of the body as they arrive; the client is invited to send it by the first question for one."""
        await send_continue(request)
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    chunk = await request.content.readany()
            except TimeoutError:
                transfer.stalled = True
                abort(request)
                raise ConnectionResetError("the client sent nothing for too long") from None
            if not chunk:
                return
            transfer.received += len(chunk)
            self._metrics.received_bytes.inc(len(chunk))
            yield chunk

    def _finished(self, request: web.Request, claims: UploadClaims, transfer: _Transfer) -> None:
        request[LOGGED] = True
        _log.info(
            "upload",
            extra={
                "request_id": request[REQUEST_ID],
                "jti_hash": claims.jti_hash,
                "bytes": transfer.received,
                "seconds": round(time.monotonic() - transfer.began, 3),
                "outcome": transfer.outcome,
            },
        )


def _length(request: web.Request) -> int:
    """The body's length as it was declared. A chunked body has none (RFC 9112 section 6.2)."""
    declared = request.headers.get(hdrs.CONTENT_LENGTH)
    if declared is None or hdrs.TRANSFER_ENCODING in request.headers:
        raise LengthRequired
    if not _LENGTH.fullmatch(declared):
        raise PayloadTooLarge
    if hdrs.CONTENT_RANGE in request.headers:  # RFC 9110 section 14.5: a part is not taken for the whole
        raise InvalidRequest("A part of a blob cannot be uploaded")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise UnsupportedMediaType("A compressed request body is not accepted")
    return int(declared)
