"""A thousand slow clients of one process: what each costs in memory, whether one starves, and a fast one among them."""

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import slow_clients
from benchmarks.cases import MIB, Case
from benchmarks.client import Target
from benchmarks.figures import Figures
from benchmarks.kernel import memory, peak_memory, reset_peak_memory
from benchmarks.measurement import measure
from benchmarks.peers import StorageProxy
from benchmarks.processes import BenchmarkError
from benchmarks.programs import configured
from benchmarks.storage import ROOT, WORKSPACE, Storage, fill, remove_state

SUBJECT = "slow"
RATE = 100_000
SECONDS = 10
FAST_AFTER = 2
"""Seconds after which the fast download begins, so that it ends before the slow clients do."""
BLOB = Case("slow", "blob of 12 MiB", "full", 1, 12 * MIB)
FAST = Case("slow-fast", "blob of 256 MiB", "full", 1, 256 * MIB)
ALONE, CLIENTS, BESIDE = "a fast download, alone", "slow clients, 100 kB/s each", "a fast download beside them"
PEAK, RATIO = "peak memory MB", "slowest / median"


async def compare(storage: Storage, rounds: int, *, count: int) -> Figures:
    """``count`` slow clients for ten seconds in each round, each time of a process that has just started."""
    figures = Figures(SUBJECT, rounds)
    await fill(storage, [BLOB, FAST])
    state = WORKSPACE / "crowd.db"
    remove_state(state)
    limits = {"max_concurrent_downloads": 2 * count, "max_concurrent_downloads_per_token": 2 * count}
    programs = configured(storage, state, settings={"limits": limits})
    for _ in range(rounds):
        async with programs.proxy("serve") as pid, programs.manager():
            proxy = StorageProxy(pid, programs.manager_url, programs.api_key)
            slow, fast = await proxy.target(BLOB), await proxy.target(FAST)
            assert slow is not None
            assert fast is not None
            await _round(figures, pid, slow, fast, count)
    return figures


async def _round(figures: Figures, pid: int, slow: Target, fast: Target, count: int) -> None:
    figures.add(ALONE, "MB/s", (await measure(fast, pid)).mb_per_second)
    before = memory(pid)
    reset_peak_memory(pid)
    async with _slow_clients(slow, count) as process:
        connected = memory(pid)
        await asyncio.sleep(FAST_AFTER)
        peak = peak_memory(pid)  # of the slow ones by themselves: to measure the fast one is to reset it
        beside = await measure(fast, pid)
        rates = await _rates(process, count)
    peak = max(peak, peak_memory(pid))
    median = statistics.median(rates)
    figures.add(CLIENTS, "clients", count)
    figures.add(CLIENTS, "memory before MB", before / 1e6)
    figures.add(CLIENTS, "memory when all have begun MB", connected / 1e6)
    figures.add(CLIENTS, PEAK, peak / 1e6)
    figures.add(CLIENTS, "kB a client", (peak - before) / count / 1e3)
    figures.add(CLIENTS, "median kB/s", median / 1e3)
    figures.add(CLIENTS, "slowest kB/s", min(rates) / 1e3)
    figures.add(CLIENTS, RATIO, min(rates) / median)
    figures.add(BESIDE, "MB/s", beside.mb_per_second)


@asynccontextmanager
async def _slow_clients(target: Target, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """They have all begun when it is entered, and are ended with it."""
    command = [sys.executable, "-m", "benchmarks.slow_clients", target.urls[0], str(count), str(RATE), str(SECONDS)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        if (await process.stdout.readline()).decode().strip() != slow_clients.READY:
            raise BenchmarkError("the slow clients did not come to their downloads")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _rates(process: asyncio.subprocess.Process, count: int) -> list[float]:
    output, _ = await process.communicate()
    if process.returncode:
        raise BenchmarkError("a slow client's download broke off")
    rates: list[float] = json.loads(output)
    if len(rates) != count:
        raise BenchmarkError(f"{len(rates)} slow clients told their rate instead of {count}")
    return rates
