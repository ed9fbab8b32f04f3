"""Everything that the end of blobs needs, wired: real state, real buckets, a bus in memory, a clock that is moved."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.events import run_key
from storage_proxy.common.pauses import PausePolicy
from storage_proxy.common.wire import RunAccess
from storage_proxy.lifecycle.control_worker import ControlWorker
from storage_proxy.lifecycle.eraser import RunEraser
from storage_proxy.lifecycle.jobs import Job, JobProgress, run_job
from storage_proxy.lifecycle.locks import Locks
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.lifecycle.relay import RELAY_LOCK, Relay
from storage_proxy.lifecycle.runs import Runs
from storage_proxy.lifecycle.sweeper import Sweeper
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import (
    BlobRecord,
    BlobState,
    Mark,
    Record,
    Records,
    RunRecord,
    RunTotals,
    Table,
    Tombstone,
    UploadRecord,
)
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat, BlobStore
from tests.support.memory_bus import MemoryBus
from tests.support.state import Clock

EVERY_BUCKET = RunAccess()
CONTROL = "blob-control"
INGEST = "blob-ingest"
GROUP = "storage-proxy-ingest"
TOPICS = {"control": CONTROL, "ingest": INGEST}
NOW = 1_800_000_000.0
SECOND_PASS_SECONDS = 3600.0
LOCK_SECONDS = 30.0


class Killed(BaseException):
    """The process ends here."""


def kill_at(patch: pytest.MonkeyPatch, name: str, *, passes: int = 1) -> None:
    """End what passes the step ``name`` for the n-th time, once; as a process ends, but for its ``finally``."""
    left = passes

    def step(passed: str) -> None:
        nonlocal left
        if passed == name:
            left -= 1
            if left == 0:
                raise Killed(name)

    for module in ("relay", "eraser", "cleanup_orphans"):
        patch.setattr(f"storage_proxy.lifecycle.{module}.step", step)


@dataclass
class House:
    """One service. ``restarted`` gives another process of it."""

    store: KeyValueStore
    stores: dict[str, BlobStore]
    clock: Clock = field(default_factory=lambda: Clock(NOW))
    bus: MemoryBus = field(init=False)
    records: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.clock)
        self.buckets = Buckets(self.stores)
        self.metrics = LifecycleMetrics(CollectorRegistry())
        self.runs = Runs(self.store, self.records, second_pass_seconds=SECOND_PASS_SECONDS, clock=self.clock)
        self.locks = Locks(self.store, self.records, lock_seconds=LOCK_SECONDS, clock=self.clock)
        self.eraser = RunEraser(self.store, self.records, self.buckets, self.metrics, clock=self.clock)
        self.worker = ControlWorker(self.eraser, self.bus, self.metrics)
        self.sweeper = Sweeper(
            self.store, self.records, self.eraser, self.locks, self.metrics, owner="test", clock=self.clock
        )
        self.relay = self.new_relay()

    def new_relay(self, owner: str = "test", locks: Locks | None = None) -> Relay:
        return Relay(
            self.store,
            self.records,
            self.bus,
            TOPICS,
            locks or self.locks,
            self.metrics,
            owner=owner,
            poll_seconds=0.01,
            clock=self.clock,
            pauses=PausePolicy(0.001, 0.01),
        )

    async def get(self, table: Table[Any], *key: Any) -> Any:
        async def fn(transaction: Transaction) -> Any:
            return await table.get(transaction, *key)

        return await self.store.transact(fn)

    async def set(self, table: Table[Any], record: Record, *key: Any) -> None:
        async def fn(transaction: Transaction) -> None:
            table.set(transaction, record, *key)

        await self.store.transact(fn)

    async def rows(self, table: Table[Any], *key: Any) -> Sequence[tuple[tuple[Any, ...], Any]]:
        async def fn(transaction: Transaction) -> Sequence[tuple[tuple[Any, ...], Any]]:
            return await table.page(transaction, *key, limit=100_000)

        return await self.store.transact(fn)

    async def record(
        self, run_id: str, paths: Iterable[str], *, bucket: str = "default", upload_until: int = 0, **more: Any
    ) -> None:
        """What the ingest worker writes of verified blobs (or of ``state``), the run's own row and totals with it."""
        wanted = list(paths)
        state = more.pop("state", BlobState.VERIFIED)
        now = int(self.clock())

        async def fn(transaction: Transaction) -> None:
            self.records.runs.set(transaction, RunRecord(bucket, now, upload_until), run_id)
            totals = await self.records.totals.get(transaction, run_id) or RunTotals()
            for path in wanted:
                due_ms = None
                if state is BlobState.PENDING:
                    due_ms = now * 1000
                    self.records.due.set(transaction, Mark(), due_ms, run_id, path)
                    self.records.uploads.set(transaction, UploadRecord(path), run_id, path[:32])
                blob = BlobRecord(bucket, state, now, size=1, due_ms=due_ms, **more)
                self.records.blobs.set(transaction, blob, run_id, path)
            if state is BlobState.VERIFIED:
                added = RunTotals(totals.blobs + len(wanted), totals.bytes + len(wanted))
                self.records.totals.set(transaction, added, run_id)

        await self.store.transact(fn)

    async def put(self, run_id: str, paths: Iterable[str], *, bucket: str = "default") -> None:
        """Objects of a run."""
        keys = [run_key(run_id, path) for path in paths]
        await map_bounded(64, lambda key: self.stores[bucket].put(key, b"x"), keys)

    async def objects(self, prefix: str = "runs/", *, bucket: str = "default") -> list[str]:
        found: list[BlobStat] = []
        async for page in self.stores[bucket].list(prefix):
            found += page
        return [stat.key for stat in found if not stat.key.endswith("/")]

    async def tombstone(self, run_id: str) -> Tombstone | None:
        found: Tombstone | None = await self.get(self.records.tombstones, run_id)
        return found

    async def relay_all(self) -> None:
        async with self.locks.hold(RELAY_LOCK, "test") as lock:
            while await self.relay.run_once(lock):
                pass

    async def control_all(self) -> int:
        """What the control worker has not done yet after one look at all."""
        return await self.bus.give(CONTROL, "control", self.worker.handle)

    async def run_job(self, job: Job, **more: Any) -> JobProgress:
        return await run_job(job, self.locks, "test", **more)

    async def nothing_left_of(self, run_id: str) -> bool:
        """No row of the run but its tombstone."""
        records = self.records
        rows = [
            *await self.rows(records.blobs, run_id),
            *await self.rows(records.uploads, run_id),
            *[row for row in await self.rows(records.due) if row[0][1] == run_id],
            *[row for row in await self.rows(records.sweeps) if row[0][1] == run_id],
        ]
        alone = [await self.get(table, run_id) for table in (records.runs, records.totals)]
        return not rows and alone == [None, None]
