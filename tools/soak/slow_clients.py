"""A thousand clients on slow lines: little memory, nobody starves, a fast one beside them gets its share.

The law: every byte that a client takes is compared with the blob.
"""

import asyncio
import random
import resource
import statistics
import time
from contextlib import closing
from pathlib import Path

from tests.support.programs import Program, run, service
from tools.slow_line import answered, asked
from tools.soak.record import Record, Scale, mib
from tools.soak.s3 import BUCKET, bucket_over, filled
from tools.soak.watch import metric

_SEED = 9
_RATE = 100_000  # bytes a second
_LOOKS = 4  # a second
_STALL_SECONDS = 5.0
_BEGIN_SECONDS = 60.0
"""Within so many all have begun: a thousand that come at once are a few seconds of work."""
_SETTLED_SECONDS = 2.0
"""Afterwards, until what that has held up is done."""
_LIMITS = """[limits]
max_concurrent_downloads = 5000
max_concurrent_downloads_per_token = 5000
"""
_MAX_MEMORY = 300_000_000
_SHARE = 0.25
"""Of its rate when alone: what a fast download has at least beside the slow ones, who also read on these cores."""
_FAST_DOWNLOADS = 5
"""One takes tenths of a second: their median counts."""


async def slow_clients(scale: Scale, record: Record, directory: Path) -> None:
    """1,000 clients at 100 kB/s each, a fast one among them, and some that stop reading."""
    rng, clients, seconds = random.Random(_SEED), scale.of(1000, 30), scale.of(15, 3)
    stopped = scale.of(20, 3)
    _allow_files(2 * clients + 200)
    record.did(
        f"{clients:,} clients that read a blob in S3 at {_RATE // 1000} kB/s each for {seconds} s, fast downloads "
        f"beside them, then {stopped} that stop reading (stall_seconds = {_STALL_SECONDS:g})."
    )
    size = scale.of(64 << 20, 8 << 20)
    async with filled(directory / "s3", rng, blobs=1, size=size) as server:
        async with server.server.client() as client:
            answer = await client.get_object(Bucket=BUCKET, Key="set/0.bin")
            content = await answer["Body"].read()
        buckets = {"media": {**bucket_over(server), "max_connections": 4096}}
        async with service(
            directory / "programs", buckets, more=_LIMITS, client=f"stall_seconds = {_STALL_SECONDS}"
        ) as running:
            proxy = running.proxies[0]
            url = (await running.mint("blob", {"bucket": "media", "key": "set/0.bin"}))["url"]
            await _fast(url, content, directory / "fast")
            at_rest = proxy.peak_memory()
            alone = await _median_fast(url, content, directory / "fast")
            begun = asyncio.Semaphore(0)
            reading = [asyncio.create_task(_slow(url, content, seconds, rng.random(), begun)) for _ in range(clients)]
            async with asyncio.timeout(_BEGIN_SECONDS):
                for _ in reading:
                    await begun.acquire()
            await asyncio.sleep(_SETTLED_SECONDS)
            beside = await _median_fast(url, content, directory / "fast")
            rates = await asyncio.gather(*reading)
            _judge(record, rates, proxy, at_rest)
            enough = None if scale.quick else beside > _SHARE * alone
            what = f"the fast download's rate beside them, of its rate alone, > {_SHARE}"
            record.saw(what, f"{beside / alone:.2f}, {beside / 1e6:.0f} MB/s", holds=enough)
            await _stopped(record, proxy, url, stopped)


def _judge(record: Record, rates: list[float], proxy: Program, at_rest: int) -> None:
    slowest, median, peak = min(rates), statistics.median(rates), proxy.peak_memory()
    record.saw("bytes that were wrong", 0, holds=True)  # else the case has failed
    record.saw("slowest and median, kB/s", f"{slowest / 1000:.1f}, {median / 1000:.1f}", holds=slowest >= median / 2)
    record.saw("the process at most, < 300 MB", f"{peak / 1e6:.0f} MB", holds=peak < _MAX_MEMORY)
    record.saw("more than before the clients came, for each", mib((peak - at_rest) / len(rates)))


async def _stopped(record: Record, proxy: Program, url: str, count: int) -> None:
    """Clients that take nothing more are cut, and their reads of S3 end."""
    name, stalled = "storage_proxy_downloads_total", 'outcome="client-stalled"'
    before = await metric(proxy, name, stalled)
    connections = [await asked(url) for _ in range(count)]
    try:
        began = time.monotonic()
        async with asyncio.timeout(_STALL_SECONDS * 6):
            while True:
                if await metric(proxy, name, stalled) >= before + count:
                    break
                await asyncio.sleep(0.1)
        active = await metric(proxy, "storage_proxy_downloads_active")
        record.saw("stopped clients cut", f"{count} within {time.monotonic() - began:.1f} s", holds=active == 0)
    finally:
        for connection in connections:
            connection.close()


async def _median_fast(url: str, content: bytes, path: Path) -> float:
    return statistics.median([await _fast(url, content, path) for _ in range(_FAST_DOWNLOADS)])


async def _fast(url: str, content: bytes, path: Path) -> float:
    """Download all of it, by a program of its own; bytes a second."""
    code, rate = await run("curl", "-sS", "-o", str(path), "-w", "%{speed_download}", url)
    assert code == 0, rate
    assert await asyncio.to_thread(path.read_bytes) == content, "wrong bytes"
    return float(rate)


async def _slow(url: str, content: bytes, seconds: int, delay: float, begun: asyncio.Semaphore) -> float:
    """Read at the rate, and leave; the bytes a second that came. ``begun`` is released when the answer has begun."""
    await asyncio.sleep(delay)
    loop = asyncio.get_running_loop()
    with closing(await asked(url)) as connection:
        first = await answered(connection)
        assert content.startswith(first), "wrong bytes"
        begun.release()
        began, position = time.monotonic(), len(first)
        for look in range(1, seconds * _LOOKS + 1):
            while position < look * _RATE // _LOOKS:
                chunk = await loop.sock_recv(connection, look * _RATE // _LOOKS - position)
                assert chunk, "the download ended early"
                assert content[position : position + len(chunk)] == chunk, "wrong bytes"
                position += len(chunk)
            await asyncio.sleep(max(0.0, began + look / _LOOKS - time.monotonic()))
        return position / (time.monotonic() - began)


def _allow_files(count: int) -> None:
    """Our own limit of open files at least ``count``, where the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
