"""The client and the slow clients against a real server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks import slow_clients
from benchmarks.client import READ_BYTES, download
from benchmarks.processes import BenchmarkError
from benchmarks.storage import ROOT

BODY = bytes(range(256)) * (3 * READ_BYTES // 256) + b"end"


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async def whole(_: web.Request) -> web.Response:
        return web.Response(body=BODY)

    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for first in range(0, len(BODY), 100_000):
            await response.write(BODY[first : first + 100_000])
        return response

    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
        await response.prepare(request)
        await response.write(BODY[:1000])
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.add_routes([web.get("/whole", whole), web.get("/chunked", chunked), web.get("/broken", broken)])
    async with TestServer(app) as running:
        yield running


@pytest.mark.parametrize("path", ["/whole", "/chunked"])
async def test_a_download_counts_every_byte_of_the_body(server: TestServer, path: str) -> None:
    done = await asyncio.to_thread(download, str(server.make_url(path)))
    assert done.size == len(BODY)
    assert 0 < done.first_byte_seconds <= done.seconds


async def test_several_downloads_are_one_after_the_other_over_one_connection(server: TestServer) -> None:
    url = str(server.make_url("/whole"))
    assert (await asyncio.to_thread(download, url, url, url)).size == 3 * len(BODY)


@pytest.mark.parametrize(
    ("path", "complaint"), [("/absent", "answered with 404"), ("/broken", "bytes early|broke off")]
)
async def test_a_download_that_is_refused_or_breaks_off_is_an_error(
    server: TestServer, path: str, complaint: str
) -> None:
    with pytest.raises(BenchmarkError, match=complaint):
        await asyncio.to_thread(download, str(server.make_url(path)))


async def test_slow_clients_read_no_faster_than_they_are_told(server: TestServer) -> None:
    rate, seconds = 50_000, 0.5
    url = str(server.make_url("/whole"))
    command = [sys.executable, "-m", "benchmarks.slow_clients", url, "3", str(rate), str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    ready, rates = output.decode().splitlines()
    assert ready == slow_clients.READY
    assert len(json.loads(rates)) == 3
    assert all(0 < each <= rate for each in json.loads(rates))
