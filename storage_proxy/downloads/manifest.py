"""The manifest: what was decided about an archive at mint, as bytes named by their digest.

The law: the same entries give the same head, the head names every piece by its sha256, and its own sha256 is the
manifest's name; nothing is believed before its digest has been checked.

    magic "SPM1" | u32 length of the head | head | pieces, each compressed

The head is one line of JSON and a table with a row a piece. A piece is a block of entries (`EntryBlock.encode`) or a
stretch of the archive's own text (MISSING.txt); so a Range needs the head and the pieces it touches, no more. The
line names the runs whose blobs are in the archive, if there are any, so that their deletion is seen without the pieces.
"""

import json
import struct
import zlib
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from storage_proxy.common.errors import StorageError
from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.formats.archives import CURRENT_LAYOUTS, LAYOUTS
from storage_proxy.formats.entries import MAX_ENCODED_LENGTH, EntryBlock
from storage_proxy.formats.layout import BlockSummary

MAGIC = b"SPM1"
TEXT_PIECE_BYTES = 256 << 10
OWN_TEXT_BUCKET = ""
"""The bucket of an entry whose content is the archive's own text."""

MAX_HEAD_BYTES = 64 << 20
_MAX_PIECE_BYTES = max(MAX_ENCODED_LENGTH, TEXT_PIECE_BYTES)
DAMAGED = "The manifest is damaged"
_PREAMBLE = struct.Struct("<4sI")
PREAMBLE_BYTES = _PREAMBLE.size
_ROW = struct.Struct("<32sIIIIQQ")


class Piece(NamedTuple):
    """A row of the table. ``offset`` is where its ``stored`` compressed bytes begin, counted from the file's start."""

    digest: bytes
    offset: int
    stored: int
    raw: int


class ManifestHead:
    """What is known of an archive before any of its entries is loaded. Times are epoch seconds."""

    def __init__(self, encoded: bytes) -> None:
        """Raises ValueError for anything that `build_manifest` does not write."""
        line, newline, table = encoded.partition(b"\n")
        try:
            head = json.loads(line)
            version, blocks = int(head["version"]), int(head["blocks"])
            self.layout = LAYOUTS[version]
            self.last_modified = int(head["last_modified"])
            self.runs = tuple(str(run_id) for run_id in head.get("runs", ()))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("the head is malformed") from error
        if not newline or len(table) % _ROW.size or blocks > len(table) // _ROW.size:
            raise ValueError("the head is malformed or of another version")
        self.digest = sha256(encoded).hexdigest()
        self.pieces: list[Piece] = []
        summaries: list[BlockSummary] = []
        etag = sha256(b"archive %d\n" % version)
        offset = PREAMBLE_BYTES + len(encoded)
        for index, row in enumerate(_ROW.iter_unpack(table)):
            digest, stored, raw, entries, unknown_crcs, local_length, central_length = row
            self.pieces.append(Piece(digest, offset, stored, raw))
            etag.update(digest)
            offset += stored
            if index < blocks:
                summaries.append(BlockSummary(entries, unknown_crcs, local_length, central_length))
        self.file_size = offset
        self.blocks = blocks
        self.plan = self.layout.plan(summaries)
        self.etag = f'"{etag.hexdigest()[:32]}"'
        self.nbytes = 400 + 250 * len(self.pieces) + 200 * len(self.runs)

    @property
    def name(self) -> str:
        """How tokens name the manifest."""
        return f"sha256:{self.digest}"


class Manifest(NamedTuple):
    """A manifest in memory: its head and its pieces, compressed as they are stored."""

    head: ManifestHead
    encoded_head: bytes
    pieces: list[bytes]

    def encode(self) -> bytes:
        """The file."""
        return b"".join([_PREAMBLE.pack(MAGIC, len(self.encoded_head)), self.encoded_head, *self.pieces])


class ManifestBuilder:
    """Takes the final blocks of an archive in order, then its own text, and makes the manifest of them.

    The number of its format's layout stands as ``version`` in the head, and is part of the ETag.
    """

    def __init__(self, archive_format: ArchiveFormat = ArchiveFormat.ZIP) -> None:
        self._version = CURRENT_LAYOUTS[archive_format]
        self._rows: list[tuple[bytes, int, int]] = []
        self._pieces: list[bytes] = []
        self._last_modified = 0
        self._local_start = 0
        self._summaries: list[BlockSummary] = []

    def add(self, block: EntryBlock) -> None:
        """The next block."""
        summary = LAYOUTS[self._version].block(block, self._local_start, 0).summary
        self._summaries.append(summary)
        self._local_start += summary.local_length
        self._last_modified = max(self._last_modified, *block.last_modified)
        self._store(block.encode())

    def finish(self, own_text: bytes = b"", *, runs: Collection[str] = ()) -> Manifest:
        """The manifest; ``runs`` are those that blobs of the archive belong to."""
        for start in range(0, len(own_text), TEXT_PIECE_BYTES):
            self._store(own_text[start : start + TEXT_PIECE_BYTES])
        head: dict[str, Any] = {
            "blocks": len(self._summaries),
            "last_modified": self._last_modified,
            "version": self._version,
        }
        if runs:
            head["runs"] = sorted(runs)
        rows = []
        for index, row in enumerate(self._rows):
            summary = self._summaries[index] if index < len(self._summaries) else BlockSummary(0, 0, 0, 0)
            rows.append(_ROW.pack(*row, *summary))
        encoded = json.dumps(head, separators=(",", ":"), sort_keys=True).encode() + b"\n" + b"".join(rows)
        return Manifest(ManifestHead(encoded), encoded, self._pieces)

    def _store(self, raw: bytes) -> None:
        stored = zlib.compress(raw, 6)
        self._rows.append((sha256(raw).digest(), len(stored), len(raw)))
        self._pieces.append(stored)


def build_manifest(
    blocks: Iterable[EntryBlock], own_text: bytes = b"", *, archive_format: ArchiveFormat = ArchiveFormat.ZIP
) -> Manifest:
    """The manifest of ``blocks``."""
    builder = ManifestBuilder(archive_format)
    for block in blocks:
        builder.add(block)
    return builder.finish(own_text)


def head_length(start: bytes) -> int:
    """The length of the head of a file that begins with ``start`` (8 bytes or more). Raises ValueError."""
    magic, length = _PREAMBLE.unpack_from(start)
    if magic != MAGIC or length > MAX_HEAD_BYTES:
        raise ValueError("not a manifest")
    return int(length)


def decode_head(start: bytes, digest: str) -> ManifestHead:
    """The head in ``start``, a file's beginning that holds the whole head; ``digest`` is its sha256 in hex.

    Raises `StorageError` when it is not what the digest names.
    """
    try:
        encoded = start[PREAMBLE_BYTES : PREAMBLE_BYTES + head_length(start)]
        if sha256(encoded).hexdigest() == digest:
            return ManifestHead(encoded)
    except ValueError as error:
        raise StorageError(DAMAGED) from error
    raise StorageError(DAMAGED)


def decode_piece(piece: Piece, stored: bytes) -> bytes:
    """The raw bytes of a piece. Raises `StorageError` when they are not what its digest names."""
    if piece.raw <= _MAX_PIECE_BYTES:
        try:
            inflate = zlib.decompressobj()
            raw = inflate.decompress(stored, piece.raw + 1)
        except zlib.error:
            raw = b""
        if sha256(raw).digest() == piece.digest:
            return raw
    raise StorageError(DAMAGED)
