"""A shuffled stream of blob references with poison, duplicates and uploads that come late; and what must be recorded.

Fakes: the bucket and the bus are in memory. The state store is whichever the caller gives.
"""

import random
import zlib
from dataclasses import dataclass, field

from storage_proxy.bus.port import Event
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.state.port import KeyValueStore
from storage_proxy.state.records import BlobState, Records, RunTotals
from tests.support.ingest import TOPIC, WritePath, crc32_of, reference


@dataclass
class Scenario:
    """``references`` announcements over ``runs`` runs, in ``partitions`` partitions.

    ``poison`` of them, ``duplicates`` and ``early`` (before their upload) are shares. ``failing`` publications fail.
    """

    references: int = 10_000
    runs: int = 25
    partitions: int = 4
    poison: float = 0.01
    duplicates: float = 0.05
    early: float = 0.05
    failing: int = 5
    seed: int = 1
    late: dict[str, bytes] = field(default_factory=dict)
    poisoned: set[bytes] = field(default_factory=set)
    expected: dict[tuple[str, str], tuple[BlobState, int | None, int | None]] = field(default_factory=dict)


async def ingest(store: KeyValueStore, scenario: Scenario, *, records: Records | None = None) -> WritePath:
    """Publish, deliver, upload what is late, reconcile; then compare every record. The path, for more questions."""
    path = WritePath(
        store, options=IngestOptions(parallel_requests=64), partitions=scenario.partitions, records=records
    )
    path.bus.topics[TOPIC] = [[] for _ in range(scenario.partitions)]
    source = random.Random(scenario.seed)
    await path.bus.publish(TOPIC, _events(path, scenario, source))
    path.bus.failures = scenario.failing
    await path.bus.deliver(path.worker.handle)
    for key, content in scenario.late.items():
        path.bucket.place(key, content)
    while await path.due():
        path.clock.now += 61
        await path.reconciler.run_once(1_000)
    await _compare(path, scenario)
    return path


def _events(path: WritePath, scenario: Scenario, source: random.Random) -> list[Event]:
    events = []
    for number in range(scenario.references):
        run_id, name = f"run-{source.randrange(scenario.runs)}", f"part-{number % 100:02}/{number}.bin"
        content = f"{number}".encode() * source.randrange(1, 5)
        key = f"runs/{run_id}/{name}"
        kind = source.random()
        if kind < scenario.poison:
            value = _poison(path, scenario, source, run_id, name, content)
            scenario.poisoned.add(value)
            events.append(Event(run_id, value))
            continue
        if kind < scenario.poison + scenario.early:
            scenario.late[key] = content
        else:
            path.bucket.place(key, content)
        said = {"size": len(content), "crc32": crc32_of(content)} if source.random() < 0.5 else {}
        event = Event(run_id, reference(run_id, name, **said))
        events += [event, event] if source.random() < scenario.duplicates else [event]
        scenario.expected[run_id, name] = (BlobState.VERIFIED, len(content), zlib.crc32(content))
    source.shuffle(events)
    return events


def _poison(
    path: WritePath, scenario: Scenario, source: random.Random, run_id: str, name: str, content: bytes
) -> bytes:
    kind = source.randrange(4)
    if kind == 0:
        return f'{{"schema": 1, "never closed {name}'.encode()
    if kind == 1:
        return reference(run_id, name, key=f"runs/another/{name}")
    if kind == 2:
        return reference(run_id, name).replace(b'"schema": 1', b'"schema": 7')
    path.bucket.place(f"runs/{run_id}/{name}", content)  # there, and contradicting
    scenario.expected[run_id, name] = (BlobState.REJECTED, len(content) + 1, None)
    return reference(run_id, name, size=len(content) + 1)


async def _compare(path: WritePath, scenario: Scenario) -> None:
    blobs = await path.blobs()
    assert {place: (blob.state, blob.size, blob.crc32) for place, blob in blobs.items()} == scenario.expected
    assert {message.value for message in path.bus.dead()} == scenario.poisoned
    for run_id in {place[0] for place in scenario.expected}:
        sizes = [
            size or 0
            for place, (state, size, _) in scenario.expected.items()
            if place[0] == run_id and state is BlobState.VERIFIED
        ]
        assert await path.totals(run_id) == RunTotals(len(sizes), sum(sizes))
