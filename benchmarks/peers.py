"""The servers that are compared: each serves the same blobs from the same S3 server, one process apiece.

A new peer is an asynchronous context manager that yields a `Peer`, and a line in `PEERS`.
"""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
from zipstream import ZipStream  # type: ignore[import-untyped]

from benchmarks import nginx
from benchmarks.cases import MIB, Case
from benchmarks.client import Target
from benchmarks.processes import BenchmarkError, free_port
from benchmarks.programs import configured, program
from benchmarks.storage import BUCKET, WORKSPACE, Storage, remove_state

MINT_SECONDS = 300
LINK_SECONDS = 24 * 3600


class Peer(Protocol):
    """A running server. ``pid`` is the process that serves the bytes."""

    @property
    def pid(self) -> int: ...

    async def target(self, case: Case) -> Target | None:
        """Where to download ``case``; None when this peer cannot serve it."""
        ...


class Refused(BenchmarkError):
    """What was asked for does not exist in this version."""


@dataclass(frozen=True, slots=True)
class StorageProxy:
    """The storage proxy of this repository; its links come from the manager API."""

    pid: int
    manager_url: str
    api_key: str

    async def target(self, case: Case) -> Target | None:
        if not case.is_archive:
            link = await self._mint("blob", {"bucket": BUCKET, "key": case.keys[0], "expires_in": LINK_SECONDS})
            return Target([link["url"]], link["size"], case.payload_bytes)
        wanted = {"bucket": BUCKET, "prefix": case.prefix, "format": case.format, "compression": case.compression}
        try:
            link = await self._mint("archive", {**wanted, "expires_in": LINK_SECONDS})
        except Refused as refused:
            print(f"{case.title} is left out: {refused}", file=sys.stderr, flush=True)
            return None
        if case.compression == "store" and link["resumable"] != (case.has_crcs or case.format == "tar"):
            raise BenchmarkError(f"what is known of the CRC-32s of {case.title} is not what it must be")
        return Target([link["url"]], link["size"], case.payload_bytes)

    async def _mint(self, kind: str, wanted: Mapping[str, str | int]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=MINT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            headers = {"Authorization": f"Bearer {self.api_key}"}
            url = f"{self.manager_url}/v1/tokens/{kind}"
            async with session.post(url, json=wanted, headers=headers) as answer:
                if answer.status == 400:
                    raise Refused((await answer.json())["detail"])
                if answer.status != 201:
                    raise BenchmarkError(f"minting for {kind} was answered with {answer.status}: {await answer.text()}")
                link: dict[str, Any] = await answer.json()
                return link


@asynccontextmanager
async def storage_proxy(storage: Storage) -> AsyncIterator[StorageProxy]:
    state = WORKSPACE / "state.db"
    remove_state(state)  # what an earlier run has learned would be known
    programs = configured(storage, state)
    async with programs.proxy("serve") as pid, programs.manager():
        yield StorageProxy(pid, programs.manager_url, programs.api_key)


@dataclass(frozen=True, slots=True)
class Obvious:
    """aioboto3 -> zipstream-ng -> aiohttp."""

    pid: int
    url: str

    async def target(self, case: Case) -> Target:
        case = case.part or case
        if not case.is_archive:
            url = f"{self.url}/download?key={quote(case.keys[0])}"
            return Target([url], case.payload_bytes, case.payload_bytes)
        archive = ZipStream(sized=True)
        for key in case.keys:
            archive.add(iter(()), key, size=case.blob_bytes)
        url = f"{self.url}/download-archive?prefix={quote(case.prefix)}"
        return Target([url], len(archive), case.payload_bytes)


@asynccontextmanager
async def obvious(storage: Storage) -> AsyncIterator[Obvious]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.obvious", str(port), storage.endpoint]
    command += [storage.access_key, storage.secret_key, storage.region, BUCKET]
    async with program("obvious", command, url) as pid:
        yield Obvious(pid, url)


async def presigned(storage: Storage, case: Case) -> Target:
    """The blobs of ``case`` at the S3 server."""
    async with storage.client() as client:
        urls = [
            await client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key})
            for key in case.keys
        ]
    return Target(urls, case.payload_bytes, case.payload_bytes)


@dataclass(frozen=True, slots=True)
class Nginx:
    """nginx's proxy_pass, by presigned URL. For an archive it serves the same large blobs one after the other."""

    storage: Storage
    pid: int
    url: str

    async def target(self, case: Case) -> Target | None:
        if case.blob_bytes < MIB:
            return None
        target = await presigned(self.storage, case)
        return replace(target, urls=[self.url + url.removeprefix(self.storage.endpoint) for url in target.urls])


def nginx_with(name: str, buffers: str) -> Callable[[Storage], AbstractAsyncContextManager[Nginx]]:
    @asynccontextmanager
    async def proxying(storage: Storage) -> AsyncIterator[Nginx]:
        async with nginx.proxying(storage.endpoint, name=name, buffers=buffers) as (pid, url):
            yield Nginx(storage, pid, url)

    return proxying


@dataclass(frozen=True, slots=True)
class Direct:
    """The S3 server itself, by presigned URL: what no proxy on this machine can exceed."""

    storage: Storage

    @property
    def pid(self) -> int:
        return self.storage.pid

    async def target(self, case: Case) -> Target | None:
        return None if case.is_archive else await presigned(self.storage, case)


@asynccontextmanager
async def direct(storage: Storage) -> AsyncIterator[Direct]:
    yield Direct(storage)


OURS, OBVIOUS, DIRECT = "storage proxy", "obvious", "S3 itself"
"""The first is the one that the others are compared with."""
NGINX, UNFILED, TUNED = "nginx", "nginx without files", "nginx tuned"
PEERS: Mapping[str, Callable[[Storage], AbstractAsyncContextManager[Peer]]] = {
    OURS: storage_proxy,
    NGINX: nginx_with("nginx", nginx.DEFAULT_BUFFERS),
    UNFILED: nginx_with("nginx-without-files", nginx.NO_FILES),
    TUNED: nginx_with("nginx-tuned", nginx.LARGE_BUFFERS),
    OBVIOUS: obvious,
    DIRECT: direct,
}
