"""Clients that leave a proxy in this process at random moments, and what they leave behind: nothing.

Real are the listener, the sockets and the S3 server; between the proxy and S3 is a `FaultyProxy` that only counts.
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.faulty_proxy import FaultyProxy
from tests.support.proxy import RunningProxy, blob_grant, running, settings_of
from tests.support.s3 import S3Bucket

_SETTLE_SECONDS = 60.0
_LARGE = 2 << 20
_SMALL = 24 << 10
_METRICS = ("storage_proxy_downloads_active", "storage_proxy_buffer_bytes", "storage_proxy_prefetch_requests")


@dataclass
class Cancelled:
    """How many clients left in the middle, how many had all of it; ``left`` is what they left behind."""

    within: int = 0
    whole: int = 0
    left: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Crowd:
    """A proxy, what is between it and S3, and the links that its clients use."""

    proxy: RunningProxy
    between: FaultyProxy
    urls: Sequence[str]

    async def leave(self, count: int, *, seed: int, at_once: int = 24) -> Cancelled:
        """Let ``count`` clients come and go; then look at what is left of them."""
        for url in self.urls:  # what stays open for good is open before
            async with self.proxy.http.get(url) as answer:
                await answer.read()
        before = _tasks()
        seen, rng, slots = Cancelled(), random.Random(seed), asyncio.Semaphore(at_once)

        async def client(seed: int) -> None:
            async with slots:
                whole = await _visit(random.Random(seed), rng.choice(self.urls))
            seen.whole += whole
            seen.within += not whole

        await asyncio.gather(*(client(rng.randrange(1 << 32)) for _ in range(count)))
        seen.left = await self._left(before)
        return seen

    async def _left(self, before: Counter[str]) -> dict[str, float]:
        """What is under way, and of which tasks there are more than ``before``, once it is nothing or time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        while True:
            figures = {name: await self.proxy.metric(name) for name in _METRICS}
            figures["answers of S3"] = self.between.in_flight
            left = {name: figure for name, figure in figures.items() if figure} | dict(_tasks() - before)
            if not left or loop.time() > deadline:
                return left
            await asyncio.sleep(0.05)


@asynccontextmanager
async def crowd(bucket: S3Bucket) -> AsyncIterator[Crowd]:
    """A proxy over ``bucket``, which is filled."""
    for key, size in {
        **{f"large/{index}": _LARGE for index in range(5)},
        **{f"small/{index:02}": _SMALL for index in range(40)},
    }.items():
        body = random.Random(key).randbytes(size)
        await bucket.client.put_object(Bucket=bucket.name, Key=key, Body=body, ChecksumAlgorithm="CRC32")
    async with FaultyProxy(bucket.server.address).running() as between:
        table = {
            "kind": "s3",
            "endpoint": between.endpoint,
            "bucket": bucket.name,
            "access_key": bucket.server.access_key,
            "secret_key": bucket.server.secret_key,
            "addressing": "path",
        }
        limits = {"max_concurrent_downloads_per_token": 1000}
        async with running(settings_of({"default": table}, limits=limits)) as proxy:
            archives = [await proxy.archive_url({"prefix": prefix}) for prefix in ("large/", "small/", "")]
            yield Crowd(proxy, between, [proxy.url(blob_grant("large/0")), *archives])


async def _visit(rng: random.Random, url: str) -> bool:
    """Ask for ``url``, take some of the answer, perhaps stop reading for a while, and go; whether all of it came."""
    parts = urlsplit(url)
    after = int(rng.choice([0, 1, 1000, 100_000, 3_000_000, 20_000_000]) * rng.random())
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        while after > 0:
            chunk = await reader.read(min(after, 1 << 16))
            if not chunk:
                return True
            after -= len(chunk)
        await asyncio.sleep(rng.choice([0, 0, 0.01, 0.1]) * rng.random())
        return False
    finally:
        if rng.random() < 0.5:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def _tasks() -> Counter[str]:
    """How many tasks there are of each kind, those of the `FaultyProxy` aside: it has one a connection, kept or not."""
    names = (str(getattr(task.get_coro(), "__qualname__", task)) for task in asyncio.all_tasks())
    return Counter(name for name in names if not name.startswith("FaultyProxy."))
