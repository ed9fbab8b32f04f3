"""A process that ends deleted runs until all are swept: ``python -m tests.support.deletion_process DIRECTORY``.

Relay, control worker and sweeper on a SQLite file, an embedded bus and a local bucket of the directory; it may be
killed at a step (see `storage_proxy.common.steps`).
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from storage_proxy.bus.embedded import EmbeddedBus, EmbeddedOptions, open_embedded_bus
from storage_proxy.common.pauses import PausePolicy
from storage_proxy.lifecycle.control_worker import ControlWorker
from storage_proxy.lifecycle.eraser import RunEraser
from storage_proxy.lifecycle.locks import Locks
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.lifecycle.relay import Relay
from storage_proxy.lifecycle.sweeper import Sweeper
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Records, RunEnd
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.local import LocalBlobStore

CONTROL = "blob-control"
LOCK_SECONDS = 0.6


@dataclass(frozen=True, slots=True)
class Opened:
    """What the directory holds."""

    store: KeyValueStore
    bus: EmbeddedBus
    blobs: LocalBlobStore
    records: Records


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Opened]:
    options = EmbeddedOptions(directory / "bus.db", partitions=2, lease=1.0, pauses=PausePolicy(0.02, 0.2))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_sqlite(SqliteOptions(directory / "state.db", busy_seconds=30)))
        bus = await stack.enter_async_context(open_embedded_bus(options))
        blobs = LocalBlobStore(directory / "blobs")
        stack.push_async_callback(blobs.aclose)
        yield Opened(store, bus, blobs, Records())


async def end_runs(directory: Path) -> None:
    async with opened(directory) as at:
        metrics = LifecycleMetrics(CollectorRegistry())
        locks = Locks(at.store, at.records, lock_seconds=LOCK_SECONDS)
        eraser = RunEraser(at.store, at.records, Buckets({"default": at.blobs}), metrics)
        topics = {"control": CONTROL}
        relay = Relay(at.store, at.records, at.bus, topics, locks, metrics, owner="test", poll_seconds=0.02)
        worker = ControlWorker(eraser, at.bus, metrics)
        sweeper = Sweeper(at.store, at.records, eraser, locks, metrics, owner="test", poll_seconds=0.05)
        async with at.bus.consume(CONTROL, "control", worker.handle):
            loops = [asyncio.create_task(relay.run()), asyncio.create_task(sweeper.run())]
            while not await _is_done(at):
                await asyncio.sleep(0.02)
                for loop in loops:
                    if loop.done():
                        loop.result()
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


async def _is_done(at: Opened) -> bool:
    async def fn(transaction: Transaction) -> bool:
        outbox = await at.records.outbox.page(transaction, limit=1)
        ends = await at.records.tombstones.page(transaction, limit=1000)
        return not outbox and all(tombstone.state is RunEnd.SWEPT for _, tombstone in ends)

    if not await at.store.transact(fn):
        return False
    return all(each.committed == each.end for each in await at.bus.positions(CONTROL, "control"))


if __name__ == "__main__":
    asyncio.run(end_runs(Path(sys.argv[1])))
