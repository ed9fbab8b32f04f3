"""Where every byte of a tar file is, by cumulative offsets of its blocks.

The law: the size is exact and any slice is found by bisection, without looking at an entry.
"""

from array import array
from collections.abc import Iterable, Iterator

from storage_proxy.formats.entries import MAX_SIZE
from storage_proxy.formats.layout import BlockSummary, Part, Section, check_slice, section_parts
from storage_proxy.formats.tar_records import END


class TarPlan:
    """The whole archive as cumulative offsets of its blocks: 16 bytes a block, and no entry.

    Raises ValueError when a summary is of no block of a tar file or the archive over `MAX_SIZE`.
    """

    __slots__ = ("_first_entries", "_starts")

    def __init__(self, summaries: Iterable[BlockSummary]) -> None:
        first_entries, starts = array("Q", [0]), array("Q", [0])
        for entries, unknown_crcs, local_length, central_length in summaries:
            if unknown_crcs or central_length or min(entries, local_length) < 1:
                raise ValueError("a summary of no block")
            if starts[-1] + local_length + len(END) > MAX_SIZE:
                raise ValueError("an archive over the largest size")
            first_entries.append(first_entries[-1] + entries)
            starts.append(starts[-1] + local_length)
        self._first_entries = first_entries
        self._starts = starts

    @property
    def size(self) -> int:
        """Bytes of the archive, exactly."""
        return self._starts[-1] + len(END)

    @property
    def blocks(self) -> int:
        return len(self._starts) - 1

    @property
    def entries(self) -> int:
        return self._first_entries[-1]

    @property
    def unknown_crcs(self) -> int:
        """None is ever waited for: a tar file holds no CRC-32."""
        return 0

    def first_entry(self, block: int) -> int:
        """The index in the archive of the block's first entry."""
        return self._first_entries[block]

    def local_start(self, block: int) -> int:
        """Where the block begins in the archive, in bytes."""
        return self._starts[block]

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """The parts of bytes ``start`` (included) to ``stop`` (excluded) of the archive, in order, none empty.

        Raises ValueError unless ``0 <= start <= stop <= size``.
        """
        check_slice(start, stop, self.size)
        return self._parts(start, stop)

    def end_records(self) -> bytes:
        """The END section."""
        return END

    def _parts(self, start: int, stop: int) -> Iterator[Part]:
        yield from section_parts(Section.LOCAL, self._starts, start, stop)
        end = self._starts[-1]
        yield from section_parts(Section.END, (0, len(END)), start - end, stop - end)
