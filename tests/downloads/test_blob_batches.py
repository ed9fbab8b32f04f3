"""Batches over a scripted store (a fake: real ones are in tests/http) and a real SQLite state: bounds and order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.downloads.blob_batches import BlobBatches
from storage_proxy.downloads.blob_uris import BlobUris
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.prefetch import Prefetch, WindowLimits, WindowRead
from storage_proxy.downloads.sources import Sources
from storage_proxy.stores.buckets import Buckets
from tests.support.runs import Runs, temporary_runs
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.sources import QUICK

URIS = BlobUris([Fernet.generate_key().decode()], ttl_seconds=60)
SMALL = 10


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    async with temporary_runs() as opened:
        yield opened


def batches_of(runs: Runs, store: ScriptedStore, *, window: int = 16, max_bytes: int = 1 << 30) -> BlobBatches:
    buckets = Buckets({"default": store})
    sources = Sources(buckets, QUICK, DownloadMetrics(CollectorRegistry()))
    prefetch = Prefetch(ByteBudget(1 << 20), WindowLimits(window_bytes=400, small_bytes=SMALL, requests=window))
    return BlobBatches(URIS, runs.blobs, buckets, sources, prefetch, max_bytes=max_bytes)


async def store_of(runs: Runs, sizes: list[int]) -> tuple[ScriptedStore, list[str]]:
    """A store with a blob of each size, and their URIs."""
    store = ScriptedStore(chunk=4)
    for index, size in enumerate(sizes):
        store.blobs[f"runs/r/{index}"] = Blob(bytes([index]) * size)
        await runs.record("r", f"{index}", size=size, etag='"v1"')
    return store, [URIS.encrypt("default", f"runs/r/{index}", '"v1"', "r") for index in range(len(sizes))]


async def whole(body: WindowRead) -> bytes:
    content = b""
    while chunk := await body.read():
        content += chunk
    return content


async def read(batches: BlobBatches, uris: list[str]) -> list[bytes | str]:
    """Each part's content, or its problem's code."""
    found: list[bytes | str] = []
    async with aclosing(batches.parts(uris)) as parts:
        async for part in parts:
            assert part.index == len(found)
            if part.problem is not None:
                found.append(part.problem.code)
            elif part.body is not None:
                found.append(await whole(part.body))
            else:
                found.append(b"")
    return found


@settings(max_examples=25)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 5))
async def test_parts_are_the_blobs_in_order_whatever_the_window(sizes: list[int], window: int) -> None:
    async with temporary_runs() as runs:
        store, uris = await store_of(runs, sizes)
        found = await read(batches_of(runs, store, window=window), uris)
        assert found == [bytes([index]) * size for index, size in enumerate(sizes)]
        assert store.open_readers == 0


async def test_only_what_begins_within_the_window_is_opened_ahead(runs: Runs) -> None:
    store, uris = await store_of(runs, [SMALL, SMALL, 500, SMALL, SMALL])
    async with aclosing(batches_of(runs, store).parts(uris)) as parts:
        await anext(parts)
        async with asyncio.timeout(20):
            while len(store.opened) < 3:
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert {key for key, *_ in store.opened} == {"runs/r/0", "runs/r/1", "runs/r/2"}
    assert store.open_readers == 0


async def test_what_goes_beyond_the_bytes_of_a_batch_is_a_problem(runs: Runs) -> None:
    store, uris = await store_of(runs, [6, 500, 4, 1])
    batches = batches_of(runs, store, max_bytes=10)
    assert await read(batches, uris) == [bytes(6), "selection-too-large", b"\x02" * 4, "selection-too-large"]


async def test_a_source_that_is_away_before_its_part_is_its_problem_and_the_others_follow(runs: Runs) -> None:
    store, uris = await store_of(runs, [500, 3])
    store.breaks = [(-1, StorageUnavailable())] * 2
    assert await read(batches_of(runs, store, window=1), uris) == ["storage-unavailable"] * 2
    assert await read(batches_of(runs, store, window=1), uris) == [bytes(500), b"\x01" * 3]


async def test_a_source_that_breaks_within_its_part_raises(runs: Runs) -> None:
    store, uris = await store_of(runs, [500, 3])
    store.breaks = [(8, StorageUnavailable()), *[(-1, StorageUnavailable())] * 10]
    with pytest.raises(StorageUnavailable):
        await read(batches_of(runs, store, window=1), uris)
    assert store.open_readers == 0


@pytest.mark.parametrize("steps", [1, 5, 30, 100, 300])
async def test_a_batch_that_is_cancelled_anywhere_closes_its_readers(runs: Runs, steps: int) -> None:
    store, uris = await store_of(runs, [SMALL, 500] * 20)
    task = asyncio.create_task(read(batches_of(runs, store), uris))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.open_readers == 0
