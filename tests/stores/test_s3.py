"""What is special about a bucket behind S3: faults on the way, answers that lie, checksums, connections, signed URLs.

The server is a real one; `FaultyProxy` in front of it injects what a test names. Where an answer is made up, because
the server has no such call, the test says so.
"""

import asyncio
import base64
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import aiohttp
import pytest
from yarl import URL

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    ServiceError,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
)
from storage_proxy.stores.port import BlobStore, PresignsDownloads
from storage_proxy.stores.s3 import S3BlobStore
from tests.support.blobs import found, list_all, list_keys, read_all, read_range
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import PrivateS3, S3Bucket, open_store
from tests.support.s3_answers import answer, listing

CONTENT = random.Random(3).randbytes(4 * 2**20 + 9)
PART = 5 * 2**20

Opener = Callable[..., AbstractAsyncContextManager[S3BlobStore]]


@pytest.fixture
async def opener(s3_bucket: S3Bucket, faulty: FaultyProxy) -> Opener:
    """Opens a store on the bucket through the proxy, with some options changed."""

    @asynccontextmanager
    async def opening(**changes: Any) -> AsyncIterator[S3BlobStore]:
        options = replace(s3_bucket.options(endpoint=faulty.endpoint), max_attempts=2)
        async with open_store(replace(options, **changes)) as store:
            yield store

    return opening


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[S3BlobStore]:
    async with opener() as store:
        yield store


# Trouble on the way


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable")])
async def test_trouble_that_passes_is_not_seen(store: S3BlobStore, faulty: FaultyProxy, status: int, code: str) -> None:
    await store.put("k", b"bytes")
    for method in ("HEAD", "GET"):
        faulty.fault(Fault(method=method, contains="/k", times=1, status=status, code=code))
    blob = await found(store, "k")
    assert await read_range(store, "k", 0, 5, blob.etag) == b"bytes"
    assert (faulty.count("HEAD", "/k"), faulty.count("GET", "/k")) == (2, 2)


@pytest.mark.parametrize(
    ("status", "code", "attempts"),
    [
        (500, "InternalError", 2),
        (502, "BadGateway", 2),
        (503, "SlowDown", 2),
        (504, "GatewayTimeout", 2),
        (400, "RequestTimeout", 2),
        (429, "TooManyRequests", 1),
    ],
)
async def test_trouble_that_stays_is_unavailable_after_bounded_attempts(
    store: S3BlobStore, faulty: FaultyProxy, status: int, code: str, attempts: int
) -> None:
    faulty.fault(Fault(method="GET", status=status, code=code))
    with pytest.raises(StorageUnavailable) as caught:
        await store.open("k", start=0, stop=1, if_match=None)
    assert faulty.count("GET", "/k") == attempts
    assert caught.value.detail == f"The storage is unavailable: it answered GetObject with {status} {code}"
    assert caught.value.retry_after is not None


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "ExpiredToken"), (403, "AccessDenied"), (403, "InvalidAccessKeyId"), (501, "NotImplemented")],
)
async def test_a_refusal_is_an_error_and_is_not_repeated(
    store: S3BlobStore, faulty: FaultyProxy, status: int, code: str
) -> None:
    for method in ("GET", "PUT"):
        faulty.fault(Fault(method=method, status=status, code=code))
    for call in (store.open("k", start=0, stop=1, if_match=None), list_keys(store), store.probe(), store.put("k", b"")):
        with pytest.raises(StorageError):
            await call
    assert faulty.count("GET", "/k") == 1
    assert faulty.count("PUT", "/k") == 1


async def test_a_wrong_secret_is_an_error_whose_message_has_no_secret(opener: Opener, s3_bucket: S3Bucket) -> None:
    async with opener(secret_key="wrong-secret") as store:
        for call in (store.stat("k"), store.open("k", start=0, stop=1, if_match=None), list_keys(store), store.probe()):
            with pytest.raises(StorageError) as caught:
                await call
            for private in ("wrong-secret", s3_bucket.server.access_key, "http", "127.0.0.1", s3_bucket.name):
                assert private not in caught.value.detail


def test_options_do_not_show_the_secret(s3_bucket: S3Bucket) -> None:
    assert s3_bucket.server.secret_key not in repr(s3_bucket.options())


async def test_a_connection_that_is_dropped_before_the_answer_is_unavailable(
    store: S3BlobStore, faulty: FaultyProxy
) -> None:
    for method in ("GET", "HEAD", "PUT"):
        faulty.fault(Fault(method=method, refuse=True))
    for call in (
        store.stat("k"),
        store.open("k", start=0, stop=1, if_match=None),
        store.put("k", b""),
        store.probe(),
        list_keys(store),
    ):
        with pytest.raises(StorageUnavailable):
            await call


async def test_an_address_where_nobody_listens_is_unavailable(store: S3BlobStore, faulty: FaultyProxy) -> None:
    await store.put("k", b"bytes")
    await faulty.stop_listening()
    async with asyncio.timeout(30):
        for call in (store.stat("k"), store.open("k", start=0, stop=1, if_match=None), store.probe(), list_keys(store)):
            with pytest.raises(StorageUnavailable) as caught:
                await call
            assert str(faulty.port) not in caught.value.detail
    await faulty.listen()
    assert await read_range(store, "k", 0, 5) == b"bytes"


async def test_a_server_that_does_not_answer_is_a_timeout(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(request_timeout=0.2) as store:
        for method in ("GET", "HEAD", "PUT"):
            faulty.fault(Fault(method=method, latency=60))
        async with asyncio.timeout(20):
            for call in (
                store.stat("k"),
                store.open("k", start=0, stop=1, if_match=None),
                store.put("k", b""),
                store.probe(),
                list_keys(store),
            ):
                with pytest.raises(StorageTimeout):
                    await call


async def test_a_server_that_is_silent_within_a_listing_is_a_timeout(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(read_timeout=0.1, max_attempts=1) as store:
        await store.put("k", b"")
        faulty.fault(Fault(contains="list-type", stall_after=20))
        with pytest.raises(StorageTimeout):
            await list_keys(store)


async def test_a_listing_that_is_cut_is_unavailable(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(max_attempts=1) as store:
        await store.put("k", b"")
        faulty.fault(Fault(contains="list-type", cut_after=20))
        with pytest.raises(StorageUnavailable):
            await list_keys(store)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<html><p>Welcome to the café!</html>", StorageError),
        ("", StorageUnavailable),  # as if the status were 500: it may come whole another time
        ("<ListBucketResult><IsTruncated>false", StorageUnavailable),
        ("<Error><Code>InternalError</Code></Error>", StorageUnavailable),
        ("<html><p>Welcome to the café!</p></html>", StorageError),
    ],
    ids=["not xml", "nothing", "cut", "an error with status 200", "xml"],
)
async def test_an_answer_that_is_not_s3s_is_not_an_empty_listing(
    store: S3BlobStore, faulty: FaultyProxy, page: str, expected: type[ServiceError]
) -> None:
    faulty.fault(Fault(contains="list-type", answer=answer(page)))
    for call in (list_keys(store), store.probe(), store.stat("missing")):
        with pytest.raises(expected):
            await call


# Bodies


async def test_a_body_that_is_cut_is_unavailable_and_can_be_reopened_at_its_offset(
    store: S3BlobStore, faulty: FaultyProxy
) -> None:
    await store.put("k", CONTENT)
    blob = await found(store, "k")
    faulty.fault(Fault(contains="/k", times=1, cut_after=1_000_000))
    reader = await store.open("k", start=7, stop=len(CONTENT), if_match=blob.etag)
    received = b""
    with pytest.raises(StorageUnavailable):
        while chunk := await reader.read():
            received += chunk
    await reader.aclose()
    assert CONTENT[7:].startswith(received)
    offset = 7 + len(received)
    assert await read_range(store, "k", offset, len(CONTENT), blob.etag) == CONTENT[offset:]


async def test_a_body_that_stalls_is_a_timeout(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(read_timeout=0.2) as store:
        await store.put("k", CONTENT)
        faulty.fault(Fault(contains="/k", stall_after=100_000))
        reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
        async with asyncio.timeout(20):
            with pytest.raises(StorageTimeout):
                while await reader.read():
                    pass
        await reader.aclose()
        await faulty.until(lambda: faulty.open_connections <= 1)


async def test_a_reader_that_is_slow_is_not_taken_for_a_stall(opener: Opener) -> None:
    async with opener(read_timeout=0.1) as store:
        await store.put("k", CONTENT)
        reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
        content = bytes(await reader.read())
        await asyncio.sleep(0.3)  # what is tested is this very pause, longer than a stall
        assert content + await read_all(reader) == CONTENT


async def test_a_chunked_body_is_read_to_its_end(store: S3BlobStore, faulty: FaultyProxy) -> None:
    """The answer is made up: the real server always says a length."""
    faulty.fault(Fault(contains="/k", answer=_chunked(b"he", b"llo")))
    assert await read_range(store, "k", 0, 5, '"e"') == b"hello"
    assert await read_range(store, "k", 0, 5, '"e"') == b"hello"
    assert faulty.connections == 1


@pytest.mark.parametrize("chunks", [(b"hello!",), (b"hello", b"!"), (b"he", b"llo!")])
async def test_a_body_longer_than_promised_is_an_error(
    store: S3BlobStore, faulty: FaultyProxy, chunks: tuple[bytes, ...]
) -> None:
    """The answer is made up: chunked, so that nothing but counting tells its length."""
    faulty.fault(Fault(contains="/k", answer=_chunked(*chunks)))
    with pytest.raises(StorageError):
        await read_range(store, "k", 0, 5, '"e"')


async def test_a_chunked_body_shorter_than_promised_is_unavailable(store: S3BlobStore, faulty: FaultyProxy) -> None:
    faulty.fault(Fault(contains="/k", answer=_chunked(b"hell")))
    with pytest.raises(StorageUnavailable):
        await read_range(store, "k", 0, 5, '"e"')


def _chunked(*chunks: bytes) -> bytes:
    head = 'HTTP/1.1 206 Made-Up\r\netag: "e"\r\ncontent-range: bytes 0-4/5\r\ntransfer-encoding: chunked\r\n\r\n'
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "extra", [b"!" * 9, answer("smuggled", 206, etag='"e"', content_range="bytes 0-7/8")], ids=["junk", "an answer"]
)
async def test_bytes_that_follow_a_body_are_never_given_out(
    store: S3BlobStore, faulty: FaultyProxy, extra: bytes
) -> None:
    """aiohttp takes a whole answer that nobody asked for as the next one; then its ETag and range give it away."""
    await store.put("k", CONTENT)
    await store.put("other", b"other")
    other = await found(store, "other")
    faulty.fault(Fault(contains="/k", times=10, append=extra))
    for _ in range(5):
        for key, etag, size, expected in (("k", None, len(CONTENT), CONTENT), ("other", other.etag, 5, b"other")):
            try:
                assert await read_range(store, key, 0, size, etag) == expected
            except ServiceError:
                assert extra.startswith(b"HTTP/1.1")
    assert await read_range(store, "other", 0, 5, other.etag) == b"other"


# Answers that contradict the question


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": '"another"'}, BlobChanged),
        ({"etag": None}, BlobChanged),
        ({"content-range": None}, StorageError),
        ({"content-range": "bytes"}, StorageError),
        ({"content-range": "bytes 0-9/4194313"}, StorageError),
        ({"content-range": "bytes 11-20/4194313"}, StorageError),
        ({"content-range": "bytes 10-18/4194313"}, StorageError),
        ({"content-range": "bytes 10-20/4194313"}, StorageError),
        ({"content-range": "bytes 10-19/*"}, StorageError),
        ({"content-range": "bytes 10-19/15"}, StorageError),
        ({"content-range": "bytes 10-18/19"}, BlobChanged),
        ({"content-length": "9"}, StorageError),
        ({"content-length": "11"}, StorageError),
    ],
    ids=str,
)
async def test_an_answer_that_contradicts_the_question_is_refused_before_a_byte_of_it(
    store: S3BlobStore, faulty: FaultyProxy, headers: dict[str, str | None], expected: type[ServiceError]
) -> None:
    await store.put("k", CONTENT)
    blob = await found(store, "k")
    said = headers.get("content-length") or "10"
    faulty.fault(Fault(contains="/k", times=1, headers=headers, append=b"!" * (int(said) - 10), cut_after=int(said)))
    with pytest.raises(expected) as caught:
        await store.open("k", start=10, stop=20, if_match=blob.etag)
    assert type(caught.value) is expected
    assert await read_range(store, "k", 10, 20, blob.etag) == CONTENT[10:20]


@pytest.mark.parametrize(
    ("start", "stop", "expected"), [(0, 5, None), (0, 4, StorageError), (1, 5, StorageError), (0, 6, BlobChanged)]
)
async def test_a_server_that_ignores_the_range_is_believed_only_for_the_whole(
    store: S3BlobStore, faulty: FaultyProxy, start: int, stop: int, expected: type[ServiceError] | None
) -> None:
    """The answer is made up: the real server keeps to ranges."""
    faulty.fault(Fault(contains="/k", answer=answer("hello", etag='"e"')))
    if expected is None:
        assert await read_range(store, "k", start, stop, '"e"') == b"hello"
    else:
        with pytest.raises(expected):
            await store.open("k", start=start, stop=stop, if_match='"e"')


@pytest.mark.parametrize(
    ("pages", "prefix"),
    [
        ([listing("b", "a")], ""),
        ([listing("a", "a")], ""),
        ([listing("a/1", "b/1")], "a/"),
        ([listing("a", truncated=True)], ""),
        ([listing("a", truncated=True, token="t"), listing("b", truncated=True, token="t")], ""),
        ([listing("b", truncated=True, token="t"), listing("a")], ""),
    ],
    ids=["disorder", "twice", "outside", "no token", "circle", "disorder of pages"],
)
async def test_a_listing_that_is_not_in_order_or_does_not_end_is_an_error(
    store: S3BlobStore, faulty: FaultyProxy, pages: list[bytes], prefix: str
) -> None:
    """The listings are made up."""
    for page in pages:
        faulty.fault(Fault(contains="list-type", times=1, answer=page))
    with pytest.raises(StorageError):
        await list_keys(store, prefix)


async def test_keys_with_empty_parts_are_found_where_the_listing_has_them(
    store: S3BlobStore, faulty: FaultyProxy, s3_bucket: S3Bucket
) -> None:
    """AWS holds such keys. The real server here maps them to paths and lists another key, so the listing is made up."""
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="a//b", Body=b"bytes")
    assert await store.stat("a//b") is None
    faulty.fault(Fault(contains="list-type", answer=listing("a//b")))
    assert (await found(store, "a//b")).size == 5
    assert await read_range(store, "a//b", 0, 5) == b"bytes"


async def test_a_missing_key_asks_once_whether_the_bucket_is_there(store: S3BlobStore, faulty: FaultyProxy) -> None:
    for _ in range(3):
        assert await store.stat("missing") is None
    assert (faulty.count("HEAD"), faulty.count("GET")) == (3, 1)


async def test_an_etag_without_quotes_gets_them(store: S3BlobStore, faulty: FaultyProxy) -> None:
    await store.put("k", b"bytes")
    faulty.fault(Fault(method="HEAD", headers={"etag": "abc"}))
    faulty.fault(Fault(method="GET", headers={"etag": "abc"}))
    blob = await found(store, "k")
    assert blob.etag == '"abc"'


@pytest.mark.parametrize("nothing", ["", '""'])
async def test_an_object_without_an_etag_is_refused(store: S3BlobStore, faulty: FaultyProxy, nothing: str) -> None:
    """One version could not be told from the next, so nothing would notice that they were mixed."""
    await store.put("k", b"bytes")
    faulty.fault(Fault(method="HEAD", headers={"etag": nothing}))
    faulty.fault(Fault(method="GET", headers={"etag": nothing}))
    with pytest.raises(StorageError, match="no ETag"):
        await store.stat("k")
    with pytest.raises(BlobChanged):
        await store.open("k", start=0, stop=5, if_match='""')


async def test_an_encoding_of_the_upload_alone_is_not_the_blobs(
    store: S3BlobStore, faulty: FaultyProxy, s3_bucket: S3Bucket
) -> None:
    await s3_bucket.client.put_object(
        Bucket=s3_bucket.name, Key="k", Body=b"\x1f\x8b", ContentEncoding="gzip", ContentType="text/x"
    )
    blob = await found(store, "k")
    assert (blob.content_encoding, blob.content_type) == ("gzip", "text/x")
    assert await read_range(store, "k", 0, 2) == b"\x1f\x8b"
    for sent, expected in (("aws-chunked", None), ("aws-chunked, gzip", "gzip")):
        faulty.fault(Fault(method="HEAD", times=1, headers={"content-encoding": sent}))
        assert (await found(store, "k")).content_encoding == expected


async def test_a_put_carries_its_crc32(store: S3BlobStore, faulty: FaultyProxy) -> None:
    await store.put("k", b"123456789")
    sent = faulty.requests[-1].headers["x-amz-checksum-crc32"]
    assert base64.b64decode(sent).hex() == "cbf43926"
    assert (await found(store, "k")).crc32 == 0xCBF43926


# The server goes away


async def test_a_server_that_is_killed_is_unavailable_and_back_when_it_is_restarted(private_s3: PrivateS3) -> None:
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="bucket")
    options = replace(private_s3.server.options("bucket"), max_attempts=2)
    content = random.Random(4).randbytes(64 * 2**20)
    async with open_store(options) as store:
        await store.put("k", content)
        blob = await found(store, "k")
        reader = await store.open("k", start=0, stop=len(content), if_match=blob.etag)
        received = bytes(await reader.read())
        await private_s3.kill()
        async with asyncio.timeout(60):
            with pytest.raises(StorageUnavailable):
                while chunk := await reader.read():
                    received += chunk
            await reader.aclose()
            for call in (
                store.stat("k"),
                store.open("k", start=0, stop=1, if_match=None),
                list_keys(store),
                store.probe(),
            ):
                with pytest.raises(StorageUnavailable):
                    await call
        await private_s3.start()
        rest = await read_range(store, "k", len(received), len(content), blob.etag)
        assert received + rest == content


# Checksums


async def _multipart(
    bucket: S3Bucket, key: str, body: bytes, kind: Literal["COMPOSITE", "FULL_OBJECT"]
) -> list[tuple[int, int]]:
    """Uploads in parts of 5 MiB; each part's CRC-32 and size."""
    client = bucket.client
    where: Any = {"Bucket": bucket.name, "Key": key}
    begun = await client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32", ChecksumType=kind)
    parts: list[Any] = []
    for offset in range(0, len(body), PART):
        number = len(parts) + 1
        done = await client.upload_part(
            **where,
            UploadId=begun["UploadId"],
            PartNumber=number,
            Body=body[offset : offset + PART],
            ChecksumAlgorithm="CRC32",
        )
        parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumCRC32": done["ChecksumCRC32"]})
    await client.complete_multipart_upload(
        **where, UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}, ChecksumType=kind
    )
    pieces = [body[offset : offset + PART] for offset in range(0, len(body), PART)]
    return [(zlib.crc32(piece), len(piece)) for piece in pieces]


def attributes(
    etag: str, parts: list[tuple[int | None, int]], *, first: int = 1, following: int | None = None
) -> bytes:
    """A made-up answer to GetObjectAttributes with AWS's fields."""

    def crc(value: int | None) -> str:
        if value is None:
            return ""
        return f"<ChecksumCRC32>{base64.b64encode(value.to_bytes(4, 'big')).decode()}</ChecksumCRC32>"

    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><Size>{size}</Size>{crc(value)}</Part>"
        for number, (value, size) in enumerate(parts, first)
    )
    more = f"<NextPartNumberMarker>{following}</NextPartNumberMarker>" if following else ""
    return answer(
        '<?xml version="1.0"?><GetObjectAttributesResponse xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<ETag>{etag.strip(chr(34))}</ETag>"
        f"<ObjectParts><IsTruncated>{str(following is not None).lower()}</IsTruncated>{more}"
        f"{listed}</ObjectParts></GetObjectAttributesResponse>"
    )


BIG = random.Random(5).randbytes(2 * PART + 1234)


async def test_a_multipart_upload_with_a_checksum_of_the_whole_has_its_crc32(
    store: S3BlobStore, s3_bucket: S3Bucket
) -> None:
    await _multipart(s3_bucket, "k", BIG, "FULL_OBJECT")
    assert (await found(store, "k")).crc32 == zlib.crc32(BIG)


async def test_checksums_of_parts_are_not_asked_for_again_where_the_server_has_none(
    store: S3BlobStore, s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    """All of it real: versitygw answers GetObjectAttributes without ObjectParts."""
    await _multipart(s3_bucket, "k", BIG, "COMPOSITE")
    for _ in range(3):
        assert (await found(store, "k")).crc32 is None
    assert faulty.count("GET", "attributes") == 1


@pytest.mark.parametrize("status", [400, 403, 501])
async def test_a_refusal_to_tell_of_parts_is_remembered(
    store: S3BlobStore, s3_bucket: S3Bucket, faulty: FaultyProxy, status: int
) -> None:
    await _multipart(s3_bucket, "k", BIG, "COMPOSITE")
    faulty.fault(Fault(contains="attributes", status=status, code="Refused"))
    for _ in range(3):
        assert (await found(store, "k")).crc32 is None
    assert faulty.count("GET", "attributes") == 1


async def test_checksums_of_parts_are_combined(store: S3BlobStore, s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    """Real: the upload, its parts' checksums and HEAD. Made up, from these: the answer to GetObjectAttributes."""
    parts = await _multipart(s3_bucket, "k", BIG, "COMPOSITE")
    etag = (await found(store, "k")).etag
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as fresh:
        faulty.fault(Fault(contains="attributes", times=1, answer=attributes(etag, [*parts])))
        assert (await found(fresh, "k")).crc32 == zlib.crc32(BIG)
        one, *others = parts
        faulty.fault(Fault(contains="attributes", times=1, answer=attributes(etag, [one], following=1)))
        faulty.fault(Fault(contains="attributes", times=1, answer=attributes(etag, [*others], first=2)))
        assert (await found(fresh, "k")).crc32 == zlib.crc32(BIG)
    markers = [r.headers["x-amz-part-number-marker"] for r in faulty.requests if "attributes" in r.target]
    assert markers[-2:] == ["0", "1"]


async def test_parts_that_do_not_make_up_the_object_give_no_crc32(
    opener: Opener, s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    """The answers to GetObjectAttributes are made up."""
    parts = await _multipart(s3_bucket, "k", BIG, "COMPOSITE")
    async with opener() as store:
        etag = (await found(store, "k")).etag
    one, *others = parts
    for made_up in (
        attributes(etag, [*others]),
        attributes(etag, [one, *parts]),
        attributes(etag, [(None, one[1]), *others]),
        attributes('"another"', [*parts]),
        attributes(etag, [one, (1, 1)]),
    ):
        async with opener() as store:
            faulty.fault(Fault(contains="attributes", times=1, answer=made_up))
            assert (await found(store, "k")).crc32 is None


async def test_trouble_with_the_parts_is_trouble(store: S3BlobStore, s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    await _multipart(s3_bucket, "k", BIG, "COMPOSITE")
    faulty.fault(Fault(contains="attributes", status=503, code="SlowDown"))
    with pytest.raises(StorageUnavailable):
        await store.stat("k")


async def test_a_copy_that_reports_crc32_0_is_not_believed(store: S3BlobStore, s3_bucket: S3Bucket) -> None:
    """Real: versitygw reports 0 for an object that is copied onto itself with new metadata."""
    client, name = s3_bucket.client, s3_bucket.name
    await client.put_object(Bucket=name, Key="k", Body=b"hello", ChecksumAlgorithm="SHA256")
    await client.copy_object(
        Bucket=name,
        Key="k",
        CopySource={"Bucket": name, "Key": "k"},
        MetadataDirective="REPLACE",
        ChecksumAlgorithm="CRC32",
    )
    head = await client.head_object(Bucket=name, Key="k", ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"] == "AAAAAA=="
    assert (await found(store, "k")).crc32 is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ChecksumAlgorithm": "SHA256"}, "ChecksumSHA256"),
        ({"ChecksumCRC32C": "mnG7TA=="}, "ChecksumCRC32C"),
        ({"ContentMD5": "XUFAKrxLKna5cZ2REBfFkg=="}, "ChecksumCRC64NVME"),  # what AWS adds, too
    ],
    ids=str,
)
async def test_other_checksums_are_no_crc32(
    store: S3BlobStore, s3_bucket: S3Bucket, given: dict[str, Any], told: str
) -> None:
    async with open_store(s3_bucket.options()) as quiet:  # its client adds no checksum of its own
        await quiet._client.put_object(Bucket=s3_bucket.name, Key="k", Body=b"hello", **given)
    head = await s3_bucket.client.head_object(Bucket=s3_bucket.name, Key="k", ChecksumMode="ENABLED")
    assert told in head
    assert (await found(store, "k")).crc32 is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-amz-checksum-type": None}, 0x3610A686),
        ({"x-amz-checksum-type": None, "etag": '"0123456789abcdef-2"'}, None),
        ({"x-amz-checksum-type": None, "x-amz-checksum-crc32": "NhCmhg==-2"}, None),
        ({"x-amz-checksum-crc32": "NhCmhg"}, None),
        ({"x-amz-checksum-crc32": "NhCmhgAA"}, None),
        ({"x-amz-checksum-crc32": "é".encode().decode("latin-1")}, None),
        ({"x-amz-checksum-type": "UNHEARD_OF"}, None),
    ],
    ids=str,
)
async def test_a_checksum_counts_only_when_it_is_surely_of_the_whole(
    store: S3BlobStore, faulty: FaultyProxy, headers: dict[str, str | None], expected: int | None
) -> None:
    await store.put("k", b"hello")
    faulty.fault(Fault(method="HEAD", headers=headers))
    assert (await found(store, "k")).crc32 == expected


async def test_an_empty_object_has_crc32_0(store: S3BlobStore) -> None:
    await store.put("k", b"")
    assert (await found(store, "k")).crc32 == 0


async def test_a_listing_does_not_know_checksums(store: S3BlobStore) -> None:
    await store.put("k", b"hello")
    assert [(blob.crc32, blob.content_type) for blob in await list_all(store)] == [(None, None)]


# Connections


async def test_a_reader_closed_early_closes_its_connection_at_once(store: S3BlobStore, faulty: FaultyProxy) -> None:
    await store.put("k", CONTENT)
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    await reader.read()
    await reader.aclose()
    await faulty.until(lambda: faulty.open_connections == 0)


async def test_a_reader_read_to_its_end_gives_its_connection_back(store: S3BlobStore, faulty: FaultyProxy) -> None:
    await store.put("k", CONTENT)
    before = faulty.connections  # the SDK's
    for _ in range(10):
        assert await read_range(store, "k", 0, len(CONTENT)) == CONTENT
    assert (faulty.connections, faulty.open_connections) == (before + 1, before + 1)


async def test_the_pool_outlives_200_aborted_reads(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(max_connections=4) as store:
        await store.put("k", CONTENT)

        async def abort(cancelled: bool) -> None:
            reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
            try:
                await reader.read()
                if cancelled:
                    async with asyncio.timeout(0):
                        while await reader.read():
                            pass
            except TimeoutError:
                pass
            finally:
                await reader.aclose()

        async with asyncio.timeout(60):
            await asyncio.gather(*(abort(cancelled=i % 2 == 0) for i in range(200)))
            await faulty.until(lambda: faulty.open_connections <= 4)
            assert await read_range(store, "k", 0, len(CONTENT)) == CONTENT


async def test_opens_that_are_cancelled_leave_no_connection_behind(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener(max_connections=2) as store:
        await store.put("k", CONTENT)
        for turns in range(40):
            opening = asyncio.ensure_future(store.open("k", start=0, stop=len(CONTENT), if_match=None))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                reader = await opening
            except asyncio.CancelledError:
                continue
            await reader.aclose()
        assert await read_range(store, "k", 0, len(CONTENT)) == CONTENT


async def test_a_call_that_gets_no_connection_ends_at_its_deadline(opener: Opener) -> None:
    async with opener(max_connections=1, request_timeout=0.3) as store:
        await store.put("k", CONTENT)
        reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
        async with asyncio.timeout(20):
            with pytest.raises(StorageTimeout):
                await store.open("k", start=0, stop=1, if_match=None)
        assert await read_all(reader) == CONTENT
        assert await read_range(store, "k", 0, len(CONTENT)) == CONTENT


async def test_readers_that_hold_every_connection_do_not_keep_a_stat_waiting(opener: Opener) -> None:
    async with opener(max_connections=1) as store:
        await store.put("k", CONTENT)
        reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
        assert (await found(store, "k")).size == len(CONTENT)
        assert await read_all(reader) == CONTENT


# Signed URLs


@pytest.mark.parametrize("key", ["k", "sp ace/pl+us/per%cent/é😀"])
async def test_a_signed_url_gives_the_blob_with_the_headers_asked_for(
    opener: Opener, s3_bucket: S3Bucket, faulty: FaultyProxy, key: str
) -> None:
    inside = s3_bucket.server.endpoint
    async with opener(endpoint=inside, public_endpoint=faulty.endpoint, prefix="p/") as store:
        port: BlobStore = store
        assert isinstance(port, PresignsDownloads)
        await store.put(key, b"bytes")
        disposition = "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20%C3%A9.txt"
        url = await store.presign_get(
            key, expires_in=60, content_disposition=disposition, content_type="text/x-special"
        )
        assert url.startswith(faulty.endpoint + "/")
        assert "X-Amz-Expires=60" in url
        async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True)) as response:
            assert response.status == 200
            assert await response.read() == b"bytes"
            assert response.headers["content-disposition"] == disposition
            assert response.headers["content-type"] == "text/x-special"
        assert faulty.count("GET") == 1


async def test_a_key_that_s3_cannot_hold_has_no_signed_url(store: S3BlobStore) -> None:
    for key in ("", "\ud800", "a\0", "../k", "k" * 1_025):
        with pytest.raises(BlobNotFound):
            await store.presign_get(key, expires_in=60, content_disposition="inline", content_type="a/b")


async def test_the_probe_is_quick_to_give_up(opener: Opener, faulty: FaultyProxy) -> None:
    async with opener() as store:
        store._probe_timeout = 0.1
        faulty.fault(Fault(latency=60))
        begun = time.monotonic()
        with pytest.raises(StorageTimeout):
            await store.probe()
        assert time.monotonic() - begun < 10
