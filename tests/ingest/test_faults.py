"""Uploads and the reconciler on a simulated FoundationDB client whose requests fail: 1007, 1020, 1021 of both kinds."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest

from storage_proxy.common.errors import BlobExists, UploadIncomplete
from storage_proxy.common.wire import RunAccess, UploadOrder
from storage_proxy.state.records import BlobState, RunTotals
from tests.ingest.test_uploads import claims
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.ingest import WritePath, chunks
from tests.support.state import fake_client, fake_store

RUNS = ["r1", "r2"]
NAMES = [f"{number}" for number in range(12)]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(time.monotonic, seed=3)


@pytest.fixture
async def faulty(cluster: FakeCluster) -> AsyncIterator[WritePath]:
    with fake_client(cluster) as client:
        async with fake_store(client) as store:
            path = WritePath(store)
            cluster.faults.rate = 0.05
            yield path


def order(run_id: str, name: str) -> UploadOrder:
    return UploadOrder(run_id=run_id, bucket="media", path=name, expires_in=600)


async def test_each_upload_is_announced_once_and_counted_once_whatever_fails(
    faulty: WritePath, cluster: FakeCluster
) -> None:
    """Every blob is completed by several at once while its message is delivered and the reconciler looks."""
    source = random.Random(5)

    async def upload(run_id: str, name: str) -> None:
        prepared = await faulty.uploads.prepare(order(run_id, name))
        with pytest.raises(UploadIncomplete):
            await faulty.uploads.complete(prepared.upload_id, RunAccess())
        await asyncio.sleep(source.random() / 100)
        faulty.bucket.place(prepared.key, b"content")
        done = await asyncio.gather(*(faulty.uploads.complete(prepared.upload_id, RunAccess()) for _ in range(2)))
        assert {record.state for _, _, record in done} == {BlobState.VERIFIED}

    async def look() -> None:
        for _ in range(5):
            faulty.clock.now += 2
            await faulty.reconciler.run_once(100)

    await asyncio.gather(look(), *(upload(run_id, name) for run_id in RUNS for name in NAMES))
    cluster.faults.rate = 0.0  # what follows only looks
    events = await faulty.outbox()
    assert sorted(event["payload"]["key"] for event in events) == sorted(f"runs/{r}/{n}" for r in RUNS for n in NAMES)
    await faulty.relay()
    await faulty.deliver()
    for run_id in RUNS:
        assert await faulty.totals(run_id) == RunTotals(len(NAMES), len(NAMES) * 7)
    assert await faulty.due() == []
    assert faulty.bus.dead() == []


async def test_an_upload_through_the_proxy_is_received_once_whatever_fails(faulty: WritePath) -> None:
    async def receive(name: str) -> int:
        try:
            await faulty.uploads.receive(claims(name), chunks(b"content"), 7)
        except BlobExists:
            return 0
        return 1

    received = await asyncio.gather(*(receive(name) for name in NAMES for _ in range(2)))
    assert sum(received) == len(NAMES)
    assert await faulty.totals("r1") == RunTotals(len(NAMES), len(NAMES) * 7)
