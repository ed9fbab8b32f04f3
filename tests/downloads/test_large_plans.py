"""Plans of many entries: their requests on a real S3 server, their memory and their turns over a fake that lists."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.wire import ArchiveSelection
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.planner import ArchivePlanner, PlanLimits
from storage_proxy.formats.layout import Section
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat, BlobStore
from tests.support.faulty_proxy import FaultyProxy
from tests.support.manifests import manifests_in
from tests.support.runs import temporary_runs
from tests.support.s3 import S3Bucket, open_store
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.turns import turns_beside

BYTES_AN_ENTRY = 400
"""The promise of docs/operations.md."""


@dataclass(frozen=True, slots=True)
class Planning:
    """A planner over one bucket, and what it has learned."""

    planner: ArchivePlanner
    learned: LearnedCrcs


@contextlib.asynccontextmanager
async def planning(store: BlobStore, **limits: float) -> AsyncIterator[Planning]:
    async with temporary_runs() as runs:
        learned = LearnedCrcs(runs.store, runs.records, DownloadMetrics(CollectorRegistry()))
        blobs = Blobs(Buckets({"default": store}), runs.blobs)
        yield Planning(ArchivePlanner(blobs, learned, PlanLimits(max_entries=1_000_000, **limits)), learned)  # type: ignore[arg-type]


class Listed(ScriptedStore):
    """Lists so many blobs without having one; a key is ``length`` characters."""

    def __init__(self, count: int, *, length: int = 30) -> None:
        super().__init__()
        self._count = count
        self._length = length

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        for first in range(0, self._count, 1000):
            await asyncio.sleep(0)
            yield [self._listed(index) for index in range(first, min(first + 1000, self._count))]

    def _listed(self, index: int) -> BlobStat:
        key = f"data/{index // 1000:06d}/{index:09d}".ljust(self._length, "k")
        return BlobStat(key, 10_240, f'"{index * 7919:032x}"', 1_700_000_000 + index)


async def test_an_entry_takes_less_memory_at_mint_than_promised_though_its_key_is_long() -> None:
    count = 20_000
    async with planning(Listed(count, length=200), crc32_seconds=0) as ready:
        tracemalloc.start()
        try:
            plan = await ready.planner.plan(ArchiveSelection(prefix=""))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert plan.manifest.head.plan.entries == count
    assert peak / count < BYTES_AN_ENTRY


async def test_others_have_their_turn_all_through_a_mint() -> None:
    count = 10_000
    async with planning(Listed(count), crc32_seconds=0) as ready:
        turns, _ = await turns_beside(ready.planner.plan(ArchiveSelection(prefix="")))
    assert turns > 2 * count / 128  # while listing, and while laying out


async def test_a_mint_that_is_out_of_time_leaves_the_remaining_crcs_unknown() -> None:
    class Stuck(ScriptedStore):
        async def stat(self, key: str) -> BlobStat | None:
            if key == "b":
                await asyncio.Event().wait()
            return await super().stat(key)

        async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
            yield [BlobStat(key, len(blob.content), blob.etag, 0) for key, blob in self.blobs.items()]

    store = Stuck({"a": Blob(b"a", crc32=7), "b": Blob(b"b", crc32=8)})
    async with planning(store, crc32_seconds=0.5) as ready:
        plan = await ready.planner.plan(ArchiveSelection(prefix=""))
    assert (plan.manifest.head.plan.entries, plan.manifest.head.plan.unknown_crcs) == (2, 1)


async def test_a_prefix_costs_a_list_for_each_thousand_keys_and_a_head_for_each_unknown_crc(
    s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    count = 1_100
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store, planning(store) as ready:

        async def put(index: int) -> None:
            await store.put(f"data/{index:05d}", b"%d" % index)

        async def requests_of_a_mint() -> tuple[int, int, int]:
            faulty.requests.clear()
            plan = await ready.planner.plan(ArchiveSelection(prefix="data/"))
            assert plan.manifest.head.plan.unknown_crcs == 0
            return faulty.count("GET", "list-type=2"), faulty.count("HEAD"), len(faulty.requests)

        await map_bounded(32, put, range(count))
        assert await requests_of_a_mint() == (2, count, count + 2)
        await ready.learned.flush()
        await put(count)
        assert await requests_of_a_mint() == (2, 1, 3), "what S3 has told once is not asked again"


async def test_a_range_near_the_end_of_a_large_archive_reads_only_its_chunks_of_the_manifest() -> None:
    bucket = ScriptedStore(chunk=1 << 20)
    async with planning(Listed(20_000), crc32_seconds=0) as ready:
        plan = await ready.planner.plan(ArchiveSelection(prefix=""))
    manifest = plan.manifest
    await manifests_in(bucket).write(manifest)
    cold = await manifests_in(bucket).open(manifest.head.name)
    size = manifest.head.plan.size
    touched = {part.block for part in manifest.head.plan.parts(size - 1000, size) if part.section is not Section.END}
    for block in sorted(touched):
        await cold.block(block)
        await cold.block(block)
    assert list(touched) == [manifest.head.blocks - 1]
    assert bucket.stats == 1
    assert len(bucket.opened) == 2  # the head, and the last block
    assert sum(stop - start for _, start, stop, _ in bucket.opened) < 100_000 < len(manifest.encode())
