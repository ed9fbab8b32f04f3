"""References from Kafka to their records: how many a second of the worker's CPU time, with HeadObject and without."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from isal.isal_zlib import crc32

from benchmarks.efforts import Effort, Efforts, watched
from benchmarks.kafka import Broker, fresh, running_kafka
from benchmarks.processes import BenchmarkError, free_port
from benchmarks.programs import configured, program
from benchmarks.storage import BUCKET, WORKSPACE, Storage, put_missing, remove_state
from storage_proxy.bus.port import Event
from storage_proxy.common.events import blob_ref, run_key, run_prefix
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import Records
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite

RUNS = 32
BODY = bytes(1000)
WARM_UP = 320
OBVIOUS_SHARE = 4
"""The obvious consumer, which is slow, gets one in so many references."""
STATE = WORKSPACE / "ingestion.db"
OBVIOUS_STATE = WORKSPACE / "obvious.db"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker takes references from and puts records."""

    storage: Storage
    broker: Broker
    topic: str
    group: str


@dataclass(frozen=True, slots=True)
class Reference:
    run_id: str
    path: str

    @property
    def event(self) -> Event:
        payload = {
            "bucket": BUCKET,
            "key": run_key(self.run_id, self.path),
            "path": self.path,
            "content_type": "application/octet-stream",
            "size": len(BODY),
            "crc32": f"{crc32(BODY):08x}",
            "attributes": {"step": 12, "kind": "benchmark"},
        }
        value = blob_ref(self.run_id, payload, event_id=f"{self.run_id}:{self.path}", now=1_700_000_000)
        return Event(self.run_id, value.encode())


def references(count: int, folder: str) -> Sequence[Reference]:
    return [Reference(f"ingested-{number % RUNS:02}", f"{folder}/{number:07}.bin") for number in range(count)]


async def compare(storage: Storage, rounds: int, *, count: int) -> Efforts:
    """``count`` references for each worker in each round; the worker is stopped while they are published."""
    efforts = Efforts(rounds)
    warm, wanted = references(WARM_UP, "warm"), references(count, "blobs")
    await put_missing(
        storage, run_prefix("ingested")[:-1], [run_key(each.run_id, each.path) for each in (*warm, *wanted)], BODY
    )
    async with running_kafka() as broker:
        for number in range(rounds):
            kinds = list(WORKERS.items())
            for (case, who), worker in kinds if number % 2 == 0 else reversed(kinds):
                share = wanted if who != OBVIOUS else wanted[: count // OBVIOUS_SHARE]
                efforts.add(case, who, await _ingested(storage, broker, worker, warm, share))
    return efforts


async def _ingested(
    storage: Storage,
    broker: Broker,
    worker: "Callable[[Place], AbstractAsyncContextManager[int]]",
    warm: Sequence[Reference],
    wanted: Sequence[Reference],
) -> Effort:
    remove_state(STATE)
    remove_state(OBVIOUS_STATE)
    place = Place(storage, broker, fresh("ingest"), fresh("group"))
    await broker.publish(place.topic, [each.event for each in warm])
    async with worker(place) as pid, broker.watching(place.topic, place.group) as offsets:
        await offsets.reach(len(warm))
        os.kill(pid, signal.SIGSTOP)
        try:
            await broker.publish(place.topic, [each.event for each in wanted])
        finally:
            os.kill(pid, signal.SIGCONT)
        with watched(len(wanted), pid) as watch:
            await offsets.reach(len(warm) + len(wanted))
    if STATE.exists():
        await _check(len(warm) + len(wanted))
    return watch.efforts[0]


async def _check(count: int) -> None:
    """Whether each reference has a verified record."""
    records = Records()

    async def counted(transaction: Transaction) -> int:
        runs = [f"ingested-{number:02}" for number in range(RUNS)]
        totals = await records.totals.get_many(transaction, [(run_id,) for run_id in runs])
        return sum(each.blobs for each in totals if each is not None)

    async with open_sqlite(SqliteOptions(STATE)) as store:
        recorded = await store.transact(counted)
    if recorded != count:
        raise BenchmarkError(f"{recorded} blobs were recorded instead of {count}")


@asynccontextmanager
async def _worker(place: Place, *, instant: bool) -> AsyncIterator[int]:
    bus = {"kind": "kafka", "bootstrap_servers": place.broker.bootstrap_servers, "ingest_topic": place.topic}
    programs = configured(place.storage, STATE, bus=bus, group=place.group)
    stack = AsyncExitStack()
    async with stack:
        if instant:
            command = ["-m", "benchmarks.instant_worker", str(programs.proxy_config), str(len(BODY)), str(crc32(BODY))]
            yield await stack.enter_async_context(programs.python(*command))
        else:
            yield await stack.enter_async_context(programs.proxy("worker", "ingest"))


@asynccontextmanager
async def _obvious(place: Place, *, head: bool) -> AsyncIterator[int]:
    port, storage = free_port(), place.storage
    command = [sys.executable, "-m", "benchmarks.obvious_ingest", str(port), place.broker.bootstrap_servers]
    command += [place.topic, place.group, str(OBVIOUS_STATE), "HEAD" if head else "none", storage.endpoint]
    command += [storage.access_key, storage.secret_key, storage.region, BUCKET]
    async with program("obvious_ingest", command, f"http://127.0.0.1:{port}") as pid:
        yield pid


OBVIOUS = "obvious consumer"
WITHOUT, WITH = "ingest, without HEAD", "ingest, with HEAD"
WORKERS: "dict[tuple[str, str], Callable[[Place], AbstractAsyncContextManager[int]]]" = {
    (WITHOUT, "ingest worker"): lambda place: _worker(place, instant=True),
    (WITHOUT, OBVIOUS): lambda place: _obvious(place, head=False),
    (WITH, "ingest worker"): lambda place: _worker(place, instant=False),
    (WITH, OBVIOUS): lambda place: _obvious(place, head=True),
}
