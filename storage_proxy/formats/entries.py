"""Entries of an archive, kept as columns in immutable blocks. The law: one block has one encoding, the same
bytes on every machine for ever, and what decodes is well formed.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from storage_proxy.formats.columns import ColumnReader, TextColumn, little_endian

MAX_BLOCK_ENTRIES = 1024
MAX_BLOCK_BYTES = 256 * 1024
"""Bytes of text in a block: names, keys, ETags and bucket names together."""
MAX_TEXT_BYTES = 0xFFFF
"""Bytes of one name, key, ETag or bucket name. A block holds at least one entry of any size."""
MAX_SIZE = 0x7FFF_FFFF_FFFF_FFFF
"""Bytes of one blob and of one archive: offsets are signed 64 bit in every reader."""

_MAGIC = b"EBL1"
_HEADER = struct.Struct(
    "<"
    "4s"  # magic, which is also the version
    "L"  # length of the whole encoding, this header included
    "H"  # entries
    "H"  # buckets
    "4L"  # bytes of text: buckets, names, keys, etags
)
ENCODED_HEADER_LENGTH = _HEADER.size
_ENTRY_BYTES = 8 + 8 + 4 + 1 + 2 + 3 * 2  # size, last_modified, crc32, is known, bucket, three text lengths
MAX_ENCODED_LENGTH = _HEADER.size + MAX_BLOCK_ENTRIES * (_ENTRY_BYTES + 2) + MAX_BLOCK_BYTES


class Entry(NamedTuple):
    """One member of an archive and the version of the blob that is its content.

    ``name`` is its name in the archive, valid UTF-8, ending in ``/`` for a folder (whose size is 0). ``key`` may
    hold surrogate-escaped bytes. ``size`` is in bytes, ``last_modified`` in whole seconds since the epoch.
    ``etag`` is "" when the key alone pins the content. ``crc32`` is None until the content has been read.
    """

    name: str
    bucket: str
    key: str
    size: int
    etag: str
    last_modified: int
    crc32: int | None


class EntryBlock:
    """An immutable table of 1 to `MAX_BLOCK_ENTRIES` entries, about 35 bytes each besides their text.

    Made by `EntryBlockBuilder` and by `decode`. An entry of size 0 has the CRC-32 0 and it is known.
    """

    __slots__ = (
        "_bucket_of",
        "_buckets",
        "_crc32s",
        "_etags",
        "_keys",
        "_known",
        "_last_modified",
        "_names",
        "_sizes",
    )

    def __init__(
        self,
        *,
        sizes: "array[int]",
        last_modified: "array[int]",
        crc32s: "array[int]",
        known: bytes,
        bucket_of: "array[int]",
        buckets: TextColumn,
        names: TextColumn,
        keys: TextColumn,
        etags: TextColumn,
    ) -> None:
        """For this module: the columns are trusted and must not be touched afterwards."""
        self._sizes = sizes
        self._last_modified = last_modified
        self._crc32s = crc32s
        self._known = known
        self._bucket_of = bucket_of
        self._buckets = buckets
        self._names = names
        self._keys = keys
        self._etags = etags

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, row: int) -> Entry:
        """Raises IndexError outside 0..len-1 (negative rows too)."""
        if not 0 <= row < len(self._sizes):
            raise IndexError(row)
        return Entry(
            name=self._names[row].decode(),
            bucket=_decode_text(self._buckets[self._bucket_of[row]]),
            key=_decode_text(self._keys[row]),
            size=self._sizes[row],
            etag=_decode_text(self._etags[row]),
            last_modified=self._last_modified[row],
            crc32=self.crc32(row),
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return self.encode() == other.encode() if isinstance(other, EntryBlock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.encode())

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes, by row."""
        return self._sizes

    @property
    def last_modified(self) -> Sequence[int]:
        """Seconds since the epoch, by row."""
        return self._last_modified

    @property
    def crc_known(self) -> Sequence[int]:
        """1 where the CRC-32 is known, 0 elsewhere, by row."""
        return self._known

    @property
    def unknown_crcs(self) -> int:
        """How many entries have no CRC-32."""
        return self._known.count(0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the block holds, to within a few hundred."""
        texts = (self._buckets, self._names, self._keys, self._etags)
        columns = (self._sizes, self._last_modified, self._crc32s, self._known, self._bucket_of)
        return sys.getsizeof(self) + sum(text.nbytes for text in texts) + sum(map(sys.getsizeof, columns))

    def crc32(self, row: int) -> int | None:
        return self._crc32s[row] if self._known[row] else None

    def name_bytes(self, row: int) -> bytes:
        """The entry's name in UTF-8."""
        return self._names[row]

    def name_lengths(self) -> Iterator[int]:
        """Bytes of each name in UTF-8, by row."""
        return self._names.lengths()

    def encode(self) -> bytes:
        """The block's canonical bytes, little-endian; their bytes 4 to 8 are their length."""
        texts = (self._buckets, self._names, self._keys, self._etags)
        columns = (self._sizes, self._last_modified, self._crc32s)
        body = b"".join(
            (
                *map(little_endian, columns),
                self._known,
                little_endian(self._bucket_of),
                *(little_endian(array("H", text.lengths())) for text in texts),
                *(text.text for text in texts),
            )
        )
        header = _HEADER.pack(
            _MAGIC,
            _HEADER.size + len(body),
            len(self),
            len(self._buckets),
            *(len(text.text) for text in texts),
        )
        return header + body

    @staticmethod
    def encoded_length(start: bytes) -> int:
        """The length of the encoding that begins with ``start``, at least `ENCODED_HEADER_LENGTH` bytes of it.

        At most `MAX_ENCODED_LENGTH`. Raises ValueError when no block begins so.
        """
        if len(start) < _HEADER.size:
            raise ValueError("an entry block is cut short")
        magic, length, entries, buckets, *text_bytes = _HEADER.unpack_from(start)
        if magic != _MAGIC:
            raise ValueError("not an entry block of this version")
        if not 1 <= buckets <= entries <= MAX_BLOCK_ENTRIES or sum(text_bytes) > MAX_BLOCK_BYTES:
            raise ValueError("an entry block over its limits")
        if length != _HEADER.size + entries * _ENTRY_BYTES + buckets * 2 + sum(text_bytes):
            raise ValueError("an entry block's length contradicts its counts")
        return int(length)

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """The block of which ``encoded`` is the whole encoding: ``encode`` gives it again. Else ValueError."""
        if len(encoded) != cls.encoded_length(encoded):
            raise ValueError("an entry block of another length than it says")
        _, _, entries, buckets, *text_bytes = _HEADER.unpack_from(encoded)
        cursor = ColumnReader(encoded, _HEADER.size)
        sizes, last_modified = cursor.column("Q", entries), cursor.column("q", entries)
        crc32s, known = cursor.column("I", entries), cursor.take(entries)
        bucket_of = cursor.column("H", entries)
        lengths = [cursor.column("H", rows) for rows in (buckets, entries, entries, entries)]
        texts = [TextColumn(column, cursor.take(size)) for column, size in zip(lengths, text_bytes, strict=True)]
        block = cls(
            sizes=sizes,
            last_modified=last_modified,
            crc32s=crc32s,
            known=known,
            bucket_of=bucket_of,
            buckets=texts[0],
            names=texts[1],
            keys=texts[2],
            etags=texts[3],
        )
        block._check_canonical()
        return block

    def _check_canonical(self) -> None:
        for row, (size, known, crc) in enumerate(zip(self._sizes, self._known, self._crc32s, strict=True)):
            name = self._names[row]
            name.decode()  # UnicodeDecodeError is a ValueError
            _check_row(name, size)
            if known > 1 or (crc and not (known and size)) or not (known or size):
                raise ValueError("an entry block's CRC-32s are not canonical")
        buckets = [self._buckets[index] for index in range(len(self._buckets))]
        if len(set(buckets)) != len(buckets) or list(dict.fromkeys(self._bucket_of)) != list(range(len(buckets))):
            raise ValueError("an entry block's buckets are not in order of first use")


class EntryBlockBuilder:
    """Makes blocks of entries given one by one, as many to a block as the limits allow, in their order.

    Limits below the module's are for tests; an entry over ``max_bytes`` has a block of its own.
    """

    def __init__(self, *, max_entries: int = MAX_BLOCK_ENTRIES, max_bytes: int = MAX_BLOCK_BYTES) -> None:
        if not 1 <= max_entries <= MAX_BLOCK_ENTRIES or not 1 <= max_bytes <= MAX_BLOCK_BYTES:
            raise ValueError("block limits outside of what decodes")
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clear()

    def add(self, entry: Entry) -> EntryBlock | None:
        """Take the entry; the block before it, when that has no room for it.

        Raises ValueError, and takes nothing, when the name is empty or not UTF-8, a text is over
        `MAX_TEXT_BYTES`, a folder has content or a number is out of its range.
        """
        name = entry.name.encode()  # a zip entry's name is flagged as UTF-8, so escapes are refused
        key, etag, bucket = _encode_text(entry.key), _encode_text(entry.etag), _encode_text(entry.bucket)
        _check_row(name, entry.size)
        if max(len(name), len(key), len(etag), len(bucket)) > MAX_TEXT_BYTES:
            raise ValueError(f"a name, key, ETag or bucket of over {MAX_TEXT_BYTES} bytes")
        if not -MAX_SIZE <= entry.last_modified <= MAX_SIZE or not 0 <= (entry.crc32 or 0) <= 0xFFFFFFFF:
            raise ValueError("a time or CRC-32 out of range")
        text_bytes = len(name) + len(key) + len(etag)
        full = None
        needed = text_bytes + (0 if bucket in self._buckets else len(bucket))
        if len(self._names) == self._max_entries or self._text_bytes + needed > self._max_bytes:
            full = self.finish()
        if bucket not in self._buckets:
            text_bytes += len(bucket)
        self._text_bytes += text_bytes
        self._names.append(name)
        self._keys.append(key)
        self._etags.append(etag)
        self._bucket_of.append(self._buckets.setdefault(bucket, len(self._buckets)))
        self._sizes.append(entry.size)
        self._last_modified.append(entry.last_modified)
        self._crc32s.append((entry.crc32 or 0) if entry.size else 0)
        self._known.append(entry.size == 0 or entry.crc32 is not None)
        return full

    def finish(self) -> EntryBlock | None:
        """The entries not yet given in a block, or None; the builder is then as new."""
        if not self._names:
            return None
        block = EntryBlock(
            sizes=array("Q", self._sizes),
            last_modified=array("q", self._last_modified),
            crc32s=array("I", self._crc32s),
            known=bytes(self._known),
            bucket_of=array("H", self._bucket_of),
            buckets=TextColumn.of(list(self._buckets)),
            names=TextColumn.of(self._names),
            keys=TextColumn.of(self._keys),
            etags=TextColumn.of(self._etags),
        )
        self._clear()
        return block

    def _clear(self) -> None:
        self._sizes: list[int] = []
        self._last_modified: list[int] = []
        self._crc32s: list[int] = []
        self._known: list[int] = []
        self._buckets: dict[bytes, int] = {}
        self._bucket_of: list[int] = []
        self._names: list[bytes] = []
        self._keys: list[bytes] = []
        self._etags: list[bytes] = []
        self._text_bytes = 0


def _check_row(name: bytes, size: int) -> None:
    if not name:
        raise ValueError("an entry without a name")
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"an entry's size is out of range: {size}")
    if size and name.endswith(b"/"):
        raise ValueError("a folder has no content")


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
