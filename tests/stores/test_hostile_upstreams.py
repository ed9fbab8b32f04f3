"""Our own requests against servers that break every rule: an error that says so, never wrong bytes, nothing left over.

The servers are made up, over real sockets; the real one never does any of this.
"""

import asyncio
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
)
from storage_proxy.stores.s3_gets import ObjectReader
from tests.support.upstream import chunked, client, head, upstream

CONTENT = random.Random(6).randbytes(300_000)
SIZES = (1, 100, 17_000, len(CONTENT))

CLEAR = (StorageError, StorageTimeout, StorageUnavailable, BlobChanged, BlobNotFound)

Ending = Literal["keep", "close", "reset", "stall"]


@dataclass(frozen=True, slots=True)
class Script:
    """What a server answers: ``wire`` in pieces that end at ``cuts``, then how it goes on."""

    size: int
    wire: bytes
    cuts: tuple[int, ...]
    ending: Ending

    async def __call__(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        edges = [0, *sorted(min(cut, len(self.wire)) for cut in self.cuts), len(self.wire)]
        for first, last in pairwise(edges):
            writer.write(self.wire[first:last])
            await writer.drain()
            await asyncio.sleep(0)
        if self.ending == "reset":
            writer.transport.abort()
        if self.ending == "stall":
            await asyncio.Event().wait()
        return self.ending == "keep"


endings = st.sampled_from(("keep", "close", "reset", "stall"))
cut_points = st.lists(st.integers(0, len(CONTENT) + 500), max_size=12).map(tuple)
junk = st.one_of(st.binary(min_size=1, max_size=200), st.just(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n!"))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """An answer that was right before its head, its framing or its length was spoilt; content is never touched."""
    size = draw(st.sampled_from(SIZES))
    content = CONTENT[:size]
    bad_chunks = draw(st.sampled_from([b"", b"", b"zz\r\n", b"-5\r\n", b"f" * 40 + b"\r\n", b"\r\n", b"5\n"]))
    framing = draw(st.sampled_from((None, "Transfer-Encoding: chunked")))
    first, body = head(size, framing=framing), content
    if framing is not None:
        body = bad_chunks + chunked(content, draw(st.lists(st.integers(1, 9000), max_size=9)))
    match draw(st.sampled_from(("nothing", "insert", "remove", "other", "garbage", "endless", "interim"))):
        case "insert":
            at = draw(st.integers(0, len(first) - 4))
            first = first[:at] + draw(st.binary(min_size=1, max_size=9)) + first[at:]
        case "remove":
            at = draw(st.integers(0, len(first) - 5))
            first = first[:at] + first[at + draw(st.integers(1, 30)) :]
        case "other":
            status = draw(st.sampled_from(("200 OK", "204 No", "404 Not", "412 No", "416 No", "503 Busy", "600 What")))
            first = head(size, status=status, framing=framing)
        case "garbage":
            first = draw(st.binary(max_size=300))
        case "endless":
            first = first[:-2] + b"x: y\r\n" * 20_000
        case "interim":
            first = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(1, 40)) + first
    # An empty line that came early makes headers of the rest content: nobody could tell.
    assume(first.find(b"\r\n\r\n") in {-1, len(first) - 4} or first.startswith(b"HTTP/1.1 100"))
    wire = first + body
    match draw(st.sampled_from(("whole", "whole", "cut", "longer"))):
        case "cut":
            wire = wire[: draw(st.integers(0, len(wire)))]
        case "longer":
            wire += draw(junk)
    return Script(size, wire, draw(cut_points), draw(endings))


@given(scripts())
def test_whatever_a_server_answers_ends_in_the_right_bytes_or_in_a_clear_error(script: Script) -> None:
    async def run() -> None:
        async with upstream(script) as server:
            async with client(server.port, stall_timeout=0.05) as ours:
                for _ in range(2):  # what a first answer left behind must not be taken for the second
                    given = bytearray()
                    try:
                        async with asyncio.timeout(20):
                            reader = await ours.gets.open("k", 0, script.size, '"e"')
                            if reader is None:
                                continue
                            await read_into(given, reader)
                        assert given == CONTENT[: script.size]
                    except CLEAR:
                        assert CONTENT.startswith(given)
                    ours.assert_nothing_held()
            if script.ending != "stall":
                await server.until_left()

    asyncio.run(run())


async def read_into(given: bytearray, reader: ObjectReader) -> None:
    try:
        while chunk := await reader.read():
            given += chunk
    finally:
        await reader.aclose()


@pytest.mark.parametrize("extra", [b"!", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n!"])
async def test_bytes_after_a_body_end_the_connection(extra: bytes) -> None:
    script = Script(100, head(100) + CONTENT[:100] + extra, (), "keep")
    async with upstream(script) as server, client(server.port) as ours:
        for _ in range(3):
            assert await ours.read(100) == CONTENT[:100]
        assert server.connections == 3


async def test_a_connection_that_was_closed_while_idle_is_replaced_unseen() -> None:
    async def once(_: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(head(5) + b"hello")
        writer.transport.pause_reading()  # its second request is never read
        await writer.drain()
        await asyncio.sleep(0)
        return server.connections != 1

    async with upstream(once) as server, client(server.port, max_attempts=1) as ours:
        assert await ours.read(5) == b"hello"
        assert await ours.read(5) == b"hello"
        assert server.connections == 2


async def test_a_fresh_connection_that_breaks_is_an_attempt() -> None:
    async with upstream(Script(5, b"", (), "close")) as server, client(server.port, max_attempts=3) as ours:
        with pytest.raises(StorageUnavailable):
            await ours.read(5)
        assert server.connections == 3


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    script = Script(5, head(5) + b"hello", (), "keep")
    async with upstream(script) as server, client(server.port, idle=0.05) as ours:
        assert await ours.read(5) == b"hello"
        await server.until_left()


async def test_a_view_outlives_a_reader_that_is_closed_early() -> None:
    """A chunk may still wait in a client's connection, which is aborted only a moment later."""
    size, sent = 60_000, asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> bool:
        start = 1000 * server.connections + len(server.requests)
        writer.write(head(size) + CONTENT[start : start + 500])
        await writer.drain()
        if len(server.requests) == 1:
            await sent.wait()
        writer.write(CONTENT[start + 500 : start + size])
        await writer.drain()
        return True

    async with upstream(answer) as server, client(server.port) as ours:
        reader = await ours.gets.open("k", 0, size, None)
        assert reader is not None
        view = await reader.read()
        expected = bytes(view)
        sent.set()
        await reader.aclose()
        ours.assert_nothing_held()
        for _ in range(5):
            await ours.read(size, if_match=None)
        assert view == expected


async def test_a_reader_that_is_over_leaves_the_next_one_alone() -> None:
    """Its connection is another's by then."""
    script = Script(100, head(100) + CONTENT[:100], (50,), "keep")
    async with upstream(script) as server, client(server.port) as ours:
        first = await ours.gets.open("k", 0, 100, None)
        assert first is not None
        while await first.read():
            pass
        second = await ours.gets.open("k", 0, 100, None)
        assert second is not None
        assert not await first.read()
        await first.aclose()
        given = bytearray()
        await read_into(given, second)
        assert (given, server.connections) == (CONTENT[:100], 1)


async def test_a_read_ends_when_its_reader_is_closed() -> None:
    async with upstream(Script(100, head(100) + CONTENT[:50], (), "stall")) as server, client(server.port) as ours:
        reader = await ours.gets.open("k", 0, 100, None)
        assert reader is not None
        assert await reader.read() == CONTENT[:50]
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        await reader.aclose()
        with pytest.raises(StorageUnavailable):
            await reading
        with pytest.raises(StorageUnavailable):
            await reader.read()


async def test_cancelling_at_any_point_leaves_nothing_behind() -> None:
    size = len(CONTENT)
    turns = random.Random(7)
    script = Script(size, head(size) + CONTENT, (1, 50, 9_000, 150_000), "keep")
    async with upstream(script) as server, client(server.port, limit=4) as ours:
        for _ in range(60):
            readings = [asyncio.create_task(ours.read(size)) for _ in range(5)]
            for reading in readings:
                for _ in range(turns.randrange(12)):
                    await asyncio.sleep(0)
                reading.cancel()
            await asyncio.gather(*readings, return_exceptions=True)
            ours.assert_nothing_held()
        async with asyncio.timeout(20):
            assert await ours.read(size) == CONTENT
