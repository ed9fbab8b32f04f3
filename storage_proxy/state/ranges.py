"""A set of keys made of half-open ranges, kept disjoint and in order."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Range = tuple[bytes, bytes]
"""``begin`` (included) and ``end`` (excluded)."""


class RangeSet:
    """Ranges that overlap or touch become one."""

    __slots__ = ("_begins", "_ends")

    def __init__(self) -> None:
        self._begins: list[bytes] = []
        self._ends: list[bytes] = []

    def __iter__(self) -> Iterator[Range]:
        return zip(self._begins, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._begins)

    def __contains__(self, key: bytes) -> bool:
        index = bisect_right(self._begins, key) - 1
        return index >= 0 and key < self._ends[index]

    def add(self, begin: bytes, end: bytes) -> None:
        """``begin < end``."""
        first = bisect_left(self._ends, begin)
        last = bisect_right(self._begins, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def overlaps(self, begin: bytes, end: bytes) -> bool:
        index = bisect_right(self._ends, begin)
        return index < len(self._begins) and self._begins[index] < end

    def gaps(self, begin: bytes, end: bytes) -> list[Range]:
        """What of ``begin`` to ``end`` is not in the set, in order."""
        gaps: list[Range] = []
        index = bisect_right(self._ends, begin)
        while begin < end and index < len(self._begins) and self._begins[index] < end:
            if begin < self._begins[index]:
                gaps.append((begin, self._begins[index]))
            begin = self._ends[index]
            index += 1
        if begin < end:
            gaps.append((begin, end))
        return gaps
