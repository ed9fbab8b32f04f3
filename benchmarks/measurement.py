"""One download, measured: by curl, which is never the bottleneck, and by what the kernel says of the server."""

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.peers import Target
from benchmarks.processes import BenchmarkError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
DOWNLOAD_SECONDS = 600
RESET_PEAK_MEMORY = "5"
"""Written to /proc/PID/clear_refs; see proc(5)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Decimal units: MB/s, CPU seconds a GB (utime + stime), peak resident MB, milliseconds to the first byte."""

    mb_per_second: float
    cpu_seconds_per_gb: float
    peak_memory_mb: float
    first_byte_ms: float


async def measure(target: Target, pid: int) -> Measurement:
    """Download ``target`` from the server ``pid`` once. Raises `BenchmarkError` when other bytes came than must."""
    _reset_peak_memory(pid)
    cpu_before = cpu_seconds(pid)
    seconds, first_byte = await _download(target)
    cpu = cpu_seconds(pid) - cpu_before
    return Measurement(
        mb_per_second=target.size / seconds / 1e6,
        cpu_seconds_per_gb=cpu / (target.size / 1e9),
        peak_memory_mb=peak_memory(pid) / 1e6,
        first_byte_ms=first_byte * 1e3,
    )


async def _download(target: Target) -> tuple[float, float]:
    """Seconds in all, and until the first byte."""
    command = ["curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "/dev/null"]
    command += ["--max-time", str(DOWNLOAD_SECONDS)]
    command += ["--write-out", "%{http_code} %{size_download} %{time_total} %{time_starttransfer}", target.url]
    pipe = asyncio.subprocess.PIPE
    curl = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    output, complaint = await curl.communicate()
    if curl.returncode:
        raise BenchmarkError(f"curl ended with {curl.returncode}: {complaint.decode().strip()}")
    status, size, seconds, first_byte = output.decode().split()
    if status != "200" or int(size) != target.size:
        raise BenchmarkError(f"a download gave {status} and {size} bytes instead of 200 and {target.size}")
    return float(seconds), float(first_byte)


def cpu_seconds(pid: int) -> float:
    """User and system time so far of all threads of ``pid``."""
    # The second field is the program's name, in parentheses, and may hold anything.
    stat = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    utime, stime = stat[11:13]
    return (int(utime) + int(stime)) / TICKS_PER_SECOND


def peak_memory(pid: int) -> int:
    """Bytes resident at most since the last reset (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"the kernel tells no VmHWM of process {pid}")


def _reset_peak_memory(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK_MEMORY, "utf-8")


def median(measurements: Sequence[Measurement]) -> Measurement:
    """The median of each figure by itself."""
    return Measurement(
        *(statistics.median(getattr(each, field.name) for each in measurements) for field in fields(Measurement))
    )
