"""Every key and value that the system keeps, in one place.

The law: a key is a packed tuple, a value is JSON that names its version, and nothing else makes or reads either. What
two tables say of one thing is written in one transaction.

    ("run", run_id)                       RunRecord      the run has a blob, or an upload was prepared
    ("totals", run_id)                    RunTotals      its verified blobs; absent: none
    ("blob", run_id, path)                BlobRecord     in byte order of path
    ("upload", run_id, digest)            UploadRecord   which path an upload id is for
    ("due", at_ms, run_id, path)          Mark           a pending blob is looked at then
    ("tombstone", run_id)                 Tombstone      the run is deleted: it hides what the rows above say
    ("sweep", at, run_id)                 Mark           a tombstone's second pass is due then
    ("outbox", at_ms, id)                 OutboxRow      an event that is still to be published
    ("crc32", bucket, key, etag, size)    LearnedCrc     what reading a blob whole has shown; the key as bytes
    ("claim", bucket, key)                Claim          an object without a record is being deleted
    ("link", jti)                         LinkRecord     what is known of a link beyond its token
    ("link-end", at, jti)                 Mark           a link may be forgotten then
    ("lock", name)                        Lock           who does what only one may do
    ("import",)                           Import         a state file is being read in; absent: none is

``at`` is in seconds since the epoch, ``at_ms`` in milliseconds. A due row may outlive its blob, a sweep row its
tombstone: whoever finds one looks, and clears it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, get_type_hints

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state.keys import Element, Subspace, after
from storage_proxy.state.port import Row, Transaction


class BlobState(StrEnum):
    """Where a run's blob is in its life. Only a verified one is visible."""

    PENDING = "pending"  # announced, and not there yet
    VERIFIED = "verified"  # there, and as announced
    REJECTED = "rejected"  # there, and not as announced
    EXPIRED = "expired"  # not there when its time was over


class Order(NamedTuple):
    """The place of a message among those of its key. Orders of different partitions do not compare.

    ``at_ms`` is when the bus took the message (epoch milliseconds), 0 where that is not known. Within one log it grows
    with the offset: one that does not is of another log, a topic that was made anew or lies on another bus.
    """

    partition: int
    offset: int
    at_ms: int = 0


class Record:
    """A value: a frozen dataclass of JSON's types. A field with its default is not written."""

    version: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class RunRecord(Record):
    """A run. ``upload_until`` is when the last upload URL made for it ends, 0 when there was none."""

    bucket: str
    created_at: int
    upload_until: int = 0


@dataclass(frozen=True, slots=True)
class RunTotals(Record):
    """How many verified blobs a run has, and their bytes."""

    blobs: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class BlobRecord(Record):
    """One blob of a run.

    While it is pending, ``size`` and ``crc32`` are what was announced, and ``due_ms`` and ``deadline`` say when it is
    looked at again and when it expires; verified, they are the object's, as are ``etag``, ``last_modified`` (epoch
    seconds), ``content_type`` and ``content_encoding``. ``order`` is that of the newest message that was heard.
    """

    bucket: str
    state: BlobState
    created_at: int
    content_type: str | None = None
    size: int | None = None
    crc32: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    order: Order | None = None
    etag: str = ""
    last_modified: int = 0
    content_encoding: str | None = None
    due_ms: int | None = None
    deadline: int | None = None
    looks: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class UploadRecord(Record):
    """What an upload id stands for."""

    path: str


class RunEnd(StrEnum):
    """How far a run's deletion is."""

    DELETING = "deleting"  # hidden; the first pass is not through
    DELETED = "deleted"  # the first pass has removed every object
    SWEPT = "swept"  # so has the second, after the last upload URL's end


@dataclass(frozen=True, slots=True)
class Tombstone(Record):
    """A deleted run. ``ended_at`` is when ``state`` was reached.

    ``bucket`` is None when it never had a blob here: then its objects may be in any bucket, and ``within`` are those
    that whoever deleted it may touch, None for all.
    """

    bucket: str | None
    state: RunEnd
    deleted_at: int
    ended_at: int
    sweep_at: int
    within: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow(Record):
    """An event: ``topic`` says which of the configured ones, ``value`` is its JSON."""

    topic: str
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class LearnedCrc(Record):
    """The CRC-32 of one version of a blob, from reading it whole."""

    crc32: int
    learned_at: int


@dataclass(frozen=True, slots=True)
class Claim(Record):
    """The right to delete one object, of the holder with ``fence``. After ``until`` nobody deletes by it any more."""

    fence: int
    until: int


@dataclass(frozen=True, slots=True)
class LinkRecord(Record):
    """What is known of a link beyond its token, until ``expires_at``."""

    op: str
    expires_at: int
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Lock(Record):
    """Held by ``owner`` until ``expires_at``. ``fence`` grows with each change of the holder, so it outlives them."""

    owner: str
    fence: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Import(Record):
    """A state file that is not wholly read in: the sha256 of its rows, in hex."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Mark(Record):
    """A row that says all in its key."""


_Record = TypeVar("_Record", bound=Record)
_Key = TypeVar("_Key", bound=tuple[Element, ...])


class Table(Generic[_Record]):
    """The rows of one kind."""

    def __init__(self, subspace: Subspace, kind: type[_Record]) -> None:
        self._subspace = subspace
        self._codec = _Codec(kind)

    async def get(self, transaction: Transaction, *key: Element, snapshot: bool = False) -> _Record | None:
        """The row of ``key``, None where there is none."""
        return self.found(await transaction.get(self._subspace.pack(*key), snapshot=snapshot))

    async def get_many(
        self, transaction: Transaction, keys: Sequence[tuple[Element, ...]]
    ) -> "Sequence[_Record | None]":
        """The rows of ``keys``, in one question."""
        values = await transaction.get_many([self._subspace.pack(*key) for key in keys])
        return [self.found(value) for value in values]

    async def find_many(self, transaction: Transaction, keys: "Collection[_Key]") -> "dict[_Key, _Record]":
        """Those of ``keys`` that have a row."""
        found = zip(keys, await self.get_many(transaction, list(keys)), strict=True)
        return {key: record for key, record in found if record is not None}

    def found(self, value: bytes | None) -> "_Record | None":
        """The row of a value that the transaction gave, None where there is none."""
        return None if value is None else self._codec.decode(value)

    def set(self, transaction: Transaction, record: _Record, *key: Element) -> None:
        transaction.set(self._subspace.pack(*key), self._codec.encode(record))

    def clear(self, transaction: Transaction, *key: Element) -> None:
        transaction.clear(self._subspace.pack(*key))

    def clear_all(self, transaction: Transaction, *key: Element) -> None:
        """Clear every row whose key begins with the elements ``key`` and has more."""
        transaction.clear_range(*self._subspace.range(*key))

    def range(self, *key: Element, text: str = "") -> tuple[bytes, bytes]:
        """``begin, end`` of the rows whose key begins with ``key``, and has then a text that begins with ``text``."""
        if not text:
            return self._subspace.range(*key)
        begin = self._subspace.pack(*key, text)[:-1]  # without the end of the text
        return begin, begin + b"\xff"

    def until(self, *key: Element) -> tuple[bytes, bytes]:
        """``begin, end`` of the rows before ``key``."""
        return self._subspace.range()[0], self._subspace.pack(*key)

    def key(self, *key: Element) -> bytes:
        """Where the row is. To go on after it, use `storage_proxy.state.keys.after`."""
        return self._subspace.pack(*key)

    def elements(self, key: bytes) -> tuple[Any, ...]:
        """The elements of a row's key. Raises ValueError for a key of another table."""
        return self._subspace.unpack(key)

    def read(self, row: Row) -> "tuple[tuple[Any, ...], _Record]":
        """The key's elements and the value of a row of a range."""
        return self.elements(row[0]), self._codec.decode(row[1])

    async def page(
        self,
        transaction: Transaction,
        *key: Element,
        limit: int,
        text: str = "",
        start_after: bytes = b"",
        snapshot: bool = False,
    ) -> "Sequence[tuple[tuple[Any, ...], _Record]]":
        """The next rows of ``range(*key, text=text)``, at most ``limit``, beyond the row at ``start_after``."""
        begin, end = self.range(*key, text=text)
        if start_after:
            begin = max(begin, after(start_after))
        rows = await transaction.get_range(begin, end, limit=limit, snapshot=snapshot) if begin < end else ()
        return [self.read(row) for row in rows]


class Records:
    """The tables. ``prefix`` sets the keys of one service apart from others in the same store."""

    def __init__(self, prefix: str = "storage-proxy") -> None:
        self.root = Subspace(prefix)
        self.runs = Table(self.root.subspace("run"), RunRecord)
        self.totals = Table(self.root.subspace("totals"), RunTotals)
        self.blobs = Table(self.root.subspace("blob"), BlobRecord)
        self.uploads = Table(self.root.subspace("upload"), UploadRecord)
        self.due = Table(self.root.subspace("due"), Mark)
        self.tombstones = Table(self.root.subspace("tombstone"), Tombstone)
        self.sweeps = Table(self.root.subspace("sweep"), Mark)
        self.outbox = Table(self.root.subspace("outbox"), OutboxRow)
        self.crc32s = Table(self.root.subspace("crc32"), LearnedCrc)
        self.claims = Table(self.root.subspace("claim"), Claim)
        self.links = Table(self.root.subspace("link"), LinkRecord)
        self.link_ends = Table(self.root.subspace("link-end"), Mark)
        self.locks = Table(self.root.subspace("lock"), Lock)
        self.imports = Table(self.root.subspace("import"), Import)


def version_key(bucket: str, key: str, etag: str, size: int) -> tuple[str, bytes, str, int]:
    """The key of one version of a blob in ``crc32s``. A blob's key may hold what is no text."""
    return bucket, key.encode("utf-8", "surrogateescape"), etag, size


class _Codec(Generic[_Record]):
    """Values of one kind as JSON objects with a member ``v``."""

    def __init__(self, kind: type[_Record]) -> None:
        self._kind = kind
        hints = get_type_hints(kind)
        self._defaults = [(each.name, each.default) for each in fields(kind)]  # type: ignore[arg-type]
        self._revivers = [(name, revive) for name, _ in self._defaults if (revive := _reviver(hints[name])) is not None]
        # One encoder: json.dumps makes a new one for each value that is not written in its own way.
        self._json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

    def encode(self, record: _Record) -> bytes:
        written: dict[str, Any] = {"v": self._kind.version}
        for name, default in self._defaults:
            value = getattr(record, name)
            if value != default and value != {}:
                written[name] = value
        return self._json(written).encode("utf-8", "surrogateescape")

    def decode(self, value: bytes) -> _Record:
        """Raises `StateUnavailable` for what no version so far has written: a newer one, or damage."""
        try:
            read = json.loads(value.decode("utf-8", "surrogateescape"))
            version = read.pop("v")
            if version == self._kind.version:
                for name, revive in self._revivers:
                    if read.get(name) is not None:
                        read[name] = revive(read[name])
                return self._kind(**read)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateUnavailable(f"A {self._kind.__name__} of the state store cannot be read") from error
        raise StateUnavailable(f"A {self._kind.__name__} of the state store is of version {version}, not of this one")


def _reviver(hint: Any) -> Any:
    """What makes a field's value of its JSON, None where JSON's own type is it."""
    for kind in (BlobState, RunEnd):
        if hint is kind:
            return kind
    return _order if Order in getattr(hint, "__args__", ()) else None


def _order(elements: Sequence[int]) -> Order:
    return Order(*elements)
