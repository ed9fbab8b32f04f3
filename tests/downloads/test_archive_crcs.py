"""When an archive's unknown CRC-32s count as learned; the state is a real SQLite file."""

from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from storage_proxy.downloads.archive_crcs import ArchiveCrcs
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifest import build_manifest
from storage_proxy.downloads.manifests import OpenedArchive, in_memory
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import Pin
from storage_proxy.formats.entries import Entry, EntryBlockBuilder
from tests.support.runs import temporary_runs

ENTRIES = [Entry(f"n{i}", "default", f"k{i}", 10, '"e"', 1_700_000_000, 100 + i if i % 3 else None) for i in range(10)]
UNKNOWN = [index for index, entry in enumerate(ENTRIES) if entry.crc32 is None]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class CountedCrcs(LearnedCrcs):
    """Counts the look-ups."""

    looks = 0

    async def known(self, pins: list[Pin]) -> list[int | None]:  # type: ignore[override]
        self.looks += 1
        return await super().known(pins)


@pytest.fixture
async def learned() -> AsyncIterator[CountedCrcs]:
    async with temporary_runs() as runs:
        yield CountedCrcs(runs.store, runs.records, DownloadMetrics(CollectorRegistry()))


@pytest.fixture
def archive() -> OpenedArchive:
    builder = EntryBlockBuilder(max_entries=4)
    blocks = [builder.add(entry) for entry in ENTRIES] + [builder.finish()]
    return in_memory(build_manifest([block for block in blocks if block]), BytesBoundedCache(1 << 20))


async def test_they_count_once_all_of_them_are_known_and_are_then_not_looked_up_again(
    learned: CountedCrcs, archive: OpenedArchive
) -> None:
    crcs = ArchiveCrcs(learned)
    for index in UNKNOWN:
        assert await crcs.of(archive) is None
        crcs.note(archive, Pin.of(ENTRIES[index]), 1000 + index)
    remembered = await crcs.of(archive)
    assert remembered is not None
    assert {index: remembered[index] for index in UNKNOWN} == {index: 1000 + index for index in UNKNOWN}
    looks = learned.looks
    assert await crcs.of(archive) is remembered
    assert learned.looks == looks


async def test_one_that_the_content_contradicts_is_not_believed_again(
    learned: CountedCrcs, archive: OpenedArchive
) -> None:
    crcs = ArchiveCrcs(learned)
    for index in UNKNOWN:
        crcs.note(archive, Pin.of(ENTRIES[index]), 1000 + index)
    assert await crcs.of(archive) is not None
    wrong = Pin.of(ENTRIES[UNKNOWN[0]])
    crcs.contradicted(wrong)
    assert await crcs.of(archive) is None
    crcs.note(archive, wrong, 7)
    remembered = await crcs.of(archive)
    assert remembered is not None
    assert remembered[UNKNOWN[0]] == 7


async def test_what_others_learned_is_looked_for_at_a_bounded_rate_from_where_the_last_look_ended(
    learned: CountedCrcs, archive: OpenedArchive
) -> None:
    clock = Clock()
    crcs = ArchiveCrcs(learned, clock=clock, again_seconds=1.0)
    for index in UNKNOWN[:-1]:
        learned.note(Pin.of(ENTRIES[index]), 7)
    assert await crcs.of(archive) is None
    learned.note(Pin.of(ENTRIES[UNKNOWN[-1]]), 7)
    looks = learned.looks
    assert await crcs.of(archive) is None
    assert learned.looks == looks
    clock.now += 1.0
    assert await crcs.of(archive) is not None
    assert learned.looks == looks + 1  # the last block only


async def test_one_request_looks_for_a_bounded_time_and_the_next_goes_on(
    learned: CountedCrcs, archive: OpenedArchive
) -> None:
    for index in UNKNOWN:
        learned.note(Pin.of(ENTRIES[index]), 7)
    crcs = ArchiveCrcs(learned, look_seconds=0.0, clock=Clock())
    answers = [await crcs.of(archive) is not None for _ in range(archive.head.blocks)]
    assert answers == [False, False, True]


async def test_an_archive_too_large_to_be_kept_is_looked_at_anew_and_answered_all_the_same(
    learned: CountedCrcs, archive: OpenedArchive
) -> None:
    for index in UNKNOWN:
        learned.note(Pin.of(ENTRIES[index]), 7)
    assert await ArchiveCrcs(learned, max_bytes=0).of(archive) is not None
