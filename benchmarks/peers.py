"""The servers that are compared: each serves the same blobs from the same S3 server, one process apiece.

A new peer is an asynchronous context manager that yields a `Peer`, and a line in `PEERS`.
"""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
from zipstream import ZipStream  # type: ignore[import-untyped]

from benchmarks.cases import Case
from benchmarks.processes import BenchmarkError, free_port
from benchmarks.programs import configured, program
from benchmarks.storage import BUCKET, WORKSPACE, Storage

MINT_SECONDS = 300
LINK_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Target:
    """What a client downloads: the URL, and exactly how many bytes must come."""

    url: str
    size: int


class Peer(Protocol):
    """A running server. ``pid`` is the process that serves the bytes."""

    @property
    def pid(self) -> int: ...

    async def target(self, case: Case) -> Target | None:
        """Where to download ``case``; None when this peer cannot serve it."""
        ...


@dataclass(frozen=True, slots=True)
class StorageProxy:
    """The storage proxy of this repository; its links come from the manager API."""

    pid: int
    manager_url: str
    api_key: str

    async def target(self, case: Case) -> Target:
        if case.is_archive:
            link = await self._mint("archive", {"bucket": BUCKET, "prefix": case.prefix, "expires_in": LINK_SECONDS})
            if not link["resumable"]:
                raise BenchmarkError(f"the CRC-32s of {case.title} are not known: the comparison would not be fair")
        else:
            link = await self._mint("blob", {"bucket": BUCKET, "key": case.keys[0], "expires_in": LINK_SECONDS})
        return Target(link["url"], link["size"])

    async def _mint(self, kind: str, wanted: Mapping[str, str | int]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=MINT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            headers = {"Authorization": f"Bearer {self.api_key}"}
            url = f"{self.manager_url}/v1/tokens/{kind}"
            async with session.post(url, json=wanted, headers=headers) as answer:
                if answer.status != 201:
                    raise BenchmarkError(f"minting for {kind} was answered with {answer.status}: {await answer.text()}")
                link: dict[str, Any] = await answer.json()
                return link


@asynccontextmanager
async def storage_proxy(storage: Storage) -> AsyncIterator[StorageProxy]:
    programs = configured(storage, WORKSPACE / "state.db")
    async with programs.proxy("serve") as pid, programs.manager():
        yield StorageProxy(pid, programs.manager_url, programs.api_key)


@dataclass(frozen=True, slots=True)
class Obvious:
    """aioboto3 -> zipstream-ng -> aiohttp."""

    pid: int
    url: str

    async def target(self, case: Case) -> Target:
        if not case.is_archive:
            return Target(f"{self.url}/download?key={quote(case.keys[0])}", case.payload_bytes)
        archive = ZipStream(sized=True)
        for key in case.keys:
            archive.add(iter(()), key, size=case.blob_bytes)
        return Target(f"{self.url}/download-archive?prefix={quote(case.prefix)}", len(archive))


@asynccontextmanager
async def obvious(storage: Storage) -> AsyncIterator[Obvious]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.obvious", str(port), storage.endpoint]
    command += [storage.access_key, storage.secret_key, storage.region, BUCKET]
    async with program("obvious", command, url) as pid:
        yield Obvious(pid, url)


@dataclass(frozen=True, slots=True)
class Direct:
    """The S3 server itself, by presigned URL: what no proxy on this machine can exceed."""

    storage: Storage

    @property
    def pid(self) -> int:
        return self.storage.pid

    async def target(self, case: Case) -> Target | None:
        if case.is_archive:
            return None
        async with self.storage.client() as client:
            wanted = {"Bucket": BUCKET, "Key": case.keys[0]}
            return Target(await client.generate_presigned_url("get_object", Params=wanted), case.payload_bytes)


@asynccontextmanager
async def direct(storage: Storage) -> AsyncIterator[Direct]:
    yield Direct(storage)


OURS = "storage proxy"
"""The peer that the others are compared with."""
PEERS: Mapping[str, Callable[[Storage], AbstractAsyncContextManager[Peer]]] = {
    OURS: storage_proxy,
    "obvious": obvious,
    "S3 itself": direct,
}
