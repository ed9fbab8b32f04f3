"""Listings by our own requests: what the SDK makes of the same text, never less than a page, and turns for others.

The parser is held against the SDK's. Requests go to the real server behind `FaultyProxy`; where its answer is made up,
the test says so.
"""

import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from botocore.handlers import decode_list_object_v2
from botocore.parsers import create_parser
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import StorageError, StorageUnavailable
from storage_proxy.stores.s3_listing_xml import ListedObject, Listing, ListingParser
from tests.support.blobs import list_all, list_keys
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import S3Bucket, open_store
from tests.support.s3_answers import answer, asked_by, listing
from tests.support.turns import turns_beside

SHAPE = get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
tags = st.sampled_from(('"d41d8cd98f00b204e9800998ecf8427e-3"', "plain", '"<&>"'))
moments = st.sampled_from(("2024-01-02T03:04:05.678Z", "1970-01-01T00:00:00Z", "2024-01-02T03:04:05+02:00"))
objects = st.tuples(names, st.integers(0, 2**43), tags, moments)


@st.composite
def pages(draw: st.DrawFn) -> str:
    """The text of a listing, as some server or other writes it."""
    encoded, after = draw(st.booleans()), draw(st.booleans())
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    head = [
        f"<IsTruncated>{draw(st.sampled_from(('true', 'false')))}</IsTruncated>",
        "<Prefix/><Name>bucket</Name>",
        draw(st.sampled_from(("", "<NextContinuationToken>1/&amp;2</NextContinuationToken>"))),
    ]
    contents = [
        f"<Contents><Key>{escape(quote_plus(name) if encoded else name)}</Key>"
        f"<LastModified>{moment}</LastModified><ETag>{escape(etag)}</ETag><Size>{size}</Size>"
        f"{draw(st.sampled_from(('', '<Owner><ID>1</ID><Key>no</Key></Owner>', '<StorageClass>S</StorageClass>')))}"
        "</Contents>"
        for name, size, etag, moment in draw(st.lists(objects, max_size=8))
    ]
    parts = [*head, *contents, encoding] if after else [encoding, *head, *contents]
    blank = draw(st.sampled_from(("", "\n  ")))
    namespace = draw(st.sampled_from(("", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"')))
    said = draw(st.sampled_from(("UTF-8", "utf8", "ISO-8859-1", "base64", "unknown")))
    return (
        f'<?xml version="1.0" encoding="{said}"?>\n<ListBucketResult{namespace}>{blank.join(parts)}</ListBucketResult>'
    )


def parsed(pieces: Sequence[bytes]) -> Listing:
    parser = ListingParser()
    for piece in pieces:
        parser.feed(piece)
    parser.close()
    return Listing(list(parser.objects()), parser.is_truncated, parser.following)


def by_the_sdk(text: bytes) -> Listing:
    read: Any = create_parser("rest-xml").parse({"body": text, "headers": {}, "status_code": 200}, SHAPE)
    decode_list_object_v2(read, {"encoding_type_auto_set": True})
    found = [
        ListedObject(item["Key"], item["Size"], item["ETag"], int(item["LastModified"].timestamp()))
        for item in read.get("Contents", [])
    ]
    return Listing(found, read["IsTruncated"], read.get("NextContinuationToken", ""))


@given(pages(), st.lists(st.integers(0, 5000), max_size=6))
def test_a_page_in_any_pieces_is_what_the_sdk_reads(page: str, cuts: list[int]) -> None:
    text = page.encode()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert parsed([text[first:last] for first, last in pairwise(edges)]) == by_the_sdk(text)


@pytest.mark.parametrize("size", [1, 3, 7, 10, 1000])
def test_a_long_page_may_come_in_tiny_pieces(size: int) -> None:
    text = listing(*(f"key-{number:06}" for number in range(1000))).partition(b"\r\n\r\n")[2]
    assert len(text) > 2 * (64 << 10)
    assert parsed([text[at : at + size] for at in range(0, len(text), size)]) == by_the_sdk(text)


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ("<Contents><Key>", "%41" * 1000),
        ("", "<a>" * 10),
        ("", "<Contents><Key>k</Key></Contents>" * 1000),
    ],
    ids=["text", "depth", "objects"],
)
def test_what_no_page_has_so_much_of_is_refused(before: str, again: str) -> None:
    parser = ListingParser()
    parser.feed(f"<ListBucketResult><IsTruncated>false</IsTruncated>{before}".encode())
    with pytest.raises(ValueError, match=r"^too (long|deep|many)"):
        for _ in range(40):
            parser.feed(again.encode())


def test_what_is_not_asked_for_is_not_kept() -> None:
    parser = ListingParser()
    parser.feed(b"<ListBucketResult><IsTruncated>false</IsTruncated>")
    parser.feed("".join(f"<a{number}>text</a{number}>" for number in range(1000)).encode())
    assert set(parser._page) == {"IsTruncated"}


@given(pages(), st.integers(0, 5000))
def test_a_page_that_is_cut_is_never_a_page(page: str, kept: int) -> None:
    text = page.encode()
    with pytest.raises((ValueError, KeyError)):
        parsed([text[: kept % len(text)]])


@given(pages(), st.binary(min_size=1, max_size=9), st.integers(0, 5000))
def test_a_page_with_garbage_in_it_is_a_page_or_a_clear_error(page: str, garbage: bytes, at: int) -> None:
    text = page.encode()
    at %= len(text)
    try:
        found = parsed([text[:at] + garbage + text[at + len(garbage) :]])
    except (ValueError, KeyError):
        return
    assert all(item.size >= 0 for item in found.objects)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Error><IsTruncated>false</IsTruncated></Error>",
        "<ListBucketResult></ListBucketResult>",
        "<ListBucketResult><IsTruncated>maybe</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><IsTruncated>false</IsTruncated></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult><ListBucketResult/>",
        "<!DOCTYPE x [<!ENTITY a 'false'>]><ListBucketResult><IsTruncated>&a;</IsTruncated></ListBucketResult>",
        *(
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>" + contents + "</Contents></ListBucketResult>"
            for contents in (
                "<Size>1</Size><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>",
                "<Key>k</Key><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>",
                "<Key>k</Key><Size>-1</Size><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>",
                "<Key>k</Key><Size>1_0</Size><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>",
                "<Key>k</Key><Size>many</Size><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>",
                "<Key>k</Key><Size>1</Size><ETag>e</ETag><LastModified>yesterday</LastModified>",
            )
        ),
    ],
)
def test_what_is_no_listing_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parsed([text.encode()])


def test_a_key_whose_encoding_is_no_text_is_an_error() -> None:
    page = (
        "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents>"
        "<Key>%FF</Key><Size>1</Size><ETag>e</ETag><LastModified>2024-01-02T03:04:05Z</LastModified>"
        "</Contents></ListBucketResult>"
    )
    with pytest.raises(ValueError, match="utf-8"):
        parsed([page.encode()])


def test_a_page_that_was_read_is_not_left_to_the_garbage_collector() -> None:
    gc.disable()
    try:
        parser = ListingParser()
        parser.feed(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        parser.close()
        left = weakref.ref(parser)
        del parser
        assert left() is None
    finally:
        gc.enable()


KEYS = ["+", "a b", "a%20b", "a&b<c>", "a+b", "a/b/c", "a;b=c?d#e", "é", "日本/語", "😀"]


async def test_odd_keys_are_listed_without_the_sdk_and_as_it_lists_them(
    s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    for key in KEYS:
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"12")
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        found = [(blob.key, blob.size, blob.etag, blob.last_modified) for blob in await list_all(store)]
        prefixed = [await list_keys(store, prefix) for prefix in ("a ", "a%", "a&", "a+", "a;", "日")]
        assert await list_keys(store, start_after="a+b") == KEYS[KEYS.index("a+b") + 1 :]
    assert {asked_by(request.headers) for request in faulty.requests} == {"us"}
    by_sdk = await s3_bucket.client.list_objects_v2(Bucket=s3_bucket.name)
    assert [key for key, *_ in found] == KEYS
    assert found == [
        (item["Key"], item["Size"], item["ETag"], int(item["LastModified"].timestamp())) for item in by_sdk["Contents"]
    ]
    assert prefixed == [["a b"], ["a%20b"], ["a&b<c>"], ["a+b"], ["a;b=c?d#e"], ["日本/語"]]


async def test_pages_follow_each_other(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    """The pages are made up; the token is one that has to be encoded."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(contains="list-type", times=1, answer=listing("a", "b", truncated=True, token="t/+= 1")))
        faulty.fault(Fault(contains="continuation-token=t%2F%2B%3D%201", times=1, answer=listing("c")))
        assert await list_keys(store) == ["a", "b", "c"]


@pytest.mark.parametrize("status", [301, 307, 400])
async def test_a_listing_that_the_sdk_understands_better_is_left_to_it(
    s3_bucket: S3Bucket, faulty: FaultyProxy, status: int
) -> None:
    """The answers to our own requests are made up, as those from another region; all pages come from the SDK."""
    for key in ("p/a", "p/b", "q"):
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"")
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(contains="list-type", times=1, status=status, code="AuthorizationHeaderMalformed"))
        assert await list_keys(store, "p/", start_after="p/a") == ["p/b"]
    assert [asked_by(request.headers) for request in faulty.requests] == ["us", "sdk"]


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (400, "RequestTimeout")])
async def test_trouble_with_a_listing_is_tried_again(
    s3_bucket: S3Bucket, faulty: FaultyProxy, status: int, code: str
) -> None:
    """By the code alone, too: it stands in the body, and the request is not left to the SDK."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"")
        faulty.fault(Fault(contains="list-type", times=1, status=status, code=code))
        assert await list_keys(store) == ["k"]
        faulty.fault(Fault(contains="list-type", status=status, code=code))
        with pytest.raises(StorageUnavailable):
            await list_keys(store)
    assert {asked_by(request.headers) for request in faulty.requests if request.method == "GET"} == {"us"}


async def test_a_listing_that_breaks_off_is_asked_for_again(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"")
        faulty.fault(Fault(contains="list-type", times=2, cut_after=50))
        assert await list_keys(store) == ["k"]


@pytest.mark.parametrize("page", ["<Error><Code>InternalError</Code></Error>", "<ListBucketResult>", ""])
async def test_an_answer_that_another_attempt_may_have_whole_is_asked_for_again(
    s3_bucket: S3Bucket, faulty: FaultyProxy, page: str
) -> None:
    """The first answers are made up: status 200, and no listing."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"")
        faulty.fault(Fault(contains="list-type", times=2, answer=answer(page)))
        assert await list_keys(store) == ["k"]


@pytest.mark.parametrize("token", [b"<Key a='", b"<Key", b"<!--", b"<?x "])
def test_a_token_that_does_not_end_is_refused_soon(token: bytes) -> None:
    """Expat looks at it from its beginning with each piece: the time would grow with the square of its length."""
    parser = ListingParser()
    parser.feed(b"<ListBucketResult>" + token)
    with pytest.raises(ValueError, match="too long"):
        for _ in range(20):
            parser.feed(b"x" * (16 << 10))


async def test_a_listing_without_an_end_is_an_error(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    """The answer is made up: 16 MiB of empty elements, and more."""
    endless = answer("<ListBucketResult>" + "<Prefix/>" * (2 << 20))
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(contains="list-type", answer=endless))
        with pytest.raises(StorageError, match="too long"):
            await list_keys(store)
    await faulty.until(lambda: faulty.open_connections == 0)


async def test_others_have_their_turns_while_a_page_is_read(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    """The page is made up, and as long as pages are: some 190 kB in pieces of 16 KiB, then 1,000 keys by fifties."""
    keys = [f"key-{number:06}-{'x' * 60}" for number in range(1000)]
    page = listing(*keys)
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(contains="list-type", answer=page))
        turns, found = await turns_beside(list_keys(store))
        assert found == keys
    assert turns >= len(page) / (16 << 10) + 1000 / 50
