"""A manager API that really runs, against a fake of the proxy's RPC.

Fake is what the proxy decides: its answers are scripted. Real are its socket, HTTP, the client and everything of ours.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from manager_api.runtime import open_manager
from manager_api.settings import ManagerSettings
from storage_proxy.common.service.listener import MAX_LINE_BYTES

API_KEY = "dev-only-api-key-0123456789abcdef0123"
MEDIA_KEY = "dev-only-media-key-0123456789abcdef01"
RPC_SECRET = "dev-only-rpc-secret-0123456789abcdef"
TOKEN_SECRET = "dev-only-token-secret-0123456789abcdef"

BLOB = {
    "bucket": "default",
    "key": "a/b.bin",
    "size": 5,
    "etag": '"e1"',
    "last_modified": "2024-02-29T11:05:07Z",
    "content_type": "text/plain",
    "crc32": "0123abcd",
}
RECORD = {
    "path": "out/a.csv",
    "key": "runs/r1/out/a.csv",
    "bucket": "default",
    "size": 5,
    "etag": '"e1"',
    "crc32": "0123abcd",
    "content_type": "text/csv",
    "state": "verified",
    "created_at": "2024-02-29T11:05:07Z",
    "attributes": {"step": [1, {"a": None}]},
}
DIGEST = "0123456789abcdef" * 2
PLANNED = {
    "manifest": "sha256:" + "ab" * 32,
    "entries": 2,
    "size": 1234,
    "etag": '"e2"',
    "resumable": True,
    "skipped": [{"key": "gone", "reason": "does not exist"}],
}


@dataclass
class Asked:
    """A request that reached the fake."""

    method: str
    path: str
    query: dict[str, str]
    headers: CIMultiDictProxy[str]
    body: Any


Answer = web.Response | Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeProxy:
    """Answers by ``script``, one answer after the other, then as a proxy that has everything."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/rpc/v1/health":
            return web.json_response({"live": True}) if self._knows(request) else problem(401, "unauthorized")
        body = await request.json() if request.can_read_body else None
        self.asked.append(Asked(request.method, request.path, dict(request.query), request.headers, body))
        if self.script:
            step = self.script.pop(0)
            return step if isinstance(step, web.Response) else await step(request)
        if not self._knows(request):
            return problem(401, "unauthorized")
        match request.path:
            case "/rpc/v1/blobs":
                return web.json_response(BLOB | dict(request.query))
            case "/rpc/v1/archives":
                return web.json_response(PLANNED)
            case "/rpc/v1/uploads":
                return web.json_response(prepared(body))
        match request.method, request.path.split("/")[3:]:
            case "POST", ["uploads", _, "complete"]:
                return web.json_response(RECORD)
            case "GET", ["runs", run_id]:
                return web.json_response(described(run_id))
            case "GET", ["runs", _, "blobs"]:
                return web.json_response({"blobs": [RECORD], "next_cursor": "c2"})
            case "DELETE", ["runs", run_id]:
                return web.json_response(described(run_id) | {"state": "deleting"}, status=202)
        return problem(404, "not-found")

    def _knows(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {RPC_SECRET}"


def prepared(order: dict[str, Any], url: str | None = None) -> dict[str, Any]:
    """What the proxy says of an upload; without ``url`` it goes through the proxy."""
    return {
        "upload_id": f"{order['run_id']}~{DIGEST}",
        "bucket": order["bucket"],
        "key": f"runs/{order['run_id']}/{order['path']}",
        "url": url,
        "headers": {"Content-Type": "text/csv"},
        "expires_at": "2024-02-29T11:05:07Z",
    }


def described(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "bucket": "default", "state": "active", "blobs": 2, "bytes": 10}


def problem(status: int, code: str, headers: dict[str, str] | None = None, **members: Any) -> web.Response:
    content = {"title": "t", "status": status, "detail": "d", "code": code, "request_id": "r", **members}
    return web.json_response(content, status=status, headers=headers, content_type="application/problem+json")


async def cut(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(request: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    fake = FakeProxy()
    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, max_line_size=MAX_LINE_BYTES
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = "http://{}:{}".format(*runner.addresses[0][:2])
    yield fake
    await runner.cleanup()


@dataclass
class Caller:
    """Someone with an API key and a running manager."""

    session: aiohttp.ClientSession
    url: str

    async def get(
        self, path: str, key: str | None = API_KEY, **kw: Any
    ) -> tuple[int, dict[str, Any], CIMultiDictProxy[str]]:
        return await self._ask("GET", path, key, **kw)

    async def post(
        self, path: str, body: Any, key: str | None = API_KEY, **kw: Any
    ) -> tuple[int, dict[str, Any], CIMultiDictProxy[str]]:
        return await self._ask("POST", path, key, data=io.BytesIO(json.dumps(body).encode()), **kw)

    async def delete(
        self, path: str, key: str | None = API_KEY, **kw: Any
    ) -> tuple[int, dict[str, Any], CIMultiDictProxy[str]]:
        return await self._ask("DELETE", path, key, **kw)

    async def _ask(
        self, method: str, path: str, key: str | None, **kw: Any
    ) -> tuple[int, dict[str, Any], CIMultiDictProxy[str]]:
        headers = (
            {"Content-Type": "application/json"}
            | kw.pop("headers", {})
            | ({} if key is None else {"Authorization": f"Bearer {key}"})
        )
        async with self.session.request(
            method, URL(self.url + path, encoded="%" in path), headers=headers, **kw
        ) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers


CONFIG = f"""
listen = "127.0.0.1:0"
api_keys = [
  {{ name = "dev", secret = "{API_KEY}" }},
  {{ name = "media", secret = "{MEDIA_KEY}", buckets = ["media", "more"] }},
]
[tokens]
signing_kid = "dev"
keys = [
  {{ kid = "old", alg = "HS256", secret = "dev-only-old-token-secret-0123456789" }},
  {{ kid = "dev", alg = "HS256", secret = "{TOKEN_SECRET}" }},
]
max_ttl_seconds = 86400
[proxy]
"""


Running = Callable[..., Awaitable[Caller]]


@pytest.fixture
async def running(proxy: FakeProxy, tmp_path: Path) -> AsyncIterator[Running]:
    """Starts a manager; keyword arguments go into its ``[proxy]``."""
    async with AsyncExitStack() as stack:

        async def start(**more: str | float) -> Caller:
            given = {"rpc_url": proxy.url, "rpc_secret": RPC_SECRET, "client_url": "https://dl.example.org/"} | more
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in given.items()]
            (tmp_path / "manager_api.toml").write_text(CONFIG + "".join(lines), encoding="utf-8")
            settings = ManagerSettings.load(tmp_path / "manager_api.toml")
            manager = await stack.enter_async_context(open_manager(settings))
            stack.push_async_callback(manager.listener.aclose)
            await manager.listener.start()
            manager.health.started()
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Caller(session, f"http://{manager.listener.address}")

        yield start


@pytest.fixture
async def caller(running: Running) -> Caller:
    return await running()
