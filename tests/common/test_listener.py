import asyncio
import json
import logging

import pytest

from storage_proxy.common.service.listener import MAX_LINE_BYTES, Listener

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def listener(start) -> Listener:
    return await start()


async def said(listener: Listener, sent: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """Everything that comes back until the server closes: status line, headers, body."""
    host, _, port = listener.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status.encode(), dict(line.lower().split(": ", 1) for line in lines), body


LONG = b"x" * (MAX_LINE_BYTES + 100)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET\r\n\r\n", 400, "invalid-request"),
        (b"GET /my-secret\r\n\r\n", 505, "http-version-not-supported"),
        (b"GET /my-secret HTTP/9.9\r\n\r\n", 400, "invalid-request"),
        (b"G\x01T /my-secret HTTP/1.1\r\n\r\n", 400, "invalid-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfcmy-secret\r\n\r\n", 400, "invalid-request"),
        (b"GET / HTTP/1.1\r\nmy-secret\r\n\r\n", 400, "invalid-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: my-secret\x00\r\n\r\n", 400, "invalid-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: my-secret\r\n\r\n", 400, "invalid-request"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            400,
            "invalid-request",
        ),
        (b"GET /my-secret?" + LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-My-Secret: my-secret" + LONG + b"\r\n\r\n", 431, "headers-too-large"),
    ],
)
async def test_what_the_parser_refuses_is_a_problem_and_no_part_of_it_is_logged(
    listener: Listener, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, code: str
) -> None:
    caplog.set_level(logging.INFO)
    first, headers, body = await said(listener, sent)
    problem = json.loads(body)
    assert first.split()[1] == str(status).encode()
    assert headers["content-type"] == "application/problem+json"
    assert headers["server"] == "storage-proxy"
    assert (problem["code"], problem["status"], problem["request_id"]) == (code, status, headers["x-request-id"])
    assert "my-secret" not in caplog.text.lower()
    assert b"my-secret" not in body


async def test_a_body_of_broken_chunks_is_a_problem(listener: Listener) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, _, body = await said(listener, head + b"my-secret\r\n")
    assert first.split()[1] == b"400"
    assert json.loads(body)["code"] == "invalid-request"


async def test_no_answer_says_what_runs_here(listener: Listener) -> None:
    for request in (b"GET /nothing HTTP/1.0\r\n\r\n", b"GET /broken HTTP/1.0\r\n\r\n"):
        _, headers, body = await said(listener, request)
        assert headers["server"] == "storage-proxy"
        assert b"aiohttp" not in body.lower()


async def test_closing_twice_is_closing_once(listener: Listener) -> None:
    await listener.aclose()
    await listener.aclose()
