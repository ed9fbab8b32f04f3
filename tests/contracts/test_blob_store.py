"""What the BlobStore port promises, of every backend: a local directory and a real S3 server."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import BlobChanged, BlobNotFound, StorageError, StorageUnavailable
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStore
from tests.support.blobs import found, list_all, list_keys, read_all, read_range
from tests.support.s3 import S3Bucket, open_store

CONTENT = random.Random(1).randbytes(3 * 2**20 + 17)

KEYS_NOBODY_HOLDS = [
    "",
    "/",
    "//",
    "/x/a",
    "x//a",
    "./x/a",
    "x/./a",
    "x/../x/a",
    "../x/a",
    "../../../../../../etc/passwd",
    "x/a/",
    "x/a/b",
    "x",
    "nul\0",
    "x/a\0",
    "k" * 300,
    "k" * 5000,
    "k/" * 600,
    "\ud800",
    "\udcff",
    "\udcc3\udca9",  # escaped bytes that spell "é"
]


@dataclass(frozen=True)
class Backend:
    """A store, and the means to change what it holds behind its back."""

    store: BlobStore
    delete: Callable[[str], Awaitable[None]]
    without_bucket: BlobStore


@pytest.fixture
async def local_backend(tmp_path: Path) -> AsyncIterator[Backend]:
    root = tmp_path / "blobs"
    root.mkdir()

    async def delete(key: str) -> None:
        (root / key).unlink()

    store = LocalBlobStore(root, chunk_bytes=256 * 1024)
    elsewhere = LocalBlobStore(tmp_path / "nowhere")
    yield Backend(store, delete, elsewhere)
    await store.aclose()
    await elsewhere.aclose()


@pytest.fixture
async def s3_backend(s3_bucket: S3Bucket) -> AsyncIterator[Backend]:
    async def delete(key: str) -> None:
        await s3_bucket.client.delete_object(Bucket=s3_bucket.name, Key=key)

    options = s3_bucket.options()
    nowhere = replace(options, bucket="there-is-no-such-bucket")
    async with open_store(options) as store, open_store(nowhere) as elsewhere:
        yield Backend(store, delete, elsewhere)


@pytest.fixture
async def s3_prefix_backend(s3_bucket: S3Bucket) -> AsyncIterator[Backend]:
    """A bucket's prefix, with other objects on either side of it."""
    prefix = "teams/ä+b/"

    async def delete(key: str) -> None:
        await s3_bucket.client.delete_object(Bucket=s3_bucket.name, Key=prefix + key)

    for neighbour in ("aaa", "teams/z", "teams/ä+a", "zzz"):
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=neighbour, Body=b"a neighbour's")
    options = replace(s3_bucket.options(), prefix=prefix)
    nowhere = replace(options, bucket="there-is-no-such-bucket")
    async with open_store(options) as store, open_store(nowhere) as elsewhere:
        yield Backend(store, delete, elsewhere)


@pytest.fixture(params=["local", "s3", "s3_prefix"])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.getfixturevalue(f"{request.param}_backend")
    return made


@pytest.fixture
def store(backend: Backend) -> BlobStore:
    return backend.store


# stat


async def test_a_blob_has_the_size_and_type_it_was_put_with(store: BlobStore) -> None:
    await store.put("a/b.bin", CONTENT)
    blob = await found(store, "a/b.bin")
    assert (blob.key, blob.size) == ("a/b.bin", len(CONTENT))
    assert blob.etag.startswith('"')
    assert blob.etag.endswith('"')
    assert blob.content_encoding is None


async def test_an_empty_blob_is_a_blob_of_size_0(store: BlobStore) -> None:
    await store.put("empty", b"")
    assert (await found(store, "empty")).size == 0


async def test_a_key_that_is_not_there_is_none(store: BlobStore) -> None:
    await store.put("x/a", b"1")
    assert await store.stat("x/b") is None
    assert await store.stat("y") is None


@pytest.mark.parametrize("key", KEYS_NOBODY_HOLDS, ids=lambda key: ascii(key)[:20])
async def test_a_key_that_no_backend_holds_is_absent_even_if_its_path_leads_to_a_blob(
    store: BlobStore, key: str
) -> None:
    await store.put("x/a", b"1")
    await store.put("é", b"1")
    assert await store.stat(key) is None
    with pytest.raises(BlobNotFound):
        await store.open(key, start=0, stop=1, if_match=None)
    assert await list_keys(store, key + "q") == []


@pytest.mark.parametrize("key", ["", "/x", "x//y", "x/../y", "./y", "nul\0", "\ud800"], ids=ascii)
async def test_nothing_is_put_under_a_key_that_no_backend_holds(store: BlobStore, key: str) -> None:
    with pytest.raises(StorageError):
        await store.put(key, b"1")
    assert await list_keys(store) == []


KEYS = [
    "sp ace",
    "pl+us",
    "per%cent",
    "per%2Fcent",
    "per%",
    "é",
    "😀/ü",
    "q?a=b&c#d",
    "semi;colon",
    "quo'te\"",
    "back\\s",
]


@pytest.mark.parametrize("key", KEYS)
async def test_a_key_is_taken_literally(store: BlobStore, key: str) -> None:
    await store.put(key, b"literally")
    blob = await found(store, key)
    assert await read_range(store, key, 0, 9, blob.etag) == b"literally"
    assert await list_keys(store) == [key]
    assert await list_keys(store, key) == [key]


async def test_another_content_is_another_version(store: BlobStore) -> None:
    await store.put("k", b"one")
    first = await found(store, "k")
    await store.put("k", b"two")
    second = await found(store, "k")
    assert first.etag != second.etag
    assert await read_range(store, "k", 0, 3, second.etag) == b"two"


# open and read


async def test_a_whole_blob_is_read_back(store: BlobStore) -> None:
    await store.put("k", CONTENT)
    assert await read_range(store, "k", 0, len(CONTENT), (await found(store, "k")).etag) == CONTENT


async def test_a_reader_at_its_end_stays_there(store: BlobStore) -> None:
    await store.put("k", b"bytes")
    reader = await store.open("k", start=0, stop=5, if_match=None)
    assert bytes(await reader.read()) == b"bytes"
    assert await reader.read() == b""
    assert await reader.read() == b""
    await reader.aclose()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.tuples(st.integers(0, 70_000), st.integers(0, 70_000)).filter(lambda ends: ends[0] != ends[1]))
async def test_any_range_is_exactly_those_bytes(store: BlobStore, ends: tuple[int, int]) -> None:
    start, stop = sorted(ends)
    blob = await store.stat("k")
    if blob is None:
        await store.put("k", CONTENT[:70_000])
        blob = await found(store, "k")
    assert await read_range(store, "k", start, stop, blob.etag) == CONTENT[start:stop]


async def test_many_ranges_are_read_at_once(store: BlobStore) -> None:
    await store.put("k", CONTENT)
    step = len(CONTENT) // 40
    ranges = [(i * step, i * step + step) for i in range(40)]
    pieces = await asyncio.gather(*(read_range(store, "k", start, stop) for start, stop in ranges))
    assert b"".join(pieces) == CONTENT[: 40 * step]


async def test_a_blob_that_is_gone_is_not_found(backend: Backend) -> None:
    await backend.store.put("k", b"one")
    blob = await found(backend.store, "k")
    await backend.delete("k")
    with pytest.raises(BlobNotFound):
        await backend.store.open("k", start=0, stop=3, if_match=blob.etag)
    with pytest.raises(BlobNotFound):
        await backend.store.open("k", start=0, stop=3, if_match=None)


async def test_a_blob_replaced_since_stat_is_changed(store: BlobStore) -> None:
    await store.put("k", b"one")
    before = await found(store, "k")
    await store.put("k", b"two")
    with pytest.raises(BlobChanged):
        await store.open("k", start=0, stop=3, if_match=before.etag)


async def test_a_blob_replaced_while_it_is_read_is_never_a_mixture(store: BlobStore) -> None:
    await store.put("k", CONTENT)
    blob = await found(store, "k")
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=blob.etag)
    first = bytes(await reader.read())
    await store.put("k", bytes(len(CONTENT)))
    try:
        rest = await read_all(reader)
    except (BlobChanged, StorageUnavailable):
        rest = None
    assert rest is None or first + rest == CONTENT


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (3, 6), (5, 6), (6, 7), (100, 200)])
async def test_a_range_outside_of_the_blob_means_that_it_changed(store: BlobStore, start: int, stop: int) -> None:
    await store.put("k", b"bytes")
    blob = await found(store, "k")
    for if_match in (blob.etag, None):
        with pytest.raises(BlobChanged):
            await store.open("k", start=start, stop=stop, if_match=if_match)


async def test_a_reader_can_be_closed_early_and_again(store: BlobStore) -> None:
    await store.put("k", CONTENT)
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    await reader.read()
    await reader.aclose()
    await reader.aclose()
    with pytest.raises(StorageUnavailable):
        while await reader.read():
            pass


async def test_a_cancelled_read_leaves_the_reader_closable(store: BlobStore) -> None:
    await store.put("k", CONTENT)
    for _ in range(20):
        reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
        await reader.read()
        reading = asyncio.ensure_future(reader.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await reader.aclose()
    assert await read_range(store, "k", 0, len(CONTENT)) == CONTENT


# list


async def test_a_listing_is_in_the_byte_order_of_whole_keys(store: BlobStore) -> None:
    keys = ["a", "a-b", "a.c", "b/x", "b/y/z", "b-", "b.d", "b0", "b/y.z", "é", "￮", "😀", "z z", "Z", "_"]
    for key in keys:
        await store.put(key, b"1")
    assert await list_keys(store) == sorted(keys, key=str.encode)


async def test_a_listing_agrees_with_stat(store: BlobStore) -> None:
    for key in ("a.txt", "d/b.txt", "e/"):
        await store.put(key, b"" if key.endswith("/") else b"content of " + key.encode())
    for blob in await list_all(store):
        known = await found(store, blob.key)
        assert blob == replace(known, content_type=None, crc32=None)


@pytest.mark.parametrize("prefix", ["d", "d/", "d/s", "d/s/", "d/s/x", "d/sx", "", "nothing", "d/nothing/", "d/t/"])
async def test_a_prefix_selects_the_keys_that_begin_with_it(store: BlobStore, prefix: str) -> None:
    keys = ["a", "d-", "d/r", "d/s.x", "d/s/x", "d/s/y/z", "d/sx/y", "d/t/", "d0", "e"]
    for key in keys:
        await store.put(key, b"")
    assert await list_keys(store, prefix) == sorted(key for key in keys if key.startswith(prefix))


async def test_a_listing_starts_after_any_key_there_or_not(store: BlobStore) -> None:
    keys = sorted(["a", "d-", "d/r", "d/s.x", "d/s/x", "d/s/y/z", "d/sx/y", "d/t/", "d0", "e"])
    for key in keys:
        await store.put(key, b"")
    starts = [
        *keys,
        "0",
        "d",
        "d/",
        "d/s",
        "d/s/",
        "d/s/y",
        "d/s/y/",
        "d/s/y/z/0",
        "d/\udcff",
        "d/s\x7f",
        "f",
        "é" * 900,
    ]
    for start in starts:
        for prefix in ("", "d/", "d/s"):
            expected = [key for key in keys if key.startswith(prefix) and key > start]
            assert await list_keys(store, prefix, start) == expected, (prefix, start)


async def test_a_long_listing_comes_in_pages_of_at_most_1000(store: BlobStore) -> None:
    keys = [f"p/{i:04}" if i % 3 else f"p/{i:04}/leaf" for i in range(1_050)]
    for i in range(0, len(keys), 50):
        await asyncio.gather(*(store.put(key, b"") for key in keys[i : i + 50]))
    pages = [page async for page in store.list("p/")]
    assert all(0 < len(page) <= 1_000 for page in pages)
    assert [blob.key for page in pages for blob in page] == sorted(keys)
    assert await list_keys(store, "p/", start_after=keys[39]) == keys[40:]


async def test_an_abandoned_listing_holds_nothing(store: BlobStore) -> None:
    for i in range(3):
        await store.put(f"k{i}", b"")
    async for page in store.list(""):
        assert page
        break
    assert len(await list_keys(store)) == 3


async def test_an_empty_bucket_lists_nothing(store: BlobStore) -> None:
    assert [page async for page in store.list("")] == []


# folders


async def test_a_folder_marker_has_size_0_and_no_bytes(store: BlobStore) -> None:
    await store.put("folder/", b"")
    marker = await found(store, "folder/")
    assert (marker.key, marker.size) == ("folder/", 0)
    assert await list_keys(store) == ["folder/"]
    assert await store.stat("folder") is None
    with pytest.raises(BlobChanged):
        await store.open("folder/", start=0, stop=1, if_match=marker.etag)


async def test_a_folder_that_nobody_marked_is_not_a_blob(store: BlobStore) -> None:
    await store.put("folder/child", b"")
    assert await store.stat("folder/") is None
    assert await store.stat("folder") is None
    assert await list_keys(store) == ["folder/child"]


# put, probe, aclose


async def test_put_replaces_the_whole_content(store: BlobStore) -> None:
    for body in (CONTENT, b"short", b""):
        await store.put("k", body)
        blob = await found(store, "k")
        assert blob.size == len(body)
        if body:
            assert await read_range(store, "k", 0, len(body), blob.etag) == body


async def test_a_reader_of_a_blob_that_is_put_again_and_again_sees_one_version_whole(store: BlobStore) -> None:
    bodies = [bytes([i]) * 600_000 for i in range(8)]
    await store.put("k", bodies[0])
    writing = asyncio.ensure_future(_put_each(store, bodies))
    seen = 0
    while not writing.done() or not seen:
        try:
            content = await read_range(store, "k", 0, 600_000)
        except (BlobChanged, StorageUnavailable):
            continue
        assert content in bodies
        seen += 1
    await writing


async def _put_each(store: BlobStore, bodies: list[bytes]) -> None:
    for body in bodies:
        await store.put("k", body)


async def test_a_bucket_that_is_there_answers_the_probe(store: BlobStore) -> None:
    await store.probe()


async def test_a_bucket_that_does_not_exist_is_an_error_and_not_an_empty_one(backend: Backend) -> None:
    store = backend.without_bucket
    with pytest.raises(StorageError):
        await store.probe()
    with pytest.raises(StorageError):
        await store.stat("k")
    with pytest.raises(StorageError):
        await store.open("k", start=0, stop=1, if_match=None)
    with pytest.raises(StorageError):
        await list_keys(store)
    with pytest.raises(StorageError):
        await store.put("k", b"")


async def test_a_closed_store_is_unavailable(store: BlobStore) -> None:
    await store.aclose()
    await store.aclose()
    with pytest.raises(StorageUnavailable):
        await store.stat("k")
    with pytest.raises(StorageUnavailable):
        await store.open("k", start=0, stop=1, if_match=None)
    with pytest.raises(StorageUnavailable):
        await list_keys(store)
    with pytest.raises(StorageUnavailable):
        await store.probe()
