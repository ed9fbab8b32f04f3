"""A wired proxy over one bucket and a state that the test can write to, as the write path would."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from storage_proxy.common.events import run_key
from storage_proxy.downloads.blob_uris import BlobUris
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStat, BlobStore
from tests.support.proxy import RunningProxy, running, settings_of
from tests.support.runs import Runs, open_runs
from tests.support.s3 import S3Bucket, open_store

URI_KEY = Fernet.generate_key().decode()


@dataclass(frozen=True, slots=True)
class RunService:
    """``put`` and ``remove`` change objects behind the proxy's back."""

    proxy: RunningProxy
    runs: Runs
    store: BlobStore
    put: Callable[[str, bytes], Awaitable[None]]
    remove: Callable[[str], Awaitable[None]]
    uris: BlobUris

    async def add(self, run_id: str, path: str, content: bytes, **known: Any) -> BlobStat:
        """An object of a run, and its record."""
        await self.put(run_key(run_id, path), content)
        return await self.runs.record_object(self.store, run_id, path, **known)

    async def uri(self, run_id: str, path: str, etag: str | None = None) -> str:
        """The blob's URI, of its version now."""
        stat = await self.runs.blobs.resolve("default", run_key(run_id, path))
        return self.uris.encrypt("default", run_key(run_id, path), etag or (stat.etag if stat else '"none"'), run_id)

    async def metric_is(self, name: str, least: float) -> bool:
        return await self.proxy.metric(name) >= least


@asynccontextmanager
async def local_service(directory: Path, **more: Any) -> AsyncIterator[RunService]:
    """Over a real directory."""
    root = directory / "blobs"
    root.mkdir()

    async def put(key: str, content: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    async def remove(key: str) -> None:
        (root / key).unlink()

    table = {"kind": "local", "root": str(root)}
    async with _service(directory, table, LocalBlobStore(root), put, remove, **more) as service:
        yield service


@asynccontextmanager
async def s3_service(
    directory: Path, bucket: S3Bucket, *, delivery: str = "proxy", **more: Any
) -> AsyncIterator[RunService]:
    """Over a bucket of a real S3 server."""

    async def put(key: str, content: bytes) -> None:
        await bucket.client.put_object(Bucket=bucket.name, Key=key, Body=content, ChecksumAlgorithm="SHA256")

    async def remove(key: str) -> None:
        await bucket.client.delete_object(Bucket=bucket.name, Key=key)

    server = bucket.server
    table = {
        "kind": "s3",
        "endpoint": server.endpoint,
        "bucket": bucket.name,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing": "path",
        "delivery": delivery,
    }
    async with (
        open_store(bucket.options()) as store,
        _service(directory, table, store, put, remove, **more) as service,
    ):
        yield service


@asynccontextmanager
async def _service(
    directory: Path,
    table: dict[str, object],
    store: BlobStore,
    put: Callable[[str, bytes], Awaitable[None]],
    remove: Callable[[str], Awaitable[None]],
    **more: Any,
) -> AsyncIterator[RunService]:
    path = directory / "state" / "state.db"
    settings = settings_of({"default": table}, state={"path": str(path)}, blob_uris={"keys": [URI_KEY]}, **more)
    async with running(settings) as proxy, open_runs(path) as runs:
        yield RunService(proxy, runs, store, put, remove, BlobUris([URI_KEY], ttl_seconds=3600))
