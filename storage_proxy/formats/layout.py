"""What a planned archive is made of, for every format: parts of sections, cut into framing and blob bytes.

The law: the segments of [start, stop) are exactly those bytes of the whole, in order, and none is empty.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


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
