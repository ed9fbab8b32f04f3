"""Efforts as a table for people or for docs/performance.md, or as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import report
from benchmarks.efforts import Effort, Efforts

HEADERS = ("what", "by", "count", "seconds", "CPU s", "a second", "a CPU second")


def rows(efforts: Efforts) -> Sequence[Sequence[str]]:
    table = []
    last = ""
    for (case, who), effort in efforts.medians().items():
        table.append((case if case != last else "", who, *_cells(effort)))
        last = case
    return table


def _cells(effort: Effort) -> Sequence[str]:
    cells = (f"{effort.count:,}", f"{effort.seconds:,.3f}", f"{effort.cpu_seconds:,.2f}")
    if effort.count == 1:  # a single request: its time says all
        return (*cells, "", "")
    return (*cells, f"{effort.per_second:,.0f}", f"{effort.per_core:,.0f}")


def table(efforts: Efforts, *, markdown: bool) -> str:
    lines = report.markdown_lines if markdown else report.plain_lines
    return "\n".join([*lines(HEADERS, rows(efforts)), "", report.summary(efforts.rounds)])


def as_json(efforts: Efforts) -> Mapping[str, Any]:
    return {
        "machine": report.machine(),
        "rounds": efforts.rounds,
        "efforts": [
            {"what": case, "by": who, "measurements": [asdict(each) for each in taken]}
            for (case, who), taken in efforts.taken.items()
        ],
    }
