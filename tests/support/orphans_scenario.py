"""Many objects of which some are orphans: what cleanup-orphans has to find, at any size, on any bucket."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.events import run_key
from storage_proxy.lifecycle.cleanup_orphans import CleanupOrphans, OrphanOptions
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobRecord, BlobState
from tests.support.lifecycle import GROUP, INGEST, House

RUN_BLOBS = 50
RUNS_AT_ONCE = 20


@dataclass
class OrphansScenario:
    """``objects`` objects in runs of 50, ``orphans`` of them without a record."""

    house: House
    objects: int = 2000
    orphans: int = 137
    seed: int = 1
    orphaned: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)

    async def build(self) -> None:
        """Put the objects, and write the records of those that have one. Nothing of it is younger than a minute."""
        chosen = set(random.Random(self.seed).sample(range(self.objects), self.orphans))
        places = [(f"run-{number // RUN_BLOBS}", f"{number % RUN_BLOBS}/b.bin") for number in range(self.objects)]
        self.orphaned = {run_key(*places[number]) for number in chosen}
        self.known = {run_key(*place) for place in places} - self.orphaned
        step = RUN_BLOBS * RUNS_AT_ONCE
        for start in range(0, self.objects, step):
            part = places[start : start + step]
            await map_bounded(64, lambda place: self.house.put(place[0], [place[1]]), part)
            await self._record(place for place in part if run_key(*place) in self.known)

    def job(self, *, orphan_seconds: float = 60.0) -> CleanupOrphans:
        options = OrphanOptions(INGEST, GROUP, orphan_seconds)
        house = self.house
        return CleanupOrphans(house.store, house.records, house.buckets, house.bus, options, clock=house.clock)

    async def left(self) -> set[str]:
        return set(await self.house.objects())

    async def _record(self, places: Iterable[tuple[str, str]]) -> None:
        wanted = list(places)

        async def fn(transaction: Transaction) -> None:
            for run_id, path in wanted:
                blob = BlobRecord("default", BlobState.VERIFIED, 1, size=1)
                self.house.records.blobs.set(transaction, blob, run_id, path)

        await self.house.store.transact(fn)
