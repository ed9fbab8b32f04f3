"""A zip's plan with all its blocks at hand: the archive as one thing, for tests of its layout."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.archives import CURRENT_LAYOUTS, LAYOUTS, ArchivePlan
from storage_proxy.formats.crc32 import combine
from storage_proxy.formats.entries import MAX_BLOCK_BYTES, MAX_BLOCK_ENTRIES, Entry, EntryBlock
from storage_proxy.formats.layout import BlockSummary
from tests.support.archives import LaidOut, blocks_of, summaries_of

ZIP = LAYOUTS[CURRENT_LAYOUTS[ArchiveFormat.ZIP]]


class ZipArchive(LaidOut):
    """A zip, whole."""

    def __init__(self, plan: ArchivePlan, blocks: Sequence[EntryBlock]) -> None:
        super().__init__(ZIP, blocks, plan)

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        *,
        max_entries: int = MAX_BLOCK_ENTRIES,
        max_bytes: int = MAX_BLOCK_BYTES,
    ) -> Self:
        """Raises as `blocks_of`."""
        blocks = blocks_of(entries, max_entries=max_entries, max_bytes=max_bytes)
        return cls(ZIP.plan(summarize_all(blocks)), blocks)


def summarize_all(blocks: Iterable[EntryBlock]) -> Iterator[BlockSummary]:
    """The summaries of a zip's blocks in order."""
    return summaries_of(ZIP, blocks)


def combine_all(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of the parts in order, each given as (CRC-32, size in bytes); 0 when there are none."""
    whole = 0
    for crc, size in parts:
        whole = combine(whole, crc, size)
    return whole
