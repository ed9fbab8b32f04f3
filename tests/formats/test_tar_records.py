"""Headers of tar files: byte for byte the same on every Python, and as long as was said before."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage_proxy.formats import tar_records
from storage_proxy.formats.tar_records import END, padding_length, tar_header, tar_header_length

NOW = 1_700_000_001
GIB = 1 << 30

GOLDEN = {
    ("folder/known.txt", 6, NOW): "3b577deec084a66b",
    ("folder/", 0, NOW): "82b9af356a4e55dc",
    ("x" * 100, 1, 0): "f0d39dfde4e8ccba",
    ("y" * 101, 1, 0): "8e121827967c799b",
    ("grüße/日本語-😀.txt", 7, NOW): "810549921bee4dc5",
    ("large.bin", 8 * GIB - 1, NOW): "2946c14af6bf9789",
    ("larger.bin", 8 * GIB, NOW): "4bf080bcfa26e096",
    ("old.bin", 1, -1): "6bd7dc8044dbd4b4",
    ("far.bin", 1, 1 << 40): "3e191bc81acbaff3",
    ("é/" * 1000, 0, NOW): "345396a8ac5a268d",
}
"""From a name, size and time to the first 16 hex digits of the header's SHA-256. They never change: another byte
needs another layout (formats/archives.py)."""


def digest(name: str, size: int, last_modified: int) -> str:
    return hashlib.sha256(tar_header(name.encode(), size, last_modified)).hexdigest()[:16]


@pytest.mark.parametrize(("row", "expected"), GOLDEN.items(), ids=[row[0][:20] for row in GOLDEN])
def test_a_header_never_changes(row: tuple[str, int, int], expected: str) -> None:
    assert digest(*row) == expected


def other_pythons() -> list[Path]:
    """Interpreters of the supported versions that are installed where version managers put them."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions", Path("/usr"), Path("/usr/local")]
    running = f"python3.{sys.version_info.minor}"
    found = {}
    for root in roots:
        for path in sorted([*root.glob("*/bin/python3.1[123]"), *root.glob("bin/python3.1[123]")]):
            found.setdefault(path.name, path)
    return [path for name, path in sorted(found.items()) if name != running]


@pytest.mark.parametrize("python", other_pythons(), ids=lambda python: python.name)
def test_every_supported_python_makes_the_same_headers(python: Path) -> None:
    source = Path(tar_records.__file__).read_text()
    script = f"""{source}
import hashlib
for row in {list(GOLDEN)!r}:
    print(hashlib.sha256(tar_header(row[0].encode(), *row[1:])).hexdigest()[:16])
"""
    done = subprocess.run([python, "-I", "-"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(GOLDEN.values())


@example("a", 0, (1 << 53) + 1)
@given(
    st.one_of(st.text(st.sampled_from("ab/é😀"), min_size=1, max_size=300), st.integers(1, 2200).map("n".__mul__)),
    st.one_of(st.integers(0, 1 << 62), st.sampled_from([8 * GIB - 1, 8 * GIB, 10**10 - 1, 10**10])),
    st.one_of(st.integers(-(1 << 62), 1 << 62), st.integers(0, 1 << 33), st.sampled_from([-1, 8**11 - 1, 8**11])),
)
def test_a_header_is_as_long_as_was_said_and_tarfile_reads_it_back(name: str, size: int, last_modified: int) -> None:
    size = 0 if name.endswith("/") else size
    header = tar_header(name.encode(), size, last_modified)
    assert len(header) == tar_header_length(name.encode(), size, last_modified)
    with tarfile.open(fileobj=io.BytesIO(header + END)) as read:
        member = read.next()
        assert member is not None
        assert member.name == name.rstrip("/")
        assert member.isdir() == name.endswith("/")
        # tarfile makes a float of a PAX mtime; what stands in the record is exact.
        assert (member.size, int(member.pax_headers.get("mtime", member.mtime))) == (size, last_modified)
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert member.mode == (0o755 if name.endswith("/") else 0o644)


def test_a_pax_records_length_counts_its_own_digits() -> None:
    for length in range(60, 1200):
        name = ("é" + "x" * length).encode()
        assert len(tar_header(name, 1, NOW)) == tar_header_length(name, 1, NOW)


def test_a_header_is_ustar_alone_where_that_holds_all() -> None:
    assert len(tar_header(b"x" * 100, 8 * GIB - 1, NOW)) == 512
    for name, size, last_modified in (
        (b"x" * 101, 1, NOW),
        ("é".encode(), 1, NOW),
        (b"x", 8 * GIB, NOW),
        (b"x", 1, -1),
    ):
        assert len(tar_header(name, size, last_modified)) == 1536


def test_content_is_filled_up_to_blocks_of_512_bytes() -> None:
    assert [padding_length(size) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]
    assert bytes(1024) == END
