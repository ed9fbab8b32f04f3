"""Announcements that come together, on a real SQLite file."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from storage_proxy.common.errors import BlobExists, RunBucketMismatch, RunDeleted, StateUnavailable
from storage_proxy.common.wire import UploadOrder
from storage_proxy.ingest.pending import Announcement, PendingBlobs
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobState, RunTotals
from tests.support.ingest import WritePath
from tests.support.state import sqlite_store


class Watched:
    """The real store; it counts transactions, holds them while ``open`` is not set, and is away when told so."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.transactions = 0
        self.away = False

    async def transact(self, fn: Callable[[Transaction], Awaitable[Any]]) -> Any:
        await self.open.wait()
        if self.away:
            raise StateUnavailable
        self.transactions += 1
        return await self._store.transact(fn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Watched]:
    async with sqlite_store(tmp_path / "state.db") as store:
        yield Watched(store)


@pytest.fixture
async def path(store: Watched) -> WritePath:
    return WritePath(store)


def order(name: str, run_id: str = "r1", bucket: str = "media") -> UploadOrder:
    return UploadOrder(run_id=run_id, bucket=bucket, path=name, expires_in=600)


async def test_uploads_prepared_together_are_announced_in_few_transactions(path: WritePath, store: Watched) -> None:
    names = {f"{number}" for number in range(250)}
    before = store.transactions
    await asyncio.gather(*(path.uploads.prepare(order(name, f"r{name[-1]}")) for name in names))
    assert store.transactions - before <= 6
    assert {event["payload"]["path"] for event in await path.outbox()} == names
    assert len(await path.due()) == len(names)


async def test_what_refuses_one_upload_refuses_no_other_of_its_transaction(path: WritePath, store: Watched) -> None:
    await path.uploads.prepare(order("deleted", "r2"))
    await path.delete_run("r2")
    prepared = await path.uploads.prepare(order("there"))
    path.bucket.place(prepared.key, b"content")
    await path.relay()
    await path.deliver()
    store.open.clear()
    wanted = [order("a"), order("b", "r2"), order("there"), order("c", bucket="other"), order("d", "r3", "other")]
    together = asyncio.gather(*(path.uploads.prepare(each) for each in wanted), return_exceptions=True)
    store.open.set()
    kinds = [type(each) if isinstance(each, Exception) else None for each in await together]
    assert kinds == [None, RunDeleted, BlobExists, RunBucketMismatch, None]
    assert await path.blob("r1", "c") is None
    for run_id, name in (("r1", "a"), ("r3", "d")):
        blob = await path.blob(run_id, name)
        assert blob is not None
        assert blob.state is BlobState.PENDING


async def test_the_first_of_two_buckets_announced_together_is_a_new_runs(path: WritePath) -> None:
    first, second = await asyncio.gather(
        path.uploads.prepare(order("a")), path.uploads.prepare(order("b", bucket="other")), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert isinstance(second, RunBucketMismatch)


async def test_a_caller_that_goes_away_takes_no_other_along(path: WritePath, store: Watched) -> None:
    store.open.clear()
    tasks = [asyncio.create_task(path.uploads.prepare(order(f"{number}"))) for number in range(300)]
    await asyncio.sleep(0)
    for gone in tasks[::3]:
        gone.cancel()
    store.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [index for index, each in enumerate(outcomes) if isinstance(each, BaseException)] == list(range(0, 300, 3))
    for number in (1, 2, 298, 299):
        assert await path.blob("r1", f"{number}") is not None


async def test_every_caller_is_told_of_a_state_that_is_away_and_the_next_is_served(
    path: WritePath, store: Watched
) -> None:
    store.away = True
    outcomes = await asyncio.gather(
        *(path.uploads.prepare(order(f"{number}")) for number in range(120)), return_exceptions=True
    )
    assert {type(each) for each in outcomes} == {StateUnavailable}
    store.away = False
    await path.uploads.prepare(order("0"))


async def test_an_upload_is_announced_while_blobs_of_its_run_are_verified(path: WritePath, store: Watched) -> None:
    """The totals of a run change all the time; what is announced meanwhile has nothing to do with them."""
    path.bucket.place("runs/r1/there", b"content")
    await path.announce("r1", "there")
    attempts = 0

    class Racing(Watched):
        async def transact(self, fn: Callable[[Transaction], Awaitable[Any]]) -> Any:
            async def raced(transaction: Transaction) -> Any:
                nonlocal attempts
                attempts += 1
                result = await fn(transaction)
                if attempts == 1:
                    await path.deliver()
                return result

            return await super().transact(raced)

    await path.uploads.prepare(order("first"))
    pending = PendingBlobs(Racing(store), path.records, options=path.options, clock=path.clock)
    await pending.add(Announcement(Place("media", "r1", "a"), Announced(), int(path.clock()) + 60, path.clock() + 60))
    assert attempts == 1
    assert await path.totals("r1") == RunTotals(1, 7)
