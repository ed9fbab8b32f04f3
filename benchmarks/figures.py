"""Figures of any unit, taken in rounds: the median, and how far they lay apart."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import report

HEADERS = ("what", "figure", "median", "least", "most")

Facts = Mapping[tuple[str, str, str], float]
"""Medians that aims are held against: by subject or case, by what or whom, and by figure."""


@dataclass(slots=True)
class Figures:
    """Every figure of ``subject``, by what was measured and which figure of it, in the order of the rounds."""

    subject: str
    rounds: int
    taken: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, what: str, figure: str, value: float) -> None:
        """``figure`` names its unit."""
        self.taken.setdefault((what, figure), []).append(value)

    def facts(self) -> Facts:
        return {(self.subject, *what): statistics.median(values) for what, values in self.taken.items()}

    def table(self, *, markdown: bool) -> str:
        lines = report.markdown_lines if markdown else report.plain_lines
        return "\n".join([*lines(HEADERS, self._rows()), "", report.summary(self.rounds)])

    def as_json(self) -> Mapping[str, Any]:
        return {
            "machine": report.machine(),
            "rounds": self.rounds,
            "figures": [{"what": what, "figure": name, "values": each} for (what, name), each in self.taken.items()],
        }

    def _rows(self) -> Sequence[Sequence[str]]:
        table = []
        last = ""
        for (what, figure), values in self.taken.items():
            each = (number(statistics.median(values)), *(_extremes(values)))
            table.append((what if what != last else "", figure, *each))
            last = what
        return table


def _extremes(values: Sequence[float]) -> Sequence[str]:
    return (number(min(values)), number(max(values))) if len(values) > 1 else ("", "")


def number(value: float) -> str:
    """Three digits at least, none after the point where there are enough before it."""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
