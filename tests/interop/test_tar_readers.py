"""Tar archives as the programs that people have read them; see tests/support/tar_readers.py."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.entries import Entry
from storage_proxy.formats.layout import Framing
from tests.support.archives import laid_out
from tests.support.tar_readers import LIST, READ
from tests.support.zip_readers import digests, installed, program

NOW = 1_700_000_001
CONTENTS = {
    "folder/": b"",
    "folder/hello.txt": b"hello\n",
    "folder/empty": b"",
    "folder/whole block": bytes(512),
    "folder/with space & 'quotes'.bin": bytes(range(256)) * 300,
    "grüße/日本語-😀.txt": "grüße\n".encode(),
    "x" * 100: b"the longest name that a ustar header holds",
    "deep/" * 30 + "y" * 200: b"a name that needs a pax header",
    "tiefe-ü/" * 20: b"",
    "MISSING.txt": b"runs/1/a.bin\tdoes not exist\n",
}


@pytest.fixture(params=list(READ))
def reader(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


def write(path: Path, entries: Sequence[Entry], contents: Sequence[bytes]) -> Path:
    """The archive as a file; an entry without content here is a hole, which reads as zeros."""
    archive = laid_out(ArchiveFormat.TAR, entries, max_entries=3)
    with path.open("wb") as file:
        for segment in archive.segments(0, archive.plan.size, lambda entry: 0):
            if isinstance(segment, Framing):
                file.write(segment.render())
            elif contents[segment.entry]:
                file.write(contents[segment.entry][segment.start : segment.stop])
            else:
                file.seek(segment.length, os.SEEK_CUR)
    assert path.stat().st_size == archive.plan.size
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    entries = [Entry(name, "media", name, len(content), '"e"', NOW, None) for name, content in CONTENTS.items()]
    return write(tmp_path / "archive.tar", entries, list(CONTENTS.values()))


def test_every_reader_agrees_on_names_sizes_and_bytes(reader: str, small: Path, tmp_path: Path) -> None:
    assert READ[reader](small, tmp_path) == digests(CONTENTS)
    extracted = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {int(path.stat().st_mtime) for path in extracted} <= {NOW}
    assert LIST[reader](small, tmp_path) == {name: len(content) for name, content in CONTENTS.items()}


@pytest.mark.parametrize("command", ["tar", "bsdtar"])
def test_a_pipe_is_enough_and_nothing_is_complained_of(command: str, small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with small.open("rb") as file:
        done = subprocess.run(
            [program(command), "-xf", "-", "-C", tmp_path / "out"], stdin=file, check=True, capture_output=True
        )
    assert done.stderr == b""
    tree = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tree == {name for name in CONTENTS if not name.endswith("/")}


@pytest.mark.parametrize("command", ["tar", "bsdtar"])
def test_a_cut_archive_is_an_error(command: str, small: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(small.read_bytes()[:30_000])
    assert subprocess.run([program(command), "-tf", cut], check=False, capture_output=True).returncode != 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Over 8 GiB, mostly a hole: one entry whose size no ustar header holds, and one after it."""
    sizes = {"small.bin": 3, "large.bin": (8 << 30) + 5, "far.bin": 4}
    entries = [Entry(name, "media", name, size, '"e"', NOW, None) for name, size in sizes.items()]
    path = write(tmp_path_factory.mktemp("large") / "large.tar", entries, [b"abc", b"", b"wxyz"])
    yield path
    path.unlink()


def test_every_reader_lists_an_entry_of_over_eight_gibibytes(reader: str, large: Path, tmp_path: Path) -> None:
    assert LIST[reader](large, tmp_path) == {"small.bin": 3, "large.bin": (8 << 30) + 5, "far.bin": 4}
