"""Any sequence of what can happen to a run's blobs ends in the records that a plain model says.

State is a real SQLite file; the bucket and the bus are in memory.
"""

import asyncio
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.bus.port import Event
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.state.records import BlobState
from tests.support.ingest import TOPIC, WritePath, reference
from tests.support.state import sqlite_store

RUNS = ["r1", "r2"]
PATHS = ["a", "ü"]
CONTENTS = [b"", b"content", b"tnetnoc", b"x" * 50]
READABLE = 20
"""What is longer is not read to learn its CRC-32."""

# Mostly one blob, so that what is said of it meets.
places = st.one_of(st.just(("r1", "a")), st.just(("r1", "a")), st.tuples(st.sampled_from(RUNS), st.sampled_from(PATHS)))
said = st.fixed_dictionaries(
    {},
    optional={
        "size": st.sampled_from([len(content) for content in CONTENTS]),
        "crc32": st.sampled_from([f"{zlib.crc32(content):08x}" for content in CONTENTS]),
        "attributes": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), max_size=1),
    },
)
steps = st.one_of(
    st.tuples(st.just("announce"), places, said),
    st.tuples(st.just("announce"), places, said),
    st.tuples(st.just("poison"), places),
    st.tuples(st.just("place"), places, st.sampled_from(CONTENTS), st.booleans()),
    st.tuples(st.just("place"), places, st.sampled_from(CONTENTS), st.booleans()),
    st.tuples(st.just("remove"), places),
    st.tuples(st.just("deliver"), st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("redeliver"), st.integers(1, 5), st.integers(1, 3)),
    st.tuples(st.just("redeliver"), st.integers(1, 5), st.integers(1, 3)),
    st.tuples(st.just("reconcile"), st.sampled_from([61, 90_000])),
    st.tuples(st.just("delete"), st.sampled_from(RUNS)),
)


@dataclass
class Known:
    """What the model knows of one record; ``size`` and ``crc32`` are announced, or the object's when verified."""

    state: BlobState
    size: int | None
    crc32: int | None
    attributes: dict[str, int]
    order: int | None
    etag: str = ""
    deadline: float = 0.0


@dataclass
class Model:
    """The rules of ingestion on dicts: one message at a time, everything at once."""

    path: WritePath
    records: dict[tuple[str, str], Known] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    dead: set[bytes] = field(default_factory=set)

    def seen(self, place: tuple[str, str]) -> tuple[int, int | None, str] | None:
        blob = self.path.bucket.blobs.get(f"runs/{place[0]}/{place[1]}")
        if blob is None:
            return None
        crc = zlib.crc32(blob.content) if blob.crc32 is not None or len(blob.content) <= READABLE else None
        return len(blob.content), crc, blob.etag

    def hear(self, order: int, value: bytes, place: tuple[str, str], said: dict[str, Any]) -> None:
        if place[0] in self.deleted:
            return
        before = self.records.get(place)
        if before is not None and before.order is not None and order <= before.order:
            is_again = order == before.order and before.state is BlobState.REJECTED
            if not is_again:
                return
        size, attributes = said.get("size"), said.get("attributes")
        crc = int(said["crc32"], 16) if "crc32" in said else None
        if before is not None and before.state is not BlobState.VERIFIED:
            size = before.size if size is None else size
            crc = before.crc32 if crc is None else crc
        if attributes is None:
            attributes = before.attributes if before is not None else {}
        now = self.path.clock()
        seen = self.seen(place)
        if seen is None:
            deadline = now + 86_400
            if before is not None and before.state is BlobState.PENDING:
                deadline = max(deadline, before.deadline)
            self.records[place] = Known(BlobState.PENDING, size, crc, attributes, order, deadline=deadline)
        elif contradicts(size, crc, seen):
            self.dead.add(value)
            if before is None or before.state is not BlobState.VERIFIED or before.etag != seen[2]:
                self.records[place] = Known(BlobState.REJECTED, size, crc, attributes, order)
        else:
            self.records[place] = self.verified(before, seen, attributes, order)

    def verified(
        self, before: Known | None, seen: tuple[int, int | None, str], attributes: dict[str, int], order: int | None
    ) -> Known:
        return Known(BlobState.VERIFIED, seen[0], seen[1], attributes, order, seen[2])

    def reconcile(self) -> None:
        """All that is pending is due: time has passed by more than the longest wait."""
        for place, known in self.records.items():
            if known.state is not BlobState.PENDING:
                continue
            seen = self.seen(place)
            if seen is None:
                if self.path.clock() >= int(known.deadline):
                    known.state = BlobState.EXPIRED
            elif contradicts(known.size, known.crc32, seen):
                known.state = BlobState.REJECTED
            else:
                self.records[place] = self.verified(known, seen, known.attributes, known.order)

    def delete(self, run_id: str) -> None:
        self.deleted.add(run_id)
        self.records = {place: known for place, known in self.records.items() if place[0] != run_id}


def contradicts(size: int | None, crc: int | None, seen: tuple[int, int | None, str]) -> bool:
    return size not in (None, seen[0]) or (None not in (crc, seen[1]) and crc != seen[1])


@settings(max_examples=60)
@given(st.lists(steps, min_size=15, max_size=40), st.integers(1, 7))
def test_any_sequence_ends_in_the_records_of_the_model(what: list[Any], size: int) -> None:
    asyncio.run(_run(what, size))


async def _run(what: list[Any], size: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with sqlite_store(Path(directory) / "state.db") as store:
            path = WritePath(store, options=IngestOptions(crc32_read_bytes=READABLE))
            sequence = _Sequence(path, Model(path), size)
            for step in [*what, ("deliver", 0), ("reconcile", 61)]:
                await getattr(sequence, step[0])(*step[1:])
            await _compare(path, sequence.model)


class _Sequence:
    """Does each step to the system and to the model."""

    def __init__(self, path: WritePath, model: Model, size: int) -> None:
        self.path = path
        self.model = model
        self._size = size
        self._meanings: list[tuple[tuple[str, str], dict[str, Any]] | None] = []  # by offset; None: poison
        self._heard = 0

    async def announce(self, place: tuple[str, str], said: dict[str, Any]) -> None:
        self._meanings.append((place, said))
        await self.path.announce(*place, **said)

    async def poison(self, place: tuple[str, str]) -> None:
        self._meanings.append(None)
        value = reference(*place, key=f"runs/else/{len(self._meanings)}")
        self.model.dead.add(value)
        await self.path.bus.publish(TOPIC, [Event(place[0], value)])

    async def place(self, place: tuple[str, str], content: bytes, knows_crc32: bool) -> None:
        self.path.bucket.place(f"runs/{place[0]}/{place[1]}", content, knows_crc32=knows_crc32)

    async def remove(self, place: tuple[str, str]) -> None:
        self.path.bucket.blobs.pop(f"runs/{place[0]}/{place[1]}", None)

    async def deliver(self, failures: int) -> None:
        self.path.bus.failures = failures
        await self.path.bus.deliver(self.path.worker.handle, size=self._size)
        self.path.bus.failures = 0
        self._hear(self._heard)
        self._heard = len(self._meanings)

    async def redeliver(self, back: int, count: int) -> None:
        """Some of what was heard is given again, as after a lost commit: ``count`` messages from ``back`` ago on."""
        start = max(0, self._heard - back)
        stop = min(self._heard, start + count)
        batch = self.path.bus.batch(0, size=stop - start, start=start)
        if start < stop and batch is not None:
            assert await self.path.worker.handle(batch) == stop - start
            self._hear(start, stop)

    def _hear(self, start: int, stop: int | None = None) -> None:
        values = [message.value for message in self.path.bus.log(TOPIC)[0]] if TOPIC in self.path.bus.topics else []
        for offset in range(start, len(self._meanings) if stop is None else stop):
            meaning = self._meanings[offset]
            if meaning is not None:
                self.model.hear(offset, values[offset], *meaning)

    async def reconcile(self, seconds: float) -> None:
        self.path.clock.now += seconds
        await self.path.reconciler.run_once(1_000)
        self.model.reconcile()

    async def delete(self, run_id: str) -> None:
        await self.path.delete_run(run_id)
        self.model.delete(run_id)


async def _compare(path: WritePath, model: Model) -> None:
    blobs = await path.blobs()
    assert {
        place: Known(
            blob.state,
            blob.size,
            blob.crc32,
            dict(blob.attributes),
            blob.order and blob.order.offset,
            blob.etag,
            model.records[place].deadline if place in model.records else 0.0,
        )
        for place, blob in blobs.items()
    } == model.records
    for place, blob in blobs.items():
        is_pending = blob.state is BlobState.PENDING
        assert (blob.deadline == int(model.records[place].deadline)) is is_pending
    assert {(run_id, name) for _, run_id, name in await path.due()} == {
        place for place, blob in blobs.items() if blob.state is BlobState.PENDING
    }
    assert {message.value for message in path.bus.dead()} == model.dead
    for run_id in RUNS:
        sizes = [
            known.size or 0
            for place, known in model.records.items()
            if place[0] == run_id and known.state is BlobState.VERIFIED
        ]
        totals = await path.totals(run_id)
        assert (totals.blobs, totals.bytes) == (len(sizes), sum(sizes))
        run = await path.run(run_id)
        assert (run is not None) == any(place[0] == run_id for place in model.records)
