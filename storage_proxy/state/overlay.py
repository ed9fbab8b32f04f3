"""A transaction's own writes, on top of a snapshot: what reading them back gives, and what they leave to be read.

The law: the last write of a key wins, and what an own write decides is not read from the snapshot, so it conflicts
with nobody.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from storage_proxy.state.keys import after
from storage_proxy.state.port import Row
from storage_proxy.state.ranges import Range, RangeSet


class Overlay:
    """Writes in the order in which they come."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}  # None: cleared
        self.cleared = RangeSet()  # before any of the values
        self._sorted: list[bytes] | None = []

    def set(self, key: bytes, value: bytes | None) -> None:
        """None clears the key."""
        if key not in self.values:
            self._sorted = None
        self.values[key] = value

    def clear_range(self, begin: bytes, end: bytes) -> None:
        for key in self.keys(begin, end):
            del self.values[key]
        self._sorted = None
        self.cleared.add(begin, end)

    def decides(self, key: bytes) -> bool:
        return key in self.values or key in self.cleared

    def get(self, key: bytes) -> bytes | None:
        """The value of a key that the overlay decides."""
        return self.values.get(key)

    def keys(self, begin: bytes, end: bytes) -> Sequence[bytes]:
        """The keys of single writes in a range, in order."""
        if self._sorted is None:
            self._sorted = sorted(self.values)
        return self._sorted[bisect_left(self._sorted, begin) : bisect_left(self._sorted, end)]

    def merged(self, rows: Iterable[Row], begin: bytes, end: bytes, *, reverse: bool) -> list[Row]:
        """What a read of the range gives, from the snapshot's ``rows`` of `undecided_ranges`."""
        values = self.values
        merged = [row for row in rows if row[0] not in values]
        own = [(key, value) for key in self.keys(begin, end) if (value := values[key]) is not None]
        if own:
            merged += own
            merged.sort(reverse=reverse)
        return merged

    def undecided_ranges(self, begin: bytes, end: bytes) -> list[Range]:
        """Where the snapshot has to be read, in order. Single keys are not cut out."""
        return self.cleared.gaps(begin, end)

    def undecided(self, begin: bytes, end: bytes) -> list[Range]:
        """What of a range that was read came from the snapshot, so that others' writes there conflict."""
        ranges: list[Range] = []
        for gap_begin, gap_end in self.cleared.gaps(begin, end):
            start = gap_begin
            for key in self.keys(gap_begin, gap_end):
                if start < key:
                    ranges.append((start, key))
                start = after(key)
            if start < gap_end:
                ranges.append((start, gap_end))
        return ranges
