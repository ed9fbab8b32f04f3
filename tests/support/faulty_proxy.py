"""An HTTP/1.1 proxy in front of a real server that misbehaves as a test tells it to.

Requests pass unchanged, so signatures stay valid. A `Fault` is matched by method and path and used up after
``times`` answers; whatever no fault matches is answered by the server behind.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case


@dataclass(slots=True)
class Fault:
    """What happens instead of, or to, an answer. Sizes are in bytes of the body, times in seconds.

    ``status`` and ``code`` answer an S3 error without asking the server, ``answer`` any bytes. ``refuse`` resets the
    connection. ``latency`` comes before the answer. ``headers`` replaces or, with None, removes the answer's.
    ``cut_after`` closes, ``stall_after`` goes silent after so many bytes. ``append`` follows the body. ``cut_head``
    closes once the server behind has answered, before a byte of it.
    """

    method: str = "GET"
    contains: str = ""
    times: int | None = None
    status: int | None = None
    code: str = "InternalError"
    answer: bytes | None = None
    refuse: bool = False
    latency: float = 0.0
    headers: dict[str, str | None] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    append: bytes = b""
    cut_head: bool = False

    def matches(self, request: Request) -> bool:
        if self.method != request.method or self.contains not in request.target:
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


class FaultyProxy:
    """Listens on loopback while it is open; ``upstream`` is host and port."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.open_connections = 0
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        """Of requests that came and were not answered yet, as many as there ever were at once."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, fault: Fault) -> Fault:
        """Add a fault; the first that matches a request counts."""
        self.faults.append(fault)
        return fault

    def count(self, method: str, contains: str = "") -> int:
        return sum(r.method == method and contains in r.target for r in self.requests)

    async def until(self, condition: Callable[[], bool], *, within: float = 20.0) -> None:
        """Wait until ``condition``, looked at after each request and each connection that comes or goes."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(condition)

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """Refuse connections, and end the open ones, until ``listen`` is called again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def running(self) -> "AsyncIterator[FaultyProxy]":
        await self.listen()
        try:
            yield self
        finally:
            await self.stop_listening()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        await self._count_connection(+1)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side went away, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            await self._count_connection(-1)

    async def _count_connection(self, change: int) -> None:
        async with self._changed:
            self.open_connections += change
            self._changed.notify_all()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on after one request and its answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, headers = _parse(head)
        method, target, _ = first.split(" ", 2)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, target, headers)
        fault = next((f for f in self.faults if f.matches(request)), Fault())
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(head + body, request, fault, reader, writer)
        finally:
            self.in_flight -= 1

    async def _answer(
        self,
        message: bytes,
        request: Request,
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.refuse:
            return False
        canned = fault.answer if fault.status is None else _s3_error(request.method, fault.status, fault.code)
        if canned is not None:
            writer.write(canned)
            await writer.drain()
            return b"connection: close" not in canned.lower()
        return await self._forward(message, request, fault, reader, writer)

    async def _forward(
        self,
        message: bytes,
        request: Request,
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        behind, ahead = await asyncio.open_connection(*self._upstream)
        try:
            ahead.write(message)
            head = await behind.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await behind.readuntil(b"\r\n\r\n")
            if fault.cut_head:
                return False
            _, headers = _parse(head)
            writer.write(_with_headers(head, fault.headers))
            if request.method == "HEAD":
                await writer.drain()
                return True
            assert "chunked" not in headers.get("transfer-encoding", ""), "the server behind was seen to send lengths"
            left, sent = int(headers.get("content-length", "0")), 0
            while left:
                if fault.stall_after is not None and sent >= fault.stall_after:
                    await reader.read()  # until the client gives up
                    return False
                if fault.cut_after is not None and sent >= fault.cut_after:
                    await writer.drain()
                    writer.close()
                    return False
                limits = [n - sent for n in (fault.cut_after, fault.stall_after) if n is not None]
                chunk = await behind.read(min([left, _CHUNK, *limits]))
                writer.write(chunk)
                await writer.drain()
                left, sent = left - len(chunk), sent + len(chunk)
            writer.write(fault.append)
            await writer.drain()
            return True
        finally:
            ahead.transport.abort()


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_headers(head: bytes, changes: Mapping[str, str | None]) -> bytes:
    if not changes:
        return head
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].strip().lower() not in changes]
    added = [f"{name}: {value}" for name, value in changes.items() if value is not None]
    return ("\r\n".join([first, *kept, *added]) + "\r\n\r\n").encode("latin-1")


def _s3_error(method: str, status: int, code: str) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} Injected\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
