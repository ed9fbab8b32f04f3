"""What is visible of runs, by records in a real SQLite state; the buckets are a scripted store (a fake)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage_proxy.common.errors import BlobNotFound, BucketNotFound, StateUnavailable
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.state.records import BlobState
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStat
from tests.support.runs import Runs, temporary_runs
from tests.support.scripted_store import Blob, ScriptedStore


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    async with temporary_runs() as opened:
        yield opened


async def listed(runs: Runs, prefix: str, bucket: str = "default") -> list[str]:
    return [stat.key async for page in runs.blobs.listed(bucket, prefix) for stat in page]


def blobs_of(runs: Runs, *keys: str) -> tuple[Blobs, ScriptedStore]:
    store = ScriptedStore({key: Blob(b"abc") for key in keys})
    return Blobs(Buckets({"default": store, "other": ScriptedStore()}), runs.blobs), store


async def test_a_verified_blob_is_what_its_record_says(runs: Runs) -> None:
    await runs.record("r1", "a/b.bin", size=7, crc32=5, content_type="text/plain", content_encoding="gzip")
    assert await runs.blobs.resolve("default", "runs/r1/a/b.bin") == BlobStat(
        "runs/r1/a/b.bin", 7, '"e"', 1_700_000_000, "text/plain", "gzip", 5
    )


@pytest.mark.parametrize("state", [state for state in BlobState if state is not BlobState.VERIFIED])
async def test_a_blob_that_is_not_verified_is_not_there(runs: Runs, state: BlobState) -> None:
    await runs.record("r1", "p", state=state)
    assert await runs.blobs.resolve("default", "runs/r1/p") is None
    assert await listed(runs, "runs/") == []


async def test_a_deleted_run_has_no_blob_and_no_bucket_from_that_moment(runs: Runs) -> None:
    await runs.record("r1", "p")
    assert await runs.blobs.bucket_of("r1") == "default"
    await runs.delete("r1")
    assert await runs.blobs.resolve("default", "runs/r1/p") is None
    assert await listed(runs, "runs/r1/") == []
    assert await runs.blobs.bucket_of("r1") is None
    assert await runs.blobs.deleted(["r0", "r1", "r2"]) == {"r1"}


async def test_a_blob_of_another_bucket_and_a_key_of_no_run_are_not_there(runs: Runs) -> None:
    await runs.record("r1", "p", bucket="other")
    keys = ["runs/r1/p", "runs/", "runs/r1", "runs/r1/", "runs/r1/../r1/p", "runs//p", "runs/r1/p/"]
    assert await runs.blobs.resolve_many([("default", key) for key in keys]) == [None] * len(keys)
    assert await runs.blobs.resolve("other", "runs/r1/p") is not None
    assert await listed(runs, "runs/") == []


async def test_many_are_resolved_in_their_order_beyond_one_transaction(runs: Runs) -> None:
    for number in range(0, 30, 2):
        await runs.record("r1", f"{number:04}")
    addresses = [("default", f"runs/r1/{number % 30:04}") for number in range(2100)]
    found = await runs.blobs.resolve_many(addresses)
    assert [stat.key if stat else None for stat in found] == [
        key if not int(key[-4:]) % 2 else None for _, key in addresses
    ]


async def test_a_prefix_lists_a_run_a_folder_of_it_or_every_run(runs: Runs) -> None:
    for run_id, path in [("r1", "a/1"), ("r1", "a/2"), ("r1", "b"), ("r10", "c"), ("gone", "d")]:
        await runs.record(run_id, path)
    await runs.record("elsewhere", "e", bucket="other")
    await runs.delete("gone")
    assert await listed(runs, "runs/r1/a/") == ["runs/r1/a/1", "runs/r1/a/2"]
    assert await listed(runs, "runs/r1/") == ["runs/r1/a/1", "runs/r1/a/2", "runs/r1/b"]
    assert await listed(runs, "runs/") == ["runs/r1/a/1", "runs/r1/a/2", "runs/r1/b", "runs/r10/c"]
    assert await listed(runs, "runs/r2/") == []


async def test_a_long_listing_is_of_several_moments_and_ends_where_its_run_is_deleted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_proxy.downloads.run_blobs._PAGE", 2)
    for number in range(5):
        await runs.record("r1", f"{number}")
    assert await listed(runs, "runs/r1/") == [f"runs/r1/{number}" for number in range(5)]
    seen: list[str] = []
    async for page in runs.blobs.listed("default", "runs/r1/"):
        seen += [stat.key for stat in page]
        await runs.delete("r1")
    assert seen == ["runs/r1/0", "runs/r1/1"]


async def test_an_object_without_a_record_is_not_there_whoever_asks(runs: Runs) -> None:
    blobs, store = blobs_of(runs, "runs/r1/p", "a", "z")
    with pytest.raises(BlobNotFound):
        await blobs.require("default", "runs/r1/p")
    assert store.stats == 0
    await runs.record("r1", "p")
    assert (await blobs.require("default", "runs/r1/p")).etag == '"e"'
    addresses = [("default", "z"), ("default", "runs/r1/p"), ("default", "runs/r1/q"), ("default", "b")]
    found = await blobs.stat_many(addresses, parallel=2)
    assert [stat.key if stat else None for stat in found] == ["z", "runs/r1/p", None, None]
    with pytest.raises(BucketNotFound):
        await blobs.stat("nowhere", "runs/r1/p")
    with pytest.raises(BucketNotFound):
        await blobs.stat_many([("nowhere", "runs/r1/p")], parallel=2)


@pytest.mark.parametrize(("prefix", "keys"), [("", ["a", "run", "runs.txt", "runs0", "z"]), ("a/", []), ("r/", [])])
async def test_a_listing_goes_around_the_objects_of_runs_and_ends_with_their_records(
    runs: Runs, prefix: str, keys: list[str]
) -> None:
    objects = [f"runs/r{number}/p" for number in range(5000)]
    blobs, store = blobs_of(runs, "a", "run", "runs.txt", *objects, "runs0", "z", ".storage-proxy/x")
    await runs.record("r7", "p")
    found = [stat.key async for page in blobs.list("default", prefix) for stat in page]
    assert found == keys + (["runs/r7/p"] if prefix == "" else [])
    assert store.stats <= 1100  # a page and a little: not the 5,000


async def test_a_listing_goes_around_runs_in_a_real_directory(runs: Runs, tmp_path: Path) -> None:
    for key in ("a", "run/x", "runs/r1/p", "runs/empty/", "runs-old/y", "z"):
        path = tmp_path / key
        (path if key.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not key.endswith("/"):
            path.write_bytes(b"x")
    blobs = Blobs(Buckets({"default": LocalBlobStore(tmp_path)}), runs.blobs)
    assert [stat.key async for page in blobs.list("default", "") for stat in page] == ["a", "run/x", "runs-old/y", "z"]


async def test_only_runs_need_the_state() -> None:
    async with temporary_runs() as closed:
        blobs, _ = blobs_of(closed, "a", "d/b")
    assert await blobs.require("default", "a")
    assert [stat.key async for page in blobs.list("default", "d/") for stat in page] == ["d/b"]
    for prefix in ("", "runs/", "runs/r1/"):
        with pytest.raises(StateUnavailable):
            [page async for page in blobs.list("default", prefix)]
    with pytest.raises(StateUnavailable):
        await blobs.require("default", "runs/r1/p")
