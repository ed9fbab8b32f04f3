"""Answers of HTTP/1.1 as they lie in a buffer, without I/O: what a head says, and which of the bytes are the body.

The law: what two readers could take for two different answers is refused, and so is a body whose end only the end of
the connection would tell.
"""

import re
from collections.abc import Mapping
from mmap import mmap
from typing import NamedTuple

Received = bytearray | mmap
"""What the answers lie in."""

MAX_HEAD_BYTES = 64 << 10
"""Of a head and the interim answers before it, and of a chunked body's trailers."""

_MAX_INTERIM = 16
_MAX_CHUNK_LINE = 4 << 10
_END_OF_HEAD = b"\r\n\r\n"
_START = b"HTTP/1."

# RFC 9112 section 4; the space before an empty reason is often left out.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
# RFC 9110 sections 5.1 and 5.5. No space before the colon and no folded line (RFC 9112 sections 5.1 and 5.2).
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
# RFC 9110 section 8.6; 18 digits are more than any object has bytes.
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
# RFC 9112 sections 7.1 and 7.1.1: what extensions say is ignored.
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")


class BadAnswer(ValueError):
    """What came is not HTTP/1.1, or not safely so."""


class Sized:
    """A body of ``left`` bytes (RFC 9112 section 6.2)."""

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        return self.left == 0

    @property
    def expected(self) -> int:
        """How many bytes are still to come at most, as far as is known."""
        return self.left

    def next(self, buffer: Received, begin: int, end: int) -> tuple[int, int]:
        """Where the body's next bytes lie between ``begin`` and ``end``: an empty stretch when there are none.

        The end of the stretch is where to go on.
        """
        stop = min(end, begin + self.left)
        self.left -= stop - begin
        return begin, stop


class Chunked:
    """A chunked body (RFC 9112 section 7.1); trailers are read over."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        self._line = bytearray()
        self._reads = self._size
        self._trailers = 0

    @property
    def expected(self) -> int | None:
        return 0 if self.done else None

    def next(self, buffer: Received, begin: int, end: int) -> tuple[int, int]:
        """As `Sized.next`; raises `BadAnswer`."""
        while begin < end and not self.done:
            if self._left:
                stop = min(end, begin + self._left)
                self._left -= stop - begin
                return begin, stop
            newline = buffer.find(b"\n", begin, end)
            stop = end if newline < 0 else newline + 1
            if len(self._line) + stop - begin > _MAX_CHUNK_LINE:
                raise BadAnswer("A line between chunks is too long")
            self._line += buffer[begin:stop]
            begin = stop
            if newline >= 0:
                line = bytes(self._line)
                self._line.clear()
                self._reads(line)
        return begin, begin

    def _size(self, line: bytes) -> None:
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise BadAnswer("The size of a chunk is no number")
        self._left = int(found[1], 16)
        self._reads = self._after_chunk if self._left else self._trailer

    def _after_chunk(self, line: bytes) -> None:
        if line != b"\r\n":
            raise BadAnswer("A chunk is longer than its size")
        self._reads = self._size

    def _trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        self._trailers += len(line)
        if self._trailers > MAX_HEAD_BYTES:
            raise BadAnswer("The trailers are too long")


class Head(NamedTuple):
    """``headers`` by names in lower case; ``reusable`` when the connection may carry another request afterwards."""

    status: int
    headers: Mapping[str, str]
    body: Sized | Chunked
    reusable: bool


class HeadParser:
    """Finds the head of the final answer in what arrives; ``bodiless`` for an answer to HEAD."""

    def __init__(self, *, bodiless: bool = False) -> None:
        self._bodiless = bodiless
        self._kept = bytearray()
        self._seen = 0
        self._interim = 0

    def feed(self, buffer: Received, begin: int, end: int) -> tuple[Head, int] | None:
        """The head, and where in ``buffer`` the bytes after it begin; None while some of it has to come.

        What lies between ``begin`` and ``end`` is taken over in that case. Raises `BadAnswer`.
        """
        while True:
            stop = self._end_of_head(buffer, begin, end)
            self._seen += (end if stop is None else stop) - begin
            if self._seen > MAX_HEAD_BYTES:
                raise BadAnswer("The head is too long")
            self._kept += buffer[begin : end if stop is None else stop]
            if stop is None:
                if not _START.startswith(self._kept[: len(_START)]):
                    raise BadAnswer("This is not HTTP/1.1")
                return None
            block, begin = bytes(self._kept), stop
            self._kept.clear()
            head = _parsed(block, bodiless=self._bodiless)
            if head is not None:
                return head, begin
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise BadAnswer("Interim answers do not end")

    def _end_of_head(self, buffer: Received, begin: int, end: int) -> int | None:
        """Where the first empty line ends, which may have begun in what was kept."""
        if self._kept:
            tail = self._kept[-3:]
            found = (tail + buffer[begin : min(end, begin + 3)]).find(_END_OF_HEAD)
            if found >= 0:
                return begin + found + 4 - len(tail)
        found = buffer.find(_END_OF_HEAD, begin, end)
        return None if found < 0 else found + 4


def _parsed(block: bytes, *, bodiless: bool) -> Head | None:
    """None for an interim answer."""
    first, *lines = block.removesuffix(_END_OF_HEAD).split(b"\r\n")
    line = _STATUS_LINE.fullmatch(first)
    if line is None:
        raise BadAnswer("The status line is none")
    status, minor = int(line[2]), line[1]
    headers: dict[str, str] = {}
    for each in lines:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise BadAnswer("A header is none")
        name = field[1].decode("ascii").lower()
        value = field[2].rstrip(b" \t").decode("utf-8", "surrogateescape")
        # RFC 9110 section 5.3. Two lengths make a value that is no number, also where they agree.
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if status < 200:
        if status == 101:  # RFC 9110 section 15.2.2: only for who asked to switch
            raise BadAnswer("The server switches protocols")
        return None
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    reusable = minor == b"1" and "close" not in options  # RFC 9112 section 9.3
    return Head(status, headers, _body(status, headers, minor, bodiless=bodiless), reusable)


def _body(status: int, headers: Mapping[str, str], minor: bytes, *, bodiless: bool) -> Sized | Chunked:
    """How the body's end is told (RFC 9112 section 6.3)."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if length is not None and _LENGTH.fullmatch(length) is None:
        raise BadAnswer("The length is no number")
    if coding is not None:
        # Section 6.1: with both a recipient may be fooled, and HTTP/1.0 has no codings.
        if length is not None or minor == b"0" or coding.lower() != "chunked":
            raise BadAnswer("The body is coded in a way that is not chunked alone")
        return Sized(0) if bodiless else Chunked()
    if bodiless or status in {204, 304}:
        return Sized(0)
    if length is None:
        raise BadAnswer("Nothing tells where the body ends")
    return Sized(int(length))
