"""Where a bucket's objects are and with which keys they are asked for: as a client of the SDK decides it.

The law: the SDK's own rules find the address, once, and its provider chain the keys, each time; only the signing is
ours. Nothing here asks a server, but for keys that are due.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aioboto3
from botocore.exceptions import BotoCoreError, NoCredentialsError

from storage_proxy.stores.s3_signing import (
    EMPTY_PAYLOAD,
    Credentials,
    Scope,
    encoded_path,
    encoded_query,
    presigned_query,
    signed_headers,
)

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

# What proxies rewrite on the way is not signed, as the SDK does not.
_UNSIGNED = {"accept-encoding": "identity"}

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """``origin`` is scheme and authority, ``host`` what a Host header says, ``path`` what comes before a name."""

    origin: str
    host: str
    path: str
    region: str


async def address_of(client: "S3Client", bucket: str) -> Address | None:
    """Where ``client`` finds the objects of ``bucket``; None when it would not, or sign for another service.

    A request is prepared and answered on the spot, before it is signed or sent, as botocore's Stubber does it.
    """
    prepared: dict[str, Any] = {}

    def answer(params: dict[str, Any], context: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        prepared.update(url=params["url"], signing=context.get("signing", {}), kind=context.get("auth_type"))
        return SimpleNamespace(status_code=200), {"ResponseMetadata": {"HTTPStatusCode": 200}}

    event = "before-call.s3.HeadObject"
    events: Any = client.meta.events  # typed as if a handler could not answer
    events.register_first(event, answer, "address")
    try:
        await client.head_object(Bucket=bucket, Key="x")
    except BotoCoreError:  # a name that no bucket can have: each call will say so
        return None
    finally:
        events.unregister(event, answer, "address")
    signing = prepared["signing"]
    if signing.get("signing_name", "s3") != "s3" or prepared["kind"] not in {None, "v4", "s3v4"}:
        return None
    parts = urlsplit(prepared["url"])
    host = parts.netloc.rpartition("@")[2]
    if parts.port == _DEFAULT_PORTS.get(parts.scheme):
        host = host.removesuffix(f":{parts.port}")
    region = signing.get("region") or client.meta.region_name
    return Address(f"{parts.scheme}://{host}", host, parts.path.removesuffix("x"), region)


async def fixed_keys(access_key: str, secret_key: str) -> Credentials:
    return Credentials(access_key, secret_key)


async def chain_keys(session: aioboto3.Session) -> Credentials:
    """What the SDK's provider chain has at this moment, renewed when it is due; raises `NoCredentialsError`."""
    asking: Any = session  # typed as if it were boto3's
    found = await asking.get_credentials()
    if found is None:
        raise NoCredentialsError
    frozen = await found.get_frozen_credentials()
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


class Signer:
    """Signs requests for objects by their names, with what ``keys`` gives each time."""

    def __init__(
        self, address: Address, keys: Callable[[], Awaitable[Credentials]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._address = address
        self._keys = keys
        self._clock = clock

    @property
    def origin(self) -> str:
        return self._address.origin

    async def signed(
        self, method: str, name: str, headers: Mapping[str, str], *, payload: str = EMPTY_PAYLOAD
    ) -> tuple[str, Mapping[str, str]]:
        """The URL, and all headers of a request; ``payload`` is the sha256 of its body in hex."""
        address = self._address
        path = address.path + encoded_path(name)
        keys = await self._keys()
        signed = signed_headers(method, address.host, path, headers, keys, self._scope(), payload=payload)
        return address.origin + path, signed | _UNSIGNED

    async def signed_query(self, parameters: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """As `signed`, of a GET that asks the bucket itself."""
        address = self._address
        path, query = address.path.removesuffix("/") or "/", encoded_query(parameters)
        keys = await self._keys()
        signed = signed_headers("GET", address.host, path, {}, keys, self._scope(), query=query)
        return f"{address.origin}{path}?{query}", signed | _UNSIGNED

    async def presigned(self, method: str, name: str, headers: Mapping[str, str], *, expires_in: int) -> str:
        """A URL for requests with just these ``headers``, within ``expires_in`` seconds."""
        address = self._address
        path = address.path + encoded_path(name)
        keys = await self._keys()
        query = presigned_query(method, address.host, path, headers, keys, self._scope(), expires_in=expires_in)
        return f"{address.origin}{path}?{query}"

    def _scope(self) -> Scope:
        return Scope(self._address.region, int(self._clock()))
