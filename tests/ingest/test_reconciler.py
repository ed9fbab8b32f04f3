"""The reconciler on a real SQLite file; the bucket is in memory, and time is moved."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from storage_proxy.common.service.background import in_background
from storage_proxy.ingest.reconciler import Found
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Mark, RunTotals
from storage_proxy.stores.local import LocalBlobStore
from tests.support.ingest import WritePath
from tests.support.state import sqlite_store


async def looked(path: WritePath, *, after: float = 61.0, limit: int = 100) -> Counter[Found]:
    path.clock.now += after
    return await path.reconciler.run_once(limit)


async def pending(path: WritePath, *names: str, **said: object) -> None:
    for name in names:
        await path.announce("r1", name, **said)
    await path.deliver()


async def blob_of(path: WritePath, name: str = "a") -> BlobRecord:
    blob = await path.blob("r1", name)
    assert blob is not None
    return blob


async def test_a_blob_that_arrived_late_is_verified(path: WritePath) -> None:
    await pending(path, "a", "b")
    path.bucket.place("runs/r1/a", b"content")
    assert await looked(path) == {Found.VERIFIED: 1, Found.WAITING: 1}
    assert (await blob_of(path)).state is BlobState.VERIFIED
    assert await path.totals("r1") == RunTotals(1, 7)
    assert [row[2] for row in await path.due()] == ["b"]


async def test_a_blob_that_arrived_late_and_wrong_is_rejected(path: WritePath) -> None:
    await pending(path, "a", size=8)
    path.bucket.place("runs/r1/a", b"content")
    assert await looked(path) == {Found.REJECTED: 1}
    blob = await blob_of(path)
    assert (blob.state, blob.size, blob.etag) == (BlobState.REJECTED, 8, "")
    assert await path.due() == []


async def test_a_file_that_is_still_being_written_is_looked_at_again_before_it_is_rejected(tmp_path: Path) -> None:
    """On a real local bucket, where a producer may write in place."""
    (tmp_path / "bucket").mkdir()
    store = LocalBlobStore(tmp_path / "bucket")
    async with sqlite_store(tmp_path / "state.db") as state:
        path = WritePath(state, buckets={"media": store})
        await pending(path, "whole", "short", size=7)
        for name in ("whole", "short"):
            place = tmp_path / "bucket/runs/r1" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"con")
        path.clock.now = time.time()
        assert await looked(path, after=0) == {Found.WAITING: 2}
        with (tmp_path / "bucket/runs/r1/whole").open("ab") as file:
            file.write(b"tent")
        assert await looked(path, after=4) == {Found.VERIFIED: 1, Found.REJECTED: 1}
        assert (await blob_of(path, "whole")).state is BlobState.VERIFIED
    await store.aclose()


async def test_looks_come_at_doubling_times_up_to_a_limit(path: WritePath) -> None:
    await pending(path, "a")
    waits = []
    for _ in range(9):
        before = path.clock.now = (await path.due())[0][0] / 1000
        assert await looked(path, after=0.0) == {Found.WAITING: 1}
        waits.append((await path.due())[0][0] / 1000 - before)
    limits = [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert all(limit / 2 <= wait <= limit + 0.01 for wait, limit in zip(waits, limits, strict=True))


async def test_a_blob_that_does_not_arrive_expires_after_a_last_look(path: WritePath) -> None:
    await pending(path, "a", "b")
    deadline = (await blob_of(path)).deadline
    assert deadline == int(path.clock()) + 86_400
    path.clock.now = deadline - 0.001
    assert await looked(path, after=0.0) == {Found.WAITING: 2}
    path.bucket.place("runs/r1/b", b"at the last moment")
    assert await looked(path, after=1.0) == {Found.EXPIRED: 1, Found.VERIFIED: 1}
    assert (await blob_of(path)).state is BlobState.EXPIRED
    assert await path.due() == []


async def test_a_bucket_that_is_away_postpones_and_expires_nothing(path: WritePath) -> None:
    await pending(path, "a")
    path.bucket.away = True
    assert await looked(path, after=90_000.0) == {Found.FAILED: 1}
    assert (await blob_of(path)).state is BlobState.PENDING
    path.bucket.away = False
    path.bucket.place("runs/r1/a", b"content")
    assert await looked(path) == {Found.VERIFIED: 1}


async def test_a_bucket_that_is_away_does_not_keep_others_waiting(path: WritePath) -> None:
    await pending(path, "a", "b")
    await path.announce("r2", "c", bucket="other")
    await path.deliver()
    path.bucket.away = True
    assert await looked(path, limit=2) == {Found.FAILED: 2}
    assert await looked(path, after=0.0, limit=2) == {Found.WAITING: 1}


async def test_what_was_deleted_or_settled_meanwhile_only_loses_its_row(path: WritePath) -> None:
    await pending(path, "a", "b")
    stale = int(path.clock() * 1000)

    async def leave_behind(transaction: Transaction) -> None:
        path.records.due.set(transaction, Mark(), stale, "r9", "never there")

    await path.store.transact(leave_behind)
    await path.delete_run("r1")
    assert await looked(path) == {Found.GONE: 3}
    assert await path.due() == []
    assert await path.blobs() == {}


async def test_a_dry_run_tells_and_changes_nothing(path: WritePath) -> None:
    await pending(path, "a", "b")
    await path.delete_run("r2")
    path.bucket.place("runs/r1/a", b"content")
    before = await path.blobs(), await path.due()
    path.clock.now += 61
    assert await path.reconciler.run_once(100, dry_run=True) == {Found.VERIFIED: 1, Found.WAITING: 1}
    assert (await path.blobs(), await path.due()) == before


async def test_reconcilers_at_once_settle_each_blob_once(path: WritePath) -> None:
    names = [f"{number}" for number in range(40)]
    await pending(path, *names)
    for name in names:
        path.bucket.place(f"runs/r1/{name}", b"content")
    path.clock.now += 61
    await asyncio.gather(*(path.reconciler.run_once(100) for _ in range(4)))
    assert {blob.state for blob in (await path.blobs()).values()} == {BlobState.VERIFIED}
    assert await path.totals("r1") == RunTotals(40, 280)
    assert await path.due() == []


async def test_a_blob_that_is_announced_anew_during_the_look_is_left_to_the_next(path: WritePath) -> None:
    await pending(path, "a", size=7)
    path.bucket.place("runs/r1/a", b"content")
    look = path.verifier.look

    async def overtaken(*arguments: object, **named: object) -> object:
        path.verifier.look = look  # type: ignore[method-assign]
        seen = await look(*arguments, **named)  # type: ignore[arg-type]
        del path.bucket.blobs["runs/r1/a"]
        await path.announce("r1", "a", size=9)
        await path.deliver()
        return seen

    path.verifier.look = overtaken  # type: ignore[method-assign, assignment]
    assert await looked(path) == {Found.WAITING: 1}
    blob = await blob_of(path)
    assert (blob.state, blob.size) == (BlobState.PENDING, 9)


async def test_the_loop_goes_on_after_a_failure_and_ends_when_told(path: WritePath) -> None:
    await pending(path, "a")
    path.bucket.place("runs/r1/a", b"content")
    path.clock.now += 61
    stop = asyncio.Event()
    original, failures = path.reconciler.run_once, 0

    async def failing(limit: int, *, dry_run: bool = False) -> Counter[Found]:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise OSError("a defect")
        counts = await original(limit, dry_run=dry_run)
        stop.set()
        return counts

    path.reconciler.run_once = failing  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage_proxy.common.service.background.FIRST_PAUSE_SECONDS", 0.01)
        async with in_background({"reconciler": path.reconciler.run}), asyncio.timeout(30):
            await stop.wait()
    assert (await blob_of(path)).state is BlobState.VERIFIED
