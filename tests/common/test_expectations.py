"""The Expect header over real sockets: nobody is invited to send what is refused unread."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel

from storage_proxy.common.service.endpoints import add_endpoints, endpoint, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.middleware import require_bearer

SECRET = "expect-secret-0123456789abcdef0123456789"


class Said(BaseModel):
    text: str


class Echo:
    @endpoint("POST", "/echo")
    async def echo(self, body: Said) -> Said:
        """What was said."""
        return body


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    started = Listener("echo", "127.0.0.1:0", require_bearer({"test": SECRET}))
    add_endpoints(started.app, endpoints_of(Echo()))
    await started.start()
    yield started
    await started.aclose()


async def head(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readuntil(b"\r\n\r\n")


async def connected(listener: Listener, lines: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = listener.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lines}\r\n".encode())
    return reader, writer


async def test_a_body_that_will_be_read_is_invited(listener: Listener) -> None:
    lines = f"Authorization: Bearer {SECRET}\r\nContent-Length: 13\r\nExpect: 100-continue\r\n"
    reader, writer = await connected(listener, lines)
    assert await head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b'{"text": "a"}')
    assert (await head(reader)).startswith(b"HTTP/1.1 200")
    assert await reader.readexactly(12) == b'{"text":"a"}'
    writer.close()


async def test_a_body_that_is_refused_is_not(listener: Listener) -> None:
    for lines, status in (
        ("Content-Length: 13\r\nExpect: 100-continue\r\n", b"401"),
        (f"Authorization: Bearer {SECRET}\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n", b"413"),
    ):
        reader, writer = await connected(listener, lines)
        answer = await head(reader)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"application/problem+json" in answer
        writer.close()


async def test_another_expectation_is_ignored(listener: Listener) -> None:
    lines = f"Authorization: Bearer {SECRET}\r\nContent-Length: 13\r\nExpect: my-secret\r\n"
    reader, writer = await connected(listener, lines)
    writer.write(b'{"text": "a"}')
    assert (await head(reader)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_an_expectation_where_nothing_is_changes_nothing(listener: Listener) -> None:
    reader, writer = await connected(listener, f"Authorization: Bearer {SECRET}\r\nExpect: x\r\nConnection: close\r\n")
    answer = await reader.read()
    assert b"417" not in answer.split(b"\r\n")[0]
    assert b"application/problem+json" in answer
    writer.close()
