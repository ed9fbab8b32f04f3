"""A server that answers every request with bytes that a test made up, and our own requests to it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.http_pool import ConnectionPool
from storage_proxy.stores.s3_gets import GetRequests
from storage_proxy.stores.s3_signer import Address, Signer, fixed_keys

ETAG = '"e"'

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]]
"""Writes the answer to a request's head; whether the connection goes on."""


@dataclass(slots=True)
class Upstream:
    """Where it listens; ``connections`` were made, ``open_connections`` are left, ``requests`` are heads."""

    port: int = 0
    connections: int = 0
    open_connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_left(self) -> None:
        """Wait until no connection is open."""
        async with asyncio.timeout(20):
            while self.open_connections:
                self.ended.clear()
                await self.ended.wait()


@asynccontextmanager
async def upstream(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A server on loopback, whose connections are ended on leaving."""
    seen = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.connections += 1
        seen.open_connections += 1
        try:
            while True:
                seen.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if not await answer(seen.requests[-1], writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.transport.close()
            tasks.discard(task)
            seen.open_connections -= 1
            seen.ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Client:
    """Our own requests, and what they draw on."""

    gets: GetRequests
    pool: ConnectionPool
    buffers: BufferPool

    async def read(self, size: int, *, if_match: str | None = ETAG) -> bytes:
        """The first ``size`` bytes of the one object."""
        reader = await self.gets.open("k", 0, size, if_match)
        assert reader is not None, "this was left to the SDK"
        content = bytearray()
        try:
            while chunk := await reader.read():
                content += chunk
        finally:
            await reader.aclose()
        return bytes(content)

    def assert_nothing_held(self) -> None:
        assert (self.buffers.budget.taken, self.buffers.readers, self.pool.busy_connections) == (0, 0, 0)


@asynccontextmanager
async def client(
    port: int,
    *,
    trust: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    limit: int = 64,
    max_attempts: int = 1,
    stall_timeout: float = 5.0,
    idle: float = 4.0,
    budget: int = 128 << 20,
) -> AsyncIterator[Client]:
    """Impatient enough for tests; what is still held on leaving fails the test."""
    origin = f"{'https' if trust else 'http'}://{host}:{port}"
    pool = ConnectionPool(origin, trust=trust, limit=limit, connect_timeout=5.0, idle=idle)
    buffers = BufferPool(ByteBudget(budget))
    signer = Signer(Address(origin, f"{host}:{port}", "/bucket/", "us-east-1"), partial(fixed_keys, "id", "secret"))
    gets = GetRequests(
        pool, signer, buffers, max_attempts=max_attempts, stall_timeout=stall_timeout, jitter=lambda: 0.0
    )
    made = Client(gets, pool, buffers)
    try:
        yield made
        made.assert_nothing_held()
    finally:
        pool.close()


def head(size: int, *, status: str = "206 Partial Content", framing: str | None = None) -> bytes:
    """The head of an answer with a whole object of ``size`` bytes."""
    lines = [
        f"HTTP/1.1 {status}",
        f"ETag: {ETAG}",
        f"Content-Range: bytes 0-{size - 1}/{size}",
        f"Content-Length: {size}" if framing is None else framing,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(content: bytes, sizes: Sequence[int]) -> bytes:
    """``content`` in chunks of these sizes, the rest of it in one more."""
    coded, offset = bytearray(), 0
    for size in [*sizes, len(content)]:
        if chunk := content[offset : offset + size]:
            coded += b"%x\r\n%b\r\n" % (len(chunk), chunk)
            offset += len(chunk)
    return bytes(coded) + b"0\r\n\r\n"
