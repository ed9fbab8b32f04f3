"""Heads and bodies of HTTP/1.1, without I/O: the same in whatever pieces they come, and refused where they are not
safely one answer."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.stores.http_responses import MAX_HEAD_BYTES, BadAnswer, Chunked, Head, HeadParser
from tests.support.upstream import chunked, head

CONTENT = random.Random(5).randbytes(500)


def received(wire: bytes, cuts: Sequence[int] = (), *, bodiless: bool = False) -> tuple[Head, bytes, bytes]:
    """The head, the body and what is left when ``wire`` comes in pieces."""
    parser, found, body, left = HeadParser(bodiless=bodiless), None, b"", b""
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    for first, last in pairwise(edges):
        buffer = bytearray(b"before" + wire[first:last] + b"behind")
        begin, end = 6, 6 + last - first
        if found is None:
            at = parser.feed(buffer, begin, end)
            if at is None:
                continue
            found, begin = at
        while True:
            start, stop = found.body.next(buffer, begin, end)
            if stop == start:
                left += buffer[stop:end]
                break
            body += buffer[start:stop]
            begin = stop
    assert found is not None, "no head has come"
    return found, body, left


cut_points = st.lists(st.integers(0, 800), max_size=60)


@given(cut_points, st.lists(st.integers(1, 200), max_size=8), st.booleans(), st.integers(0, 3))
def test_any_split_of_an_answer_is_the_same_answer(
    cuts: list[int], sizes: list[int], is_chunked: bool, interim: int
) -> None:
    wire = b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" * interim
    if is_chunked:
        wire += head(500, framing="Transfer-Encoding: chunked") + chunked(CONTENT, sizes)
    else:
        wire += head(500) + CONTENT
    found, body, left = received(wire + b"junk", cuts)
    assert (found.status, found.headers["etag"], found.reusable) == (206, '"e"', True)
    assert (body, left, found.body.done) == (CONTENT, b"junk", True)


@pytest.mark.parametrize(
    "lines",
    [
        "HTTP/2 200 OK|content-length: 1",
        "HTTP/1.2 200 OK|content-length: 1",
        "HTTP/1.1 2000 OK|content-length: 1",
        "HTTP/1.1  200 OK|content-length: 1",
        "HTTP/1.1 OK|content-length: 1",
        "http/1.1 200 OK|content-length: 1",
        "HTTP/1.1 101 Switching Protocols|upgrade: x",
        "HTTP/1.1 200 OK|content-length : 1",
        "HTTP/1.1 200 OK| content-length: 1",
        "HTTP/1.1 200 OK|x: y| folded|content-length: 1",
        "HTTP/1.1 200 OK|nothing|content-length: 1",
        "HTTP/1.1 200 OK|: empty|content-length: 1",
        "HTTP/1.1 200 OK|x: \0|content-length: 1",
        "HTTP/1.1 200 OK|x: a\rb|content-length: 1",
        "HTTP/1.1 200 OK|x: a\nb|content-length: 1",
        "HTTP/1.1 200 OK|content-length: +1",
        "HTTP/1.1 200 OK|content-length: -1",
        "HTTP/1.1 200 OK|content-length: 0x1",
        "HTTP/1.1 200 OK|content-length: 1.0",
        "HTTP/1.1 200 OK|content-length:",
        "HTTP/1.1 200 OK|content-length: 1, 1",
        "HTTP/1.1 200 OK|content-length: 1|content-length: 1",
        "HTTP/1.1 200 OK|content-length: 1|content-length: 2",
        "HTTP/1.1 200 OK|content-length: 1|transfer-encoding: chunked",
        "HTTP/1.1 200 OK|transfer-encoding: gzip, chunked",
        "HTTP/1.1 200 OK|transfer-encoding: chunked|transfer-encoding: chunked",
        "HTTP/1.1 200 OK|transfer-encoding: xchunked",
        "HTTP/1.1 200 OK|transfer-encoding: identity",
        "HTTP/1.0 200 OK|transfer-encoding: chunked",
        "HTTP/1.1 200 OK|etag: x",
    ],
)
def test_what_is_not_safely_one_answer_is_refused(lines: str) -> None:
    with pytest.raises(BadAnswer):
        received("\r\n".join(lines.split("|")).encode() + b"\r\n\r\n1")


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\na",
        b" 1\r\na",
        b"0x1\r\na",
        b"\r\n",
        b"1\na",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1" * 16 + b"\r\n",
        b"1;\0\r\na",
        b"1 1\r\na",
        b"1;" + b"x" * 5000,
    ],
)
def test_a_chunk_whose_size_is_not_safely_a_number_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        received(head(1, framing="Transfer-Encoding: chunked") + body)


def test_extensions_and_trailers_are_read_over() -> None:
    wire = head(2, framing="transfer-encoding: Chunked") + b"1;a=b\r\nh\r\n01 ; c\r\ni\r\n0\r\nx-trailer: y\r\n\r\n"
    assert received(wire)[1:] == (b"hi", b"")


def test_endless_headers_trailers_and_interim_answers_are_refused() -> None:
    parser, line = HeadParser(), bytearray(b"x: " + b"y" * 997 + b"\r\n")
    assert parser.feed(bytearray(b"HTTP/1.1 200 OK\r\n"), 0, 17) is None
    with pytest.raises(BadAnswer):
        for _ in range(MAX_HEAD_BYTES // 1000 + 1):
            parser.feed(line, 0, len(line))
    body = Chunked()
    body.next(bytearray(b"0\r\n"), 0, 3)
    with pytest.raises(BadAnswer):
        for _ in range(MAX_HEAD_BYTES // 1000 + 1):
            body.next(line, 0, len(line))
    with pytest.raises(BadAnswer):
        received(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def test_what_does_not_begin_like_an_answer_is_refused_at_once() -> None:
    with pytest.raises(BadAnswer):
        HeadParser().feed(bytearray(b"SSH-2.0"), 0, 7)


def test_a_head_alone_has_no_body_whatever_its_length_says() -> None:
    assert received(head(5), bodiless=True)[1:] == (b"", b"")
    assert received(b"HTTP/1.1 204 No Content\r\n\r\n")[1:] == (b"", b"")
    assert received(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n")[1:] == (b"", b"")


@pytest.mark.parametrize(
    ("first", "option", "reusable"),
    [
        ("HTTP/1.1 200", "keep-alive", True),
        ("HTTP/1.1 200 ", "Close", False),
        ("HTTP/1.1 200 OK", "x, close", False),
        ("HTTP/1.0 200 OK", "keep-alive", False),
    ],
)
def test_a_connection_is_used_again_unless_the_server_closes_it(first: str, option: str, reusable: bool) -> None:
    found, body, _ = received(f"{first}\r\nconnection: {option}\r\ncontent-length: 1\r\n\r\n1".encode())
    assert (found.reusable, body) == (reusable, b"1")
