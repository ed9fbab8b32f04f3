"""What the kernel says of a server: CPU time and memory, of a process and its descendants together."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import BenchmarkError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
RESET_PEAK_MEMORY = "5"
"""Written to /proc/PID/clear_refs; see proc(5)."""


def family(pid: int) -> Sequence[int]:
    """``pid`` and its descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text("utf-8").split()]
            except OSError:  # it has just ended
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time so far of all threads of ``pid``."""
    # The second field is the program's name, in parentheses, and may hold anything.
    stat = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    utime, stime = stat[11:13]
    return (int(utime) + int(stime)) / TICKS_PER_SECOND


def cpu_seconds_each(pid: int) -> Mapping[int, float]:
    """User and system time so far of ``pid`` and of each of its descendants."""
    return {each: cpu_seconds(each) for each in family(pid)}


def cpu_seconds_since(pid: int, before: Mapping[int, float]) -> float:
    """What ``pid`` and its descendants have taken since ``before``."""
    return sum(seconds - before.get(each, 0.0) for each, seconds in cpu_seconds_each(pid).items())


def peak_memory(pid: int) -> int:
    """Bytes resident at most since the last reset (VmHWM), of ``pid`` and its descendants together."""
    return sum(_status(each, "VmHWM") for each in family(pid))


def memory(pid: int) -> int:
    """Bytes resident now (VmRSS), of ``pid`` and its descendants together."""
    return sum(_status(each, "VmRSS") for each in family(pid))


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"the kernel tells no {field} of process {pid}")


def reset_peak_memory(pid: int) -> None:
    for each in family(pid):
        Path(f"/proc/{each}/clear_refs").write_text(RESET_PEAK_MEMORY, "utf-8")
