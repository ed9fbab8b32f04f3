"""The pool's connecting, to real sockets; what it does with its connections is in test_hostile_upstreams.py."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing, suppress

import pytest

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.stores.buffers import BufferPool, ReaderBuffers
from storage_proxy.stores.http_connection import Exchange
from storage_proxy.stores.http_pool import ConnectionPool

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server at 127.0.0.1; at 127.0.0.2 there is one that takes nobody: its queue is full."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    number: int = server.sockets[0].getsockname()[1]
    waiting = []
    with socket.socket() as full:
        full.bind(("127.0.0.2", number))
        full.listen(0)
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            with suppress(BlockingIOError):
                waiting[-1].connect(("127.0.0.2", number))
        yield number
        for each in waiting:
            each.close()
    server.close()


def pool_at(monkeypatch: pytest.MonkeyPatch, port: int, *addresses: str) -> ConnectionPool:
    async def resolve(host: str, port: int) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr("storage_proxy.stores.http_pool.addresses_of", resolve)
    return ConnectionPool(f"http://s3.test:{port}", trust=None, limit=1, connect_timeout=5.0)


async def test_an_address_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    with closing(pool_at(monkeypatch, port, "127.0.0.2", "127.0.0.1")) as pool:
        connection = await pool.acquire()
        assert pool.busy_connections == 1
        pool.give_back(connection, reusable=False)


async def test_an_exchange_on_a_connection_that_is_lost_already_ends_at_once() -> None:
    async def leaves(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(leaves, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with closing(server), closing(ConnectionPool(url, trust=None, limit=1, connect_timeout=5.0)) as pool:
        connection = await pool.acquire()
        async with asyncio.timeout(20):
            while connection.usable:
                await asyncio.sleep(0.01)
        exchange = Exchange(connection, ReaderBuffers(BufferPool(ByteBudget(1 << 20)), 1), timeout=600)
        exchange.begin(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(StorageUnavailable):
            async with asyncio.timeout(20):
                await exchange.head()
        pool.give_back(connection, reusable=exchange.close())


async def test_without_any_that_answers_the_storage_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with closing(pool_at(monkeypatch, nobody.getsockname()[1], "127.0.0.1")) as pool:
            with pytest.raises(StorageUnavailable, match="cannot be reached"):
                await pool.acquire()
            assert pool.busy_connections == 0
