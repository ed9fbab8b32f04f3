"""Archives as the programs that people have read them; see tests/support/zip_readers.py."""

import os
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage_proxy.formats.entries import Entry
from storage_proxy.formats.layout import Framing
from tests.support.zip_archive import ZipArchive
from tests.support.zip_readers import LIST, READ, digests, installed, java, program

NOW = 1_700_000_001
CONTENTS = {
    "folder/": b"",
    "folder/known.txt": b"hello\n",
    "folder/empty": b"",
    "folder/with space & 'quotes'.bin": bytes(range(256)) * 300,
    "grüße/日本語-😀.txt": "grüße\n".encode(),
    "MISSING.txt": b"runs/1/a.bin\tblob-not-found\n",
}


@pytest.fixture(params=list(READ))
def reader(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


def write(path: Path, entries: Sequence[Entry], contents: Sequence[bytes]) -> Path:
    """The archive as a file; an entry without content here is a hole, which reads as zeros."""
    archive = ZipArchive.of(entries)
    with path.open("wb") as file:
        for segment in archive.segments(0, archive.plan.size, lambda entry: zlib.crc32(contents[entry])):
            if isinstance(segment, Framing):
                file.write(segment.render())
            elif contents[segment.entry]:
                file.write(contents[segment.entry][segment.start : segment.stop])
            else:
                file.seek(segment.length, os.SEEK_CUR)
    assert path.stat().st_size == archive.plan.size
    return path


def small(path: Path, *, known: bool) -> Path:
    entries = [
        Entry(name, "media", name, len(content), '"e"', NOW, zlib.crc32(content) if known else None)
        for name, content in CONTENTS.items()
    ]
    return write(path, entries, list(CONTENTS.values()))


@pytest.mark.parametrize("known", [True, False], ids=["crcs known", "crcs learned"])
def test_every_seeking_reader_agrees_on_names_sizes_and_bytes(reader: str, known: bool, tmp_path: Path) -> None:
    archive = small(tmp_path / "archive.zip", known=known)
    assert READ[reader](archive, tmp_path) == digests(CONTENTS)
    extracted = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {int(path.stat().st_mtime) for path in extracted} <= {NOW}
    assert LIST[reader](archive, tmp_path) == {name: len(content) for name, content in CONTENTS.items()}


def test_javas_zip_input_stream_reads_an_archive_whose_crcs_were_known(tmp_path: Path) -> None:
    sizes, read = java("stream", small(tmp_path / "archive.zip", known=True), tmp_path)
    assert read == digests(CONTENTS)
    assert sizes == {name: len(content) for name, content in CONTENTS.items()}


def test_javas_zip_input_stream_refuses_a_stored_entry_with_a_data_descriptor(tmp_path: Path) -> None:
    """Why CRC-32s are worth knowing before an archive is laid out."""
    archive = small(tmp_path / "archive.zip", known=False)
    program("java")
    with pytest.raises(RuntimeError, match="only DEFLATED entries can have EXT descriptor"):
        java("stream", archive, tmp_path)


def test_bsdtar_reads_an_archive_from_a_pipe_when_crcs_were_known(tmp_path: Path) -> None:
    archive = small(tmp_path / "archive.zip", known=True)
    (tmp_path / "out").mkdir()
    with archive.open("rb") as file:
        subprocess.run([program("bsdtar"), "-xf", "-", "-C", tmp_path / "out"], stdin=file, check=True)
    tree = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tree == {name for name in CONTENTS if not name.endswith("/")}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Over 4 GiB, mostly a hole: one entry needs zip64 for its size, the next for its offset."""
    sizes = {"small.bin": 3, "large.bin": 5 << 30, "far.bin": 4}
    entries = [Entry(name, "media", name, size, '"e"', NOW, 7) for name, size in sizes.items()]
    path = write(tmp_path_factory.mktemp("large") / "large.zip", entries, [b"abc", b"", b"wxyz"])
    yield path
    path.unlink()


def test_every_reader_lists_an_archive_of_over_four_gibibytes(reader: str, large: Path, tmp_path: Path) -> None:
    assert LIST[reader](large, tmp_path) == {"small.bin": 3, "large.bin": 5 << 30, "far.bin": 4}


def test_every_reader_lists_more_entries_than_16_bits_count(reader: str, tmp_path: Path) -> None:
    names = [f"{index:05}.txt" for index in range(0x10001)]
    archive = write(
        tmp_path / "many.zip", [Entry(name, "media", name, 0, "", NOW, 0) for name in names], [b""] * len(names)
    )
    assert LIST[reader](archive, tmp_path) == dict.fromkeys(names, 0)
