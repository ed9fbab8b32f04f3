import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.formats.entries import MAX_SIZE, Entry, EntryBlock
from storage_proxy.formats.layout import BlockSummary, Framing, Part, Section, Segment, SourceRange
from storage_proxy.formats.zip_block import ZipBlock
from storage_proxy.formats.zip_plan import ZipPlan
from tests.support.zip_archive import ZipArchive, combine_all, summarize_all

LIMIT = 0xFFFFFFFF
NOW = 1_700_000_001
NAMES = st.text(st.sampled_from("ab/é😀"), min_size=1, max_size=8)


def summarize(block: EntryBlock, local_start: int) -> BlockSummary:
    return ZipBlock(block, local_start, first_entry=0).summary


def not_asked(entry: int) -> int:
    raise AssertionError(f"the CRC-32 of entry {entry} was asked for")


class Sample:
    """Entries with their contents, and the CRC-32s that streaming them would teach."""

    def __init__(self, entries: Sequence[Entry], contents: Sequence[bytes]) -> None:
        self.entries = entries
        self.contents = contents

    def crcs(self, entry: int) -> int:
        assert self.entries[entry].crc32 is None, "a CRC-32 was asked for that the plan knows"
        return zlib.crc32(self.contents[entry])

    def archive(self, max_entries: int = 1024) -> ZipArchive:
        return ZipArchive.of(self.entries, max_entries=max_entries)

    def render(self, segments: Sequence[Segment]) -> bytes:
        return b"".join(
            segment.render() if isinstance(segment, Framing) else self.contents[segment.entry][slice(*segment[2:])]
            for segment in segments
        )

    def cut(self, archive: ZipArchive, start: int, stop: int) -> bytes:
        return self.render(list(archive.segments(start, stop, self.crcs)))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    entries, contents = [], []
    for index in range(draw(st.integers(0, 7))):
        name = f"{index}{draw(NAMES)}"
        content = b"" if name.endswith("/") else draw(st.one_of(st.just(b""), st.binary(max_size=30)))
        contents.append(content)
        crc = draw(st.sampled_from([None, zlib.crc32(content)]))
        time = draw(st.sampled_from([NOW, 0, 1 << 33]))
        entries.append(Entry(name, "media", f"k{index}", len(content), '"e"', time, crc))
    return Sample(entries, contents)


def sample(*rows: tuple[str, bytes, bool]) -> Sample:
    """Rows of name, content and whether the CRC-32 is known."""
    entries = [
        Entry(name, "media", name, len(content), '"e"', NOW, zlib.crc32(content) if known else None)
        for name, content, known in rows
    ]
    return Sample(entries, [content for _, content, _ in rows])


SMALL = sample(
    ("folder/", b"", True),
    ("folder/known.txt", b"hello\n", True),
    ("folder/unknown.txt", b"learned while streaming\n", False),
    ("folder/empty", b"", False),
    ("é😀.txt", "grüße\n".encode(), True),
)


@given(samples(), st.integers(1, 4))
def test_the_size_is_the_length_of_the_whole_and_zipfile_reads_it(given_sample: Sample, max_entries: int) -> None:
    archive = given_sample.archive(max_entries)
    whole = given_sample.cut(archive, 0, archive.plan.size)
    assert len(whole) == archive.plan.size
    assert archive.plan.entries == len(given_sample.entries)
    with zipfile.ZipFile(io.BytesIO(whole)) as read:
        assert read.namelist() == [entry.name for entry in given_sample.entries]
        assert [read.read(info) for info in read.infolist()] == list(given_sample.contents)


@given(samples(), st.integers(1, 4), st.data())
def test_any_slice_is_the_slice_of_the_whole(given_sample: Sample, max_entries: int, data: st.DataObject) -> None:
    archive = given_sample.archive(max_entries)
    size = archive.plan.size
    whole = given_sample.cut(archive, 0, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    segments = list(archive.segments(start, stop, given_sample.crcs))
    assert given_sample.render(segments) == whole[start:stop]
    assert all(segment.length > 0 for segment in segments)
    for segment in segments:
        if isinstance(segment, Framing):
            assert len(segment.render()) == segment.length


def test_every_slice_of_a_small_archive() -> None:
    for max_entries in (1, 2):
        archive = SMALL.archive(max_entries)
        whole = SMALL.cut(archive, 0, archive.plan.size)
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 1, 31):
                assert SMALL.cut(archive, start, stop) == whole[start:stop]


@given(samples(), st.integers(1, 4))
def test_block_sizes_do_not_change_a_byte(given_sample: Sample, max_entries: int) -> None:
    one, many = given_sample.archive(), given_sample.archive(max_entries)
    assert given_sample.cut(one, 0, one.plan.size) == given_sample.cut(many, 0, many.plan.size)


def test_the_layout_never_changes() -> None:
    archive = SMALL.archive()
    whole = SMALL.cut(archive, 0, archive.plan.size)
    assert len(whole) == 672
    assert hashlib.sha256(whole).hexdigest() == "629fb2334768cdfcf8c2cf328b4028160ce28b1a667aba7ef988f4e19552a704"


def test_framing_between_contents_is_one_segment_and_learned_crcs_are_asked_for_late() -> None:
    asked: list[int] = []
    archive = SMALL.archive()

    def crcs(entry: int) -> int:
        asked.append(entry)
        return SMALL.crcs(entry)

    segments = list(archive.segments(0, archive.plan.size, crcs))
    kinds = [type(segment) for segment in segments]
    assert kinds == [Framing, SourceRange, Framing, SourceRange, Framing, SourceRange, Framing, Framing]
    assert asked == []
    rendered = [segment.render() for segment in segments if isinstance(segment, Framing)]
    assert asked == [2, 2]  # its descriptor and its central directory header
    # the descriptor of one, all of an empty one, and the header of the next
    assert rendered[2].startswith(b"PK\x07\x08")
    assert rendered[2].count(b"PK\x03\x04") == 2


def test_source_ranges_name_the_entry_in_the_archive_and_in_its_block() -> None:
    archive = SMALL.archive(2)
    ranges = [
        segment for segment in archive.segments(0, archive.plan.size, SMALL.crcs) if isinstance(segment, SourceRange)
    ]
    assert [(found.entry, found.row) for found in ranges] == [(1, 1), (2, 0), (4, 0)]


def test_framing_of_many_folders_comes_in_pieces_of_64_kib() -> None:
    folders = sample(*((f"{index:05}" + "x" * 200 + "/", b"", True) for index in range(1000)))
    archive = folders.archive()
    segments = list(archive.segments(0, archive.plan.size, not_asked))
    assert all(segment.length < 66_000 for segment in segments)
    assert len(segments) < archive.plan.size // 60_000 + 4
    assert len(folders.render(segments)) == archive.plan.size


def test_an_empty_plan_is_an_empty_archive() -> None:
    archive = ZipArchive.of([])
    assert (archive.plan.size, archive.plan.entries, archive.plan.blocks) == (22, 0, 0)
    assert Sample([], []).cut(archive, 0, 22) == archive.plan.end_records()


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 10**9)])
def test_a_slice_outside_of_the_archive_is_refused_at_once(start: int, stop: int) -> None:
    archive = SMALL.archive()
    block = ZipBlock(archive.blocks[0], 0, 0)
    with pytest.raises(ValueError, match="bytes"):
        archive.plan.parts(start, stop)
    with pytest.raises(ValueError, match="bytes"):
        archive.segments(start, stop, not_asked)
    with pytest.raises(ValueError, match="bytes"):
        block.local_segments(start, stop, not_asked)
    with pytest.raises(ValueError, match="bytes"):
        block.central_segments(start, stop, not_asked)


def test_sizes_beyond_63_bits_are_refused() -> None:
    half = Entry("a", "b", "k", MAX_SIZE // 2, "", NOW, 1)
    with pytest.raises(ValueError, match="largest"):
        ZipArchive.of([half, half, half])
    with pytest.raises(ValueError, match="largest"):
        ZipPlan([BlockSummary(1, 0, MAX_SIZE // 2, 50)] * 3)
    for junk in (BlockSummary(0, 0, 1, 1), BlockSummary(1, 2, 1, 1), BlockSummary(1, 0, 0, 1)):
        with pytest.raises(ValueError, match="summary"):
            ZipPlan([junk])


# zip64: archives too large to make, read through their plan


@cache
def crc_of_zeros(size: int) -> int:
    half = crc_of_zeros(size // 2) if size > 1 else 0
    return combine_all([(half, size // 2)] * 2 + [(zlib.crc32(bytes(size % 2)), size % 2)])


class PlanFile(io.RawIOBase):
    """The archive of a plan as a seekable file; contents are zeros."""

    def __init__(self, archive: ZipArchive) -> None:
        self._archive = archive
        self._sizes = [size for block in archive.blocks for size in block.sizes]
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._archive.plan.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._archive.plan.size)
        piece = b"".join(
            segment.render() if isinstance(segment, Framing) else bytes(segment.length)
            for segment in self._archive.segments(self._position, stop, lambda entry: crc_of_zeros(self._sizes[entry]))
        )
        buffer[: len(piece)] = piece
        self._position = stop
        return len(piece)


def huge(*sizes: int, known: bool = True) -> ZipArchive:
    entries = (
        Entry(f"{index}.bin", "media", "k", size, '"e"', NOW, crc_of_zeros(size) if known else None)
        for index, size in enumerate(sizes)
    )
    return ZipArchive.of(entries, max_entries=2)


def read_back(archive: ZipArchive) -> tuple[list[zipfile.ZipInfo], bytes]:
    """What zipfile finds in the directory (having opened every entry at its offset), and the last 98 bytes."""
    file = PlanFile(archive)
    with zipfile.ZipFile(file) as read:
        for info in read.infolist():
            with read.open(info) as member:
                assert member.read(10) == bytes(min(info.file_size, 10))
        file.seek(-98, io.SEEK_END)
        return read.infolist(), file.read(98)


def needed(archive: ZipArchive) -> list[int]:
    return [info.extract_version for info in read_back(archive)[0]]


def has_zip64_end(archive: ZipArchive) -> bool:
    return read_back(archive)[1].startswith(b"PK\x06\x06")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("sizes", "versions"),
    [
        ((LIMIT - 1,), [10]),
        ((LIMIT,), [45]),
        ((10, 5 << 30), [10, 45]),
        ((5 << 30, 10), [45, 45]),
        ((5 << 30, 6 << 30, 0, 3), [45, 45, 45, 45]),
        ((2 << 30, 1 << 30, 1 << 30, 10), [10, 10, 10, 45]),
    ],
)
def test_zip64_only_in_the_entries_that_need_it(sizes: tuple[int, ...], versions: list[int], known: bool) -> None:
    archive = huge(*sizes, known=known)
    infos, end = read_back(archive)
    assert [info.file_size for info in infos] == list(sizes)
    assert [info.extract_version for info in infos] == versions
    directory = archive.plan.size - 22 - sum(summary.central_length for summary in summarize_all(archive.blocks))
    assert end.startswith(b"PK\x06\x06") == (directory >= LIMIT)


def test_an_offset_of_exactly_all_ones_needs_zip64() -> None:
    header = 30 + len("0.bin") + 9
    for short, version in ((1, 10), (0, 45)):
        archive = huge(LIMIT - header - short, 10)
        infos, _ = read_back(archive)
        assert infos[1].header_offset == LIMIT - short
        assert infos[1].extract_version == version


def test_a_descriptor_after_four_gibibytes_has_sizes_of_eight_bytes() -> None:
    archive = huge(1, 5 << 30, 4, known=False)
    infos, _ = read_back(archive)
    file = PlanFile(archive)
    file.seek(infos[2].header_offset - 24)
    assert file.read(28) == (
        b"PK\x07\x08"
        + crc_of_zeros(5 << 30).to_bytes(4, "little")
        + 2 * (5 << 30).to_bytes(8, "little")
        + b"PK\x03\x04"
    )


def test_an_archive_over_four_gibibytes_of_small_entries_needs_zip64_only_at_its_end() -> None:
    archive = huge(LIMIT // 2, LIMIT // 2)
    assert needed(archive) == [10, 10]
    assert has_zip64_end(archive)


@pytest.mark.parametrize(("entries", "zip64"), [(0xFFFE, False), (0xFFFF, True), (0x10001, True)])
def test_65535_entries_need_the_zip64_end_records(entries: int, zip64: bool) -> None:
    archive = ZipArchive.of(Entry(f"{index}", "b", "k", 0, "", NOW, 0) for index in range(entries))
    assert archive.plan.entries == entries
    file = PlanFile(archive)
    with zipfile.ZipFile(file) as read:
        assert len(read.infolist()) == entries
    file.seek(-98, io.SEEK_END)
    assert file.read(98).startswith(b"PK\x06\x06") == zip64


def test_all_cases_of_zip64_together() -> None:
    sizes = [5 << 30, *[3] * 0xFFFF, 4 << 30]
    archive = ZipArchive.of(Entry(f"{index}", "b", "k", size, "", NOW, None) for index, size in enumerate(sizes))
    with zipfile.ZipFile(PlanFile(archive)) as read:
        infos = read.infolist()
        assert [info.file_size for info in infos] == sizes
        assert {info.extract_version for info in infos} == {45}
        assert [info.CRC for info in infos] == [crc_of_zeros(size) for size in sizes]
        with read.open(infos[-1]) as last:
            assert last.read(5) == bytes(5)


# plans of many blocks


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
    small = ZipArchive.of(
        (Entry(f"{row:040}", "media", f"{row:060}", 10_240, '"e"', NOW, row) for row in range(1000)), max_entries=1000
    )
    (block,) = small.blocks
    near, far = summarize(block, 0), summarize(block, 1 << 40)
    crossing = LIMIT // near.local_length
    summaries = [near] * crossing + [summarize(block, crossing * near.local_length)] + [far] * (999 - crossing)
    blocks = RecordedBlocks(block, 1000)
    archive = ZipArchive(ZipPlan(summaries), blocks)
    plan = archive.plan
    assert (plan.entries, plan.blocks, plan.first_entry(999)) == (1_000_000, 1000, 999_000)
    assert plan.local_start(999) == 999 * near.local_length

    def asked_for(start: int, stop: int) -> list[int]:
        blocks.asked.clear()
        for segment in archive.segments(start, stop, not_asked):
            if isinstance(segment, Framing):
                assert len(segment.render()) == segment.length
        return blocks.asked

    directory = 1000 * near.local_length
    assert asked_for(directory - 10_000_000, directory - 10) == [999]
    assert asked_for(near.local_length * 500 - 1, near.local_length * 500 + 1) == [499, 500]
    assert asked_for(plan.size - 98 - far.central_length, plan.size) == [999]
    assert asked_for(plan.size - 98, plan.size) == []
    assert asked_for(directory - 1, directory + 1) == [999, 0]


def test_parts_are_relative_to_their_sections() -> None:
    first, second = BlockSummary(2, 1, 100, 10), BlockSummary(1, 0, 50, 5)
    plan = ZipPlan([first, second])
    assert (plan.size, plan.entries, plan.unknown_crcs) == (187, 3, 1)
    assert list(plan.parts(90, 187)) == [
        Part(Section.LOCAL, 0, 90, 100),
        Part(Section.LOCAL, 1, 0, 50),
        Part(Section.CENTRAL, 0, 0, 10),
        Part(Section.CENTRAL, 1, 0, 5),
        Part(Section.END, 0, 0, 22),
    ]
    assert list(plan.parts(100, 101)) == [Part(Section.LOCAL, 1, 0, 1)]
    assert list(plan.parts(163, 167)) == [Part(Section.CENTRAL, 1, 3, 5), Part(Section.END, 0, 0, 2)]
    assert list(plan.parts(50, 50)) == []


def test_a_compiled_block_tells_its_summary_and_memory() -> None:
    (block,) = SMALL.archive().blocks
    compiled = ZipBlock(block, 0, 0)
    assert compiled.summary == summarize(block, 0)
    assert compiled.summary.unknown_crcs == 1
    assert compiled.block is block
    assert compiled.nbytes > block.nbytes
