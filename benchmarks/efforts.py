"""What a piece of work takes: how much of it in which time, and the CPU time of the process that does it."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.kernel import cpu_seconds_each, cpu_seconds_since


@dataclass(frozen=True, slots=True)
class Effort:
    """``count`` things in ``seconds``, with ``cpu_seconds`` (utime + stime) of the process that is looked at
    and its descendants."""

    count: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def per_core(self) -> float:
        """For each second of CPU time: what one core of its own would do in a second."""
        return self.count / self.cpu_seconds if self.cpu_seconds else float("inf")


@dataclass(slots=True)
class Stopwatch:
    """``efforts`` has one for each of the processes that were watched, in their order, after the block."""

    efforts: Sequence[Effort] = ()


@contextmanager
def watched(count: int, *pids: int) -> Iterator[Stopwatch]:
    """Measure the block, in which ``pids`` do ``count`` things."""
    watch = Stopwatch()
    before = [cpu_seconds_each(pid) for pid in pids]
    began = time.perf_counter()
    yield watch
    seconds = time.perf_counter() - began
    watch.efforts = [
        Effort(count, seconds, cpu_seconds_since(pid, then)) for pid, then in zip(pids, before, strict=True)
    ]


@dataclass(slots=True)
class Efforts:
    """Every effort, by what was done and who did it, in the order of the rounds."""

    rounds: int
    taken: dict[tuple[str, str], list[Effort]] = field(default_factory=dict)

    def add(self, case: str, who: str, effort: Effort) -> None:
        self.taken.setdefault((case, who), []).append(effort)

    def medians(self) -> dict[tuple[str, str], Effort]:
        """The median of each figure by itself."""
        return {
            what: Effort(
                each[0].count,
                statistics.median(effort.seconds for effort in each),
                statistics.median(effort.cpu_seconds for effort in each),
            )
            for what, each in self.taken.items()
        }
