"""What a planned archive is made of, for every format: parts of sections, cut into framing and blob bytes.

The law: the segments of [start, stop) are exactly those bytes of the whole, in order, and none is empty.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

LearnedCrcs = Callable[[int], int]
"""From an entry's index in the archive to the CRC-32 that was learned from its content."""

FRAMING_BYTES = 64 * 1024
"""About as much framing is rendered at once."""


class Section(Enum):
    """The three kinds of stretch an archive has, in their order: first the LOCAL of every block, then the
    CENTRAL of every block (formats with a directory only), then one END.
    """

    LOCAL = "local"
    """Each entry's header, content and trailer."""
    CENTRAL = "central"
    """What a directory says of each entry."""
    END = "end"
    """What closes the archive."""


class BlockSummary(NamedTuple):
    """What a plan must know of a block: how many entries, how many of them without a CRC-32 that the format needs,
    and the bytes of its LOCAL and of its CENTRAL section.
    """

    entries: int
    unknown_crcs: int
    local_length: int
    central_length: int


class Part(NamedTuple):
    """Bytes ``start`` (included) to ``stop`` (excluded) of one section, counted from that section's beginning.

    ``block`` is the index of the block whose section it is; 0 in END, which belongs to none.
    """

    section: Section
    block: int
    start: int
    stop: int


class Framing(NamedTuple):
    """``length`` bytes of the archive that are not content of a blob.

    ``render`` makes them, and is called when all content before them has been streamed, because they may hold
    CRC-32s that are learned from it. It raises whatever the source of learned CRC-32s raises.
    """

    length: int
    render: Callable[[], bytes]


class SourceRange(NamedTuple):
    """Bytes ``start`` (included) to ``stop`` (excluded) of an entry's blob.

    ``entry`` is the entry's index in the archive, ``row`` its index in the block.
    """

    entry: int
    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


Segment = Framing | SourceRange


def check_slice(start: int, stop: int, size: int) -> None:
    """Raises ValueError unless ``0 <= start <= stop <= size``."""
    if not 0 <= start <= stop <= size:
        raise ValueError(f"bytes {start} to {stop} of {size}")


def section_parts(section: Section, starts: Sequence[int], start: int, stop: int) -> Iterator[Part]:
    """The parts of bytes ``start`` to ``stop`` of a section whose blocks begin at ``starts`` (and ends at the last).

    What lies outside of the section is left out.
    """
    start, stop = max(start, 0), min(stop, starts[-1])
    if start >= stop:
        return
    block = bisect_right(starts, start) - 1
    while start < stop:
        end = min(starts[block + 1], stop)
        yield Part(section, block, start - starts[block], end - starts[block])
        start, block = end, block + 1


class LocalSection(NamedTuple):
    """The LOCAL section of one block: for each row its header, its content, and a trailer of ``trailer_length(row)``.

    ``offsets`` are where the rows begin, and where the last one ends; ``first_entry`` is the archive's index of the
    first.
    """

    offsets: Sequence[int]
    sizes: Sequence[int]
    trailer_length: Callable[[int], int]
    first_entry: int

    def content_stop(self, row: int) -> int:
        """Where the row's content ends and its trailer begins."""
        return self.offsets[row + 1] - self.trailer_length(row)

    def segments(self, cursor: int, stop: int, framing: Callable[[int, int], Framing]) -> Iterator[Segment]:
        """The segments of bytes ``cursor`` to ``stop``; ``framing`` makes those between two positions that no content
        lies between.
        """
        # Bytes cursor to stop are still to be given; framing is held back until content follows it.
        offsets = self.offsets
        row = bisect_right(offsets, cursor) - 1
        while cursor < stop:
            size = self.sizes[row]
            if size:
                content_stop = self.content_stop(row)
                content_start = content_stop - size
                if cursor < content_start:
                    framing_stop = min(content_start, stop)
                    yield framing(cursor, framing_stop)
                    cursor = framing_stop
                content_stop = min(content_stop, stop)
                if cursor < content_stop:
                    yield SourceRange(self.first_entry + row, row, cursor - content_start, content_stop - content_start)
                    cursor = content_stop
            row += 1
            framing_stop = min(offsets[row], stop)
            if cursor < framing_stop and (framing_stop == stop or framing_stop - cursor >= FRAMING_BYTES):
                yield framing(cursor, framing_stop)
                cursor = framing_stop
