import asyncio

import aiohttp
import pytest

from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def listener(start) -> Listener:
    return await start()


async def running(client: aiohttp.ClientSession, listener: Listener, rooms) -> asyncio.Task[tuple[int, bytes]]:
    async def ask() -> tuple[int, bytes]:
        async with client.get(f"http://{listener.address}/slow") as answer:
            return answer.status, await answer.read()

    task = asyncio.create_task(ask())
    await rooms.reached.wait()
    return task


async def test_a_drain_lets_what_runs_finish(client: aiohttp.ClientSession, listener: Listener, rooms) -> None:
    request = await running(client, listener, rooms)
    drain = asyncio.create_task(listener.drain(30))
    while not listener.in_flight.draining:
        await asyncio.sleep(0)
    assert not drain.done()
    rooms.go_on.set()
    assert await drain == 0
    assert (await request)[0] == 200


async def test_a_drain_cuts_what_runs_too_long(client: aiohttp.ClientSession, listener: Listener, rooms) -> None:
    request = await running(client, listener, rooms)
    assert await listener.drain(0.05) == 1
    with pytest.raises(aiohttp.ClientError):
        await request
    assert rooms.left.is_set()


async def test_a_draining_listener_accepts_no_connection(client: aiohttp.ClientSession, listener: Listener) -> None:
    address = listener.address
    await listener.drain(0)
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(f"http://{address}/nothing")


async def test_an_open_connection_is_told_that_the_server_shuts_down(listener: Listener) -> None:
    async with aiohttp.ClientSession() as client:
        address = listener.address
        async with client.get(f"http://{address}/nothing") as answer:
            assert answer.status == 204
        await listener.drain(0)
        async with client.get(f"http://{address}/nothing") as answer:
            assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
            assert (await answer.json(content_type=None))["code"] == "shutting-down"


async def test_a_listener_that_never_started_drains_at_once() -> None:
    assert await Listener("test", "127.0.0.1:0").drain(30) == 0


async def test_a_client_that_leaves_ends_its_handler(listener: Listener, rooms) -> None:
    async with aiohttp.ClientSession() as client:
        request = await running(client, listener, rooms)
        request.cancel()
    await rooms.left.wait()


async def test_readiness_follows_the_life_of_the_process() -> None:
    health = Health()
    assert not (await health.readiness()).ready
    health.started()
    assert (await health.readiness()).ready
    health.draining()
    assert not (await health.readiness()).ready
