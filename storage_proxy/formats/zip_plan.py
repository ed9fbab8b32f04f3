"""Where every byte of a zip file with stored entries is, by cumulative offsets of its blocks.

The law: the size is exact and any slice is found by bisection, without looking at an entry.
"""

from array import array
from collections.abc import Iterable, Iterator

from storage_proxy.formats.entries import MAX_SIZE
from storage_proxy.formats.layout import BlockSummary, Part, Section, check_slice, section_parts
from storage_proxy.formats.zip_records import end_records, end_records_length


class ZipPlan:
    """The whole archive as cumulative offsets of its blocks: 24 bytes a block, and no entry.

    ``summaries`` are those of the archive's blocks in order, each with the local start that follows from the
    ones before it. Raises ValueError when a summary is of no block or the archive over `MAX_SIZE`.
    """

    __slots__ = ("_central_starts", "_end_length", "_first_entries", "_local_starts", "_unknown_crcs")

    def __init__(self, summaries: Iterable[BlockSummary]) -> None:
        first_entries, local_starts, central_starts = array("Q", [0]), array("Q", [0]), array("Q", [0])
        self._unknown_crcs = 0
        for entries, unknown_crcs, local_length, central_length in summaries:
            if not 0 <= unknown_crcs <= entries or min(entries, local_length, central_length) < 1:
                raise ValueError("a summary of no block")
            if local_starts[-1] + local_length + central_starts[-1] + central_length > MAX_SIZE:
                raise ValueError("an archive over the largest size")
            first_entries.append(first_entries[-1] + entries)
            local_starts.append(local_starts[-1] + local_length)
            central_starts.append(central_starts[-1] + central_length)
            self._unknown_crcs += unknown_crcs
        self._first_entries = first_entries
        self._local_starts = local_starts
        self._central_starts = central_starts
        self._end_length = end_records_length(first_entries[-1], central_starts[-1], local_starts[-1])

    @property
    def size(self) -> int:
        """Bytes of the archive, exactly."""
        return self._local_starts[-1] + self._central_starts[-1] + self._end_length

    @property
    def blocks(self) -> int:
        return len(self._local_starts) - 1

    @property
    def entries(self) -> int:
        return self._first_entries[-1]

    @property
    def unknown_crcs(self) -> int:
        """How many entries' CRC-32s are learned only from their content."""
        return self._unknown_crcs

    def first_entry(self, block: int) -> int:
        """The index in the archive of the block's first entry."""
        return self._first_entries[block]

    def local_start(self, block: int) -> int:
        """Where the block's local section begins in the archive, in bytes."""
        return self._local_starts[block]

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """The parts of bytes ``start`` (included) to ``stop`` (excluded) of the archive, in order, none empty.

        Raises ValueError unless ``0 <= start <= stop <= size``.
        """
        check_slice(start, stop, self.size)
        return self._parts(start, stop)

    def end_records(self) -> bytes:
        """The END section."""
        return end_records(self._first_entries[-1], self._central_starts[-1], self._local_starts[-1])

    def _parts(self, start: int, stop: int) -> Iterator[Part]:
        before = 0
        for section, starts in (
            (Section.LOCAL, self._local_starts),
            (Section.CENTRAL, self._central_starts),
            (Section.END, (0, self._end_length)),
        ):
            yield from section_parts(section, starts, start - before, stop - before)
            before += starts[-1]
