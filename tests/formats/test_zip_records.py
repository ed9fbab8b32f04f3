import io
import struct
import zipfile
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.formats.zip_records import (
    central_directory_header,
    central_directory_header_length,
    data_descriptor,
    data_descriptor_length,
    end_records,
    end_records_length,
    local_file_header,
    local_file_header_length,
)

LIMIT = 0xFFFFFFFF
NOW = 1_700_000_001
SIZES = st.sampled_from([0, 1, 1000, LIMIT - 1, LIMIT, LIMIT + 1, 1 << 42])
TIMES = st.sampled_from([NOW, 0, -1, -(1 << 31), -(1 << 31) - 1, (1 << 31) - 1, 1 << 31, 1 << 40])
NAMES = st.sampled_from([b"a.bin", b"folder/", "\u00e9\U0001f600".encode()])


def central_info(header: bytes) -> zipfile.ZipInfo:
    """What Python's zipfile reads from one central directory header."""
    archive = header + end_records(1, len(header), 0)
    (info,) = zipfile.ZipFile(io.BytesIO(archive)).infolist()
    return info


def extras(field: bytes) -> dict[int, bytes]:
    """APPNOTE 4.5.1: tag, size, body, again and again."""
    found = {}
    while field:
        tag, size = struct.unpack_from("<HH", field)
        found[tag] = field[4 : 4 + size]
        field = field[4 + size :]
    return found


def local_fields(header: bytes) -> tuple[int, ...]:
    fields = struct.unpack_from("<4s5H3L2H", header)
    assert fields[0] == b"PK\x03\x04"
    return fields[1:]


@given(NAMES, SIZES, TIMES, st.none() | st.just(5))
def test_a_local_header_is_as_long_as_announced(name: bytes, size: int, time: int, crc: int | None) -> None:
    header = local_file_header(name, size, time, crc)
    assert len(header) == local_file_header_length(len(name), size, time)
    *_, name_length, extra_length = local_fields(header)
    assert header[30 : 30 + name_length] == name
    assert len(header) == 30 + name_length + extra_length


@given(NAMES, SIZES, TIMES, SIZES, st.booleans())
def test_a_central_header_is_read_by_zipfile(name: bytes, size: int, time: int, offset: int, streamed: bool) -> None:
    header = central_directory_header(name, size, time, 5, offset, has_descriptor=streamed)
    assert len(header) == central_directory_header_length(len(name), size, time, offset)
    archive = header + end_records(1, len(header), 0)
    (info,) = zipfile.ZipFile(io.BytesIO(archive)).infolist()
    assert info.filename == name.decode()
    assert (info.file_size, info.compress_size, info.CRC, info.header_offset) == (size, size, 5, offset)
    assert info.compress_type == zipfile.ZIP_STORED
    assert info.flag_bits == (0x808 if streamed else 0x800)
    assert (info.create_system, info.create_version) == (3, 63)
    big, far = size >= LIMIT, offset >= LIMIT
    assert info.extract_version == (45 if big or far else 20 if name.endswith(b"/") else 10)
    assert len(extras(info.extra).get(1, b"")) == 16 * big + 8 * far
    assert info.is_dir() == name.endswith(b"/")
    assert info.external_attr == (0o040755 << 16 | 0x10 if info.is_dir() else 0o100644 << 16)


def test_a_known_crc_and_the_size_stand_in_the_local_header() -> None:
    assert local_fields(local_file_header(b"a", 9, NOW, 5))[:2] == (10, 0x800)
    assert local_fields(local_file_header(b"a", 9, NOW, 5))[5:8] == (5, 9, 9)


def test_an_unknown_crc_leaves_the_local_header_without_crc_and_sizes() -> None:
    assert local_fields(local_file_header(b"a", 9, NOW, None))[:2] == (10, 0x808)
    assert local_fields(local_file_header(b"a", 9, NOW, None))[5:8] == (0, 0, 0)
    assert data_descriptor(9, 5) == b"PK\x07\x08" + struct.pack("<3L", 5, 9, 9)
    assert data_descriptor_length(9) == 16


def test_the_zip64_extra_of_a_local_header_has_both_sizes() -> None:
    header = local_file_header(b"a", LIMIT, NOW, 5)
    assert local_fields(header)[0] == 45
    assert local_fields(header)[5:8] == (5, LIMIT, LIMIT)
    assert extras(header[31:])[1] == struct.pack("<2Q", LIMIT, LIMIT)


def test_the_zip64_extra_announces_a_descriptor_with_sizes_of_eight_bytes() -> None:
    header = local_file_header(b"a", LIMIT, NOW, None)
    assert local_fields(header)[5:8] == (0, LIMIT, LIMIT)
    assert extras(header[31:])[1] == bytes(16)
    assert data_descriptor(LIMIT, 5) == b"PK\x07\x08" + struct.pack("<L2Q", 5, LIMIT, LIMIT)
    assert data_descriptor_length(LIMIT) == 24
    assert data_descriptor_length(LIMIT - 1) == 16


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        (datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC), (2024, 2, 29, 23, 59, 58)),
        (datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC), (2001, 2, 3, 4, 5, 6)),
        (datetime(1970, 1, 1, tzinfo=UTC), (1980, 1, 1, 0, 0, 0)),
        (datetime(1979, 12, 31, 23, 59, 59, tzinfo=UTC), (1980, 1, 1, 0, 0, 0)),
        (datetime(1980, 1, 1, tzinfo=UTC), (1980, 1, 1, 0, 0, 0)),
        (datetime(2107, 12, 31, 23, 59, 59, tzinfo=UTC), (2107, 12, 31, 23, 59, 58)),
        (datetime(2108, 1, 1, tzinfo=UTC), (2107, 12, 31, 23, 59, 58)),
    ],
)
def test_dos_times_are_utc_even_and_clamped(when: datetime, shown: tuple[int, ...]) -> None:
    header = central_directory_header(b"a", 0, int(when.timestamp()), 0, 0, has_descriptor=False)
    assert central_info(header).date_time == shown
    assert local_file_header(b"a", 0, int(when.timestamp()), 0)[10:14] == header[12:16]


@pytest.mark.parametrize("time", [-(1 << 62), 1 << 62])
def test_any_time_has_a_header(time: int) -> None:
    assert 0x5455 not in extras(local_file_header(b"a", 0, time, 0)[31:])


@pytest.mark.parametrize("time", [NOW, 0, -1, -(1 << 31), (1 << 31) - 1])
def test_the_extended_timestamp_is_exact_in_both_headers(time: int) -> None:
    local = local_file_header(b"a", 0, time, 0)
    central = central_directory_header(b"a", 0, time, 0, 0, has_descriptor=False)
    assert extras(local[31:])[0x5455] == extras(central[47:])[0x5455] == struct.pack("<Bl", 1, time)


@given(
    st.sampled_from([0, 1, 0xFFFE, 0xFFFF, 0x10000, 1_000_000]),
    st.sampled_from([0, 100, LIMIT - 1, LIMIT, 1 << 33]),
    st.sampled_from([0, 100, LIMIT - 1, LIMIT, 1 << 50]),
)
def test_the_end_has_zip64_records_only_where_a_number_needs_them(entries: int, length: int, offset: int) -> None:
    records = end_records(entries, length, offset)
    assert len(records) == end_records_length(entries, length, offset)
    end = struct.unpack("<4s4H2LH", records[-22:])
    cut = min(entries, 0xFFFF)
    assert end == (b"PK\x05\x06", 0, 0, cut, cut, min(length, LIMIT), min(offset, LIMIT), 0)
    if entries < 0xFFFF and length < LIMIT and offset < LIMIT:
        assert len(records) == 22
        return
    zip64_end = struct.unpack("<4sQ2H2L4Q", records[:56])
    assert zip64_end == (b"PK\x06\x06", 44, 3 << 8 | 63, 45, 0, 0, entries, entries, length, offset)
    assert struct.unpack("<4sLQL", records[56:76]) == (b"PK\x06\x07", 0, offset + length, 1)
    assert len(records) == 98


def test_an_empty_archive_is_its_end_record() -> None:
    assert zipfile.ZipFile(io.BytesIO(end_records(0, 0, 0))).infolist() == []


def test_one_whole_archive_by_hand_passes_zipfiles_own_check() -> None:
    content = b"hello\n"
    crc = zlib.crc32(content)
    local = local_file_header(b"a.txt", len(content), NOW, None) + content + data_descriptor(len(content), crc)
    central = central_directory_header(b"a.txt", len(content), NOW, crc, 0, has_descriptor=True)
    whole = local + central + end_records(1, len(central), len(local))
    archive = zipfile.ZipFile(io.BytesIO(whole))
    assert archive.testzip() is None
    assert archive.read("a.txt") == content
