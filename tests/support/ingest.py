"""The write path around a state store of the test's choice: a bucket and a bus in memory, and time that can be moved.

Fakes: what real stores and buses do is proven in tests/contracts; here the rules of ingestion are.
"""

import asyncio
import json
import random
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry

from storage_proxy.bus.port import Batch, Event, Handler, Message, TopicPosition
from storage_proxy.common.errors import BlobExists, BusUnavailable, SizeMismatch, StorageUnavailable
from storage_proxy.common.events import run_key
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.reconciler import Reconciler
from storage_proxy.ingest.recording import Recorder
from storage_proxy.ingest.uploads import Uploads
from storage_proxy.ingest.verification import Verifier
from storage_proxy.ingest.worker import IngestWorker
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, Records, RunEnd, RunRecord, RunTotals, Tombstone
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobReader, BlobStat, PresignedPut, UploadTerms
from tests.support.scripted_store import Blob, ScriptedStore

TOPIC = "blob-ingest"


@dataclass
class Now:
    """Seconds since the epoch that pass when a test says so."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class MemoryBucket(ScriptedStore):
    """With all abilities of an upload's way. ``away`` makes every method fail."""

    away: bool = False
    presigned: list[tuple[str, UploadTerms, int]] = field(default_factory=list)
    versions: int = 0

    def place(self, key: str, content: bytes, *, knows_crc32: bool = True) -> Blob:
        """An object that somebody put there."""
        self.versions += 1
        crc = zlib.crc32(content) if knows_crc32 else None
        self.blobs[key] = Blob(content, f'"v{self.versions}"', 1_700_000_000 + self.versions, crc)
        return self.blobs[key]

    async def stat(self, key: str) -> BlobStat | None:
        self._check()
        stat = await super().stat(key)
        return stat and replace(stat, content_type="application/x-stored")

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        self._check()
        return await super().open(key, start=start, stop=stop, if_match=if_match)

    async def presign_put(self, key: str, terms: UploadTerms, *, expires_in: int) -> PresignedPut:
        self.presigned.append((key, terms, expires_in))
        return PresignedPut(f"https://s3.example/{len(self.presigned)}", {"If-None-Match": "*"})

    async def receive(
        self, key: str, body: AsyncIterable[bytes | memoryview], terms: UploadTerms, *, max_bytes: int
    ) -> BlobStat:
        self._check()
        if key in self.blobs:
            raise BlobExists
        content = b"".join([bytes(chunk) async for chunk in body])
        if terms.size not in (None, len(content)):
            raise SizeMismatch
        if key in self.blobs:  # one that came meanwhile
            raise BlobExists
        self.place(key, content)
        stat = await self.stat(key)
        assert stat is not None
        return stat

    async def delete_many(self, keys: Sequence[str]) -> None:
        self._check()
        for key in keys:
            self.blobs.pop(key, None)

    async def erase(self, prefix: str) -> AsyncIterator[int]:
        for key in [key for key in self.blobs if key.startswith(prefix)]:
            del self.blobs[key]
            yield 1

    async def discard_uploads(self, prefix: str, *, older_than: float) -> int:
        return 0

    def _check(self) -> None:
        if self.away:
            raise StorageUnavailable


@dataclass
class MemoryBus:
    """Topics of one partition or more; messages are handed over by `deliver`, in order, until they are done.

    The next ``failures`` publications fail; every other one of them was made.
    """

    partitions: int = 1
    failures: int = 0
    topics: dict[str, list[list[Message]]] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)

    def log(self, topic: str) -> list[list[Message]]:
        return self.topics.setdefault(topic, [[] for _ in range(self.partitions)])

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        if self.failures:
            self.failures -= 1
            if self.failures % 2:
                self._append(topic, events)
            raise BusUnavailable
        self._append(topic, events)

    def _append(self, topic: str, events: Sequence[Event]) -> None:
        for event in events:
            key = event.key.encode() if isinstance(event.key, str) else event.key
            partition = zlib.crc32(key or b"") % self.partitions
            log = self.log(topic)[partition]
            log.append(Message(topic, partition, len(log), key, event.value, 0.0, event.headers))

    def dead(self) -> list[Message]:
        return [message for log in self.log(f"{TOPIC}.dlq") for message in log]

    def batch(self, partition: int, *, size: int = 500, start: int | None = None) -> Batch | None:
        begin = self.committed.get((TOPIC, partition), 0) if start is None else start
        messages = self.log(TOPIC)[partition][begin : begin + size]
        return Batch(TOPIC, partition, messages) if messages else None

    async def deliver(self, handler: Handler, *, size: int = 500, rounds: int = 1_000_000) -> None:
        """Hand over what is not done, batch by batch; a batch whose handler fails comes again."""
        for partition in range(self.partitions):
            for _ in range(rounds):
                batch = self.batch(partition, size=size)
                if batch is None:
                    break
                try:
                    done = await handler(batch)
                except (BusUnavailable, StorageUnavailable):
                    continue
                place = (TOPIC, partition)
                self.committed[place] = self.committed.get(place, 0) + done
                if not done:
                    break

    def consume(self, topic: str, group: str, handler: Handler) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError

    async def positions(self, topic: str, group: str) -> Sequence[TopicPosition]:
        raise NotImplementedError

    async def browse(self, topic: str) -> AsyncIterator[Sequence[Message]]:
        for log in self.log(topic):
            yield log

    async def probe(self) -> None:
        return

    async def aclose(self) -> None:
        return


class WritePath:
    """Everything that ingests, wired as the programs wire it."""

    def __init__(
        self,
        store: KeyValueStore,
        *,
        options: IngestOptions | None = None,
        partitions: int = 1,
        buckets: Mapping[str, Any] | None = None,
        records: Records | None = None,
    ) -> None:
        self.store = store
        self.clock = Now()
        self.options = options or IngestOptions(claim_wait_seconds=0.2)
        self.records = records or Records("test")
        self.bucket = MemoryBucket()
        self.bus = MemoryBus(partitions)
        self.buckets = Buckets({"media": self.bucket, "other": MemoryBucket()} if buckets is None else buckets)
        self.registry = CollectorRegistry()
        metrics = IngestMetrics(self.registry)
        self.metrics = metrics
        options = self.options
        self.verifier = Verifier(store, self.records, self.buckets, options=options, metrics=metrics, clock=self.clock)
        self.recorder = Recorder(store, self.records, options=options, clock=self.clock)
        self.worker = IngestWorker(
            self.bus, self.verifier, self.recorder, self.buckets, options=options, metrics=metrics
        )
        self.reconciler = Reconciler(
            store,
            self.records,
            self.verifier,
            options=options,
            metrics=metrics,
            clock=self.clock,
            jitter=random.Random(1),
        )
        self.uploads = Uploads(
            store,
            self.records,
            self.buckets,
            self.verifier,
            options=options,
            metrics=metrics,
            clock=self.clock,
            source=random.Random(1),
        )

    async def announce(self, run_id: str, path: str, *, bucket: str = "media", **said: Any) -> None:
        await self.bus.publish(TOPIC, [Event(run_id, reference(run_id, path, bucket=bucket, **said))])

    async def deliver(self) -> None:
        await self.bus.deliver(self.worker.handle)

    async def blob(self, run_id: str, path: str) -> BlobRecord | None:
        return await self.store.transact(lambda transaction: self.records.blobs.get(transaction, run_id, path))

    async def totals(self, run_id: str) -> RunTotals:
        found = await self.store.transact(lambda transaction: self.records.totals.get(transaction, run_id))
        return found or RunTotals()

    async def run(self, run_id: str) -> RunRecord | None:
        return await self.store.transact(lambda transaction: self.records.runs.get(transaction, run_id))

    async def blobs(self) -> dict[tuple[str, str], BlobRecord]:
        """Every record, by run and path."""
        found = {}
        async for rows in self.store.read_snapshot(*self.records.blobs.range()):
            for row in rows:
                key, record = self.records.blobs.read(row)
                found[key[0], key[1]] = record
        return found

    async def due(self) -> list[tuple[int, str, str]]:
        return [
            self.records.due.elements(key)  # type: ignore[misc]
            async for rows in self.store.read_snapshot(*self.records.due.range())
            for key, _ in rows
        ]

    async def outbox(self) -> list[dict[str, Any]]:
        """The events that wait to be published."""
        return [
            json.loads(self.records.outbox.read(row)[1].value)
            async for rows in self.store.read_snapshot(*self.records.outbox.range())
            for row in rows
        ]

    async def relay(self) -> None:
        """Publish the outbox, as the control worker does."""
        for event in await self.outbox():
            await self.bus.publish(TOPIC, [Event(event["run_id"], json.dumps(event).encode())])
        await self.store.transact(self._clear_outbox)

    async def _clear_outbox(self, transaction: Transaction) -> None:
        transaction.clear_range(*self.records.outbox.range())

    async def delete_run(self, run_id: str, bucket: str | None = "media") -> None:
        """What deleting a run writes: it is hidden at once, its rows are cleared."""
        at = int(self.clock())

        async def fn(transaction: Transaction) -> None:
            tombstone = Tombstone(bucket, RunEnd.DELETING, at, at, at + 3600)
            self.records.tombstones.set(transaction, tombstone, run_id)
            self.records.runs.clear(transaction, run_id)
            self.records.totals.clear(transaction, run_id)
            self.records.blobs.clear_all(transaction, run_id)

        await self.store.transact(fn)


def reference(run_id: str, path: str, *, bucket: str = "media", key: str | None = None, **said: Any) -> bytes:
    """The value of a message that announces a blob."""
    payload = {"bucket": bucket, "key": key or run_key(run_id, path), "path": path, **said}
    event = {
        "schema": 1,
        "id": f"{run_id}/{path}",
        "type": "blob_ref",
        "run_id": run_id,
        "occurred_at": "2026-01-01T00:00:00Z",
        "payload": payload,
    }
    return json.dumps(event).encode()


def crc32_of(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


async def chunks(content: bytes, size: int = 5) -> AsyncIterator[bytes]:
    """A body as it arrives."""
    for start in range(0, len(content), size):
        await asyncio.sleep(0)
        yield content[start : start + size]
