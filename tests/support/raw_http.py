"""HTTP/1 by hand: bytes as given go out, answers are parsed strictly. For what no well-behaved client would send."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One final answer; ``headers`` with names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    def problem(self) -> dict[str, Any]:
        """The body as a problem document, which it must be."""
        assert self.headers["content-type"].partition(";")[0] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status, self
        assert {"type", "title", "detail", "code", "request_id"} <= document.keys(), self
        return document


class Connection:
    """One connection to the listener at ``url``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> "Connection":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20))

    async def send(self, message: bytes) -> None:
        """Send; a server that closed in between is no failure of the client's."""
        try:
            self._writer.write(message)
            await self._writer.drain()
        except ConnectionError:
            pass

    async def answer(self, *, to_head: bool = False, within: float | None = None) -> Answer | None:
        """The next answer, None when the server closed instead or, where ``within`` seconds are given, is silent."""
        try:
            async with asyncio.timeout(within or _ANSWER_SECONDS):
                return await self._answer(to_head)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except TimeoutError:
            if within is None:
                raise
            return None

    async def _answer(self, to_head: bool) -> Answer:
        interim: list[int] = []
        while True:
            status, headers = _parse(await self._reader.readuntil(b"\r\n\r\n"))
            if status >= 200:
                break
            interim.append(status)
        length = 0 if to_head or status in (204, 304) else int(headers["content-length"])
        return Answer(status, headers, await self._reader.readexactly(length), tuple(interim))

    async def is_closed(self) -> bool:
        """Wait until the server has closed; what it still sends is thrown away."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while await self._reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        return True

    def abort(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()


async def exchange(url: str, message: bytes, *, to_head: bool = False, within: float | None = None) -> Answer | None:
    """Send ``message`` on a connection of its own; the first answer as `Connection.answer` gives it."""
    connection = await Connection.open(url)
    try:
        await connection.send(message)
        return await connection.answer(to_head=to_head, within=within)
    finally:
        connection.abort()


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """A request for any listener; Content-Length is added when there is a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version in ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9"), first  # the request's, at most ours
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        assert colon, line
        assert name, line
        assert name.strip() == name, line
        assert name.lower() not in headers or name.lower() == "set-cookie", f"{name} is there twice"
        headers[name.lower()] = value.strip()
    return int(status), headers
