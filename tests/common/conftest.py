"""A listener with a few endpoints of its own, really listening, and a client for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ConfigDict

from storage_proxy.common.errors import BlobNotFound
from storage_proxy.common.service.endpoints import add_endpoints, endpoint, endpoints_of
from storage_proxy.common.service.listener import Listener


class Parcel(BaseModel):
    """What the echo takes and gives."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, str_min_length=0)

    text: str
    number: int = 1


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shelf(BaseModel):
    shelf: int


class Rooms:
    """The endpoints; ``reached`` is set when ``slow`` runs, which ends when ``go_on`` is."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()

    @endpoint("POST", "/echo", status=201, errors=(BlobNotFound,))
    async def echo(self, body: Parcel) -> Parcel:
        """Give it back.

        As it `came`.
        """
        return body

    @endpoint("GET", "/query")
    async def query(self, query: Parcel) -> Parcel:
        """Give the query back."""
        return query

    @endpoint("GET", "/shelves/{shelf}")
    async def shelf(self, path: Shelf) -> Shelf:
        """Give the path back."""
        return path

    @endpoint("POST", "/knock")
    async def knock(self, body: Nothing) -> None:
        """Take a body without fields."""

    @endpoint("GET", "/nothing")
    async def nothing(self) -> None:
        """No body."""

    @endpoint("GET", "/missing")
    async def missing(self) -> None:
        """Always missing."""
        raise BlobNotFound("it is not there", retry_after=7)

    @endpoint("GET", "/broken")
    async def broken(self) -> None:
        """A defect."""
        raise RuntimeError("a-private-message")

    @endpoint("GET", "/breaks-late")
    async def breaks_late(self, request: web.Request) -> web.StreamResponse:
        """A defect after the first byte."""
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"the first bytes")
        raise RuntimeError("a-private-message")

    @endpoint("GET", "/slow")
    async def slow(self) -> Parcel:
        """Runs until it may go on."""
        self.reached.set()
        try:
            await self.go_on.wait()
        finally:
            self.left.set()
        return Parcel(text="done")


@pytest.fixture
async def rooms() -> Rooms:
    return Rooms()


Start = Callable[..., Awaitable[Listener]]


@pytest.fixture
async def start(rooms: Rooms) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(*middlewares: Middleware, more: object = None, max_body_bytes: int = 1 << 20) -> Listener:
            listener = Listener("test", "127.0.0.1:0", *middlewares, max_body_bytes=max_body_bytes)
            add_endpoints(listener.app, [*endpoints_of(rooms), *endpoints_of(more)])
            stack.push_async_callback(listener.aclose)
            await listener.start()
            return listener

        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
