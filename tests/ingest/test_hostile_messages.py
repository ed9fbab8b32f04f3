"""What a stranger may publish never keeps its partition waiting: on a real SQLite state and a real embedded bus."""

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage_proxy.bus.dead_letters import REASON_HEADER, dead_letter_topic, origin
from storage_proxy.bus.embedded import EmbeddedBus, open_embedded_bus
from storage_proxy.bus.port import Batch, Event, EventTooLarge, Message
from storage_proxy.ingest.worker import IngestWorker
from storage_proxy.state.records import BlobState
from tests.support.bus import browsed, embedded_options
from tests.support.ingest import TOPIC, WritePath, reference

LARGEST = embedded_options(Path()).max_event_bytes
"""What the bus takes of one event, key and headers included."""


async def heard(path: WritePath, bus: EmbeddedBus, event: Event) -> list[Message]:
    """The dead letters once ``event``, and a good message behind it, are consumed."""
    path.bucket.place("runs/r1/good", b"content")
    await bus.publish(TOPIC, [event, Event(event.key, reference("r1", "good"))])
    worker = IngestWorker(bus, path.verifier, path.recorder, path.buckets, options=path.options, metrics=path.metrics)
    async with asyncio.timeout(20), bus.consume(TOPIC, "group", worker.handle):
        while any(each.committed < each.end for each in await bus.positions(TOPIC, "group")):
            await asyncio.sleep(0.01)
    blob = await path.blob("r1", "good")
    assert blob is not None
    assert blob.state is BlobState.VERIFIED
    return await browsed(bus, dead_letter_topic(TOPIC))


def changed(**said: Any) -> bytes:
    return json.dumps({**json.loads(reference("r1", "bad")), **said}).encode()


def nbytes(event: Event) -> int:
    """What counts of an event, key and headers included."""
    headers = sum(len(name.encode()) + len(value) for name, value in event.headers.items())
    return len(event.key or b"") + len(event.value or b"") + headers


def padded(event: Callable[[int], Event]) -> Event:
    """The event that is exactly as large as the bus takes."""
    empty = event(0)
    return event(LARGEST - nbytes(empty))


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
async def test_a_time_that_utc_does_not_have_is_a_dead_letter(path: WritePath, tmp_path: Path, moment: str) -> None:
    value = changed(occurred_at=moment)
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        [letter] = await heard(path, bus, Event("r1", value))
    assert letter.value == value
    assert letter.headers[REASON_HEADER].startswith(b"occurred_at")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
async def test_numbers_that_json_does_not_have_are_a_dead_letter(path: WritePath, tmp_path: Path, number: str) -> None:
    value = reference("r1", "bad", attributes={"a": 7}).replace(b"7", number.encode())
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        [letter] = await heard(path, bus, Event("r1", value))
    assert letter.headers[REASON_HEADER].startswith(b"payload.attributes")


async def test_a_reason_that_quotes_a_long_name_is_cut(path: WritePath, tmp_path: Path) -> None:
    value = changed(**{"x" * (LARGEST // 2 + 1): 1})
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        [letter] = await heard(path, bus, Event("r1", value))
    assert letter.value == value
    assert len(letter.headers[REASON_HEADER]) <= 1000


def poison_of_all_sizes() -> list[Event]:
    """As large as the bus takes: by its value, and by its headers."""
    return [
        padded(lambda size: Event("r1", b"x" * size)),
        padded(lambda size: Event("r1", b"poison", {"mine": b"x" * size})),
    ]


@pytest.mark.parametrize("event", poison_of_all_sizes(), ids=["value", "headers"])
async def test_poison_as_large_as_the_bus_takes_is_a_whole_dead_letter(
    path: WritePath, tmp_path: Path, event: Event
) -> None:
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        [letter] = await heard(path, bus, event)
    assert (letter.key, letter.value) == (b"r1", event.value)
    assert event.headers.items() <= letter.headers.items()


@pytest.mark.parametrize("event", poison_of_all_sizes(), ids=["value", "headers"])
async def test_a_dead_letter_that_its_topic_does_not_take_says_at_least_where_it_lay(
    path: WritePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: Event
) -> None:
    """A topic for dead letters that an operator made may take no more than the one they come from."""
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        publish = bus.publish

        async def narrow(topic: str, events: Sequence[Event]) -> None:
            if topic == dead_letter_topic(TOPIC) and any(nbytes(each) > LARGEST for each in events):
                raise EventTooLarge
            await publish(topic, events)

        monkeypatch.setattr(bus, "publish", narrow)
        [letter] = await heard(path, bus, event)
        [poison, _] = await browsed(bus, TOPIC)
    assert letter.headers[REASON_HEADER].endswith(b"is not JSON")
    assert origin(letter) == (poison.partition, poison.offset)
    assert "mine" not in letter.headers
    assert letter.value in (b"poison", b"")


async def test_announcements_are_heard_though_the_topic_was_made_anew(path: WritePath, tmp_path: Path) -> None:
    """Its offsets begin at 0 again, below those that the records hold."""
    fresh = itertools.count(1_700_000_000)
    for name in ("old.db", "new.db"):
        options = embedded_options(tmp_path / name)
        async with open_embedded_bus(options, wall_clock=lambda: next(fresh)) as bus:
            if name == "old.db":
                await bus.publish(TOPIC, [Event("r1", b"fills the log")] * 5)
            path.bucket.place("runs/r1/a", name.encode())
            await bus.publish(TOPIC, [Event("r1", reference("r1", "a", attributes={"of": name}))])
            await heard(path, bus, Event("r1", b"behind it"))
            blob = await path.blob("r1", "a")
            assert blob is not None
            assert (blob.attributes, blob.etag) == ({"of": name}, path.bucket.blobs["runs/r1/a"].etag)


async def test_a_log_that_is_read_again_from_its_beginning_changes_nothing(path: WritePath, tmp_path: Path) -> None:
    async with open_embedded_bus(embedded_options(tmp_path / "bus.db")) as bus:
        path.bucket.place("runs/r1/a", b"content")
        for number in range(3):
            await bus.publish(TOPIC, [Event("r1", reference("r1", "a", attributes={"number": number}))])
        await heard(path, bus, Event("r1", b"behind it"))
        records = await path.blobs()
        stale = path.metrics.messages.labels("stale")
        batches = [Batch(TOPIC, message.partition, [message]) for message in await browsed(bus, TOPIC)]
        worker = IngestWorker(
            bus, path.verifier, path.recorder, path.buckets, options=path.options, metrics=path.metrics
        )
        for batch in batches:
            assert await worker.handle(batch) == 1
            assert await path.blobs() == records
        assert stale._value.get() == 4
