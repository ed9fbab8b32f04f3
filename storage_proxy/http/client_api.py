"""The client listener: a token comes in, bytes go out.

The law: what can fail is told before the headers; after them there are two endings, all of it or an aborted
connection.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate

from aiohttp import HttpVersion11, hdrs, web

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    BucketNotFound,
    HttpVersionNotSupported,
    InvalidRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
    StateUnavailable,
    StorageUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenWrongOperation,
)
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import bearer
from storage_proxy.common.tokens import ArchiveClaims, BlobClaims, Claims, Disposition, TokenVerifier
from storage_proxy.downloads.downloads import Downloads, Representation
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.http.content_disposition import content_disposition
from storage_proxy.http.ranges import NotModified, Partial, Validators, evaluate
from storage_proxy.http.transfers import Download, Transfers

_INLINE_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'"
GUARDS = {
    hdrs.CACHE_CONTROL: "private, no-store",
    hdrs.REFERRER_POLICY: "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer with content."""
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
    StateUnavailable,
    HttpVersionNotSupported,
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


class ClientHandlers:
    """The endpoints of downloads by token."""

    def __init__(self, downloads: Downloads, slots: DownloadSlots, transfers: Transfers) -> None:
        self._downloads = downloads
        self._slots = slots
        self._transfers = transfers

    @endpoint("GET", "/download", errors=_ERRORS)
    async def download(self, request: web.Request, claims: BlobClaims) -> web.StreamResponse:
        """Download one blob.

        Range, If-Range and the other conditional headers work as RFC 9110 says.
        """
        return await self._answer(request, claims, lambda: self._downloads.blob(claims))

    @endpoint("GET", "/download-archive", errors=_ERRORS)
    async def download_archive(self, request: web.Request, claims: ArchiveClaims) -> web.StreamResponse:
        """Download many blobs as one archive.

        Content-Length is exact; `Accept-Ranges: bytes` tells that the download can be resumed. A deflated archive has
        no Content-Length: it needs HTTP/1.1, and starts anew when it breaks.
        """
        return await self._answer(request, claims, lambda: self._downloads.archive(claims))

    async def _answer(
        self,
        request: web.Request,
        claims: BlobClaims | ArchiveClaims,
        represent: Callable[[], Awaitable[Representation]],
    ) -> web.StreamResponse:
        with self._slots.taken(claims.jti):
            representation = await represent()
            try:
                return await self._respond(request, claims, representation)
            except BlobChanged:
                # Only before the first byte: a later change has aborted. What is not pinned is looked up again.
                if representation.pinned:
                    raise
                return await self._respond(request, claims, await represent())

    async def _respond(
        self, request: web.Request, claims: BlobClaims | ArchiveClaims, what: Representation
    ) -> web.StreamResponse:
        if what.size is None and request.version < HttpVersion11:  # only the close would end it, as it would end a cut
            raise HttpVersionNotSupported("The archive's length is not known: this needs HTTP/1.1")
        validators = Validators(what.etag, what.last_modified, what.dated, what.size, what.ranges)
        outcome = evaluate(request.method, _joined(request), validators, now=time.time())
        headers = _headers(what)
        if isinstance(outcome, NotModified):
            return web.Response(status=304, headers=headers)
        if what.presign is not None and request.method == hdrs.METH_GET:
            location = await what.presign(headers[hdrs.CONTENT_DISPOSITION], what.content_type)
            return web.Response(status=302, headers={**GUARDS, hdrs.LOCATION: location})
        start, stop = 0, what.size
        if isinstance(outcome, Partial):
            start, stop = outcome.start, outcome.stop
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{what.size}"
        if stop is not None:
            headers[hdrs.CONTENT_LENGTH] = str(stop - start)
        response = web.StreamResponse(status=206 if isinstance(outcome, Partial) else 200, headers=headers)
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        download = Download(str(claims.op), claims.jti_hash, what.entries)
        await self._transfers.send(request, response, what.body(start, stop), download)
        return response


def _joined(request: web.Request) -> Mapping[str, str]:
    return {name.title(): ", ".join(request.headers.getall(name)) for name in request.headers}


def _headers(what: Representation) -> dict[str, str]:
    headers = {
        hdrs.CONTENT_TYPE: what.content_type,
        hdrs.CONTENT_DISPOSITION: content_disposition(what.disposition, what.filename),
        "ETag": what.etag,
        hdrs.LAST_MODIFIED: formatdate(min(what.last_modified, time.time()), usegmt=True),
        hdrs.ACCEPT_RANGES: "bytes" if what.ranges else "none",
        **GUARDS,
    }
    if what.content_encoding:
        headers[hdrs.CONTENT_ENCODING] = what.content_encoding
    if what.disposition is Disposition.INLINE:
        headers["Content-Security-Policy"] = _INLINE_POLICY
    return headers
