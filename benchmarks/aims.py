"""What was aimed at, held against what was measured: met or missed, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import crowd, entries, report
from benchmarks.figures import Facts, number
from benchmarks.peers import NGINX, OBVIOUS, OURS, TUNED

HEADERS = ("aim", "figure", "aimed at", "measured", "")

Fact = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Aim:
    """``of``, or its ratio to ``over``, shall be at least ``bound``; or at most, where less is better."""

    what: str
    figure: str
    bound: float
    of: Fact
    over: Fact | None = None
    at_most: bool = False

    def measured(self, facts: Facts) -> float | None:
        """None where it was not measured, or nothing can be divided by it."""
        if self.of not in facts or (self.over is not None and not facts.get(self.over)):
            return None
        return facts[self.of] / (facts[self.over] if self.over is not None else 1.0)

    def verdict(self, measured: float) -> str:
        if not measured:
            return "met" if self.at_most else "missed: nothing"
        better = self.bound / measured if self.at_most else measured / self.bound
        if better >= 1:
            return f"met, {better:.2f} times"
        return f"missed by {abs(measured / self.bound - 1):.0%}"


def _speed(case: str, peer: str = OURS) -> Fact:
    return case, peer, "mb_per_second"


def _faster(what: str, bound: float, case: str, over: Fact) -> Aim:
    return Aim(what, "MB/s, ratio", bound, _speed(case), over)


_CPU = "cpu_seconds_per_gb"
AIMS: Sequence[Aim] = (
    _faster("one blob / nginx by default", 2.0, "blob", _speed("blob", NGINX)),
    _faster("one blob / nginx tuned", 1.0, "blob", _speed("blob", TUNED)),
    Aim("one blob / nginx tuned", "CPU s/GB, ratio", 1.1, ("blob", OURS, _CPU), ("blob", TUNED, _CPU), at_most=True),
    _faster("archive of large blobs / nginx by default, the same blobs", 1.8, "large", _speed("large", NGINX)),
    _faster("archive of large blobs / nginx tuned, the same blobs", 0.9, "large", _speed("large", TUNED)),
    _faster("archive of large blobs / nginx by default, one blob as large", 1.8, "large", _speed("blob", NGINX)),
    _faster("archive of large blobs / nginx tuned, one blob as large", 0.9, "large", _speed("blob", TUNED)),
    _faster("archive of large blobs / obvious", 4.0, "large", _speed("large", OBVIOUS)),
    _faster("CRC-32s unknown / known", 0.9, "unknown", _speed("large")),
    _faster("archive of small blobs / obvious", 5.0, "small", _speed("small", OBVIOUS)),
    _faster("the same, S3 20 ms away / one after the other", 20.0, "latency", _speed("latency", OBVIOUS)),
    Aim("slow clients", crowd.PEAK, 300.0, (crowd.SUBJECT, crowd.CLIENTS, crowd.PEAK), at_most=True),
    Aim("slow clients", crowd.RATIO, 0.5, (crowd.SUBJECT, crowd.CLIENTS, crowd.RATIO)),
    *(
        Aim(what, figure, bound, (entries.SUBJECT, what, figure), at_most=True)
        for what in (entries.DIRECTORY, entries.LAST_BLOBS)
        for figure, bound in ((entries.COLD, 50.0), (entries.WARM, 10.0))
    ),
)


def table(facts: Facts, *, markdown: bool) -> str:
    """A row for each aim that was measured; nothing when none was."""
    rows = [
        (
            aim.what,
            aim.figure,
            f"{'at most' if aim.at_most else 'at least'} {number(aim.bound)}",
            number(measured),
            aim.verdict(measured),
        )
        for aim in AIMS
        if (measured := aim.measured(facts)) is not None
    ]
    lines = report.markdown_lines if markdown else report.plain_lines
    return "\n".join(lines(HEADERS, rows)) if rows else ""


def as_json(facts: Facts) -> Sequence[Mapping[str, Any]]:
    return [
        {"aim": aim.what, "figure": aim.figure, "bound": aim.bound, "at_most": aim.at_most, "measured": measured}
        for aim in AIMS
        if (measured := aim.measured(facts)) is not None
    ]
