"""Where every byte of one block of a zip file with stored entries is, and the segments of any slice of it.

The law: the layout follows from names, sizes, times and which CRC-32s are known, never from CRC-32s learned
later; so any slice can be laid out before a byte of content has been read.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

from storage_proxy.formats.entries import MAX_SIZE, EntryBlock
from storage_proxy.formats.layout import (
    FRAMING_BYTES,
    BlockSummary,
    Framing,
    LearnedCrcs,
    LocalSection,
    Segment,
    check_slice,
)
from storage_proxy.formats.zip_records import (
    central_directory_header,
    central_directory_header_length,
    data_descriptor,
    data_descriptor_length,
    local_file_header,
    local_file_header_length,
)


class ZipBlock:
    """One block, compiled: the offsets of its local headers and of its central directory headers.

    ``local_start`` is where its local section begins in the archive, ``first_entry`` the archive's index of its
    first entry. Raises ValueError when it would end beyond `MAX_SIZE`.
    """

    __slots__ = ("_block", "_central_offsets", "_first_entry", "_local_offsets", "_local_start")

    def __init__(self, block: EntryBlock, local_start: int, first_entry: int) -> None:
        self._block = block
        self._local_start = local_start
        self._first_entry = first_entry
        local_offsets = list(accumulate(_local_lengths(block), initial=0))
        if local_start < 0 or local_start + local_offsets[-1] > MAX_SIZE:
            raise ValueError("an archive over the largest size")
        central_lengths = map(
            central_directory_header_length,
            block.name_lengths(),
            block.sizes,
            block.last_modified,
            (local_start + offset for offset in local_offsets),
        )
        self._local_offsets = array("Q", local_offsets)
        self._central_offsets = array("Q", accumulate(central_lengths, initial=0))

    @property
    def block(self) -> EntryBlock:
        return self._block

    @property
    def summary(self) -> BlockSummary:
        return BlockSummary(
            entries=len(self._block),
            unknown_crcs=self._block.unknown_crcs,
            local_length=self._local_offsets[-1],
            central_length=self._central_offsets[-1],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it and its entries hold, to within a few hundred."""
        return self._block.nbytes + 16 * len(self._local_offsets)

    def local_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the local section.

        ``crcs`` is called when framing is rendered, for entries whose CRC-32 the block does not know. Raises
        ValueError outside of the section.
        """
        check_slice(start, stop, self._local_offsets[-1])
        return self._local.segments(start, stop, lambda begin, end: self._local_framing(begin, end, crcs))

    def central_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the central directory headers; else as above."""
        check_slice(start, stop, self._central_offsets[-1])
        return self._central_segments(start, stop, crcs)

    def _local_framing(self, start: int, stop: int, crcs: LearnedCrcs) -> Framing:
        return Framing(stop - start, partial(self._render_local, start, stop, crcs))

    def _render_local(self, start: int, stop: int, crcs: LearnedCrcs) -> bytes:
        """Bytes ``start`` to ``stop`` of the local section, between which there is no content."""
        block = self._block
        row = bisect_right(self._local_offsets, start) - 1
        rendered = self._local_offsets[row]
        if block.sizes[row] and start >= (content_stop := self._local.content_stop(row)):
            rendered = content_stop  # begins in a data descriptor
        records = []
        cursor = rendered
        while cursor < stop:
            size, crc = block.sizes[row], block.crc32(row)
            if cursor == self._local_offsets[row]:
                records.append(local_file_header(block.name_bytes(row), size, block.last_modified[row], crc))
                cursor += len(records[-1]) + size
            if crc is None and cursor < stop:
                records.append(data_descriptor(size, crcs(self._first_entry + row)))
                cursor += len(records[-1])
            row += 1
        return b"".join(records)[start - rendered : stop - rendered]

    def _central_segments(self, cursor: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        row = bisect_right(self._central_offsets, cursor) - 1
        while cursor < stop:
            next_row = max(row + 1, bisect_right(self._central_offsets, cursor + FRAMING_BYTES) - 1)
            end = min(self._central_offsets[next_row], stop)
            yield Framing(end - cursor, partial(self._render_central, row, cursor, end, crcs))
            row, cursor = next_row, end

    def _render_central(self, row: int, start: int, stop: int, crcs: LearnedCrcs) -> bytes:
        block = self._block
        rendered = self._central_offsets[row]
        records = []
        while self._central_offsets[row] < stop:
            crc = block.crc32(row)
            records.append(
                central_directory_header(
                    block.name_bytes(row),
                    block.sizes[row],
                    block.last_modified[row],
                    crcs(self._first_entry + row) if crc is None else crc,
                    self._local_start + self._local_offsets[row],
                    has_descriptor=crc is None,
                )
            )
            row += 1
        return b"".join(records)[start - rendered : stop - rendered]

    @property
    def _local(self) -> LocalSection:
        return LocalSection(self._local_offsets, self._block.sizes, self._descriptor_length, self._first_entry)

    def _descriptor_length(self, row: int) -> int:
        return 0 if self._block.crc_known[row] else data_descriptor_length(self._block.sizes[row])


def _local_lengths(block: EntryBlock) -> Iterator[int]:
    columns = zip(block.name_lengths(), block.sizes, block.last_modified, block.crc_known, strict=True)
    for name_length, size, last_modified, crc_known in columns:
        descriptor_length = 0 if crc_known else data_descriptor_length(size)
        yield local_file_header_length(name_length, size, last_modified) + size + descriptor_length
