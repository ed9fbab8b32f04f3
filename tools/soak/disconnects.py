"""Clients that leave at any moment take nothing with them: downloads end, reads of S3 are closed, memory comes back."""

import asyncio
import random
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.programs import Program, service
from tools.soak.record import Record, Scale, mib
from tools.soak.s3 import bucket_over, filled
from tools.soak.watch import connections_to, memory_of, metric, open_files

_SEED = 6
_AT_ONCE = 50
_SETTLE_SECONDS = 60.0
_TOLERATED_GROWTH = 16 << 20
"""Of memory: what allocators keep differs from run to run; a leak of 300 downloads would be far more."""
_LIMITS = "[limits]\nmax_concurrent_downloads_per_token = 1000"
_ACTIVE = "storage_proxy_downloads_active"


async def clients_that_disconnect(scale: Scale, record: Record, directory: Path) -> None:
    """300 clients that leave before, within or after the answer, politely or not."""
    rng, clients = random.Random(_SEED), scale.of(300, 20)
    record.did(
        f"{clients} clients, {_AT_ONCE} at once, that ask for a blob or an archive in S3 and leave after a random "
        f"number of bytes, half of them by a reset (seed {_SEED}); before that, as many to warm up."
    )
    async with filled(directory / "s3", rng, blobs=4, size=scale.of(32 << 20, 8 << 20)) as server:
        port = server.server.address[1]
        buckets = {"media": bucket_over(server)}
        async with service(directory / "programs", buckets, more=_LIMITS) as running:
            blob = await running.mint("blob", {"bucket": "media", "key": "set/0.bin"})
            archive = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
            urls, sizes = [blob["url"], archive["url"]], [blob["size"], archive["size"]]
            proxy = running.proxies[0]
            idle, at_start = connections_to(proxy, port), proxy.memory()
            await _leave_all(rng, urls, sizes, clients)
            await _settled(proxy, port, idle)
            before = proxy.memory(), _other_files(proxy, port)
            gone = await metric(proxy, "storage_proxy_downloads_total", 'outcome="client-gone"')
            async with memory_of(proxy) as memory:
                await _leave_all(rng, urls, sizes, clients)
            seconds = await _settled(proxy, port, idle)
            gone = await metric(proxy, "storage_proxy_downloads_total", 'outcome="client-gone"') - gone
            record.saw("downloads that ended because their client was gone", f"{gone:,.0f}", holds=gone > clients / 4)
            active = await metric(proxy, _ACTIVE)
            record.saw("active downloads afterwards", f"{active:,.0f}", holds=active == 0)
            left = connections_to(proxy, port)
            record.saw("connections to S3 at the start, afterwards", f"{idle}, {left}", holds=left <= idle)
            record.saw("seconds until all was closed", f"{seconds:.1f}")
            files = _other_files(proxy, port)
            what = "open files that are no connection to S3, before and afterwards"
            record.saw(what, f"{before[1]}, {files}", holds=files <= before[1])
            growth = proxy.memory() - before[0]
            seen = f"{mib(at_start)}, {mib(before[0])}, {mib(memory.growth)}"
            record.saw("memory at the start, after the warm-up, largest growth since", seen)
            record.saw(
                "memory afterwards less after the warm-up, < 16 MiB", mib(growth), holds=growth < _TOLERATED_GROWTH
            )


async def _leave_all(rng: random.Random, urls: list[str], sizes: list[int], clients: int) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def leave(url: str, after: int, by_reset: bool) -> None:
        async with slots:
            await _leave(url, after, by_reset)

    plans = []
    for index in range(clients):
        which = index % len(urls)
        after = rng.choice([0, 1, 100, 10_000, rng.randrange(sizes[which]), rng.randrange(sizes[which])])
        plans.append(leave(urls[which], after, rng.random() < 0.5))
    await asyncio.gather(*plans)


async def _leave(url: str, after: int, by_reset: bool) -> None:
    """Ask, take ``after`` bytes of the answer, and go."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
        await writer.drain()
        while after > 0 and (chunk := await reader.read(min(after, 1 << 16))):
            after -= len(chunk)
    finally:
        if by_reset:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def _other_files(proxy: Program, port: int) -> int:
    """Its open files but for the connections that are kept for the next request, few or many for some seconds."""
    return open_files(proxy) - connections_to(proxy, port)


async def _settled(proxy: Program, port: int, idle: int) -> float:
    """Wait until no download is active and the connections are as few as at the start; the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < _SETTLE_SECONDS:
        if await metric(proxy, _ACTIVE) == 0 and connections_to(proxy, port) <= idle:
            break
        await asyncio.sleep(0.1)
    return time.monotonic() - began
