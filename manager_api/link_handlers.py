"""The routes of blobs and links: who may, under which name, for how long; everything about storage asks the proxy.

The law: what this program can refuse itself is refused before the proxy is asked, and a limit that nothing enforces
yet is never promised.
"""

import asyncio

from aiohttp import web

from manager_api.access import BucketAccess
from manager_api.links import LinkMaker
from manager_api.models import MintArchive, MintBlob, MintedArchive, MintedBlob, MintOptions, Nothing
from manager_api.proxy_client import ProxyClient
from storage_proxy.common.errors import (
    BlobNotFound,
    BucketNotFound,
    DuplicateName,
    FieldError,
    InvalidRequest,
    RunNotFound,
    SelectionTooLarge,
    StateUnavailable,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.common.names import RESERVED_PREFIX, default_filename, require_safe_key, unsafe_filename_reason
from storage_proxy.common.selection import check_selection
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import CALLER, REQUEST_ID
from storage_proxy.common.tokens import ArchiveGrant, BlobGrant
from storage_proxy.common.wire import BlobAddress, BlobDescription

_STAT_ERRORS = (UnsafeName, BlobNotFound, BucketNotFound, StorageError, StorageUnavailable, StorageTimeout)
_PLAN_ERRORS = (*_STAT_ERRORS, RunNotFound, DuplicateName, SelectionTooLarge, StateUnavailable)
_NOT_ENFORCED = "is not enforced by this version, so it is not promised"


class LinkHandlers:
    """The endpoints of blobs and of links to them."""

    def __init__(self, proxy: ProxyClient, links: LinkMaker, access: BucketAccess) -> None:
        self._proxy = proxy
        self._links = links
        self._access = access

    @endpoint("GET", "/v1/blobs", errors=_STAT_ERRORS)
    async def describe_blob(self, request: web.Request, query: BlobAddress) -> BlobDescription:
        """Describe a blob.

        One blob as it is now: size, ETag, type and, where it is known, CRC-32.
        """
        return await self._described(request, query)

    @endpoint("POST", "/v1/tokens/blob", status=201, errors=_STAT_ERRORS)
    async def mint_blob(self, request: web.Request, query: Nothing, body: MintBlob) -> MintedBlob:
        """Make a link to one blob.

        The link is not pinned: it serves the blob as it is at each download.
        """
        require_safe_key(body.key)
        filename = default_filename(body.key) if body.filename is None else _safe_filename(body.filename)
        expires_in = self._lifetime(body)
        blob = await self._described(request, BlobAddress(bucket=body.bucket, key=body.key))
        grant = BlobGrant(bucket=body.bucket, key=body.key, filename=filename, disposition=body.disposition)
        link = self._links.make(grant, expires_in=expires_in, subject=body.subject)
        return MintedBlob(
            token=link.token,
            url=link.url,
            jti=link.jti,
            expires_at=link.expires_at,
            bucket=blob.bucket,
            key=blob.key,
            filename=filename,
            size=blob.size,
            etag=blob.etag,
            content_type=blob.content_type,
        )

    @endpoint("POST", "/v1/tokens/archive", status=201, errors=_PLAN_ERRORS)
    async def mint_archive(self, request: web.Request, query: Nothing, body: MintArchive) -> MintedArchive:
        """Make a link to many blobs as one archive.

        What is selected is resolved now and pinned: every download gives the same bytes, and a blob that changes
        later is refused, not mixed in. The answer tells the archive's exact size, or null for deflate.
        """
        filename = _safe_filename(f"archive.{body.format}" if body.filename is None else body.filename)
        selection = body.selection()
        await asyncio.to_thread(check_selection, selection)
        expires_in = self._lifetime(body)
        caller = request[CALLER]
        self._access.require_all(caller, selection)
        access = self._access.to_runs(caller)
        planned = await self._proxy.plan_archive(selection, access, request_id=request[REQUEST_ID])
        grant = ArchiveGrant(
            bucket=body.bucket,
            filename=filename,
            format=body.format,
            compression=body.compression,
            manifest=planned.manifest,
        )
        link = self._links.make(grant, expires_in=expires_in, subject=body.subject)
        return MintedArchive.model_construct(  # what is skipped may be much, and has been checked
            token=link.token,
            url=link.url,
            jti=link.jti,
            expires_at=link.expires_at,
            filename=filename,
            format=body.format,
            entries=planned.entries,
            size=planned.size,
            etag=planned.etag,
            resumable=planned.resumable,
            skipped=planned.skipped,
        )

    async def _described(self, request: web.Request, address: BlobAddress) -> BlobDescription:
        require_safe_key(address.key)
        self._access.require(request[CALLER], address.bucket)
        if address.key.startswith(RESERVED_PREFIX):
            raise BlobNotFound
        return await self._proxy.stat_blob(address, request_id=request[REQUEST_ID])

    def _lifetime(self, options: MintOptions) -> int:
        asked = {
            "max_downloads": options.max_downloads is not None,
            "allowed_networks": options.allowed_networks is not None,
        }
        _refuse(asked, _NOT_ENFORCED)
        return self._links.lifetime(options.expires_in)


def _safe_filename(filename: str) -> str:
    if reason := unsafe_filename_reason(filename):
        raise UnsafeName(f"The filename {reason}", errors=[{"loc": ["filename"], "msg": reason}])
    return filename


def _refuse(asked: dict[str, bool], message: str) -> None:
    errors: list[FieldError] = [{"loc": [name], "msg": message} for name, is_asked in asked.items() if is_asked]
    if errors:
        raise InvalidRequest(f"{', '.join(str(error['loc'][0]) for error in errors)} {message}", errors=errors)
