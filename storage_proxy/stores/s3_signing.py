"""AWS Signature Version 4 for S3, without the SDK: for calls so frequent that its 1 ms each is what they cost.

The law: nothing here does I/O or knows the time; what is signed is exactly what the caller sends (S3 API reference,
"Authenticating Requests (AWS Signature Version 4)").
"""

import hmac
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from typing import NamedTuple
from urllib.parse import quote

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_PAYLOAD = sha256(b"").hexdigest()

_ALGORITHM = "AWS4-HMAC-SHA256"


class Credentials(NamedTuple):
    """Keys of one moment; ``token`` is that of temporary ones."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Credentials()"


class Scope(NamedTuple):
    """What a signature is good for: ``region``, and a ``moment`` in seconds since the epoch."""

    region: str
    moment: int

    @property
    def timestamp(self) -> str:
        return _timestamp(self.moment)


@lru_cache(maxsize=4)
def _timestamp(moment: int) -> str:
    return strftime("%Y%m%dT%H%M%SZ", gmtime(moment))


def encoded_path(name: str) -> str:
    """``name`` as it stands in a path that is signed: only unreserved characters and ``/`` stay (RFC 3986)."""
    return quote(name, safe="/~")


def encoded_query(parameters: Mapping[str, str]) -> str:
    """``parameters`` as they stand in a query that is signed."""
    return "&".join(f"{name}={quote(value, safe='~')}" for name, value in sorted(parameters.items()))


def signed_headers(
    method: str,
    host: str,
    path: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    scope: Scope,
    *,
    query: str = "",
    payload: str = EMPTY_PAYLOAD,
) -> dict[str, str]:
    """``headers`` and those that make it a signed request of ``path`` and ``query``, which are encoded.

    Names are in lower case. ``payload`` is the body's sha256 in hex, or `UNSIGNED_PAYLOAD`.
    """
    timestamp = scope.timestamp
    signed = {**headers, "host": host, "x-amz-content-sha256": payload, "x-amz-date": timestamp}
    if credentials.token:
        signed["x-amz-security-token"] = credentials.token
    names, request = _canonical_request(method, path, query, signed, payload)
    day = timestamp[:8]
    signature = _signature(request, timestamp, credentials.secret_key, scope.region)
    signed["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{_scope(day, scope.region)}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return signed


def presigned_query(
    method: str,
    host: str,
    path: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    scope: Scope,
    *,
    expires_in: int,
) -> str:
    """The query with which ``path`` may be asked for within ``expires_in`` seconds, by a request with ``headers``."""
    signed = {**headers, "host": host}
    query = _unsigned_query(credentials, scope, ";".join(sorted(signed)), expires_in)
    _, request = _canonical_request(method, path, query, signed, UNSIGNED_PAYLOAD)
    return f"{query}&X-Amz-Signature={_signature(request, scope.timestamp, credentials.secret_key, scope.region)}"


@lru_cache(maxsize=64)
def _unsigned_query(credentials: Credentials, scope: Scope, names: str, expires_in: int) -> str:
    """The query before its signature: the same for all URLs of one second that sign the same headers."""
    timestamp = scope.timestamp
    parameters = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{_scope(timestamp[:8], scope.region)}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(expires_in),
        "X-Amz-SignedHeaders": names,
    }
    if credentials.token:
        parameters["X-Amz-Security-Token"] = credentials.token
    return "&".join(f"{name}={quote(value, safe='~')}" for name, value in sorted(parameters.items()))


def _canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], payload: str) -> tuple[str, str]:
    """The names of ``headers`` and the text that is signed."""
    lines = sorted(headers.items())
    names = ";".join(name for name, _ in lines)
    listed = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in lines)
    return names, f"{method}\n{path}\n{query}\n{listed}\n{names}\n{payload}"


def _scope(day: str, region: str) -> str:
    return f"{day}/{region}/s3/aws4_request"


def _signature(request: str, timestamp: str, secret_key: str, region: str) -> str:
    day = timestamp[:8]
    digest = sha256(request.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{timestamp}\n{_scope(day, region)}\n{digest}"
    return hmac.digest(_signing_key(secret_key, day, region), text.encode(), "sha256").hex()


@lru_cache(maxsize=64)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
