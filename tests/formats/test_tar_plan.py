"""Tar files as they are planned: any slice of the plan is that slice of the file that tarfile reads."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.archives import CURRENT_LAYOUTS, LAYOUTS
from storage_proxy.formats.entries import MAX_SIZE, Entry, EntryBlock
from storage_proxy.formats.layout import BlockSummary, Framing, Part, Section, Segment, SourceRange
from storage_proxy.formats.tar_block import TarBlock
from storage_proxy.formats.tar_plan import TarPlan
from tests.support.archives import LaidOut, laid_out

NOW = 1_700_000_001
NAMES = st.one_of(st.text(st.sampled_from("ab/é😀"), min_size=1, max_size=8), st.integers(90, 130).map("n".__mul__))


def not_asked(entry: int) -> int:
    raise AssertionError(f"a tar file holds no CRC-32, and that of entry {entry} was asked for")


class Sample:
    """Entries with their contents."""

    def __init__(self, entries: Sequence[Entry], contents: Sequence[bytes]) -> None:
        self.entries = entries
        self.contents = contents

    @classmethod
    def of(cls, *rows: tuple[str, bytes]) -> "Sample":
        entries = [Entry(name, "media", name, len(content), '"e"', NOW, None) for name, content in rows]
        return cls(entries, [content for _, content in rows])

    def archive(self, max_entries: int = 1024) -> LaidOut:
        return laid_out(ArchiveFormat.TAR, self.entries, max_entries=max_entries)

    def render(self, segments: Sequence[Segment]) -> bytes:
        return b"".join(
            segment.render() if isinstance(segment, Framing) else self.contents[segment.entry][slice(*segment[2:])]
            for segment in segments
        )

    def cut(self, archive: LaidOut, start: int, stop: int) -> bytes:
        return self.render(list(archive.segments(start, stop, not_asked)))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    entries, contents = [], []
    for index in range(draw(st.integers(0, 6))):
        name = f"{index}{draw(NAMES)}"
        sizes = st.one_of(st.integers(0, 30), st.integers(500, 530), st.just(1024))
        content = b"" if name.endswith("/") else bytes([65 + index]) * draw(sizes)
        contents.append(content)
        time = draw(st.sampled_from([NOW, 0, -5, 1 << 34]))
        entries.append(Entry(name, "media", f"k{index}", len(content), '"e"', time, draw(st.sampled_from([None, 1]))))
    return Sample(entries, contents)


SMALL = Sample.of(
    ("folder/", b""),
    ("folder/hello.txt", b"hello\n"),
    ("folder/empty", b""),
    ("folder/whole block", bytes(512)),
    ("é😀.txt", "grüße\n".encode()),
    ("l" * 150, b"long"),
)


@given(samples(), st.integers(1, 4))
def test_the_size_is_the_length_of_the_whole_and_tarfile_reads_it(sample: Sample, max_entries: int) -> None:
    archive = sample.archive(max_entries)
    whole = sample.cut(archive, 0, archive.plan.size)
    assert len(whole) == archive.plan.size
    assert archive.plan.entries == len(sample.entries)
    assert archive.plan.unknown_crcs == 0
    with tarfile.open(fileobj=io.BytesIO(whole)) as read:
        members = read.getmembers()
        assert [member.name for member in members] == [entry.name.rstrip("/") for entry in sample.entries]
        assert [member.mtime for member in members] == [entry.last_modified for entry in sample.entries]
        files = [read.extractfile(member) for member in members]
        assert [file.read() if file else b"" for file in files] == list(sample.contents)


@given(samples(), st.integers(1, 4), st.data())
def test_any_slice_is_the_slice_of_the_whole(sample: Sample, max_entries: int, data: st.DataObject) -> None:
    archive = sample.archive(max_entries)
    size = archive.plan.size
    whole = sample.cut(archive, 0, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    segments = list(archive.segments(start, stop, not_asked))
    assert sample.render(segments) == whole[start:stop]
    assert all(segment.length > 0 for segment in segments)
    for segment in segments:
        if isinstance(segment, Framing):
            assert len(segment.render()) == segment.length


def test_every_slice_of_a_small_archive() -> None:
    for max_entries in (1, 2):
        archive = SMALL.archive(max_entries)
        whole = SMALL.cut(archive, 0, archive.plan.size)
        for start in range(0, len(whole) + 1, 61):
            for stop in range(start, len(whole) + 1, 331):
                assert SMALL.cut(archive, start, stop) == whole[start:stop]


@given(samples(), st.integers(1, 4))
def test_block_sizes_do_not_change_a_byte(sample: Sample, max_entries: int) -> None:
    one, many = sample.archive(), sample.archive(max_entries)
    assert sample.cut(one, 0, one.plan.size) == sample.cut(many, 0, many.plan.size)


def test_the_layout_never_changes() -> None:
    archive = SMALL.archive()
    whole = SMALL.cut(archive, 0, archive.plan.size)
    assert len(whole) == 8192
    assert hashlib.sha256(whole).hexdigest() == "6fcef3d45730620eaa2a564d142eba68e5d0b33748156811844a1b696f92bda4"


def test_the_archive_ends_in_two_blocks_of_zeros_and_no_more() -> None:
    archive = Sample.of(("a", b"x" * 512)).archive()
    assert archive.plan.size == 512 + 512 + 1024
    assert Sample.of(("a", b"x" * 512)).cut(archive, 1024, 2048) == bytes(1024)
    assert laid_out(ArchiveFormat.TAR, []).plan.size == 1024


def test_framing_between_contents_is_one_segment() -> None:
    segments = list(SMALL.archive().segments(0, SMALL.archive().plan.size, not_asked))
    kinds = [type(segment) for segment in segments]
    assert kinds == [Framing, SourceRange] * 4 + [Framing, Framing]  # the last padding, and the end


def test_framing_of_many_folders_comes_in_pieces_of_64_kib() -> None:
    folders = Sample.of(*((f"{index:05}" + "x" * 200 + "/", b"") for index in range(1000)))
    archive = folders.archive()
    segments = list(archive.segments(0, archive.plan.size, not_asked))
    assert all(segment.length < 68_000 for segment in segments)
    assert len(folders.render(segments)) == archive.plan.size


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 10**9)])
def test_a_slice_outside_of_the_archive_is_refused_at_once(start: int, stop: int) -> None:
    archive = SMALL.archive()
    block = TarBlock(archive.blocks[0], 0, 0)
    for slice_of in (archive.plan.parts,):
        with pytest.raises(ValueError, match="bytes"):
            slice_of(start, stop)
    with pytest.raises(ValueError, match="bytes"):
        block.local_segments(start, stop, not_asked)
    with pytest.raises(ValueError, match="bytes"):
        block.central_segments(start, stop, not_asked)
    assert list(block.central_segments(0, 0, not_asked)) == []


def test_sizes_beyond_63_bits_are_refused() -> None:
    half = Entry("a", "b", "k", MAX_SIZE // 2, "", NOW, 1)
    with pytest.raises(ValueError, match="largest"):
        laid_out(ArchiveFormat.TAR, [half, half, half])
    with pytest.raises(ValueError, match="largest"):
        TarPlan([BlockSummary(1, 0, MAX_SIZE // 2, 0)] * 3)
    for junk in (
        BlockSummary(0, 0, 1, 0),
        BlockSummary(1, 1, 1, 0),
        BlockSummary(1, 0, 1, 1),
        BlockSummary(1, 0, 0, 0),
    ):
        with pytest.raises(ValueError, match="summary"):
            TarPlan([junk])


class RecordedBlocks(Sequence[EntryBlock]):
    """A million entries: the same block of 1,000 again and again, and which of them were asked for."""

    def __init__(self, block: EntryBlock, count: int) -> None:
        self._block = block
        self._count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return self._block


def test_a_slice_of_a_million_entries_touches_only_its_own_blocks() -> None:
    layout = LAYOUTS[CURRENT_LAYOUTS[ArchiveFormat.TAR]]
    entries = (Entry(f"{row:040}", "media", f"{row:060}", 10_240, '"e"', NOW, row) for row in range(1000))
    (block,) = laid_out(ArchiveFormat.TAR, entries, max_entries=1000).blocks
    summary = layout.block(block, 0, 0).summary
    blocks = RecordedBlocks(block, 1000)
    archive = LaidOut(layout, blocks, TarPlan([summary] * 1000))
    plan = archive.plan
    assert (plan.entries, plan.blocks, plan.first_entry(999)) == (1_000_000, 1000, 999_000)
    assert plan.size == 1_000_000 * (512 + 10_240) + 1024

    def asked_for(start: int, stop: int) -> list[int]:
        blocks.asked.clear()
        for segment in archive.segments(start, stop, not_asked):
            if isinstance(segment, Framing):
                assert len(segment.render()) == segment.length
        return blocks.asked

    assert asked_for(plan.size - 10_000, plan.size) == [999]
    assert asked_for(summary.local_length * 500 - 1, summary.local_length * 500 + 1) == [499, 500]
    assert asked_for(plan.size - 1024, plan.size) == []


def test_parts_are_relative_to_their_sections() -> None:
    plan = TarPlan([BlockSummary(2, 0, 1024, 0), BlockSummary(1, 0, 512, 0)])
    assert (plan.size, plan.entries, plan.blocks) == (2560, 3, 2)
    assert list(plan.parts(1000, 2560)) == [
        Part(Section.LOCAL, 0, 1000, 1024),
        Part(Section.LOCAL, 1, 0, 512),
        Part(Section.END, 0, 0, 1024),
    ]
    assert list(plan.parts(1600, 1601)) == [Part(Section.END, 0, 64, 65)]
    assert list(plan.parts(50, 50)) == []
