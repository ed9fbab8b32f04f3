"""A zip file with deflated entries, made as their content comes: by zipstream-ng, a slice at a time.

The law: a call takes one slice and gives what follows from it, so nothing is ever waited for in here; how long the
whole gets is known at its end alone.
"""

from collections.abc import Generator, Iterator
from zipfile import ZIP_DEFLATED, ZIP_STORED

from zipstream import ZipStream, ZipStreamInfo  # type: ignore[import-untyped]

from storage_proxy.formats.entries import Entry
from storage_proxy.formats.zip_records import (
    ATTRIBUTES_FILE,
    ATTRIBUTES_FOLDER,
    dos_moment,
    extended_timestamp,
)

DEFLATE_LEVEL = 4
"""zlib's. Measured on text, CSV, JSON and binaries: two to three times as fast as its default, 6, for 4 to 7 % more."""
_LEVEL_WITHOUT_COMPRESSION = 0
# fmt: off
_COMPRESSED_ALREADY = frozenset({
    "7z", "aac", "apk", "avi", "avif", "br", "bz2", "docx", "flac", "gif", "gz", "heic", "jar", "jpeg", "jpg", "lz4",
    "m4a", "m4v", "mkv", "mov", "mp3", "mp4", "odt", "ogg", "opus", "png", "pptx", "rar", "tgz", "webm", "webp",
    "whl", "woff", "woff2", "xlsx", "xz", "zip", "zst",
})
# fmt: on
"""Extensions whose content deflate does not make smaller. It goes into deflate's own stored blocks, at the speed of
memory: a STORED entry of unknown CRC-32 would be one that Java's ZipInputStream refuses."""


class DeflatedZip:
    """The file, entry by entry: each must be finished before the next, and all of them before the footer.

    It keeps a record of about 150 bytes for each entry, which the footer needs.
    """

    def __init__(self) -> None:
        self._stream = _DatedZipStream()

    def entry(self, entry: Entry) -> "DeflatedEntry":
        """The next entry."""
        return DeflatedEntry(self._stream, entry)

    def footer(self) -> Iterator[bytes]:
        """The central directory and the end records, in pieces of one record each."""
        pieces: Iterator[bytes] = self._stream.footer()
        return pieces


class DeflatedEntry:
    """One entry under way. Between two calls it holds no content but what deflate looks back at (32 KiB)."""

    def __init__(self, stream: "_DatedZipStream", entry: Entry) -> None:
        self._slice: bytes | memoryview | None = None
        self._ended = False
        self._member = stream.member(entry)
        self._pieces: Generator[bytes, None, None] = stream.pieces(self._member, self)

    def feed(self, content: bytes | memoryview) -> bytes:
        """What can be given out after ``content``, the entry's next bytes; it is not used after the return."""
        self._slice = content
        given = []
        for piece in self._pieces:
            given.append(piece)
            if self._is_fed:
                break
        return b"".join(given)

    def finish(self) -> bytes:
        """What is left to be given out when all content has been fed: the end of the data, and its descriptor."""
        self._ended = True
        return b"".join(self._pieces)

    @property
    def _is_fed(self) -> bool:
        return self._slice is None

    @property
    def crc32(self) -> int:
        """CRC-32 of what was fed; only after `finish`."""
        return int(self._member.CRC)

    def close(self) -> None:
        """Let go of what deflate holds, finished or not."""
        self._pieces.close()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self

    def __next__(self) -> bytes | memoryview:
        """For zipstream: the slice that was fed."""
        content, self._slice = self._slice, None
        if content is None:
            if self._ended:
                raise StopIteration
            raise RuntimeError("zipstream asked for content that it has not been fed")
        return content


class _DatedZipStream(ZipStream):  # type: ignore[misc]  # zipstream-ng is not typed
    """zipstream's own entries are as old as the clock says; these are as old as their blobs.

    Not its public interface: `tests/formats/test_deflated_zip.py` tells when another version has another one.
    """

    def member(self, entry: Entry) -> ZipStreamInfo:
        folder = entry.name.endswith("/")
        member = ZipStreamInfo(entry.name, dos_moment(entry.last_modified))
        member.extra = extended_timestamp(entry.last_modified)
        member.external_attr = ATTRIBUTES_FOLDER if folder else ATTRIBUTES_FILE
        member.compress_type = ZIP_STORED if folder else ZIP_DEFLATED
        member._compresslevel = None if folder else level_of(entry.name)  # noqa: SLF001 zipfile has no other name for it before 3.13
        member.file_size = entry.size  # from 2 GiB on it makes sizes of 8 bytes (APPNOTE 4.3.9.2)
        return member

    def pieces(self, member: ZipStreamInfo, content: Iterator[bytes | memoryview]) -> Generator[bytes, None, None]:
        member.header_offset = self._pos
        for piece in member._file_data(content):  # noqa: SLF001 the base class does the same
            yield self._track(piece)
        self._filelist.append(_CentralRecord(member._central_directory_header_data()))  # noqa: SLF001 likewise


class _CentralRecord(bytes):
    """What the footer asks an entry for, made when the entry ends: a third of the memory that the entry takes."""

    __slots__ = ()

    def _central_directory_header_data(self) -> bytes:
        return self


def level_of(name: str) -> int:
    """zlib's level for an entry of this name."""
    _, dot, extension = name.rpartition("/")[2].lower().rpartition(".")
    return _LEVEL_WITHOUT_COMPRESSION if dot and extension in _COMPRESSED_ALREADY else DEFLATE_LEVEL
