"""The client listener: a token comes in, bytes go out.

The law: what can fail is told before the headers; after them there are two endings, all of it or an aborted
connection.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate

from aiohttp import hdrs, web

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    BucketNotFound,
    InvalidRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
    ServiceError,
    StorageUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenWrongOperation,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import REQUEST_ID, abort, bearer
from storage_proxy.common.service.request_log import LOGGED
from storage_proxy.common.tokens import ArchiveClaims, BlobClaims, Claims, Disposition, TokenVerifier
from storage_proxy.downloads.bodies import Body
from storage_proxy.downloads.downloads import Downloads, Representation
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.http.content_disposition import content_disposition
from storage_proxy.http.ranges import NotModified, Partial, Validators, evaluate
from storage_proxy.http.stall_watch import StallWatch

_log = logging.getLogger(__name__)
_INLINE_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'"
_GUARDS = {
    hdrs.CACHE_CONTROL: "private, no-store",
    hdrs.REFERRER_POLICY: "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ERRORS = (
    InvalidRequest,
    TokenMissing,
    TokenInvalid,
    TokenExpired,
    TokenWrongOperation,
    BlobNotFound,
    BucketNotFound,
    BlobChanged,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageUnavailable,
)


def claims_from(verifier: TokenVerifier) -> Callable[[web.Request], Claims]:
    """Reads a request's token (Authorization wins over the query) and verifies it."""

    def claims_of(request: web.Request) -> Claims:
        in_query = request.query.getall("token", [])
        if len(in_query) > 1:
            raise InvalidRequest("token is given twice")
        token = bearer(request) or (in_query[0] if in_query else "")
        if not token:
            raise TokenMissing
        return verifier.verify(token)

    return claims_of


@dataclass(slots=True)
class _Transfer:
    """What the log line of one finished download says."""

    entries: int = 0
    status: int = 0
    outcome: str = "complete"
    watch: StallWatch | None = None

    @property
    def written(self) -> int:
        """Body bytes given to the connection."""
        return self.watch.written if self.watch else 0

    @property
    def gone(self) -> str:
        """Why the connection ended when we did not end it."""
        return "client-stalled" if self.watch and self.watch.stalled else "client-gone"


class ClientHandlers:
    """The endpoints of the client listener. ``stall_seconds`` bounds the wait for a client that takes nothing."""

    def __init__(
        self, downloads: Downloads, slots: DownloadSlots, metrics: DownloadMetrics, *, stall_seconds: float
    ) -> None:
        self._downloads = downloads
        self._slots = slots
        self._metrics = metrics
        self._stall_seconds = stall_seconds

    @endpoint("GET", "/download", errors=_ERRORS)
    async def download(self, request: web.Request, claims: BlobClaims) -> web.StreamResponse:
        """Download one blob.

        Range, If-Range and the other conditional headers work as RFC 9110 says.
        """
        return await self._answer(request, claims, lambda: self._downloads.blob(claims))

    @endpoint("GET", "/download-archive", errors=_ERRORS)
    async def download_archive(self, request: web.Request, claims: ArchiveClaims) -> web.StreamResponse:
        """Download many blobs as one archive.

        Content-Length is exact; `Accept-Ranges: bytes` tells that the download can be resumed.
        """
        return await self._answer(request, claims, lambda: self._downloads.archive(claims))

    async def _answer(
        self,
        request: web.Request,
        claims: BlobClaims | ArchiveClaims,
        represent: Callable[[], Awaitable[Representation]],
    ) -> web.StreamResponse:
        with self._slots.taken(claims.jti):
            try:
                return await self._respond(request, claims, await represent())
            except BlobChanged:
                # Only before the first byte: a later change has aborted. What is not pinned is looked up again.
                representation = await represent()
                if representation.pinned:
                    raise
                return await self._respond(request, claims, representation)

    async def _respond(
        self, request: web.Request, claims: BlobClaims | ArchiveClaims, what: Representation
    ) -> web.StreamResponse:
        validators = Validators(what.etag, what.last_modified, what.size, what.ranges)
        outcome = evaluate(request.method, _joined(request), validators, now=time.time())
        headers = _headers(what)
        if isinstance(outcome, NotModified):
            return web.Response(status=304, headers=headers)
        if what.presign is not None and request.method == hdrs.METH_GET:
            location = await what.presign(headers[hdrs.CONTENT_DISPOSITION], what.content_type)
            return web.Response(status=302, headers={**_GUARDS, hdrs.LOCATION: location})
        start, stop = (outcome.start, outcome.stop) if isinstance(outcome, Partial) else (0, what.size)
        if isinstance(outcome, Partial):
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{what.size}"
        headers[hdrs.CONTENT_LENGTH] = str(stop - start)
        response = web.StreamResponse(status=206 if isinstance(outcome, Partial) else 200, headers=headers)
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        transfer = _Transfer(entries=what.entries, status=response.status)
        await self._stream(request, response, what.body(start, stop), claims, transfer)
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: Body,
        claims: BlobClaims | ArchiveClaims,
        transfer: _Transfer,
    ) -> None:
        began = time.monotonic()
        self._metrics.active.inc()
        try:
            async with body:
                await body.begin()
                await self._write(request, response, body, claims, transfer)
        except ServiceError as error:
            transfer.outcome = error.code
            if not response.prepared:
                raise
            abort(request)
        except ConnectionError:
            transfer.outcome = transfer.gone
            abort(request)
        except asyncio.CancelledError:  # the client went away, or the drain is over
            transfer.outcome = transfer.gone if request.transport is None else "drained"
            abort(request)
            raise
        except Exception:
            transfer.outcome = "internal"
            if not response.prepared:
                raise
            _log.exception("unexpected error in a download", extra={"request_id": request[REQUEST_ID]})
            abort(request)
        finally:
            self._metrics.active.dec()
            if response.prepared:  # else nothing of it was seen but an error
                self._finished(request, claims, transfer, time.monotonic() - began)

    async def _write(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: Body,
        claims: BlobClaims | ArchiveClaims,
        transfer: _Transfer,
    ) -> None:
        sent = self._metrics.sent_bytes.labels(claims.op)
        await response.prepare(request)
        if request.transport is None:
            raise ConnectionResetError
        # Drained means empty: what counts as sent has left this process, and no chunk is overwritten while it waits.
        request.transport.set_write_buffer_limits(high=0)
        with StallWatch(request.transport, self._stall_seconds) as transfer.watch:
            async for chunk in body:
                transfer.watch.written += len(chunk)
                await response.write(chunk)
                sent.inc(len(chunk))
            await response.write_eof()

    def _finished(
        self,
        request: web.Request,
        claims: BlobClaims | ArchiveClaims,
        transfer: _Transfer,
        seconds: float,
    ) -> None:
        self._metrics.finished.labels(claims.op, transfer.outcome).inc()
        self._metrics.seconds.labels(claims.op).observe(seconds)
        if transfer.outcome != "complete":
            self._metrics.aborted.labels(transfer.outcome).inc()
        request[LOGGED] = True
        _log.info(
            "download",
            extra={
                "request_id": request[REQUEST_ID],
                "jti_hash": claims.jti_hash,
                "op": str(claims.op),
                "entries": transfer.entries,
                "bytes": transfer.written,
                "status": transfer.status,
                "seconds": round(seconds, 3),
                "outcome": transfer.outcome,
            },
        )


def _joined(request: web.Request) -> Mapping[str, str]:
    return {name.title(): ", ".join(request.headers.getall(name)) for name in request.headers}


def _headers(what: Representation) -> dict[str, str]:
    headers = {
        hdrs.CONTENT_TYPE: what.content_type,
        hdrs.CONTENT_DISPOSITION: content_disposition(what.disposition, what.filename),
        "ETag": what.etag,
        hdrs.LAST_MODIFIED: formatdate(min(what.last_modified, time.time()), usegmt=True),
        hdrs.ACCEPT_RANGES: "bytes" if what.ranges else "none",
        **_GUARDS,
    }
    if what.content_encoding:
        headers[hdrs.CONTENT_ENCODING] = what.content_encoding
    if what.disposition is Disposition.INLINE:
        headers["Content-Security-Policy"] = _INLINE_POLICY
    return headers
