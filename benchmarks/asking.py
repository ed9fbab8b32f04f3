"""Many requests to a server, some at a time, each answered as it must be."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from benchmarks.processes import BenchmarkError

_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    body: Mapping[str, Any] | None = None


class Asker:
    """A client of the server at ``url``, which knows its ``secret`` and waits so many seconds for an answer."""

    def __init__(self, url: str, secret: str = "", *, seconds: float = _SECONDS) -> None:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        timeout = aiohttp.ClientTimeout(total=seconds)
        self._session = aiohttp.ClientSession(url, headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, request: Request) -> dict[str, Any]:
        """The answer's JSON. Raises `BenchmarkError` for any but a success."""
        async with self._session.request(request.method, request.path, json=request.body) as answer:
            if not answer.ok:
                raise BenchmarkError(f"{request.method} {request.path}: {answer.status} {await answer.text()}")
            told: dict[str, Any] = await answer.json()
            return told

    async def ask_all(self, requests: Sequence[Request], *, at_once: int) -> None:
        left = iter(requests)

        async def work() -> None:
            for request in left:
                await self.ask(request)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
