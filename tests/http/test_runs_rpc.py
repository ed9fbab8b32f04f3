"""The runs' endpoints of the RPC listener over a real socket, on a real SQLite file."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.http.runs_rpc import MakeUri, RunHandlers
from storage_proxy.state.records import BlobState
from tests.support.lifecycle import House
from tests.support.state import sqlite_store


class Rpc:
    """A listener with the runs' endpoints."""

    def __init__(self, house: House, http: aiohttp.ClientSession) -> None:
        self.house = house
        self.http = http
        self.url = ""

    async def listen(self, make_uri: MakeUri | None = None) -> Listener:
        listener = Listener("rpc", "127.0.0.1:0")
        add_endpoints(listener.app, endpoints_of(RunHandlers(self.house.runs, make_uri)))
        await listener.start()
        self.url = f"http://{listener.address}/rpc/v1/runs"
        return listener

    async def ask(self, path: str, method: str = "GET", **query: str) -> tuple[int, Any]:
        async with self.http.request(method, f"{self.url}/{path}", params=query) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def rpc(tmp_path: Path) -> AsyncIterator[Rpc]:
    async with sqlite_store(tmp_path / "state.db") as store, aiohttp.ClientSession() as http:
        made = Rpc(House(store, {}), http)
        listener = await made.listen()
        yield made
        await listener.aclose()


async def test_a_run_is_described_and_listed_and_deleted(rpc: Rpc) -> None:
    await rpc.house.record("r1", ["a", "b/c"], etag='"e"', crc32=255, last_modified=1, attributes={"step": 3})
    await rpc.house.record("r1", ["p"], state=BlobState.PENDING)
    active = {"run_id": "r1", "bucket": "default", "state": "active", "blobs": 2, "bytes": 2}
    assert await rpc.ask("r1") == (200, active)
    status, page = await rpc.ask("r1/blobs", limit="1")
    assert status == 200
    assert page["blobs"] == [
        {
            "path": "a",
            "key": "runs/r1/a",
            "bucket": "default",
            "size": 1,
            "etag": '"e"',
            "crc32": "000000ff",
            "content_type": None,
            "state": "verified",
            "created_at": "2027-01-15T08:00:00Z",
            "attributes": {"step": 3},
        }
    ]
    status, page = await rpc.ask("r1/blobs", limit="1", cursor=page["next_cursor"])
    assert ([blob["path"] for blob in page["blobs"]], page["next_cursor"]) == (["b/c"], None)
    status, page = await rpc.ask("r1/blobs", state="pending")
    assert [(blob["path"], blob["etag"]) for blob in page["blobs"]] == [("p", None)]
    gone = {"run_id": "r1", "bucket": "default", "state": "deleting", "blobs": 0, "bytes": 0}
    for _ in range(2):
        assert await rpc.ask("r1", "DELETE") == (202, gone)
    assert await rpc.ask("r1") == (200, gone)
    assert await rpc.ask("r1/blobs") == (200, {"blobs": [], "next_cursor": None})


async def test_an_unknown_run_is_404_and_may_be_deleted(rpc: Rpc) -> None:
    for path in ("r1", "r1/blobs"):
        status, body = await rpc.ask(path)
        assert (status, body["code"]) == (404, "run-not-found")
    status, body = await rpc.ask("r1", "DELETE")
    assert (status, body["bucket"], body["state"]) == (202, None, "deleting")


async def test_a_run_in_a_bucket_that_the_caller_may_not_see_is_404(rpc: Rpc) -> None:
    await rpc.house.record("r1", ["a"])
    for path, method in (("r1", "GET"), ("r1/blobs", "GET"), ("r1", "DELETE")):
        status, body = await rpc.ask(path, method, buckets="media,other")
        assert (status, body["code"]) == (404, "run-not-found")
    assert (await rpc.ask("r1", buckets="media,default"))[0] == 200


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "1001"}, {"state": "gone"}, {"cursor": "?"}, {"unknown": "1"}, {"uris": "true"}]
)
async def test_a_query_that_is_not_one_is_400(rpc: Rpc, query: dict[str, str]) -> None:
    await rpc.house.record("r1", ["a"])
    status, body = await rpc.ask("r1/blobs", **query)
    assert (status, body["code"]) == (400, "invalid-request")


@pytest.mark.parametrize("run_id", ["-r", "r%0A", "r%2Fs", "a" * 129])
async def test_a_run_id_that_is_none_is_400_or_no_address(rpc: Rpc, run_id: str) -> None:
    async with rpc.http.get(f"{rpc.url}/{run_id}") as answer:
        assert answer.status in (400, 404)


async def test_verified_blobs_come_with_uris_when_asked_for(rpc: Rpc) -> None:
    await rpc.house.record("r1", ["a"])
    await rpc.house.record("r1", ["p"], state=BlobState.PENDING)
    listener = await rpc.listen(lambda run_id, path, record: f"blob:{run_id}/{path}/{record.bucket}")
    _, page = await rpc.ask("r1/blobs", uris="true", state="all")
    assert [blob.get("uri") for blob in page["blobs"]] == ["blob:r1/a/default", None]
    _, page = await rpc.ask("r1/blobs", state="all")
    assert [blob.get("uri") for blob in page["blobs"]] == [None, None]
    await listener.aclose()
