"""Cutting a client that takes nothing, over real sockets."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from storage_proxy.http.stall_watch import StallWatch
from tests.support.proxy import blob_grant, local_settings, running

pytestmark = pytest.mark.both_loops

SIZE = 24 << 20


async def raw_download(url: str) -> tuple[socket.socket, asyncio.AbstractEventLoop]:
    """A socket with a small receive buffer that has asked for ``url`` and read nothing yet."""
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("http://").split("/", 1)[0].split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    client.setblocking(False)
    await loop.sock_connect(client, (host, int(port)))
    path = "/" + url.removeprefix("http://").split("/", 1)[1]
    await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client, loop


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/large").write_bytes(os.urandom(SIZE))
    return tmp_path / "blobs"


async def test_a_client_slower_than_the_time_that_makes_a_stall_gets_everything(root: Path) -> None:
    settings = local_settings(root, client={"listen": "127.0.0.1:0", "stall_seconds": 0.4})
    async with running(settings) as proxy:
        client, loop = await raw_download(proxy.url(blob_grant("large")))
        received, began = 0, loop.time()
        with client:
            while received < 2 << 20:  # about 100 kB a step: each chunk of 1 MiB takes longer than 0.4 s
                received += len(await loop.sock_recv(client, 100_000))
                await asyncio.sleep(0.01)
            while received < SIZE:
                taken = await loop.sock_recv(client, 1 << 20)
                assert taken, "the connection was cut"
                received += len(taken)
        assert loop.time() - began > 0.4
        assert await proxy.metric("storage_proxy_downloads_aborted_total") == 0


@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_client_that_takes_nothing_is_cut_whether_it_may_still_ask_or_not(
    root: Path, half_closed: bool
) -> None:
    settings = local_settings(root, client={"listen": "127.0.0.1:0", "stall_seconds": 0.4})
    async with running(settings) as proxy:
        client, loop = await raw_download(proxy.url(blob_grant("large")))
        with client:
            await loop.sock_recv(client, 1)
            await asyncio.sleep(0.2)  # the kernel's buffers are full, and more waits
            if half_closed:  # aiohttp begins to close then, and waits for what is left without a bound
                client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(30):
                while await proxy.metric("storage_proxy_downloads_aborted_total") < 1:
                    await asyncio.sleep(0.05)
            assert await proxy.metric("storage_proxy_downloads_active") == 0
            assert await proxy.metric("storage_proxy_buffer_bytes") == 0


async def test_waiting_for_the_upstream_is_no_stall() -> None:
    class Quiet(asyncio.WriteTransport):
        aborted = False

        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None:
            self.aborted = True

    transport = Quiet()
    with StallWatch(transport, 0.05) as watch:
        await asyncio.sleep(0.2)
    assert not watch.stalled
    assert not transport.aborted
