"""Real sockets on loopback: what is sent through arrives whole and in order, and not before its time."""

import asyncio
import time
from contextlib import suppress

from benchmarks import delayed_origin
from benchmarks.processes import free_port

SECONDS = 0.05


async def _reversed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers what it is sent, once that is at its end, from its last byte to its first."""
    writer.write((await reader.read(-1))[::-1])
    await writer.drain()
    writer.close()


async def test_both_directions_arrive_whole_and_not_before_their_delay() -> None:
    body = bytes(range(256)) * 40_000
    async with await asyncio.start_server(_reversed, "127.0.0.1", 0) as origin:
        origin_port, port = origin.sockets[0].getsockname()[1], free_port()
        serving = asyncio.create_task(delayed_origin.serve(port, origin_port, SECONDS))
        async with asyncio.timeout(30):
            reader, writer = await _connected(port)
            began = time.monotonic()
            writer.write(body)
            writer.write_eof()
            assert await reader.read(-1) == body[::-1]
            assert time.monotonic() - began >= SECONDS * 0.9
            writer.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_client_of_an_origin_that_is_not_there_is_closed() -> None:
    port = free_port()
    serving = asyncio.create_task(delayed_origin.serve(port, free_port(), SECONDS))
    async with asyncio.timeout(30):
        reader, writer = await _connected(port)
        with suppress(ConnectionResetError):
            assert await reader.read(-1) == b""
        writer.close()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)
