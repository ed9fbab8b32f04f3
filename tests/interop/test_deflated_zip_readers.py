"""Deflated archives as the programs that people have read them; see tests/support/zip_readers.py."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_proxy.formats.deflated_zip import DeflatedZip
from storage_proxy.formats.entries import Entry
from tests.support.zip_readers import LIST, READ, digests, installed, java, program

NOW = 1_700_000_001
CONTENTS = {
    "folder/": b"",
    "folder/hello.txt": b"hello\n" * 1000,
    "folder/empty": b"",
    "folder/with space & 'quotes'.bin": bytes(range(256)) * 3000,
    "grüße/日本語-😀.txt": "grüße\n".encode(),
    "picture.jpg": os.urandom(200_000),
    "MISSING.txt": b"runs/1/a.bin\tdoes not exist\n",
}


@pytest.fixture(params=list(READ))
def reader(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path, made = tmp_path / "archive.zip", DeflatedZip()
    with path.open("wb") as file:
        for name, content in CONTENTS.items():
            entry = made.entry(Entry(name, "media", name, len(content), '"e"', NOW, None))
            for start in range(0, len(content), 10_000):
                file.write(entry.feed(content[start : start + 10_000]))
            file.write(entry.finish())
        file.writelines(made.footer())
    return path


def test_every_reader_agrees_on_names_and_bytes(reader: str, archive: Path, tmp_path: Path) -> None:
    assert READ[reader](archive, tmp_path) == digests(CONTENTS)
    extracted = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {int(path.stat().st_mtime) for path in extracted} <= {NOW}


def test_javas_zip_input_stream_reads_it_too(archive: Path, tmp_path: Path) -> None:
    """Which it does not with a stored entry of unknown CRC-32: so all are deflated, a picture at level 0."""
    assert java("stream", archive, tmp_path)[1] == digests(CONTENTS)


def test_bsdtar_reads_it_from_a_pipe(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with archive.open("rb") as file:
        subprocess.run([program("bsdtar"), "-xf", "-", "-C", tmp_path / "out"], stdin=file, check=True)
    tree = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tree == {name for name in CONTENTS if not name.endswith("/")}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An entry of over 4 GiB of zeros, and one after it. The file is 4 MB."""
    size = (4 << 30) + (1 << 20)
    path, made = tmp_path_factory.mktemp("large") / "large.zip", DeflatedZip()
    zeros = bytes(64 << 20)
    with path.open("wb") as file:
        entry = made.entry(Entry("large.txt", "media", "large.txt", size, '"e"', NOW, None))
        left = size
        while left:
            file.write(entry.feed(memoryview(zeros)[: min(left, len(zeros))]))
            left -= min(left, len(zeros))
        file.write(entry.finish())
        after = made.entry(Entry("after.txt", "media", "after.txt", 4, '"e"', NOW, None))
        file.write(after.feed(b"wxyz") + after.finish())
        file.writelines(made.footer())
    yield path
    path.unlink()


@pytest.mark.parametrize("reader", [name for name in LIST if name not in ("unzip", "bsdtar")], indirect=True)
def test_every_reader_lists_a_deflated_entry_of_over_four_gibibytes(reader: str, large: Path, tmp_path: Path) -> None:
    assert LIST[reader](large, tmp_path) == {"large.txt": (4 << 30) + (1 << 20), "after.txt": 4}


def test_bsdtar_and_unzip_find_the_entry_after_it(large: Path, tmp_path: Path) -> None:
    for command in (("unzip", "-p", large, "after.txt"), ("bsdtar", "-xOf", large, "after.txt")):
        done = subprocess.run([program(command[0]), *command[1:]], check=True, capture_output=True, cwd=tmp_path)
        assert done.stdout == b"wxyz"
