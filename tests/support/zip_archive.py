"""A plan with all its blocks at hand: the archive as one thing, for tests of its layout."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Self

from storage_proxy.formats.crc32 import combine
from storage_proxy.formats.entries import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_ENTRIES,
    Entry,
    EntryBlock,
    EntryBlockBuilder,
)
from storage_proxy.formats.layout import BlockSummary, Framing, LearnedCrcs, Part, Section, Segment
from storage_proxy.formats.zip_block import ZipBlock, summarize
from storage_proxy.formats.zip_plan import ZipPlan


class ZipArchive:
    """A plan with all its blocks at hand: for tests and small archives."""

    def __init__(self, plan: ZipPlan, blocks: Sequence[EntryBlock]) -> None:
        self.plan = plan
        self.blocks = blocks

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        *,
        max_entries: int = MAX_BLOCK_ENTRIES,
        max_bytes: int = MAX_BLOCK_BYTES,
    ) -> Self:
        """Raises ValueError for an entry that no block takes; the limits are `EntryBlockBuilder`'s."""
        builder = EntryBlockBuilder(max_entries=max_entries, max_bytes=max_bytes)
        complete = [*map(builder.add, entries), builder.finish()]
        blocks = [block for block in complete if block is not None]
        return cls(ZipPlan(summarize_all(blocks)), blocks)

    def segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the archive. Raises as `ZipPlan.parts`."""
        return self._segments(self.plan.parts(start, stop), crcs)

    def _segments(self, parts: Iterable[Part], crcs: LearnedCrcs) -> Iterator[Segment]:
        for section, index, start, stop in parts:
            if section is Section.END:
                yield Framing(stop - start, partial(self._render_end, start, stop))
                continue
            block = ZipBlock(self.blocks[index], self.plan.local_start(index), self.plan.first_entry(index))
            if section is Section.LOCAL:
                yield from block.local_segments(start, stop, crcs)
            else:
                yield from block.central_segments(start, stop, crcs)

    def _render_end(self, start: int, stop: int) -> bytes:
        return self.plan.end_records()[start:stop]


def summarize_all(blocks: Iterable[EntryBlock]) -> Iterator[BlockSummary]:
    """The summaries of an archive's blocks in order."""
    local_start = 0
    for block in blocks:
        summary = summarize(block, local_start)
        yield summary
        local_start += summary.local_length


def combine_all(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of the parts in order, each given as (CRC-32, size in bytes); 0 when there are none."""
    whole = 0
    for crc, size in parts:
        whole = combine(whole, crc, size)
    return whole
