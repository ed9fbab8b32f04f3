"""What the BlobStore port promises of uploads, of every backend that has the ability: a local directory, a real S3.

Presigned PUTs are sent as any client would, to the real server, which is what refuses them.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from storage_proxy.common.errors import (
    BlobExists,
    ChecksumMismatch,
    PayloadTooLarge,
    ServiceError,
    SizeMismatch,
    StorageError,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import PresignsUploads, ReceivesUploads, UploadTerms
from storage_proxy.stores.s3 import S3BlobStore
from storage_proxy.stores.s3_uploads import PART_BYTES
from tests.support.blobs import found, list_keys, read_range
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import PrivateS3, S3Bucket, open_store
from tests.support.uploads import Gone, Held, chunks, content_of, cut

SMALL = content_of(200_000)
BIG = content_of(2 * PART_BYTES + 12_345)
PLENTY = 10**9
ANY = UploadTerms()

UNSAFE_KEYS = ["", "/", "/x", "x//y", "./x", "x/../y", "folder/", "nul\0", "\ud800", "k" * 1_100]


@dataclass(frozen=True)
class Backend:
    """A store that receives, and what it holds that is no blob."""

    store: LocalBlobStore | S3BlobStore
    leftovers: Callable[[], Awaitable[Sequence[str]]]
    without_bucket: LocalBlobStore | S3BlobStore


@pytest.fixture
async def local_backend(tmp_path: Path) -> AsyncIterator[Backend]:
    root = tmp_path / "blobs"
    root.mkdir()

    async def leftovers() -> Sequence[str]:
        return [path.name for path in root.glob(".storage-proxy/tmp/*")]

    store, elsewhere = LocalBlobStore(root, chunk_bytes=100_000), LocalBlobStore(tmp_path / "nowhere")
    yield Backend(store, leftovers, elsewhere)
    await store.aclose()
    await elsewhere.aclose()


@pytest.fixture
async def s3_backend(s3_bucket: S3Bucket) -> AsyncIterator[Backend]:
    async def leftovers() -> Sequence[str]:
        answer = await s3_bucket.client.list_multipart_uploads(Bucket=s3_bucket.name)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    options = replace(s3_bucket.options(), prefix="teams/ä+b/")
    nowhere = replace(options, bucket="there-is-no-such-bucket")
    async with open_store(options) as store, open_store(nowhere) as elsewhere:
        yield Backend(store, leftovers, elsewhere)


@pytest.fixture(params=["local", "s3"])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.getfixturevalue(f"{request.param}_backend")
    return made


@pytest.fixture
def store(backend: Backend) -> LocalBlobStore | S3BlobStore:
    return backend.store


async def nothing_is_left(backend: Backend) -> None:
    assert await list_keys(backend.store) == []
    assert await backend.leftovers() == []


# receive


def test_every_backend_receives(store: LocalBlobStore | S3BlobStore) -> None:
    assert isinstance(store, ReceivesUploads)


@pytest.mark.parametrize("content", [b"", b"x", SMALL, BIG, BIG[:PART_BYTES], BIG[: 2 * PART_BYTES]], ids=len)
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_received_is_a_blob(backend: Backend, content: bytes, announced: bool) -> None:
    store = backend.store
    crc32 = zlib.crc32(content)
    terms = UploadTerms("text/plain", len(content), crc32) if announced else UploadTerms("text/plain")
    blob = await store.receive("runs/r1/ü b.txt", chunks(content), terms, max_bytes=PLENTY)
    known = await found(store, "runs/r1/ü b.txt")
    assert (blob.size, blob.crc32, blob.content_type) == (len(content), crc32, "text/plain")
    assert blob == replace(known, crc32=crc32)
    assert known.crc32 in {None, crc32}
    if content:
        assert await read_range(store, blob.key, 0, len(content), blob.etag) == content
    assert await backend.leftovers() == []


async def test_s3_knows_the_crc32_of_what_was_received(s3_backend: Backend) -> None:
    for key, content in (("small", SMALL), ("big", BIG)):
        await s3_backend.store.receive(key, chunks(content), ANY, max_bytes=PLENTY)
        assert (await found(s3_backend.store, key)).crc32 == zlib.crc32(content)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 90_000), max_size=12))
async def test_chunks_of_any_size_make_up_the_body(local_backend: Backend, sizes: list[int]) -> None:
    content = content_of(sum(sizes))

    async def body() -> AsyncIterator[bytes]:
        start = 0
        for size in sizes:
            yield content[start : start + size]
            start += size

    blob = await local_backend.store.receive("k", body(), ANY, max_bytes=PLENTY)
    assert (blob.size, blob.crc32) == (len(content), zlib.crc32(content))
    if content:
        assert await read_range(local_backend.store, "k", 0, len(content)) == content
    await local_backend.store.delete_many(["k"])


@pytest.mark.parametrize("key", UNSAFE_KEYS, ids=lambda key: ascii(key)[:20])
async def test_a_key_that_the_bucket_cannot_hold_is_unsafe(backend: Backend, key: str) -> None:
    with pytest.raises(UnsafeName):
        await backend.store.receive(key, chunks(SMALL), ANY, max_bytes=PLENTY)
    await nothing_is_left(backend)


async def test_a_part_of_a_key_that_is_too_long_for_a_file_is_unsafe(
    local_backend: Backend, s3_bucket: S3Bucket
) -> None:
    """AWS would hold it; the real S3 server here keeps files, and answers 500 when its parts are put together."""
    async with open_store(s3_bucket.options()) as s3_store:
        for store in (local_backend.store, s3_store):
            for content in (SMALL, BIG):
                with pytest.raises((UnsafeName, StorageUnavailable) if content is BIG else UnsafeName):
                    await store.receive("k" * 300, chunks(content), ANY, max_bytes=PLENTY)
                assert await list_keys(store) == []
    assert await local_backend.leftovers() == []
    listed = await s3_bucket.client.list_multipart_uploads(Bucket=s3_bucket.name)
    assert listed.get("Uploads", []) == []


async def test_a_key_beneath_a_blob_or_above_one_is_unsafe_where_keys_are_paths(backend: Backend) -> None:
    """The real S3 server here maps names to paths, and answers 500 for the last of these; AWS would hold both."""
    await backend.store.put("a/b", b"1")
    for content, key in ((SMALL, "a/b/c"), (SMALL, "a"), (BIG, "a/b/c"), (BIG, "a")):
        with pytest.raises(UnsafeName if content is SMALL or key != "a" else (UnsafeName, StorageUnavailable)):
            await backend.store.receive(key, chunks(content), ANY, max_bytes=PLENTY)
    assert await list_keys(backend.store) == ["a/b"]
    assert await backend.leftovers() == []


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: (UploadTerms(size=len(content) + 1), PLENTY), SizeMismatch),
        (lambda content: (UploadTerms(size=len(content) - 1), PLENTY), SizeMismatch),
        (lambda content: (UploadTerms(size=0), PLENTY), SizeMismatch),
        (lambda content: (UploadTerms(crc32=zlib.crc32(content) ^ 1), PLENTY), ChecksumMismatch),
        (lambda _: (ANY, len(SMALL) - 1), PayloadTooLarge),
        (lambda content: (UploadTerms(size=len(content)), len(content) - 1), PayloadTooLarge),
        (lambda _: (ANY, 0), PayloadTooLarge),
    ],
    ids=["longer", "shorter", "empty", "crc32", "too large", "announced too large", "nothing"],
)
async def test_a_body_that_is_not_what_was_announced_leaves_nothing(
    backend: Backend,
    content: bytes,
    change: Callable[[bytes], tuple[UploadTerms, int]],
    expected: type[ServiceError],
) -> None:
    terms, max_bytes = change(content)
    with pytest.raises(expected):
        await backend.store.receive("k", chunks(content), terms, max_bytes=max_bytes)
    await nothing_is_left(backend)


async def test_a_body_announced_as_too_large_is_not_read(store: LocalBlobStore | S3BlobStore) -> None:
    body = Held(SMALL, 0)
    with pytest.raises(PayloadTooLarge):
        await store.receive("k", body, UploadTerms(size=len(SMALL)), max_bytes=5)
    assert not body.reached.is_set()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(after=st.one_of(st.integers(0, len(BIG)), st.sampled_from([0, PART_BYTES, 2 * PART_BYTES, len(BIG)])))
async def test_a_body_cut_at_any_byte_leaves_nothing(backend: Backend, after: int) -> None:
    with pytest.raises(Gone):
        await backend.store.receive("a/k", cut(BIG, after), ANY, max_bytes=PLENTY)
    await nothing_is_left(backend)


@pytest.mark.parametrize("after", [0, 1, 150_000, PART_BYTES + 5, 2 * PART_BYTES + 5, len(BIG) - 1])
async def test_a_cancellation_in_the_middle_leaves_nothing(backend: Backend, after: int) -> None:
    body = Held(BIG, after)
    receiving = asyncio.create_task(backend.store.receive("k", body, ANY, max_bytes=PLENTY))
    await body.reached.wait()
    assert await list_keys(backend.store) == []
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    await nothing_is_left(backend)


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
async def test_a_cancellation_at_any_moment_leaves_nothing_or_comes_too_late(backend: Backend, content: bytes) -> None:
    for turns in [*range(30), *range(30, 400, 40)]:
        receiving = asyncio.create_task(backend.store.receive("k", chunks(content, 1 << 20), ANY, max_bytes=PLENTY))
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        try:
            await receiving
        except asyncio.CancelledError:
            await nothing_is_left(backend)
        else:
            assert await list_keys(backend.store) == ["k"]
            await backend.store.delete_many(["k"])


async def test_a_cancellation_while_the_object_is_being_created_takes_it_back(
    s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    """Real but for the delay of the answer that says that the object is there."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        for content, method, contains in ((SMALL, "PUT", "/k"), (BIG, "POST", "uploadId")):
            count = faulty.count(method, contains)
            faulty.fault(Fault(method=method, contains=contains, times=1, latency=0.3))
            receiving = asyncio.create_task(store.receive("k", chunks(content), ANY, max_bytes=PLENTY))
            await faulty.until(lambda: faulty.count(method, contains) > count)  # noqa: B023
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert await list_keys(store) == []
            assert faulty.count("DELETE", "/k") >= 1


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
async def test_a_blob_that_is_there_already_stays(backend: Backend, content: bytes) -> None:
    await backend.store.receive("k", chunks(b"the first"), ANY, max_bytes=PLENTY)
    with pytest.raises(BlobExists):
        await backend.store.receive("k", chunks(content), ANY, max_bytes=PLENTY)
    assert await read_range(backend.store, "k", 0, 9) == b"the first"
    assert await backend.leftovers() == []


@pytest.mark.parametrize("size", [len(SMALL), len(BIG)])
async def test_of_many_uploads_of_one_key_exactly_one_wins(backend: Backend, size: int) -> None:
    bodies = [content_of(size, seed) for seed in range(4)]
    results = await asyncio.gather(
        *(backend.store.receive("k", chunks(body), ANY, max_bytes=PLENTY) for body in bodies), return_exceptions=True
    )
    winners = [body for body, result in zip(bodies, results, strict=True) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, BlobExists) for result in results if isinstance(result, BaseException))
    assert await read_range(backend.store, "k", 0, size) == winners[0]
    assert await backend.leftovers() == []


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
async def test_a_blob_that_comes_while_another_is_received_stays(backend: Backend, content: bytes) -> None:
    body = Held(content, len(content) - 1)
    receiving = asyncio.create_task(backend.store.receive("k", body, ANY, max_bytes=PLENTY))
    await body.reached.wait()
    await backend.store.put("k", b"came first")
    body.release.set()
    with pytest.raises(BlobExists):
        await receiving
    assert await read_range(backend.store, "k", 0, 10) == b"came first"
    assert await backend.leftovers() == []


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
async def test_a_reader_meanwhile_sees_no_blob_or_the_whole(backend: Backend, content: bytes) -> None:
    store = backend.store
    receiving = asyncio.create_task(store.receive("k", chunks(content), ANY, max_bytes=PLENTY))
    looks = 0
    while not receiving.done():
        blob = await store.stat("k")
        assert blob is None or blob.size == len(content)
        if blob is not None:
            assert await read_range(store, "k", 0, len(content), blob.etag) == content
        looks += 1
    await receiving
    assert looks


async def test_a_bucket_that_does_not_exist_receives_nothing(backend: Backend) -> None:
    for content in (SMALL, BIG):
        with pytest.raises(StorageError):
            await backend.without_bucket.receive("k", chunks(content), ANY, max_bytes=PLENTY)


async def test_a_closed_store_receives_nothing(backend: Backend) -> None:
    await backend.store.aclose()
    with pytest.raises(StorageUnavailable):
        await backend.store.receive("k", chunks(SMALL), ANY, max_bytes=PLENTY)


async def test_a_folder_that_is_removed_again_and_again_does_not_lose_an_upload(local_backend: Backend) -> None:
    store = local_backend.store
    receiving = [store.receive(f"runs/r1/{i}/k", chunks(SMALL), ANY, max_bytes=PLENTY) for i in range(40)]
    uploads = asyncio.gather(*receiving)
    while not uploads.done():
        await store.put("runs/r1/x/y", b"")
        await store.delete_many(["runs/r1/x/y"])
    assert [blob.size for blob in await uploads] == [len(SMALL)] * 40


async def test_discarding_uploads_ends_those_begun_before_a_moment(backend: Backend) -> None:
    body = Held(BIG, len(BIG) - 1)
    receiving = asyncio.create_task(backend.store.receive("runs/r1/k", body, ANY, max_bytes=PLENTY))
    await body.reached.wait()
    assert await backend.store.discard_uploads("runs/", older_than=0.0) == 0
    assert len(await backend.leftovers()) == 1
    assert await backend.store.discard_uploads("runs/", older_than=4e9) == 1
    body.release.set()
    with pytest.raises((StorageUnavailable, StorageError)):
        await receiving
    await nothing_is_left(backend)


# S3 in trouble


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["small", "big"])
async def test_an_answer_that_is_lost_does_not_make_an_upload_its_own_rival(
    s3_bucket: S3Bucket, faulty: FaultyProxy, content: bytes
) -> None:
    """Real but for the lost answer: the client library sends the request again, and S3 says that the blob exists."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        method, contains = ("PUT", "/k") if content is SMALL else ("POST", "uploadId")
        faulty.fault(Fault(method=method, contains=contains, times=1, cut_head=True))
        blob = await store.receive("k", chunks(content), ANY, max_bytes=PLENTY)
        assert blob.crc32 == zlib.crc32(content)
        assert faulty.count(method, contains) == 2
        assert await read_range(store, "k", 0, len(content)) == content


@pytest.mark.parametrize(
    ("method", "contains"), [("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")], ids=str
)
async def test_trouble_at_any_step_of_a_multipart_upload_leaves_nothing(
    s3_bucket: S3Bucket, s3_backend: Backend, faulty: FaultyProxy, method: str, contains: str
) -> None:
    async with open_store(replace(s3_bucket.options(endpoint=faulty.endpoint), max_attempts=2)) as store:
        faulty.fault(Fault(method=method, contains=contains, status=503, code="SlowDown"))
        with pytest.raises(StorageUnavailable):
            await store.receive("k", chunks(BIG), ANY, max_bytes=PLENTY)
        await nothing_is_left(s3_backend)


async def test_a_server_that_is_killed_makes_an_upload_unavailable(private_s3: PrivateS3) -> None:
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="bucket")
    async with open_store(replace(private_s3.server.options("bucket"), max_attempts=2)) as store:
        body = Held(BIG, PART_BYTES + 5)
        receiving = asyncio.create_task(store.receive("k", body, ANY, max_bytes=PLENTY))
        await body.reached.wait()
        await private_s3.kill()
        body.release.set()
        with pytest.raises(StorageUnavailable):
            await receiving
        for call in (
            store.receive("k", chunks(SMALL), ANY, max_bytes=PLENTY),
            store.delete_many(["k"]),
            store.discard_uploads("", older_than=4e9),
            anext(store.erase("k/")),
        ):
            with pytest.raises(StorageUnavailable):
                await call
        await private_s3.start()
        assert await store.discard_uploads("", older_than=4e9) == 1  # what nobody could abort
        assert await list_keys(store) == []


# presign


async def send(url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.put(URL(url, encoded=True), data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def test_a_local_bucket_has_no_presigned_uploads(local_backend: Backend) -> None:
    assert not isinstance(local_backend.store, PresignsUploads)


@pytest.mark.parametrize("key", ["k", "runs/r1/sp ace/pl+us/per%cent/é😀", "til~de'(x)*!&=?#"])
@pytest.mark.parametrize("public", [False, True])
async def test_a_presigned_put_creates_the_blob_once(
    s3_bucket: S3Bucket, faulty: FaultyProxy, key: str, public: bool
) -> None:
    options = replace(s3_bucket.options(), prefix="p ä/", public_endpoint=faulty.endpoint if public else None)
    async with open_store(options) as store:
        assert isinstance(store, PresignsUploads)
        terms = UploadTerms("text/x-special; a=b", len(SMALL), zlib.crc32(SMALL))
        put = await store.presign_put(key, terms, expires_in=60)
        assert put.url.startswith((faulty.endpoint if public else s3_bucket.server.endpoint) + "/")
        assert (await send(put.url, put.headers, SMALL))[0] == 200
        blob = await found(store, key)
        assert (blob.size, blob.crc32, blob.content_type) == (len(SMALL), zlib.crc32(SMALL), "text/x-special; a=b")
        assert (await send(put.url, put.headers, SMALL))[0] == 412
        assert faulty.count("PUT") == (2 if public else 0)


async def test_a_presigned_put_takes_only_what_was_announced(s3_backend: Backend) -> None:
    assert isinstance(s3_backend.store, S3BlobStore)
    terms = UploadTerms("text/plain", len(SMALL), zlib.crc32(SMALL))
    put = await s3_backend.store.presign_put("k", terms, expires_in=60)
    status, text = await send(put.url, put.headers, bytes(len(SMALL)))
    assert (status, "BadDigest" in text) == (400, True)
    other = {**put.headers, "content-length": str(len(SMALL) - 1)}
    assert (await send(put.url, other, SMALL[:-1]))[0] == 403
    for name in ("if-none-match", "x-amz-checksum-crc32"):
        less = {key: value for key, value in put.headers.items() if key != name}
        assert (await send(put.url, less, SMALL))[0] == 403, name
    assert (await send(put.url, {**put.headers, "content-type": "text/html"}, SMALL))[0] == 403
    assert (await send(put.url.replace("/k?", "/l?"), put.headers, SMALL))[0] == 403
    await nothing_is_left(s3_backend)
    assert (await send(put.url, put.headers, SMALL))[0] == 200


async def test_a_presigned_put_without_terms_still_creates_once(s3_backend: Backend) -> None:
    assert isinstance(s3_backend.store, S3BlobStore)
    put = await s3_backend.store.presign_put("k", ANY, expires_in=60)
    assert dict(put.headers) == {"if-none-match": "*"}
    assert (await send(put.url, put.headers, SMALL))[0] == 200
    assert (await send(put.url, put.headers, b"another"))[0] == 412


async def test_a_presigned_put_ends_with_its_time(s3_backend: Backend) -> None:
    assert isinstance(s3_backend.store, S3BlobStore)
    signer = s3_backend.store._public_signer
    assert signer is not None
    now = signer._clock()
    signer._clock = lambda: now - 100
    early = await s3_backend.store.presign_put("k", ANY, expires_in=60)
    assert (await send(early.url, early.headers, SMALL))[0] == 403
    late = await s3_backend.store.presign_put("k", ANY, expires_in=160)
    assert (await send(late.url, late.headers, SMALL))[0] == 200


@pytest.mark.parametrize("key", ["", "/x", "x//y", "../k", "folder/", "nul\0", "\ud800", "k" * 1_100], ids=ascii)
async def test_a_key_that_s3_cannot_hold_has_no_presigned_put(s3_backend: Backend, key: str) -> None:
    assert isinstance(s3_backend.store, S3BlobStore)
    with pytest.raises(UnsafeName):
        await s3_backend.store.presign_put(key, ANY, expires_in=60)
