"""What recent commits wrote, and whether a transaction read any of it: FoundationDB's resolver, for one file.

The law: a transaction conflicts when anything that it read, or found absent, was written by a commit after its
snapshot, whichever process made it. Where that is not known any more, the transaction is too old.
"""

import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from storage_proxy.state.ranges import Range, RangeSet

_COUNT = struct.Struct(">I")
_LENGTH = struct.Struct(">H")


@dataclass(slots=True)
class Reads:
    """What a transaction took from its snapshot."""

    keys: set[bytes] = field(default_factory=set)
    ranges: RangeSet = field(default_factory=RangeSet)

    def __bool__(self) -> bool:
        return bool(self.keys) or len(self.ranges) > 0


@dataclass(frozen=True, slots=True)
class Written:
    """The keys and ranges of one commit."""

    version: int
    keys: frozenset[bytes]
    ranges: tuple[Range, ...]

    def conflicts(self, reads: Reads) -> bool:
        if not self.keys.isdisjoint(reads.keys):
            return True
        if len(reads.ranges) and any(key in reads.ranges for key in self.keys):
            return True
        for begin, end in self.ranges:
            if reads.ranges.overlaps(begin, end) or any(begin <= key < end for key in reads.keys):
                return True
        return False

    def encode(self) -> bytes:
        bounds = [bound for each in self.ranges for bound in each]
        parts = [_COUNT.pack(len(self.keys))]
        for part in (*self.keys, *bounds):
            parts += (_LENGTH.pack(len(part)), part)
        return b"".join(parts)

    @classmethod
    def decode(cls, version: int, encoded: bytes) -> "Written":
        (count,) = _COUNT.unpack_from(encoded)
        offset = _COUNT.size
        parts: list[bytes] = []
        while offset < len(encoded):
            (length,) = _LENGTH.unpack_from(encoded, offset)
            offset += _LENGTH.size
            parts.append(encoded[offset : offset + length])
            offset += length
        bounds = parts[count:]
        return cls(version, frozenset(parts[:count]), tuple(zip(bounds[::2], bounds[1::2], strict=True)))


class History:
    """The last commits, oldest first, without gaps; at most ``max_parts`` keys and ranges of them."""

    def __init__(self, max_parts: int = 200_000) -> None:
        self._commits: deque[Written] = deque()
        self._parts = 0
        self._max_parts = max_parts
        self._floor: int | None = None

    @property
    def newest(self) -> int | None:
        """The last version that is known; None before the first `extend` or `start`."""
        return self._commits[-1].version if self._commits else self._floor

    def start(self, version: int) -> None:
        """Know nothing of ``version`` and before it, and of nothing after it."""
        self._commits.clear()
        self._parts = 0
        self._floor = version

    def extend(self, commits: Iterable[Written]) -> None:
        for commit in commits:
            if self.newest is None or commit.version != self.newest + 1:
                self.start(commit.version - 1)  # what lies between has been pruned from the file
            self._commits.append(commit)
            self._parts += _parts(commit)
        while self._parts > self._max_parts and self._commits:
            self._drop()

    def forget(self, version: int) -> None:
        """Drop the commits before ``version``: no transaction is that old."""
        while self._commits and self._commits[0].version < version:
            self._drop()

    def knows_since(self, version: int) -> bool:
        """Whether every commit after ``version`` is here."""
        return self._floor is not None and self._floor <= version

    def conflicts(self, reads: Reads, since: int) -> bool:
        """Whether a commit after ``since`` wrote what was read."""
        for commit in reversed(self._commits):
            if commit.version <= since:
                return False
            if commit.conflicts(reads):
                return True
        return False

    def _drop(self) -> None:
        dropped = self._commits.popleft()
        self._parts -= _parts(dropped)
        self._floor = dropped.version


def _parts(commit: Written) -> int:
    return 1 + len(commit.keys) + len(commit.ranges)
