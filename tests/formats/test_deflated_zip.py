"""Zip files with deflated entries, as zipfile reads them. Interop with other readers is in tests/interop."""

import io
import struct
import time
import zipfile
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.formats.deflated_zip import DEFLATE_LEVEL, DeflatedZip, level_of
from storage_proxy.formats.entries import Entry

NOW = 1_700_000_001


def entry(name: str, size: int, last_modified: int = NOW) -> Entry:
    return Entry(name, "media", name, size, '"e"', last_modified, None)


def made(rows: Sequence[tuple[str, bytes]], *, slice_bytes: int = 7, last_modified: int = NOW) -> bytes:
    whole, file = bytearray(), DeflatedZip()
    for name, content in rows:
        deflated = file.entry(entry(name, len(content), last_modified))
        for start in range(0, len(content), slice_bytes):
            whole += deflated.feed(memoryview(content)[start : start + slice_bytes])
        whole += deflated.finish()
        assert deflated.crc32 == zlib.crc32(content)
    return bytes(whole + b"".join(file.footer()))


@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 300))
def test_zipfile_reads_what_was_fed_in_any_slices(contents: list[bytes], slice_bytes: int) -> None:
    rows = [(f"folder/{index} é😀.bin", content) for index, content in enumerate(contents)]
    with zipfile.ZipFile(io.BytesIO(made(rows, slice_bytes=slice_bytes))) as read:
        assert [(info.filename, read.read(info)) for info in read.infolist()] == rows
        assert {info.compress_type for info in read.infolist()} <= {zipfile.ZIP_DEFLATED}


def test_entries_have_their_own_times_and_modes() -> None:
    """zipstream-ng would say the clock's time, in the machine's zone."""
    with zipfile.ZipFile(io.BytesIO(made([("folder/", b""), ("a", b"x")]))) as read:
        folder, file = read.infolist()
    assert folder.is_dir()
    assert {folder.date_time, file.date_time} == {time.gmtime(NOW - 1)[:6]}
    assert (folder.external_attr >> 16, file.external_attr >> 16) == (0o040755, 0o100644)
    assert file.extra == struct.pack("<2HBl", 0x5455, 5, 1, NOW)


@pytest.mark.parametrize(("last_modified", "year"), [(-(1 << 40), 1980), (1 << 40, 2107)])
def test_times_that_no_zip_can_tell_are_clamped(last_modified: int, year: int) -> None:
    with zipfile.ZipFile(io.BytesIO(made([("a", b"x")], last_modified=last_modified))) as read:
        assert read.infolist()[0].date_time[0] == year


def test_content_is_given_out_as_it_comes_and_not_kept() -> None:
    file = DeflatedZip()
    deflated = file.entry(entry("a", 1 << 20))
    header = deflated.feed(b"x")
    assert header.startswith(b"PK\x03\x04")
    slice_of = bytearray(zlib.compress(bytes(range(256)) * 400, 0)[:100_000])
    first = deflated.feed(memoryview(slice_of))
    slice_of[:] = bytes(len(slice_of))  # a buffer is used again; and no view of it is left, or this would raise
    slice_of.clear()
    assert len(first) + len(deflated.finish()) > 300


def test_the_size_of_an_entry_decides_about_zip64_before_its_content_is_seen() -> None:
    """The local header says how long the descriptor's sizes are (APPNOTE 4.3.9.2); the content here is a stub."""
    for size, zip64 in ((100, False), ((4 << 30) + 1, True)):
        file = DeflatedZip()
        deflated = file.entry(entry("a", size))
        header = deflated.feed(b"stub")
        end = deflated.finish()
        assert (struct.unpack_from("<2L", header, 18) == (0xFFFFFFFF, 0xFFFFFFFF)) == zip64
        assert len(end[end.index(b"PK\x07\x08") :]) == (24 if zip64 else 16)


def test_zipstream_must_not_ask_for_more_than_it_was_fed() -> None:
    """Waiting for it in a thread, or taking the end of a slice for the end of the entry, would both be worse."""
    deflated = DeflatedZip().entry(entry("a", 10))
    deflated.feed(b"1")
    with pytest.raises(RuntimeError, match="not been fed"):
        next(deflated)


def test_a_footer_of_many_entries_is_right_and_needs_zip64() -> None:
    whole = made([(f"{index}/", b"") for index in range(0x10001)])
    with zipfile.ZipFile(io.BytesIO(whole)) as read:
        assert len(read.infolist()) == 0x10001
    assert b"PK\x06\x06" in whole[-98:]


def test_what_is_compressed_already_is_not_compressed_again() -> None:
    content = bytes(100_000)
    assert len(made([("a.txt", content)], slice_bytes=50_000)) < 1000
    whole = made([("a.JPG", content)], slice_bytes=50_000)
    assert len(content) < len(whole) < len(content) + 500
    with zipfile.ZipFile(io.BytesIO(whole)) as read:
        assert read.read("a.JPG") == content
        assert read.infolist()[0].compress_type == zipfile.ZIP_DEFLATED  # Java refuses a stored one of unknown CRC-32
    assert level_of("zip") == DEFLATE_LEVEL  # a name without an extension
    assert (level_of("a.zip/b"), level_of("b.zip"), level_of("b.tar.gz")) == (DEFLATE_LEVEL, 0, 0)


def test_closing_an_entry_lets_go_of_it_finished_or_not() -> None:
    for finish in (True, False):
        deflated = DeflatedZip().entry(entry("a", 3))
        deflated.feed(b"123")
        if finish:
            deflated.finish()
        deflated.close()
        deflated.close()
