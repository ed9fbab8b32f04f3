"""A page of a bucket's listing, read from XML as it arrives (S3 API reference, "ListObjectsV2").

The law: what is not a whole page makes no sense, and is never taken for an empty one. Nothing here does I/O, and a
piece of the text costs time by its length alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus
from xml.parsers import expat

from storage_proxy.stores.port import whole_seconds

_ROOT, _ERROR = "ListBucketResult", "Error"
_SEPARATOR = " "
_MAX_TOKEN_BYTES = 64 << 10
"""Of a tag, which expat looks at anew with each piece until it ends; a key has 3 KiB at most."""
_MAX_TEXT = 64 << 10
"""Characters of an element."""
_MAX_DEPTH = 16
_MAX_OBJECTS = 10_000
"""Ten times what a page has; there are servers that do not know ``max-keys``."""
_OF_PAGE = frozenset({"IsTruncated", "NextContinuationToken", "EncodingType"})
_OF_OBJECT = frozenset({"Key", "Size", "ETag", "LastModified"})
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class ListingQuestion:
    """Asks for up to ``max_keys`` objects whose names begin with ``prefix``; ``continuation`` names a later page."""

    prefix: str
    max_keys: int
    start_after: str = ""
    continuation: str = ""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """``size`` in bytes, ``last_modified`` in seconds since the epoch, ``etag`` as the server writes it."""

    name: str
    size: int
    etag: str
    last_modified: int


@dataclass(frozen=True, slots=True)
class Listing:
    """``following`` asks for the next page; empty where the server gave none."""

    objects: Sequence[ListedObject]
    is_truncated: bool
    following: str


class BrokenListing(ValueError):
    """An error in place of the listing, or text that is not XML: another attempt may have it whole."""


class ListingParser:
    """Give it the text in pieces; every call raises `ValueError` or `KeyError` for what is no listing."""

    is_truncated: bool
    following: str

    def __init__(self) -> None:
        self._path: list[str] = []
        self._text: list[str] = []
        self._page: dict[str, str] = {}
        self._object: dict[str, str] = {}
        self._objects: list[dict[str, str]] = []
        self._text_size = 0
        self._given = self._reached = 0
        # S3 speaks UTF-8, whatever a declaration says.
        parser = self._parser = expat.ParserCreate("utf-8", _SEPARATOR)
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refused
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._more

    def feed(self, piece: bytes) -> None:
        self._parse(piece, is_last=False)
        self._given += len(piece)
        self._reached = max(self._reached, self._parser.CurrentByteIndex)  # now and then it is -1
        if self._given - self._reached > _MAX_TOKEN_BYTES:
            raise ValueError("too long for a listing")

    def close(self) -> None:
        """Say that all of it was given; only then the page is known."""
        self._parse(b"", is_last=True)
        del self._parser  # it holds us by its handlers: pages would pile up until the garbage collector comes
        self.is_truncated = _TRUTHS[self._page["IsTruncated"]]
        self.following = self._page.get("NextContinuationToken", "")

    def objects(self) -> Iterator[ListedObject]:
        """In the listing's order, and some 10 microseconds each."""
        decoded = _unquoted if self._page.get("EncodingType") == "url" else str
        for item in self._objects:
            yield _listed(item, decoded)

    def _parse(self, piece: bytes, *, is_last: bool) -> None:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            raise BrokenListing("not XML") from error

    def _start(self, name: str, _: object) -> None:
        name = name.rpartition(_SEPARATOR)[2]
        if not self._path and name != _ROOT:
            raise BrokenListing("an error") if name == _ERROR else ValueError("not a listing")
        self._path.append(name)
        if len(self._path) > _MAX_DEPTH:
            raise ValueError("too deep for a listing")
        self._forget_text()

    def _more(self, text: str) -> None:
        self._text_size += len(text)
        if self._text_size > _MAX_TEXT:
            raise ValueError("too long for a listing")
        self._text.append(text)

    def _end(self, _: str) -> None:
        match self._path:
            case [_, "Contents", name] if name in _OF_OBJECT:
                self._object[name] = "".join(self._text)
            case [_, "Contents"]:
                self._objects.append(self._object)
                self._object = {}
                if len(self._objects) > _MAX_OBJECTS:
                    raise ValueError("too many objects for a page")
            case [_, name] if name in _OF_PAGE:
                self._page[name] = "".join(self._text)
        self._path.pop()
        self._forget_text()

    def _forget_text(self) -> None:
        self._text.clear()
        self._text_size = 0


def _listed(item: Mapping[str, str], decoded: Callable[[str], str]) -> ListedObject:
    size, modified = item["Size"], datetime.fromisoformat(item["LastModified"])
    if not (size.isascii() and size.isdigit()):
        raise ValueError("a size is no number")
    if modified.tzinfo is None:
        modified = modified.replace(tzinfo=UTC)
    return ListedObject(decoded(item["Key"]), int(size), item.get("ETag", ""), whole_seconds(modified.timestamp()))


def _unquoted(name: str) -> str:
    return unquote_plus(name, errors="strict")


def _refused(*_: object) -> None:
    raise ValueError("a listing has no document type")
