"""A wired storage proxy in this process, on free ports, and tokens for it."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from storage_proxy.common.tokens import ArchiveGrant, BlobGrant, Grant, Hs256Key, TokenSigner
from storage_proxy.runtime.process import open_process
from storage_proxy.settings import ProxySettings, SqliteStateSettings

SECRET = "test-token-secret-0123456789abcdef0123456789"
RPC_SECRET = "test-rpc-secret-0123456789abcdef0123456789"
KEY = Hs256Key("test", SECRET.encode())


def settings_of(buckets: Mapping[str, Mapping[str, object]], **more: Any) -> ProxySettings:
    """Settings with free ports; ``more`` are further tables."""

    class Unconfigured(ProxySettings):
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any) -> Any:
            return (init_settings,)

    return Unconfigured(
        **{
            "client": {"listen": "127.0.0.1:0"},
            "rpc": {"listen": "127.0.0.1:0", "secrets": [RPC_SECRET]},
            "operations": {"listen": "127.0.0.1:0"},
            "tokens": {"keys": [{"kid": "test", "alg": "HS256", "secret": SECRET}]},
            "buckets": buckets,
            **more,
        }
    )


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """Where it listens, and a client session without limits of its own."""

    client_url: str
    rpc_url: str
    operations_url: str
    http: aiohttp.ClientSession

    def url(self, grant: Grant, *, expires_in: int = 600, clock: Any = time.time) -> str:
        """A link for ``grant``."""
        route = "download-archive" if isinstance(grant, ArchiveGrant) else "download"
        return f"{self.client_url}/{route}?token={token(grant, expires_in=expires_in, clock=clock)}"

    async def plan(self, selection: Mapping[str, object]) -> dict[str, Any]:
        """Plan an archive by RPC; the answer."""
        async with self.http.post(
            f"{self.rpc_url}/rpc/v1/archives", json=selection, headers={"Authorization": f"Bearer {RPC_SECRET}"}
        ) as answer:
            body: dict[str, Any] = await answer.json()
            assert answer.status == 200, body
            return body

    async def archive_url(self, selection: Mapping[str, object], filename: str = "archive.zip") -> str:
        """A link for an archive of ``selection``."""
        planned = await self.plan(selection)
        return self.url(ArchiveGrant(bucket="default", filename=filename, manifest=planned["manifest"]))

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        async with self.http.get(f"{self.operations_url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def token(grant: Grant, *, expires_in: int = 600, clock: Any = time.time) -> str:
    signer = TokenSigner(KEY, issuer="manager-api", audience="storage-proxy", clock=clock)
    return signer.sign(grant, jti=uuid.uuid4().hex, expires_in=expires_in)[0]


def blob_grant(key: str, **more: Any) -> BlobGrant:
    return BlobGrant(**{"bucket": "default", "key": key, "filename": "file.bin", **more})


@asynccontextmanager
async def running(settings: ProxySettings) -> AsyncIterator[RunningProxy]:
    """The proxy of ``settings``, listening; its state is its own unless they say where it is."""
    async with AsyncExitStack() as stack:
        if "state" not in settings.model_fields_set:
            directory = stack.enter_context(TemporaryDirectory(prefix="state-"))
            state = SqliteStateSettings(path=Path(directory) / "state.db")
            settings = settings.model_copy(update={"state": state})
        proxy = await stack.enter_async_context(open_process(settings))
        for listener in (*proxy.listeners, proxy.operations):
            await listener.start()
            stack.push_async_callback(listener.aclose)
        proxy.health.started()
        addresses = {listener.name: f"http://{listener.address}" for listener in proxy.listeners}
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        )
        yield RunningProxy(
            addresses.get("client", ""), addresses.get("rpc", ""), f"http://{proxy.operations.address}", http
        )


def local_settings(root: Path, **more: Any) -> ProxySettings:
    """Settings with one local bucket, the state beside it."""
    return settings_of(
        {"default": {"kind": "local", "root": str(root)}}, **{"state": {"path": str(state_beside(root))}, **more}
    )


def state_beside(root: Path) -> Path:
    """Where the state of a test is whose local bucket is at ``root``."""
    return root.with_name(f"{root.name}-state") / "state.db"
