"""PUT /upload and the uploads' RPC over real sockets, with a real local bucket and a real SQLite file."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from storage_proxy.common.events import run_key
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.middleware import require_bearer
from storage_proxy.common.tokens import BlobGrant, TokenVerifier, UploadGrant
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.http.client_api import claims_from
from storage_proxy.http.uploads_api import UploadHandlers
from storage_proxy.http.uploads_rpc import UploadRpcHandlers
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.stores.local import LocalBlobStore
from tests.support.ingest import WritePath, crc32_of
from tests.support.proxy import KEY, RPC_SECRET, token
from tests.support.raw_http import Connection, request
from tests.support.state import sqlite_store

pytestmark = pytest.mark.both_loops

MAX_BYTES = 4 << 20
CONTENT = bytes(range(256)) * 8_000  # above every buffer, and above the listener's limit for other bodies


@dataclass
class Running:
    """Both listeners, what is behind them, and the bucket's directory."""

    url: str
    rpc_url: str
    path: WritePath
    root: Path
    http: aiohttp.ClientSession
    client: Listener

    def upload_url(self, name: str = "a.bin", **more: Any) -> str:
        return f"{self.url}/upload?token={token(grant(name, **more))}"

    def files(self) -> list[str]:
        """Every file that is left in the bucket, those on their way included."""
        return [str(each.relative_to(self.root)) for each in self.root.rglob("*") if each.is_file()]

    async def rpc(self, method: str, target: str, **more: Any) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {RPC_SECRET}"}
        async with self.http.request(method, f"{self.rpc_url}{target}", headers=headers, **more) as answer:
            return answer.status, await answer.json(content_type=None)


def grant(name: str = "a.bin", **more: Any) -> UploadGrant:
    fields = {"bucket": "media", "run_id": "r1", "path": name, "key": run_key("r1", name), **more}
    return UploadGrant(**fields)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    root = tmp_path / "blobs"
    root.mkdir()
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(sqlite_store(tmp_path / "state.db"))
        bucket = LocalBlobStore(root)
        stack.push_async_callback(bucket.aclose)
        path = WritePath(state, buckets={"media": bucket}, options=IngestOptions(max_upload_bytes=MAX_BYTES))
        verifier = TokenVerifier([KEY], issuer="manager-api", audience="storage-proxy")
        slots = DownloadSlots(max_downloads=8, max_per_token=2)
        handlers = UploadHandlers(path.uploads, slots, path.metrics, stall_seconds=0.5)
        client = Listener("client", "127.0.0.1:0", max_body_bytes=1000)
        add_endpoints(client.app, endpoints_of(handlers, claims_of=claims_from(verifier)))
        rpc = Listener("rpc", "127.0.0.1:0", require_bearer({"test": RPC_SECRET}))
        add_endpoints(rpc.app, endpoints_of(UploadRpcHandlers(path.uploads)))
        for listener in (client, rpc):
            await listener.start()
            stack.push_async_callback(listener.aclose)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Running(f"http://{client.address}", f"http://{rpc.address}", path, root, http, client)


async def put(running: Running, url: str, body: Any = CONTENT, **headers: str) -> tuple[int, dict[str, Any]]:
    given = io.BytesIO(body) if isinstance(body, bytes) else body
    async with running.http.put(url, data=given, headers=headers) as answer:
        found = await answer.json(content_type=None)
        if answer.status != 201:
            assert answer.content_type == "application/problem+json"
        return answer.status, found


def target(url: str) -> str:
    return f"{urlsplit(url).path}?{urlsplit(url).query}"


async def until_settled(running: Running) -> None:
    """Until no request is running any more."""
    async with asyncio.timeout(30):
        while len(running.client.in_flight):
            await asyncio.sleep(0.005)


async def test_an_upload_is_there_when_it_is_answered(running: Running) -> None:
    async with running.http.put(running.upload_url(), data=io.BytesIO(CONTENT)) as answer:
        assert answer.status == 201
        blob = await answer.json()
        assert answer.headers["ETag"] == blob["etag"]
        assert answer.headers["Cache-Control"] == "private, no-store"
    assert blob["key"] == "runs/r1/a.bin"
    assert (blob["state"], blob["size"], blob["crc32"]) == ("verified", len(CONTENT), crc32_of(CONTENT))
    assert (running.root / "runs/r1/a.bin").read_bytes() == CONTENT


async def test_an_empty_upload_is_an_empty_blob(running: Running) -> None:
    status, blob = await put(running, running.upload_url(), b"")
    assert (status, blob["size"], blob["crc32"]) == (201, 0, "00000000")


async def test_uploads_are_refused_by_code(running: Running) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        yield b"x"

    def code(answer: tuple[int, dict[str, Any]]) -> tuple[int, str]:
        return answer[0], answer[1]["code"]

    assert code(await put(running, running.upload_url(), chunked())) == (411, "length-required")
    assert code(await put(running, running.upload_url(), b"x" * (MAX_BYTES + 1))) == (413, "payload-too-large")
    assert code(await put(running, running.upload_url(size=3), b"four")) == (400, "size-mismatch")
    assert code(await put(running, running.upload_url(crc32="00000000"), b"four")) == (400, "checksum-mismatch")
    assert code(await put(running, running.upload_url(key="runs/r2/a.bin"), b"x")) == (400, "invalid-request")
    assert code(await put(running, f"{running.url}/upload", b"x")) == (401, "token-missing")
    other = token(BlobGrant(bucket="media", key="a", filename="a"))
    assert code(await put(running, f"{running.url}/upload?token={other}", b"x")) == (403, "token-wrong-operation")
    part = {"Content-Range": "bytes 0-0/2"}
    assert code(await put(running, running.upload_url(), b"x", **part)) == (400, "invalid-request")
    assert running.files() == []
    await put(running, running.upload_url("b"), b"x")
    assert code(await put(running, running.upload_url("b"), b"x")) == (409, "blob-exists")
    await running.path.delete_run("r1")
    assert code(await put(running, running.upload_url("c"), b"x")) == (409, "run-deleted")


async def test_a_wrong_token_of_another_issuer_does_not_stand_in_the_way_of_the_right_one(running: Running) -> None:
    status, answer = await put(running, running.upload_url(size=len(CONTENT), crc32="00000000"))
    assert (status, answer["code"]) == (400, "checksum-mismatch")
    body = CONTENT[1:]
    status, blob = await put(running, running.upload_url(size=len(body), crc32=crc32_of(body)), body)
    assert (status, blob["size"], blob["crc32"]) == (201, len(body), crc32_of(body))


@pytest.mark.parametrize(
    ("grant_of", "length"), [({"size": 3}, 4), ({}, MAX_BYTES + 1), ({"max_downloads": 1}, 4)], ids=ascii
)
async def test_a_client_that_waits_to_be_invited_is_not_invited_to_what_is_refused(
    running: Running, grant_of: dict[str, Any], length: int
) -> None:
    connection = await Connection.open(running.url)
    asked = target(running.upload_url(**grant_of))
    await connection.send(request("PUT", asked, f"Content-Length: {length}", "Expect: 100-continue"))
    answer = await connection.answer()
    assert answer is not None
    assert answer.interim == ()
    assert answer.status >= 400
    connection.abort()


async def test_a_client_that_waits_to_be_invited_is_invited_once(running: Running) -> None:
    connection = await Connection.open(running.url)
    asked = target(running.upload_url())
    await connection.send(request("PUT", asked, "Content-Length: 4", "Expect: 100-continue"))
    await asyncio.sleep(0)
    await connection.send(b"four")
    answer = await connection.answer()
    assert answer is not None
    assert (answer.interim, answer.status) == ((100,), 201)
    connection.abort()


@pytest.mark.parametrize("sent", [0, 1, 100_000, len(CONTENT) - 1])
async def test_an_upload_that_is_cut_leaves_nothing(running: Running, sent: int) -> None:
    connection = await Connection.open(running.url)
    asked = target(running.upload_url())
    await connection.send(request("PUT", asked, f"Content-Length: {len(CONTENT)}") + CONTENT[:sent])
    async with asyncio.timeout(30):
        while not len(running.client.in_flight):
            await asyncio.sleep(0.001)
    connection.abort()
    await until_settled(running)
    assert running.files() == []
    status, _ = await put(running, running.upload_url())
    assert status == 201


async def test_a_client_that_sends_nothing_is_cut(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    connection = await Connection.open(running.url)
    asked = target(running.upload_url())
    with caplog.at_level(logging.INFO):
        await connection.send(request("PUT", asked, f"Content-Length: {len(CONTENT)}") + CONTENT[:1000])
        assert await connection.is_closed()
        connection.abort()
        await until_settled(running)
    assert running.files() == []
    assert [record.__dict__["outcome"] for record in caplog.records if record.msg == "upload"] == ["client-stalled"]


async def test_an_upload_under_way_is_finished_by_the_drain_or_cut_whole(running: Running) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield CONTENT[:1000]
        await drained.wait()
        yield CONTENT[1000:]

    drained = asyncio.Event()
    headers = {"Content-Length": str(len(CONTENT))}
    uploading = asyncio.create_task(put(running, running.upload_url(), slow(), **headers))
    async with asyncio.timeout(30):
        while not running.files():
            await asyncio.sleep(0.001)
    draining = asyncio.create_task(running.client.drain(30))
    drained.set()
    assert (await uploading)[0] == 201
    assert await draining == 0
    assert (running.root / "runs/r1/a.bin").read_bytes() == CONTENT


async def test_a_run_that_is_deleted_during_the_upload_keeps_no_object(running: Running) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield CONTENT[:1000]
        await deleted.wait()
        yield CONTENT[1000:]

    deleted = asyncio.Event()
    headers = {"Content-Length": str(len(CONTENT))}
    uploading = asyncio.create_task(put(running, running.upload_url(), slow(), **headers))
    async with asyncio.timeout(30):
        while not running.files():
            await asyncio.sleep(0.001)
    await running.path.delete_run("r1")
    deleted.set()
    status, problem = await uploading
    assert (status, problem["code"]) == (409, "run-deleted")
    assert running.files() == []


async def test_no_log_line_shows_a_token(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    url = running.upload_url()
    with caplog.at_level(logging.DEBUG):
        await put(running, url)
    assert urlsplit(url).query.removeprefix("token=") not in caplog.text
    [line] = [record for record in caplog.records if record.msg == "upload"]
    assert (line.__dict__["outcome"], line.__dict__["bytes"]) == ("complete", len(CONTENT))


async def test_an_upload_is_prepared_and_completed_by_rpc(running: Running) -> None:
    order = {"run_id": "r1", "bucket": "media", "path": "ü/a.bin", "expires_in": 600, "size": 4}
    status, prepared = await running.rpc("POST", "/rpc/v1/uploads", json=order)
    assert status == 200
    assert prepared["url"] is None
    assert prepared["headers"] == {"Content-Length": "4"}
    upload = f"/rpc/v1/uploads/{prepared['upload_id']}/complete"
    status, problem = await running.rpc("POST", upload)
    assert (status, problem["code"]) == (409, "upload-incomplete")
    await put(running, running.upload_url("ü/a.bin"), b"four")
    status, blob = await running.rpc("POST", f"{upload}?buckets=media,x")
    assert (status, blob["state"], blob["path"]) == (200, "verified", "ü/a.bin")
    status, problem = await running.rpc("POST", f"{upload}?buckets=x")
    assert (status, problem["code"]) == (404, "not-found")
    status, problem = await running.rpc("POST", "/rpc/v1/uploads", json=order)
    assert (status, problem["code"]) == (409, "blob-exists")
    status, problem = await running.rpc("POST", "/rpc/v1/uploads", json={**order, "path": "../a"})
    assert (status, problem["code"], problem["errors"][0]["loc"]) == (400, "unsafe-name", ["path"])
    status, problem = await running.rpc("POST", "/rpc/v1/uploads", json={**order, "path": "b", "via": "direct"})
    assert (status, problem["code"]) == (400, "invalid-request")
