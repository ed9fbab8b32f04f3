"""Making a link: a signed token in the URL of the storage proxy that serves it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from storage_proxy.common.errors import InvalidRequest
from storage_proxy.common.tokens import ArchiveGrant, BlobGrant, Grant, TokenSigner, UploadGrant
from storage_proxy.common.values import moment


@dataclass(frozen=True, slots=True)
class Link:
    """One link, and what identifies it."""

    token: str
    url: str
    jti: str
    expires_at: datetime


class LinkMaker:
    """Signs grants. ``client_url`` is where people reach the proxy, without a slash at its end; times in seconds."""

    def __init__(
        self,
        signer: TokenSigner,
        *,
        client_url: str,
        default_ttl: int,
        max_ttl: int,
        new_jti: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._signer = signer
        self._client_url = client_url
        self._default_ttl = default_ttl
        self._max_ttl = max_ttl
        self._new_jti = new_jti

    def lifetime(self, expires_in: int | None) -> int:
        """The seconds that a link shall live. Raises `InvalidRequest` outside of 1..max."""
        if expires_in is None:
            return self._default_ttl
        if not 1 <= expires_in <= self._max_ttl:
            message = f"must be from 1 to {self._max_ttl}"
            raise InvalidRequest(f"expires_in {message}", errors=[{"loc": ["expires_in"], "msg": message}])
        return expires_in

    def make(self, grant: Grant, *, expires_in: int, subject: str | None = None) -> Link:
        """A link for ``grant``. Raises `InvalidRequest` when its token would be too long."""
        token, claims = self._signer.sign(grant, jti=self._new_jti(), expires_in=expires_in, subject=subject)
        url = f"{self._client_url}{_route(grant)}?token={token}"
        return Link(token, url, claims.jti, moment(claims.exp))


def _route(grant: Grant) -> str:
    match grant:
        case BlobGrant():
            return "/download"
        case ArchiveGrant():
            return "/download-archive"
        case UploadGrant():
            return "/upload"
        case _:
            assert_never(grant)
