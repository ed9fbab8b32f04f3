"""Where every byte of one block of a tar file is, and the segments of any slice of it.

The law: the layout follows from names, sizes and times alone, so every slice can be streamed at once.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

from storage_proxy.formats.entries import MAX_SIZE, EntryBlock
from storage_proxy.formats.layout import BlockSummary, Framing, LearnedCrcs, LocalSection, Segment, check_slice
from storage_proxy.formats.tar_records import padding_length, tar_header, tar_header_length


class TarBlock:
    """One block, compiled: the offsets of its entries' headers.

    ``local_start`` is where its local section begins in the archive, ``first_entry`` the archive's index of its
    first entry. Raises ValueError when it would end beyond `MAX_SIZE`.
    """

    __slots__ = ("_block", "_first_entry", "_offsets")

    def __init__(self, block: EntryBlock, local_start: int, first_entry: int) -> None:
        self._block = block
        self._first_entry = first_entry
        offsets = list(accumulate(_lengths(block), initial=0))
        if local_start < 0 or local_start + offsets[-1] > MAX_SIZE:
            raise ValueError("an archive over the largest size")
        self._offsets = array("Q", offsets)

    @property
    def block(self) -> EntryBlock:
        return self._block

    @property
    def summary(self) -> BlockSummary:
        """A tar file holds no CRC-32: none that is unknown keeps a slice from being streamed."""
        return BlockSummary(entries=len(self._block), unknown_crcs=0, local_length=self._offsets[-1], central_length=0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it and its entries hold, to within a few hundred."""
        return self._block.nbytes + 8 * len(self._offsets)

    def local_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop``; ``crcs`` is not called. Raises ValueError outside."""
        check_slice(start, stop, self._offsets[-1])
        return self._local.segments(
            start, stop, lambda begin, end: Framing(end - begin, partial(self._render, begin, end))
        )

    def central_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """A tar file has no directory: of an empty section, nothing. Raises ValueError outside."""
        check_slice(start, stop, 0)
        return iter(())

    def _render(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, between which there is no content."""
        block = self._block
        row = bisect_right(self._offsets, start) - 1
        cursor = rendered = self._offsets[row]
        records = []
        if block.sizes[row] and start >= (content_stop := self._local.content_stop(row)):
            rendered, cursor = content_stop, self._offsets[row + 1]
            records.append(bytes(cursor - rendered))
            row += 1
        while cursor < stop:
            records.append(tar_header(block.name_bytes(row), block.sizes[row], block.last_modified[row]))
            cursor = self._offsets[row + 1]  # past its content, if it has any: then this is the last header
            row += 1
        return b"".join(records)[start - rendered : stop - rendered]

    @property
    def _local(self) -> LocalSection:
        return LocalSection(self._offsets, self._block.sizes, self._padding_length, self._first_entry)

    def _padding_length(self, row: int) -> int:
        return padding_length(self._block.sizes[row])


def _lengths(block: EntryBlock) -> Iterator[int]:
    for row, (size, last_modified) in enumerate(zip(block.sizes, block.last_modified, strict=True)):
        yield tar_header_length(block.name_bytes(row), size, last_modified) + size + padding_length(size)
