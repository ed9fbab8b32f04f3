"""One download, measured: by a client that is not the bottleneck, and by what the kernel says of the server."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from benchmarks.client import Target, download
from benchmarks.kernel import cpu_seconds_each, cpu_seconds_since, peak_memory, reset_peak_memory
from benchmarks.processes import BenchmarkError


@dataclass(frozen=True, slots=True)
class Measurement:
    """Decimal units: MB/s, CPU seconds a GB (utime + stime), peak resident MB, milliseconds to the first byte."""

    mb_per_second: float
    cpu_seconds_per_gb: float
    peak_memory_mb: float
    first_byte_ms: float


async def measure(target: Target, pid: int) -> Measurement:
    """Download ``target`` from the server ``pid`` once. Raises `BenchmarkError` when other bytes came than must.

    The server is that process and its descendants. A target of unknown size is measured by its payload.
    """
    reset_peak_memory(pid)
    before = cpu_seconds_each(pid)
    done = await asyncio.to_thread(download, *target.urls)
    if target.size is not None and done.size != target.size:
        raise BenchmarkError(f"a download gave {done.size} bytes instead of {target.size}")
    size = target.payload if target.size is None else target.size
    return Measurement(
        mb_per_second=size / done.seconds / 1e6,
        cpu_seconds_per_gb=cpu_seconds_since(pid, before) / (size / 1e9),
        peak_memory_mb=peak_memory(pid) / 1e6,
        first_byte_ms=done.first_byte_seconds * 1e3,
    )


def median(measurements: Sequence[Measurement]) -> Measurement:
    """The median of each figure by itself."""
    return Measurement(
        *(statistics.median(getattr(each, field.name) for each in measurements) for field in fields(Measurement))
    )
