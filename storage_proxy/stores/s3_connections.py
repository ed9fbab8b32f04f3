"""How a bucket behind S3 is reached: the clients of the SDK, and the connections of our own requests beside them.

The law: our own trust, go round and sign as the SDK does, by the same options and the same environment.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.http_pool import open_pool
from storage_proxy.stores.s3_gets import GetRequests
from storage_proxy.stores.s3_requests import S3Requests
from storage_proxy.stores.s3_signer import Signer, address_of, chain_keys, fixed_keys
from storage_proxy.stores.s3_signing import Credentials

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach a bucket. ``endpoint`` None is AWS, no keys are the SDK's provider chain; times in seconds.

    ``max_connections`` bounds the open connections, and with them the readers that are open at once: a call that
    gets none raises `StorageTimeout` at its deadline. HeadObject, listings and `put` have as many of their own, so
    that readers do not keep them waiting. ``request_timeout`` is that deadline, ``max_attempts`` and their pauses
    included; ``read_timeout`` is how long an answer or a body may stall.
    """

    bucket: str
    endpoint: str | None = None
    public_endpoint: str | None = None
    prefix: str = ""
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    addressing: Literal["path", "virtual", "auto"] = "auto"
    max_connections: int = 1280
    connect_timeout: float = 3.0
    read_timeout: float = 20.0
    request_timeout: float = 30.0
    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class S3Connections:
    """``public_client`` and ``public_signer`` are for URLs that clients use; without the others the SDK asks."""

    client: "S3Client"
    public_client: "S3Client"
    requests: S3Requests | None
    gets: GetRequests | None
    public_signer: Signer | None


@asynccontextmanager
async def open_connections(
    options: S3Options, session: aioboto3.Session, buffers: BufferPool
) -> AsyncIterator[S3Connections]:
    """Everything that a store needs, closed on leaving. Nothing is asked of the server yet."""
    async with AsyncExitStack() as stack:

        async def client(endpoint: str | None) -> "S3Client":
            opening: AbstractAsyncContextManager[S3Client] = session.client(
                "s3",
                endpoint_url=endpoint,
                region_name=options.region,
                aws_access_key_id=options.access_key,
                aws_secret_access_key=options.secret_key,
                config=_config(options),
            )
            return await stack.enter_async_context(opening)

        async def signer(client: "S3Client") -> Signer | None:
            address = await address_of(client, options.bucket)
            return None if address is None else Signer(address, _keys(options, session))

        inside = outside = await client(options.endpoint)
        if options.public_endpoint not in {None, options.endpoint}:
            outside = await client(options.public_endpoint)
        requests = gets = None
        if (inner := await signer(inside)) is not None:
            trust = _trust(session) if inner.origin.startswith("https:") else None
            own = await stack.enter_async_context(_own_connections(options, trust))
            proxy = get_environ_proxies(inner.origin).get(inner.origin.partition(":")[0])
            requests = S3Requests(own, inner, max_attempts=options.max_attempts, proxy=proxy)
            if proxy is None:
                pool = await stack.enter_async_context(
                    open_pool(
                        inner.origin,
                        trust=trust,
                        limit=options.max_connections,
                        connect_timeout=options.connect_timeout,
                    )
                )
                gets = GetRequests(
                    pool, inner, buffers, max_attempts=options.max_attempts, stall_timeout=options.read_timeout
                )
        yield S3Connections(inside, outside, requests, gets, await signer(outside))


def _keys(options: S3Options, session: aioboto3.Session) -> Callable[[], Awaitable[Credentials]]:
    if options.access_key is not None and options.secret_key is not None:
        return partial(fixed_keys, options.access_key, options.secret_key)
    return partial(chain_keys, session)


def _trust(session: aioboto3.Session) -> ssl.SSLContext:
    """Without ALPN: a server that is not asked for HTTP/2 does not speak it."""
    named = session._session.get_config_variable("ca_bundle")  # noqa: SLF001 - boto3 has no other door to it
    return ssl.create_default_context(cafile=named or get_cert_path(True))


def _own_connections(options: S3Options, trust: ssl.SSLContext | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.max_connections, ssl=trust or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_timeout, sock_read=options.read_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=["accept", "content-type", "user-agent"],
        auto_decompress=False,
    )


def _config(options: S3Options) -> AioConfig:
    settings: dict[str, Any] = {
        "signature_version": "s3v4",
        "s3": {"addressing_style": options.addressing},
        "retries": {"mode": "standard", "total_max_attempts": options.max_attempts},
        "max_pool_connections": options.max_connections,
        "connect_timeout": options.connect_timeout,
        "read_timeout": options.read_timeout,
    }
    for checksums in ("request_checksum_calculation", "response_checksum_validation"):
        if checksums in AioConfig.OPTION_DEFAULTS:  # botocore 1.36 and later; before it this is how it was
            settings[checksums] = "when_required"
    return AioConfig(**settings)
