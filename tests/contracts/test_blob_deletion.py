"""What the BlobStore port promises of deletion, of every backend: a local directory, a real S3, one with versions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from storage_proxy.common.errors import StorageError, StorageUnavailable
from storage_proxy.stores import local_deletion, s3_deletion
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import DeletesBlobs
from storage_proxy.stores.s3 import S3BlobStore
from tests.support.blobs import list_keys
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import PrivateS3, S3Bucket, open_store
from tests.support.uploads import content_of


@dataclass(frozen=True)
class Backend:
    """A store that deletes, and everything that it holds: blobs, versions, uploads."""

    store: LocalBlobStore | S3BlobStore
    remains: Callable[[], Awaitable[Sequence[str]]]
    without_bucket: LocalBlobStore | S3BlobStore


@pytest.fixture
async def local_backend(tmp_path: Path) -> AsyncIterator[Backend]:
    root = tmp_path / "blobs"
    root.mkdir()

    async def remains() -> Sequence[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".storage-proxy" not in path.parts)

    store, elsewhere = LocalBlobStore(root), LocalBlobStore(tmp_path / "nowhere")
    yield Backend(store, remains, elsewhere)
    await store.aclose()
    await elsewhere.aclose()


async def everything(bucket: S3Bucket) -> Sequence[str]:
    """Every version, delete marker and upload, page by page."""
    names: list[str] = []
    async for page in bucket.client.get_paginator("list_object_versions").paginate(Bucket=bucket.name):
        names += [version["Key"] for version in page.get("Versions", [])]
        names += [marker["Key"] for marker in page.get("DeleteMarkers", [])]
    answer = await bucket.client.list_multipart_uploads(Bucket=bucket.name)
    return sorted(names + [upload["Key"] for upload in answer.get("Uploads", [])])


@pytest.fixture
async def s3_backend(s3_bucket: S3Bucket) -> AsyncIterator[Backend]:
    async def remains() -> Sequence[str]:
        return await everything(s3_bucket)

    options = s3_bucket.options()
    nowhere = replace(options, bucket="there-is-no-such-bucket")
    async with open_store(options) as store, open_store(nowhere) as elsewhere:
        yield Backend(store, remains, elsewhere)


@pytest.fixture
async def versions_bucket(tmp_path: Path) -> AsyncIterator[S3Bucket]:
    """A bucket that keeps versions, on a server of its own that can."""
    server = PrivateS3(tmp_path / "versions-s3", keeps_versions=True)
    await server.start()
    try:
        async with server.server.client() as client:
            await client.create_bucket(Bucket="bucket")
            await client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
            yield S3Bucket(server.server, "bucket", client)
    finally:
        await server.kill()


@pytest.fixture
async def versions_backend(versions_bucket: S3Bucket) -> AsyncIterator[Backend]:
    async def remains() -> Sequence[str]:
        return await everything(versions_bucket)

    options = versions_bucket.options()
    nowhere = replace(options, bucket="there-is-no-such-bucket")
    async with open_store(options) as store, open_store(nowhere) as elsewhere:
        yield Backend(store, remains, elsewhere)


@pytest.fixture(params=["local", "s3", "versions"])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.getfixturevalue(f"{request.param}_backend")
    return made


@pytest.fixture
def store(backend: Backend) -> LocalBlobStore | S3BlobStore:
    return backend.store


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 50, so that few blobs make many."""
    monkeypatch.setattr(local_deletion, "STEP", 50)
    monkeypatch.setattr(s3_deletion, "STEP", 50)


async def put_all(store: LocalBlobStore | S3BlobStore, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(store.put(key, b"") for key in keys[start : start + 50]))


async def erased(store: LocalBlobStore | S3BlobStore, prefix: str) -> list[int]:
    return [removed async for removed in store.erase(prefix)]


def test_every_backend_deletes(store: LocalBlobStore | S3BlobStore) -> None:
    assert isinstance(store, DeletesBlobs)


# delete_many


async def test_the_blobs_that_are_named_are_removed_and_no_other(store: LocalBlobStore | S3BlobStore) -> None:
    await put_all(store, ["a", "d/b", "d/c", "e/f/g"])
    await store.delete_many(["a", "d/b", "e/f/g", "d/missing", "missing/too"])
    assert await list_keys(store) == ["d/c"]


NOBODY_HOLDS = ["", "/", "/x/a", "x//a", "./y", "x/../y", "x", "x/", "x/a/", "nul\0", "\ud800", "k" * 300, "k" * 5000]


async def test_keys_that_nobody_holds_are_not_taken_for_others(
    store: LocalBlobStore | S3BlobStore, request: pytest.FixtureRequest
) -> None:
    """With versions, the real server answers 500 to the removal of an object where it has a folder; it is left out."""
    await put_all(store, ["x/a", "y"])
    versions = "versions" in request.node.callspec.id
    await store.delete_many([key for key in NOBODY_HOLDS if key != "x" or not versions])
    assert await list_keys(store) == ["x/a", "y"]


KEYS = ["sp ace", "pl+us", "per%cent", "é", "😀/ü", "q?a=b&c", "a<b>&amp;\"'", "tab\there", "cr\rlf\nend", "del\x7f"]


async def test_a_key_is_taken_literally(store: LocalBlobStore | S3BlobStore) -> None:
    kept = ["per", "cr\nlf\nend", "a<b>&\"'"]
    await put_all(store, KEYS + kept)
    await store.delete_many(KEYS)
    assert sorted(await list_keys(store)) == sorted(kept)


@pytest.mark.usefixtures("short_steps")
async def test_more_blobs_than_a_step_are_removed_at_once(store: LocalBlobStore | S3BlobStore) -> None:
    keys = [f"d{i % 3}/{i}" for i in range(120)]
    await put_all(store, keys)
    await store.delete_many(keys)
    assert await list_keys(store) == []


async def test_nothing_to_delete_is_nothing_to_do(store: LocalBlobStore | S3BlobStore) -> None:
    await store.delete_many([])
    await store.delete_many(["missing"])


async def test_folders_that_a_local_deletion_leaves_empty_are_gone(local_backend: Backend) -> None:
    await put_all(local_backend.store, ["a/b/c/d", "a/e"])
    await local_backend.store.delete_many(["a/b/c/d"])
    assert await local_backend.remains() == ["a", "a/e"]
    await local_backend.store.delete_many(["a/e"])
    assert await local_backend.remains() == []


# erase


async def put_run(store: LocalBlobStore | S3BlobStore, blobs: int) -> Sequence[str]:
    """A run of so many blobs, and neighbours whose keys begin alike; the neighbours' keys in order."""
    neighbours = ["runs/r10/a", "runs/r1-/a", "runs/r", "zzz"]
    await put_all(store, neighbours)
    await put_all(store, [f"runs/r1/{i % 7}/{i % 3}/{i}" for i in range(blobs)])
    return sorted(neighbours)


@pytest.mark.usefixtures("short_steps")
async def test_a_prefix_is_erased_in_steps_and_its_neighbours_stay(store: LocalBlobStore | S3BlobStore) -> None:
    neighbours = await put_run(store, 170)
    steps = await erased(store, "runs/r1/")
    assert all(0 < step <= 50 for step in steps)
    assert sum(steps) == 170
    assert await list_keys(store) == neighbours
    assert await erased(store, "runs/r1/") == []


async def test_a_run_of_2500_blobs_is_erased(private_s3: PrivateS3, tmp_path: Path) -> None:
    """The server is real; its objects are made as the files that it keeps, for speed."""
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="bucket")
    (objects,) = tmp_path.rglob("objects")
    for i in range(2_500):
        path = objects / "bucket" / "runs" / "r1" / f"{i % 7}" / f"{i % 3}" / f"{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    async with open_store(private_s3.server.options("bucket")) as store:
        await store.put("runs/r10/a", b"")
        assert await erased(store, "runs/r1/") == [1_000, 1_000, 500]
        assert await list_keys(store) == ["runs/r10/a"]


@pytest.mark.parametrize(
    "prefix", ["missing/", "", "/", "a//", "a/../b/", "../", "a", "nul\0/", "\ud800/", "k" * 5000 + "/"]
)
async def test_a_prefix_that_holds_nothing_erases_nothing(store: LocalBlobStore | S3BlobStore, prefix: str) -> None:
    await put_all(store, ["a/b", "b/c"])
    assert await erased(store, prefix) == []
    assert await list_keys(store) == ["a/b", "b/c"]


async def test_folder_markers_and_odd_keys_are_erased(backend: Backend) -> None:
    await put_all(backend.store, ["r/empty/", "r/nested/empty/", "b"] + [f"r/{key}" for key in KEYS])
    assert sum(await erased(backend.store, "r/")) == len(KEYS) + 2
    assert await backend.remains() == ["b"]


@pytest.mark.usefixtures("short_steps")
async def test_an_erasure_that_is_given_up_is_taken_up_again(store: LocalBlobStore | S3BlobStore) -> None:
    await put_all(store, [f"r/{i % 3}/{i}" for i in range(130)])
    erasure = store.erase("r/")
    async for removed in erasure:
        assert removed
        break
    assert 0 < len(await list_keys(store)) < 130
    await erased(store, "r/")
    assert await list_keys(store) == []


async def test_blobs_that_come_while_a_prefix_is_erased_do_not_stop_it(local_backend: Backend) -> None:
    store = local_backend.store
    await put_all(store, [f"r/{i % 3}/{i}" for i in range(500)])
    writing = asyncio.gather(*(store.put(f"r/{i % 5}/new{i}", b"") for i in range(100)), return_exceptions=True)
    await erased(store, "r/")
    await writing
    assert not {f"r/{i % 3}/{i}" for i in range(500)} & set(await list_keys(store))
    await erased(store, "r/")
    assert await list_keys(store) == []


async def test_a_symlink_is_removed_and_never_followed(local_backend: Backend, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    root = tmp_path / "blobs"
    await put_all(local_backend.store, ["r/d/a", "s/b"])
    (root / "r" / "folder").symlink_to(outside)
    (root / "r" / "d" / "file").symlink_to(outside / "file")
    (root / "linked").symlink_to(outside)
    await erased(local_backend.store, "r/")
    await erased(local_backend.store, "linked/")
    await local_backend.store.delete_many(["linked/file", "linked"])
    assert await local_backend.remains() == ["linked", "s", "s/b"]
    assert (outside / "file").read_text() == "stays"


async def test_the_folder_of_temporary_files_survives(local_backend: Backend, tmp_path: Path) -> None:
    await put_all(local_backend.store, [".storage-proxy/m/1", "a"])
    scratch = tmp_path / "blobs" / ".storage-proxy" / "tmp"
    (scratch / "being-written").write_text("")
    await erased(local_backend.store, ".storage-proxy/")
    assert [path.name for path in scratch.iterdir()] == ["being-written"]
    assert await list_keys(local_backend.store) == ["a"]


@pytest.fixture(params=["s3", "versions"])
def bucket(request: pytest.FixtureRequest) -> S3Bucket:
    made: S3Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return made


async def test_uploads_that_are_not_complete_are_erased_too(bucket: S3Bucket) -> None:
    for key in ("runs/r1/a", "runs/r1/b/c", "runs/r1/b/c", "runs/r10/a"):
        begun = await bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
        await bucket.client.upload_part(
            Bucket=bucket.name, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=content_of(1000)
        )
    await bucket.client.put_object(Bucket=bucket.name, Key="runs/r1/a", Body=b"whole")
    async with open_store(bucket.options()) as store:
        assert await erased(store, "runs/r1/") == [3, 1]
        assert await everything(bucket) == ["runs/r10/a"]
        assert await erased(store, "runs/r10/") == [1]


@pytest.mark.usefixtures("short_steps")
async def test_more_uploads_than_a_page_are_erased_and_discarded(s3_bucket: S3Bucket) -> None:
    async def begin(count: int) -> None:
        for start in range(0, count, 50):
            await asyncio.gather(
                *(
                    s3_bucket.client.create_multipart_upload(Bucket=s3_bucket.name, Key=f"r/{i % 40}")
                    for i in range(start, min(start + 50, count))
                )
            )

    async with open_store(s3_bucket.options()) as store:
        await begin(110)
        assert await store.discard_uploads("other/", older_than=4e9) == 0
        assert await store.discard_uploads("r/", older_than=0) == 0
        assert await store.discard_uploads("", older_than=4e9) == 110
        await begin(110)
        assert sum(await erased(store, "r/")) == 110
    assert await everything(s3_bucket) == []


@pytest.mark.usefixtures("short_steps")
async def test_every_version_and_marker_is_erased(versions_bucket: S3Bucket) -> None:
    async with open_store(versions_bucket.options()) as store:
        for content in (b"one", b"two", b"three"):
            await store.put("r/a", content)
            await store.put("s/a", content)
        await store.delete_many(["r/a", "r/never"])
        assert await store.stat("r/a") is None
        await put_all(store, [f"r/{i}" for i in range(60)] * 2)
        assert sum(await erased(store, "r/")) >= 124
        assert await everything(versions_bucket) == ["s/a"] * 3


async def test_a_bucket_with_a_prefix_erases_within_it(s3_bucket: S3Bucket) -> None:
    for key in ("r/a", "team/r/a", "team/s/a", "team-r/a"):
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"")
    async with open_store(replace(s3_bucket.options(), prefix="team/")) as store:
        assert await erased(store, "r/") == [1]
        await store.delete_many(["s/b", "../r/a", "a"])
    assert await everything(s3_bucket) == ["r/a", "team-r/a", "team/s/a"]


async def test_a_bucket_that_does_not_exist_deletes_nothing(backend: Backend) -> None:
    store = backend.without_bucket
    for call in (store.delete_many(["k"]), erased(store, "r/")):
        with pytest.raises(StorageError):
            await call


# S3 in trouble


@pytest.mark.usefixtures("short_steps")
async def test_an_erasure_goes_on_after_a_failure(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(replace(s3_bucket.options(endpoint=faulty.endpoint), max_attempts=1)) as store:
        await put_all(store, [f"r/{i}" for i in range(80)])
        fault = faulty.fault(Fault(method="POST", contains="delete", times=1, status=503, code="SlowDown"))
        with pytest.raises(StorageUnavailable):
            await erased(store, "r/")
        assert fault.times == 0
        assert len(await list_keys(store)) == 80
        assert await erased(store, "r/") == [50, 30]
    assert await everything(s3_bucket) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [("SlowDown", StorageUnavailable), ("InternalError", StorageUnavailable), ("AccessDenied", StorageError)],
)
async def test_a_blob_that_is_not_removed_is_an_error(
    s3_bucket: S3Bucket, faulty: FaultyProxy, code: str, expected: type[Exception]
) -> None:
    """The answer is made up: the real server here refuses no single key."""
    body = f'<?xml version="1.0"?><DeleteResult><Error><Key>a</Key><Code>{code}</Code></Error></DeleteResult>'
    answer = f"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("r/a", b"")
        faulty.fault(Fault(method="POST", contains="delete", answer=answer.encode()))
        for call in (store.delete_many(["r/a"]), erased(store, "r/")):
            with pytest.raises(expected):
                await call


@pytest.mark.parametrize("status", [400, 405, 501])
@pytest.mark.usefixtures("short_steps")
async def test_a_server_without_versions_and_uploads_is_erased_by_its_listing(
    s3_bucket: S3Bucket, faulty: FaultyProxy, status: int
) -> None:
    """The refusals are made up: the real server here has both calls."""
    for contains in ("versions", "uploads"):
        faulty.fault(Fault(contains=contains, status=status, code="NotImplemented"))
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await put_all(store, [f"r/{i}" for i in range(60)])
        assert await erased(store, "r/") == [50, 10]
        assert await store.discard_uploads("r/", older_than=4e9) == 0


async def test_a_refusal_to_tell_of_versions_is_not_taken_for_none(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("r/a", b"")
        faulty.fault(Fault(contains="versions", status=403, code="AccessDenied"))
        with pytest.raises(StorageError):
            await erased(store, "r/")
        assert await list_keys(store) == ["r/a"]
