"""The results as a table for people, Markdown for docs/performance.md, or JSON; and the machine they are from."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import nginx
from benchmarks.cases import Case
from benchmarks.measurement import Measurement, median
from benchmarks.peers import OURS

HEADERS = ("case", "server", "MB/s", "CPU s/GB", "peak memory MB", "first byte ms")


@dataclass(slots=True)
class Results:
    """Every measurement, by case and peer, in the order of the rounds. What failed once has none, and says why."""

    rounds: int
    cases: Sequence[Case]
    measurements: dict[tuple[str, str], list[Measurement]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, case: Case, peer: str, measurement: Measurement) -> None:
        self.measurements.setdefault((case.name, peer), []).append(measurement)

    def fail(self, case: Case, peer: str, why: str) -> None:
        self.failures[case.name, peer] = why
        self.measurements.pop((case.name, peer), None)

    def medians(self, case: Case) -> dict[str, Measurement]:
        return {peer: median(each) for (name, peer), each in self.measurements.items() if name == case.name}

    def facts(self) -> Mapping[tuple[str, str, str], float]:
        """The medians by case, peer and figure."""
        return {
            (case.name, peer, figure): value
            for case in self.cases
            for peer, medians in self.medians(case).items()
            for figure, value in asdict(medians).items()
        }


def machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    told = {
        "CPU": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "uvloop": _version("uvloop"),
        "nginx": nginx.version(),
    }
    return {name: value for name, value in told.items() if value}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def rows(results: Results) -> list[tuple[str, ...]]:
    """The medians, and under them the storage proxy's ratio to each other peer."""
    table = []
    for case in results.cases:
        medians = results.medians(case)
        title = case.title
        for peer, figures in medians.items():
            table.append((title, peer, *_cells(figures)))
            title = ""
        table += [
            ("", f"{OURS} / {peer}", *_ratios(medians[OURS], figures))
            for peer, figures in medians.items()
            if peer != OURS and OURS in medians
        ]
    return table


def _cells(figures: Measurement) -> tuple[str, ...]:
    return (
        f"{figures.mb_per_second:,.0f}" if figures.mb_per_second >= 100 else f"{figures.mb_per_second:.1f}",
        f"{figures.cpu_seconds_per_gb:.2f}",
        f"{figures.peak_memory_mb:,.0f}",
        f"{figures.first_byte_ms:,.1f}",
    )


def _ratios(ours: Measurement, other: Measurement) -> tuple[str, ...]:
    pairs = zip(astuple(ours), astuple(other), strict=True)
    return tuple(f"x {mine / theirs:.2f}" if theirs else "-" for mine, theirs in pairs)


def plain(results: Results) -> str:
    return "\n".join([*plain_lines(HEADERS, rows(results)), "", summary(results.rounds)])


def plain_lines(headers: Sequence[str], body: Sequence[Sequence[str]]) -> Sequence[str]:
    """A table for people: the first two columns are words, the others figures."""
    table = [headers, *body]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(results: Results) -> str:
    return "\n".join([*markdown_lines(HEADERS, rows(results)), "", summary(results.rounds)])


def markdown_lines(headers: Sequence[str], body: Sequence[Sequence[str]]) -> Sequence[str]:
    """The same in Markdown."""
    head = ["| " + " | ".join(headers) + " |", "| --- | --- |" + " ---: |" * (len(headers) - 2)]
    return [*head, *("| " + " | ".join(row) + " |" for row in body)]


def summary(rounds: int) -> str:
    times = "One round" if rounds == 1 else f"Medians of {rounds} interleaved rounds"
    return (
        f"{times}; client, server and S3 server on one machine: "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
        + ". MB and GB are decimal."
    )


def as_json(results: Results) -> Mapping[str, Any]:
    return {
        "machine": machine(),
        "rounds": results.rounds,
        "failures": [{"case": case, "peer": peer, "why": why} for (case, peer), why in results.failures.items()],
        "cases": [
            {
                **asdict(case),
                "medians": {peer: asdict(figures) for peer, figures in results.medians(case).items()},
                "measurements": {
                    peer: [asdict(one) for one in each]
                    for (name, peer), each in results.measurements.items()
                    if name == case.name
                },
            }
            for case in results.cases
        ],
    }
