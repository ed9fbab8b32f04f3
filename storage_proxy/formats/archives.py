"""The archive formats behind one interface: how blocks of entries are laid out, each as its format says.

The law: a layout never changes; its number is in every manifest and every ETag, and other bytes for the same entries
are another layout.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.entries import EntryBlock
from storage_proxy.formats.layout import BlockSummary, LearnedCrcs, Part, Segment
from storage_proxy.formats.tar_block import TarBlock
from storage_proxy.formats.tar_plan import TarPlan
from storage_proxy.formats.zip_block import ZipBlock
from storage_proxy.formats.zip_plan import ZipPlan


class ArchivePlan(Protocol):
    """Where every byte of an archive is, by its blocks; what follows from the sizes of their sections alone."""

    @property
    def size(self) -> int:
        """Bytes of the archive, exactly."""

    @property
    def blocks(self) -> int: ...

    @property
    def entries(self) -> int: ...

    @property
    def unknown_crcs(self) -> int:
        """How many CRC-32s must be learned before every slice can be streamed."""

    def first_entry(self, block: int) -> int:
        """The index in the archive of the block's first entry."""

    def local_start(self, block: int) -> int:
        """Where the block's local section begins in the archive, in bytes."""

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """The parts of bytes ``start`` to ``stop``, in order, none empty. Raises ValueError outside."""

    def end_records(self) -> bytes:
        """The END section."""


class ArchiveBlock(Protocol):
    """One block, compiled: where every byte of its sections is. Slices outside of them raise ValueError.

    ``crcs`` is called when framing is rendered, for entries whose CRC-32 is needed there and not known.
    """

    @property
    def block(self) -> EntryBlock: ...

    @property
    def summary(self) -> BlockSummary: ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it and its entries hold, to within a few hundred."""

    def local_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the LOCAL section."""

    def central_segments(self, start: int, stop: int, crcs: LearnedCrcs) -> Iterator[Segment]:
        """The segments of bytes ``start`` to ``stop`` of the CENTRAL section."""


class Layout(NamedTuple):
    """How one format lays archives out. ``block`` compiles entries at a local start and a first entry's index."""

    format: ArchiveFormat
    media_type: str
    plan: Callable[[Iterable[BlockSummary]], ArchivePlan]
    block: Callable[[EntryBlock, int, int], ArchiveBlock]


LAYOUTS: Mapping[int, Layout] = {
    1: Layout(ArchiveFormat.ZIP, "application/zip", ZipPlan, ZipBlock),
    2: Layout(ArchiveFormat.TAR, "application/x-tar", TarPlan, TarBlock),
}
"""By number."""
CURRENT_LAYOUTS: Mapping[ArchiveFormat, int] = {ArchiveFormat.ZIP: 1, ArchiveFormat.TAR: 2}
"""The numbers that new archives get."""
