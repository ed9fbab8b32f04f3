"""A plan with all its blocks at hand: an archive of any format as one thing, for tests of its layout."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.archives import CURRENT_LAYOUTS, LAYOUTS, ArchivePlan, Layout
from storage_proxy.formats.entries import MAX_BLOCK_BYTES, MAX_BLOCK_ENTRIES, Entry, EntryBlock, EntryBlockBuilder
from storage_proxy.formats.layout import BlockSummary, Framing, LearnedCrcs, Part, Section, Segment


class LaidOut:
    """An archive of any format, whole."""

    def __init__(self, layout: Layout, blocks: Sequence[EntryBlock], plan: ArchivePlan) -> None:
        self.layout = layout
        self.blocks = blocks
        self.plan = plan

    def segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the archive. Raises as its plan's parts."""
        return self._segments(self.plan.parts(start, stop), crcs)

    def _segments(self, parts: Iterable[Part], crcs: LearnedCrcs) -> Iterator[Segment]:
        for section, index, start, stop in parts:
            if section is Section.END:
                yield Framing(stop - start, partial(self._render_end, start, stop))
                continue
            block = self.layout.block(self.blocks[index], self.plan.local_start(index), self.plan.first_entry(index))
            slice_of = block.local_segments if section is Section.LOCAL else block.central_segments
            yield from slice_of(start, stop, crcs)

    def _render_end(self, start: int, stop: int) -> bytes:
        return self.plan.end_records()[start:stop]


def laid_out(
    archive_format: ArchiveFormat, entries: Iterable[Entry], *, max_entries: int = MAX_BLOCK_ENTRIES
) -> LaidOut:
    """The archive of ``entries``. Raises as `blocks_of`."""
    layout = LAYOUTS[CURRENT_LAYOUTS[archive_format]]
    blocks = blocks_of(entries, max_entries=max_entries)
    return LaidOut(layout, blocks, layout.plan(summaries_of(layout, blocks)))


def blocks_of(
    entries: Iterable[Entry], *, max_entries: int = MAX_BLOCK_ENTRIES, max_bytes: int = MAX_BLOCK_BYTES
) -> list[EntryBlock]:
    """Raises ValueError for an entry that no block takes; the limits are `EntryBlockBuilder`'s."""
    builder = EntryBlockBuilder(max_entries=max_entries, max_bytes=max_bytes)
    return [block for block in [*map(builder.add, entries), builder.finish()] if block is not None]


def summaries_of(layout: Layout, blocks: Iterable[EntryBlock]) -> Iterator[BlockSummary]:
    """The summaries of an archive's blocks in order."""
    local_start = 0
    for block in blocks:
        summary = layout.block(block, local_start, 0).summary
        yield summary
        local_start += summary.local_length
