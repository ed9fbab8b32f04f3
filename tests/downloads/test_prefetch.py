"""The window over a scripted store with random latencies (a fake: the real S3 is in tests/http/test_prefetch.py)."""

import asyncio
import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import BlobChanged, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.downloads.bodies import ArchiveBody, Body, Progress
from storage_proxy.downloads.manifests import OpenedArchive
from storage_proxy.downloads.prefetch import Prefetch, WindowLimits
from storage_proxy.downloads.sources import Chunk
from storage_proxy.stores.port import BlobReader
from tests.downloads.test_bodies import collect, entries_of, planned
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.sources import sources_of

LIMITS = WindowLimits(window_bytes=150, small_bytes=40, requests=4, all_requests=6, items=12)


@dataclass
class UnhurriedStore(ScriptedStore):
    """Answers after a random number of turns of the loop, and looks at the bounds of ``prefetch`` at each request."""

    prefetch: Prefetch = field(default_factory=lambda: Prefetch(ByteBudget(1 << 20), LIMITS))
    source: random.Random = field(default_factory=lambda: random.Random(1))
    away: dict[str, int] = field(default_factory=dict)
    """How often a blob will not be had."""
    most_requests: int = 0
    most_taken: int = 0

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        prefetch = self.prefetch
        self.most_requests = max(self.most_requests, prefetch.requests)
        self.most_taken = max(self.most_taken, prefetch.budget.taken)
        for _ in range(self.source.randrange(9)):
            await asyncio.sleep(0)
        if self.away.get(key):
            self.away[key] -= 1
            raise StorageUnavailable
        return await super().open(key, start=start, stop=stop, if_match=if_match)

    def body(self, archive: OpenedArchive, start: int = 0, stop: int | None = None) -> Body:
        end = archive.head.plan.size if stop is None else stop

        def chunks(progress: Progress) -> AsyncGenerator[Chunk, None]:
            return ArchiveBody(archive, sources_of(self), self.prefetch, progress).chunks(start, end)

        return Body(chunks)

    def gave_back_everything(self) -> bool:
        prefetch = self.prefetch
        left = prefetch.budget.taken, prefetch.requests, prefetch.windows, self.open_readers
        return left == (0, 0, 0, 0) and asyncio.all_tasks() == {asyncio.current_task()}


def unhurried(contents: Sequence[bytes], total: int = 1 << 20, limits: WindowLimits = LIMITS) -> UnhurriedStore:
    blobs = {f"k{index}": Blob(content, f'"e{index}"') for index, content in enumerate(contents)}
    return UnhurriedStore(blobs, prefetch=Prefetch(ByteBudget(total), limits))


@asynccontextmanager
async def begun(body: Body) -> AsyncIterator[Body]:
    async with body:
        await body.begin()
        yield body


async def received_until_failure(body: Body, kind: type[BaseException]) -> bytes:
    received = bytearray()
    with pytest.raises(kind):
        async with begun(body):
            async for chunk in body:
                received += chunk
    return bytes(received)


contents = st.lists(st.binary(max_size=90), min_size=1, max_size=25)
seeds = st.integers(0, 1 << 16)


@settings(deadline=None)
@given(contents, seeds, st.data())
async def test_any_slice_is_that_slice_of_the_whole_whatever_comes_first(
    files: list[bytes], seed: int, data: st.DataObject
) -> None:
    known = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    archive, store = planned(entries_of(files, known=known)), unhurried(files)
    store.source.seed(seed)
    whole = await collect(store.body(archive))
    assert zlib.crc32(whole) == zlib.crc32(await collect(unhurried(files, total=1).body(archive)))
    assert sorted(key for key, *_ in store.opened) == sorted(f"k{i}" for i, file in enumerate(files) if file)
    assert store.gave_back_everything()
    if all(known):
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        store.chunk = data.draw(st.integers(1, 50))
        store.breaks = data.draw(
            st.lists(
                st.tuples(st.integers(1, 40), st.sampled_from([StorageUnavailable(), StorageTimeout()])), max_size=3
            )
        )
        assert await collect(store.body(archive, start, stop)) == whole[start:stop]
        assert store.gave_back_everything()


@settings(deadline=None)
@given(contents, seeds, st.integers(1, 2000))
async def test_neither_bytes_nor_requests_go_beyond_their_bounds(files: list[bytes], seed: int, total: int) -> None:
    archive, store = planned(entries_of(files)), unhurried(files, total)
    store.source.seed(seed)
    await asyncio.gather(*(collect(store.body(archive)) for _ in range(3)))
    assert store.most_taken <= total // 2
    assert store.most_requests <= LIMITS.all_requests
    assert store.gave_back_everything()


async def test_what_is_wanted_next_is_under_way_all_at_once() -> None:
    files = [b"x" * 10] * 100
    archive, store = planned(entries_of(files)), unhurried(files)
    await collect(store.body(archive))
    assert store.most_requests == LIMITS.requests


async def test_no_more_than_a_few_keep_a_connection_until_their_turn() -> None:
    files = [b"y" * 50] * 20
    archive, store = planned(entries_of(files)), unhurried(files)
    store.prefetch.limits = replace(LIMITS, window_bytes=10_000, opened=2)
    await collect(store.body(archive))
    assert store.most_requests == 2
    assert store.gave_back_everything()


async def test_without_budget_it_goes_on_with_one_read_at_a_time() -> None:
    files = [b"x" * 10, b"y" * 70] * 10
    archive, store = planned(entries_of(files)), unhurried(files)
    assert store.prefetch.budget.take(store.prefetch.budget.total)
    whole = await collect(store.body(archive))
    assert len(whole) == archive.head.plan.size
    assert store.prefetch.budget.taken == store.prefetch.budget.total
    store.prefetch.budget.give(store.prefetch.budget.total)
    assert store.gave_back_everything()


async def test_a_download_that_is_not_read_leaves_the_others_their_share() -> None:
    files = [b"x" * 10] * 100
    archive, store = planned(entries_of(files)), unhurried(files, total=400)
    async with begun(store.body(archive)):
        for _ in range(200):
            await asyncio.sleep(0)
        held = store.prefetch.budget.taken
        assert 0 < held <= store.prefetch.budget.total // 2
        store.most_requests = 0
        assert len(await collect(store.body(archive))) == archive.head.plan.size
        assert store.most_requests == LIMITS.all_requests // 2
        assert store.prefetch.budget.taken == held
    assert store.gave_back_everything()


async def test_downloads_share_the_requests_of_the_process() -> None:
    files = [b"x" * 10] * 100
    archive, store = planned(entries_of(files)), unhurried(files)
    async with begun(store.body(archive)), begun(store.body(archive)):
        assert store.prefetch.share_requests == LIMITS.all_requests // 2
    assert store.prefetch.share_requests == LIMITS.requests


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=90), min_size=2, max_size=25), seeds, st.data())
async def test_a_failure_is_told_at_its_turn_and_never_before_the_headers(
    files: list[bytes], seed: int, data: st.DataObject
) -> None:
    archive = planned(entries_of(files))
    whole = await collect(unhurried(files).body(archive))
    failing = data.draw(st.integers(1, len(files) - 1))
    store = unhurried(files)
    store.source.seed(seed)
    kind: type[BaseException] = data.draw(st.sampled_from([BlobChanged, StorageError]))
    if kind is BlobChanged:
        del store.blobs[f"k{failing}"]
    else:
        store.blobs[f"k{failing}"].content = bytes(byte ^ 0xFF for byte in files[failing])
        files[failing] = b""
    received = await received_until_failure(store.body(archive), kind)
    assert whole.startswith(received)
    assert b"".join(files[:failing]) == b"" or len(received) > 0
    assert store.gave_back_everything()


async def test_the_first_blob_that_is_gone_is_told_before_the_headers_the_others_are_forgotten() -> None:
    files = [b"x" * 10] * 20
    archive, store = planned(entries_of(files)), unhurried(files)
    store.blobs["k0"].etag = '"other"'
    async with store.body(archive) as body:
        with pytest.raises(BlobChanged):
            await body.begin()
    assert store.gave_back_everything()


@pytest.mark.parametrize("size", [10, 70])
async def test_what_is_fetched_ahead_is_healed_while_the_first_blob_is_told_at_once(size: int) -> None:
    files = [b"x" * size] * 3
    archive, store = planned(entries_of(files)), unhurried(files)
    store.away = {"k1": 2, "k2": 1}
    assert len(await collect(store.body(archive))) == archive.head.plan.size
    assert store.away == {"k1": 0, "k2": 0}
    store.away = {"k0": 1}
    async with store.body(archive) as body:
        with pytest.raises(StorageUnavailable):
            await body.begin()
    assert store.gave_back_everything()


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 300), seeds)
async def test_a_body_that_is_cancelled_anywhere_gives_everything_back(steps: int, seed: int) -> None:
    files = [b"x" * 10, b"y" * 90] * 20
    archive, store = planned(entries_of(files)), unhurried(files)
    store.source.seed(seed)
    task = asyncio.create_task(collect(store.body(archive)))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.gave_back_everything()
