"""The records of a zip file with stored entries, byte for byte, and how long each is before it is made.

The law: PKWARE's APPNOTE 6.3.10, whose sections stand beside the code, and zip64 only in the record that needs
it (Safari opens only the first member of a needlessly zip64 archive). All numbers are little-endian.
"""

import struct
import time

_MAX_16 = 0xFFFF
_MAX_32 = 0xFFFFFFFF

# 4.4.4 bit 11, always set: ASCII is UTF-8 too, and so no name's bytes ever change an entry's layout
_FLAG_UTF8 = 1 << 11
_FLAG_DATA_DESCRIPTOR = 1 << 3  # 4.4.4 bit 3
_STORED = 0  # 4.4.5

# 4.4.2: the upper byte says whose the external attributes are (3: Unix), the lower the APPNOTE's version
_VERSION_MADE_BY = 3 << 8 | 63
# 4.4.3.2
_NEEDS_DEFAULT = 10
_NEEDS_FOLDER = 20
_NEEDS_ZIP64 = 45

# 4.4.15, in Unix's form: st_mode in the upper two bytes, MS-DOS attributes in the lowest
ATTRIBUTES_FILE = 0o100644 << 16
ATTRIBUTES_FOLDER = 0o040755 << 16 | 0x10

_DOS_TIME_MIN = 315532800  # 1980-01-01T00:00:00Z
_DOS_TIME_MAX = 4354819198  # 2107-12-31T23:59:58Z

_LOCAL_FILE_HEADER = struct.Struct("<4s5H3L2H")
_CENTRAL_DIRECTORY_HEADER = struct.Struct("<4s6H3L5H2L")
_DATA_DESCRIPTOR = struct.Struct("<4s3L")
_DATA_DESCRIPTOR_ZIP64 = struct.Struct("<4sL2Q")
_EXTENDED_TIMESTAMP = struct.Struct("<2HBl")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_END_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")


def local_file_header(name: bytes, size: int, last_modified: int, crc32: int | None) -> bytes:
    """4.3.7, with the file name and extra field. ``crc32`` None: a data descriptor follows the content."""
    zip64 = size >= _MAX_32
    if crc32 is None:
        # 4.4.4 bit 3: zero here, right in the descriptor. The zip64 extra is there to say that the descriptor's
        # sizes have 8 bytes (4.3.9.2), and 4.5.3 allows it only beside 0xFFFFFFFF.
        flags, crc32, size = _FLAG_UTF8 | _FLAG_DATA_DESCRIPTOR, 0, 0
    else:
        flags = _FLAG_UTF8
    extra = (_zip64_extra(size, size) if zip64 else b"") + extended_timestamp(last_modified)
    dos_time, dos_date = _dos_time(last_modified)
    return (
        _LOCAL_FILE_HEADER.pack(
            b"PK\x03\x04",  # local file header signature
            _version_needed(name, zip64),  # version needed to extract
            flags,  # general purpose bit flag
            _STORED,  # compression method
            dos_time,  # last mod file time
            dos_date,  # last mod file date
            crc32,  # crc-32
            _MAX_32 if zip64 else size,  # compressed size
            _MAX_32 if zip64 else size,  # uncompressed size
            len(name),  # file name length
            len(extra),  # extra field length
        )
        + name
        + extra
    )


def local_file_header_length(name_length: int, size: int, last_modified: int) -> int:
    return (
        _LOCAL_FILE_HEADER.size
        + name_length
        + (20 if size >= _MAX_32 else 0)
        + _extended_timestamp_length(last_modified)
    )


def data_descriptor(size: int, crc32: int) -> bytes:
    """4.3.9, with the signature that 4.3.9.3 recommends."""
    record = _DATA_DESCRIPTOR_ZIP64 if size >= _MAX_32 else _DATA_DESCRIPTOR
    return record.pack(
        b"PK\x07\x08",  # data descriptor signature
        crc32,  # crc-32
        size,  # compressed size
        size,  # uncompressed size
    )


def data_descriptor_length(size: int) -> int:
    return _DATA_DESCRIPTOR_ZIP64.size if size >= _MAX_32 else _DATA_DESCRIPTOR.size


def central_directory_header(
    name: bytes, size: int, last_modified: int, crc32: int, local_offset: int, *, has_descriptor: bool
) -> bytes:
    """4.3.12, with the file name and extra field. ``local_offset``: where the local header begins, in bytes."""
    big, far = size >= _MAX_32, local_offset >= _MAX_32
    numbers = ((size, size) if big else ()) + ((local_offset,) if far else ())
    extra = (_zip64_extra(*numbers) if numbers else b"") + extended_timestamp(last_modified)
    dos_time, dos_date = _dos_time(last_modified)
    return (
        _CENTRAL_DIRECTORY_HEADER.pack(
            b"PK\x01\x02",  # central file header signature
            _VERSION_MADE_BY,  # version made by
            _version_needed(name, big or far),  # version needed to extract
            _FLAG_UTF8 | (_FLAG_DATA_DESCRIPTOR if has_descriptor else 0),  # general purpose bit flag
            _STORED,  # compression method
            dos_time,  # last mod file time
            dos_date,  # last mod file date
            crc32,  # crc-32
            _MAX_32 if big else size,  # compressed size
            _MAX_32 if big else size,  # uncompressed size
            len(name),  # file name length
            len(extra),  # extra field length
            0,  # file comment length
            0,  # disk number start
            0,  # internal file attributes
            ATTRIBUTES_FOLDER if name.endswith(b"/") else ATTRIBUTES_FILE,  # external file attributes
            _MAX_32 if far else local_offset,  # relative offset of local header
        )
        + name
        + extra
    )


def central_directory_header_length(name_length: int, size: int, last_modified: int, local_offset: int) -> int:
    numbers = (2 if size >= _MAX_32 else 0) + (1 if local_offset >= _MAX_32 else 0)
    return (
        _CENTRAL_DIRECTORY_HEADER.size
        + name_length
        + (4 + 8 * numbers if numbers else 0)
        + _extended_timestamp_length(last_modified)
    )


def end_records(entries: int, central_length: int, central_offset: int) -> bytes:
    """What follows the central directory: 4.3.14 and 4.3.15 where a number needs them, and 4.3.16."""
    end = _END.pack(
        b"PK\x05\x06",  # end of central dir signature
        0,  # number of this disk
        0,  # number of the disk with the start of the central directory
        min(entries, _MAX_16),  # total number of entries in the central directory on this disk
        min(entries, _MAX_16),  # total number of entries in the central directory
        min(central_length, _MAX_32),  # size of the central directory
        min(central_offset, _MAX_32),  # offset of start of central directory
        0,  # .ZIP file comment length
    )
    if not _end_needs_zip64(entries, central_length, central_offset):
        return end
    zip64_end = _ZIP64_END.pack(
        b"PK\x06\x06",  # zip64 end of central dir signature
        _ZIP64_END.size - 12,  # size of zip64 end of central directory record, without the first 12 bytes
        _VERSION_MADE_BY,  # version made by
        _NEEDS_ZIP64,  # version needed to extract
        0,  # number of this disk
        0,  # number of the disk with the start of the central directory
        entries,  # total number of entries in the central directory on this disk
        entries,  # total number of entries in the central directory
        central_length,  # size of the central directory
        central_offset,  # offset of start of central directory
    )
    locator = _ZIP64_END_LOCATOR.pack(
        b"PK\x06\x07",  # zip64 end of central dir locator signature
        0,  # number of the disk with the start of the zip64 end of central directory
        central_offset + central_length,  # relative offset of the zip64 end of central directory record
        1,  # total number of disks
    )
    return zip64_end + locator + end


def end_records_length(entries: int, central_length: int, central_offset: int) -> int:
    zip64 = _end_needs_zip64(entries, central_length, central_offset)
    return (_ZIP64_END.size + _ZIP64_END_LOCATOR.size if zip64 else 0) + _END.size


def _end_needs_zip64(entries: int, central_length: int, central_offset: int) -> bool:
    """4.4.1.4: all ones in a field says that its number is in the zip64 record, so all ones is too large."""
    return entries >= _MAX_16 or central_length >= _MAX_32 or central_offset >= _MAX_32


def _zip64_extra(*numbers: int) -> bytes:
    """4.5.3: original size, compressed size, offset; those whose own field is all ones, in this order."""
    return struct.pack(
        f"<2H{len(numbers)}Q",
        0x0001,  # tag
        8 * len(numbers),  # size of this extra block
        *numbers,
    )


def extended_timestamp(last_modified: int) -> bytes:
    """4.6.1 and Info-ZIP's extrafld.txt; with only this time the central form is the local one."""
    if not -0x80000000 <= last_modified <= 0x7FFFFFFF:
        return b""
    return _EXTENDED_TIMESTAMP.pack(
        0x5455,  # tag "UT"
        5,  # size of this extra block
        1,  # flags: modification time is there
        last_modified,  # seconds since the epoch, signed
    )


def _extended_timestamp_length(last_modified: int) -> int:
    return _EXTENDED_TIMESTAMP.size if -0x80000000 <= last_modified <= 0x7FFFFFFF else 0


def dos_moment(last_modified: int) -> tuple[int, int, int, int, int, int]:
    """Year, month, day, hour, minute, second in UTC, clamped to the years 1980 to 2107."""
    return time.gmtime(min(max(last_modified, _DOS_TIME_MIN), _DOS_TIME_MAX))[:6]


def _dos_time(last_modified: int) -> tuple[int, int]:
    """4.4.6: time and date, even seconds (rounded down)."""
    year, month, day, hour, minute, second = dos_moment(last_modified)
    return hour << 11 | minute << 5 | second >> 1, (year - 1980) << 9 | month << 5 | day


def _version_needed(name: bytes, zip64: bool) -> int:
    """4.4.3.2: the highest that one of the entry's features needs."""
    if zip64:
        return _NEEDS_ZIP64
    return _NEEDS_FOLDER if name.endswith(b"/") else _NEEDS_DEFAULT
