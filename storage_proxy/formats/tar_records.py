"""The records of a tar file in POSIX's pax format, and how long each is before it is made.

The law: headers are made by the standard library's tarfile and depend on an entry's name, size and time alone:
whatever else tarfile would take from the machine is fixed here. Sections are those of POSIX.1-2017, "pax".
"""

from tarfile import BLOCKSIZE, DIRTYPE, PAX_FORMAT, REGTYPE, TarInfo

_MAX_NAME_BYTES = 100
_MAX_OCTAL_11 = 8**11
"""A ustar field of 12 bytes holds 11 octal digits (ustar Interchange Format): sizes below 8 GiB."""

_MODE_FILE = 0o644
_MODE_FOLDER = 0o755

END = bytes(2 * BLOCKSIZE)
"""Two blocks of zeros end the archive (ustar Interchange Format). It is not filled up to tarfile's 10,240 bytes: that
is the record size of tape drives, and readers of files and pipes do not ask for it."""


def tar_header(name: bytes, size: int, last_modified: int) -> bytes:
    """What precedes an entry's content: its ustar header, after a pax extended header where that cannot hold it all.

    ``name`` is UTF-8 and ends in ``/`` for a folder; ``last_modified`` is in whole seconds since the epoch.
    """
    header = TarInfo(name.decode())
    header.size = size
    header.mtime = last_modified
    header.type, header.mode = (DIRTYPE, _MODE_FOLDER) if name.endswith(b"/") else (REGTYPE, _MODE_FILE)
    header.uid = header.gid = 0
    header.uname = header.gname = ""
    return header.tobuf(PAX_FORMAT, "utf-8", "strict")


def tar_header_length(name: bytes, size: int, last_modified: int) -> int:
    """The length of `tar_header`, without making it."""
    records = 0
    if len(name) > _MAX_NAME_BYTES or not name.isascii():
        records += _pax_record_length(len("path"), len(name))
    if size >= _MAX_OCTAL_11:
        records += _pax_record_length(len("size"), len(str(size)))
    if not 0 <= last_modified < _MAX_OCTAL_11:
        records += _pax_record_length(len("mtime"), len(str(last_modified)))
    return BLOCKSIZE + (BLOCKSIZE + records + padding_length(records) if records else 0)


def padding_length(size: int) -> int:
    """The zeros after ``size`` bytes of content, up to a whole block."""
    return -size % BLOCKSIZE


def _pax_record_length(keyword_length: int, value_length: int) -> int:
    """pax Extended Header: ``"%d %s=%s\\n"``, where the number is the length of the whole, its own digits included."""
    without_digits = keyword_length + value_length + 3
    digits = len(str(without_digits))
    return without_digits + len(str(without_digits + digits))
