"""What the EventBus port promises, of every bus: a real SQLite file and a real Kafka broker, with their faults."""

import asyncio
import random
import time
from collections import Counter, defaultdict

import pytest
from prometheus_client import CollectorRegistry

from storage_proxy.bus.metrics import BusMetrics
from storage_proxy.bus.port import Batch, Event, EventBus, EventTooLarge
from storage_proxy.common.errors import BusUnavailable, StorageUnavailable
from tests.support.bus import (
    PARTITIONS,
    BusHome,
    Deliveries,
    EmbeddedHome,
    KafkaHome,
    browsed,
    done_up_to_the_end,
    events,
    eventually,
    kill,
    line,
    process,
    publish_at_last,
)
from tests.support.kafka import unique_topic

GROUP = "group"


@pytest.fixture
def topic() -> str:
    return unique_topic()


class Held:
    """A handler that never gets done; it remembers what it was given, and whether it was cancelled."""

    def __init__(self) -> None:
        self.given: dict[int, Batch] = {}
        self.cancelled: set[int] = set()

    async def handle(self, batch: Batch) -> int:
        self.given[batch.partition] = batch
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.add(batch.partition)
            raise
        return 0

    async def holds(self, count: int) -> bool:
        return len(self.given) >= count


# Publishing


async def test_what_is_published_comes_back_as_it_was(bus: EventBus, topic: str) -> None:
    published = [
        Event("key", b"value", {"name": b"\x00\xff", "empty": b""}),
        Event(b"\xff\x00", b""),
        Event(None, b"without a key"),
    ]
    began = time.time()
    await bus.publish(topic, published)
    found = {message.value: message for message in await browsed(bus, topic)}
    assert {value: message.key for value, message in found.items()} == {
        b"value": b"key",
        b"": b"\xff\x00",
        b"without a key": None,
    }
    assert found[b"value"].headers == {"name": b"\x00\xff", "empty": b""}
    assert all(message.topic == topic for message in found.values())
    assert all(began - 1 <= message.timestamp <= time.time() + 1 for message in found.values())


async def test_what_was_published_by_a_process_that_was_killed_is_there(home: BusHome, topic: str) -> None:
    async with process(home, "publish", topic, "100") as publisher:
        assert await line(publisher) == "published"
        await kill(publisher)
    async with home.open() as bus:
        assert Counter(message.value for message in await browsed(bus, topic)) == Counter(
            event.value for event in events(100)
        )


async def test_an_event_that_no_topic_takes_is_refused(bus: EventBus, topic: str) -> None:
    with pytest.raises(EventTooLarge):
        await bus.publish(topic, [Event("key", bytes(2**21))])
    await bus.publish(topic, [Event("key", bytes(2**19))])
    assert [len(message.value) for message in await browsed(bus, topic)] == [2**19]


async def test_publishing_nothing_does_nothing(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, [])
    assert await browsed(bus, topic) == []


# Consuming


async def test_messages_of_a_key_arrive_in_the_order_of_their_publication(bus: EventBus, topic: str) -> None:
    published = events(400)
    deliveries = Deliveries()
    async with bus.consume(topic, GROUP, deliveries.handle):
        for first in range(0, len(published), 80):
            await bus.publish(topic, published[first : first + 80])
        await deliveries.until_all_of(published)
        await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
    deliveries.assert_in_order()
    by_key: dict[bytes | None, list[bytes]] = defaultdict(list)
    for message in deliveries.messages:
        by_key[message.key].append(message.value)
    assert all(values == sorted(values) for values in by_key.values())
    assert len(deliveries.messages) == len(published)


async def test_batches_are_of_one_partition_bounded_and_one_at_a_time(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, [Event(f"key{n % 11}", b"%d" % n + bytes(10_000)) for n in range(600)])
    under_way: set[int] = set()
    seen = 0

    async def handle(batch: Batch) -> int:
        nonlocal seen
        assert batch.partition not in under_way
        under_way.add(batch.partition)
        await asyncio.sleep(0)
        assert {(each.topic, each.partition) for each in batch.messages} == {(topic, batch.partition)}
        assert 0 < len(batch.messages) <= 500
        assert sum(len(each.value) for each in batch.messages) < 2**21
        under_way.discard(batch.partition)
        seen += len(batch.messages)
        return len(batch.messages)

    async def all_seen() -> bool:
        return seen >= 600

    async with bus.consume(topic, GROUP, handle):
        await eventually(all_seen)
    assert seen == 600  # a failed assertion in the handler would have brought its batch again


async def test_what_is_not_done_comes_again_and_before_what_follows(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, events(200))
    done = Deliveries()
    chance = random.Random(4)

    async def handle(batch: Batch) -> int:
        if chance.random() < 0.2:
            raise StorageUnavailable if chance.random() < 0.5 else ValueError("a defect")
        count = chance.randint(0, len(batch.messages))
        for message in batch.messages[:count]:
            done.note(message)
        return count

    async with bus.consume(topic, GROUP, handle):
        await done.until_all_of(events(200))
        await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
    done.assert_in_order()
    assert len(done.messages) == 200


async def test_a_partition_waits_while_its_handler_fails_and_the_others_go_on(bus: EventBus, topic: str) -> None:
    published = events(100)
    await bus.publish(topic, published)
    partitions = {message.value: message.partition for message in await browsed(bus, topic)}
    waiting = partitions[published[0].value]
    others = [event for event in published if partitions[event.value] != waiting]
    deliveries = Deliveries()
    failing = True

    async def handle(batch: Batch) -> int:
        if failing and batch.partition == waiting:
            raise StorageUnavailable
        return await deliveries.handle(batch)

    async with bus.consume(topic, GROUP, handle):
        await deliveries.until_all_of(others)
        assert all(partitions[value] != waiting for value in deliveries.values)
        positions = await bus.positions(topic, GROUP)
        assert next(each.committed for each in positions if each.partition == waiting) == 0
        failing = False
        await deliveries.until_all_of(published)
    deliveries.assert_in_order()


async def test_nothing_is_committed_beyond_the_first_message_that_is_not_done(home: BusHome, topic: str) -> None:
    deliveries = Deliveries()

    async def handle(batch: Batch) -> int:
        for done, message in enumerate(batch.messages):
            if message.value == b"poison":
                return done
            deliveries.note(message)
        return len(batch.messages)

    before, after = events(20, keys=1), events(20, keys=1, name="after")
    async with home.open() as bus:
        await bus.publish(topic, [*before, Event(before[0].key, b"poison"), *after])
        async with bus.consume(topic, GROUP, handle):
            await deliveries.until_all_of(before)

            async def committed() -> bool:
                return sum(each.committed for each in await bus.positions(topic, GROUP)) >= len(before)

            await eventually(committed)
        assert sum(each.committed for each in await bus.positions(topic, GROUP)) == len(before)
        assert deliveries.values == [event.value for event in before]
    async with home.open() as bus:
        again = Deliveries()
        async with bus.consume(topic, GROUP, again.handle):
            await again.until_all_of(after)
        assert again.values == [b"poison", *(event.value for event in after)]


async def test_a_new_group_begins_with_the_earliest_message(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, events(50))
    for group in ("first", "second"):
        deliveries = Deliveries()
        async with bus.consume(topic, group, deliveries.handle):
            await deliveries.until_all_of(events(50))


async def test_what_is_done_is_committed_on_leaving_and_does_not_come_again(home: BusHome, topic: str) -> None:
    deliveries = Deliveries()
    for round_number in range(3):
        async with home.open() as bus:
            published = events(20, name=str(round_number))
            await bus.publish(topic, published)
            async with bus.consume(topic, GROUP, deliveries.handle):
                await deliveries.until_all_of(published)
    assert len(deliveries.messages) == 60


# Members


async def test_two_members_share_the_partitions_and_one_that_leaves_is_replaced(home: BusHome, topic: str) -> None:
    one, two = Deliveries(), Deliveries()
    async with home.open() as bus, home.open() as other, bus.consume(topic, GROUP, one.handle):
        async with other.consume(topic, GROUP, two.handle):

            async def shared() -> bool:
                one.messages.clear()
                two.messages.clear()
                await bus.publish(topic, events(50))
                await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
                first, second = ({message.partition for message in each.messages} for each in (one, two))
                return bool(first and second and first.isdisjoint(second))

            await eventually(shared)
        await bus.publish(topic, events(50, name="last"))
        await one.until_all_of(events(50, name="last"))


async def test_a_killed_member_is_replaced_and_its_messages_come_to_another(home: BusHome, topic: str) -> None:
    async with home.open() as bus:
        await bus.publish(topic, events(40))
        deliveries = Deliveries()
        async with process(home, "hold", topic, GROUP) as member:
            assert await line(member)
            await kill(member)
            async with bus.consume(topic, GROUP, deliveries.handle):
                await deliveries.until_all_of(events(40))
        deliveries.assert_in_order()
        assert len(deliveries.messages) == 40


async def test_a_handler_whose_partition_is_taken_away_is_cancelled_and_nothing_is_committed(
    home: BusHome, topic: str
) -> None:
    one, two = Held(), Held()
    async with home.open() as bus, home.open() as other:
        await bus.publish(topic, events(40))
        async with bus.consume(topic, GROUP, one.handle):
            await eventually(lambda: one.holds(PARTITIONS))
            async with other.consume(topic, GROUP, two.handle):
                await eventually(lambda: two.holds(1))
                assert two.given.keys() <= one.cancelled
                assert all(two.given[each].messages[0].offset == 0 for each in two.given)
                assert all(each.committed == 0 for each in await bus.positions(topic, GROUP))
        assert one.cancelled == set(range(PARTITIONS))
        assert all(each.committed == 0 for each in await bus.positions(topic, GROUP))


async def test_one_of_two_members_comes_and_goes_and_no_message_is_missing(home: BusHome, topic: str) -> None:
    effects = Deliveries()
    published: list[Event] = []

    async def coming_and_going(bus: EventBus) -> None:
        for _ in range(8):
            seen = len(effects.messages)
            async with bus.consume(topic, GROUP, effects.handle):
                await effects.until(lambda seen=seen: len(effects.messages) > seen + 20)  # type: ignore[misc]

    async with home.open() as bus, home.open() as other, bus.consume(topic, GROUP, effects.handle):
        restless = asyncio.create_task(coming_and_going(other))
        number = 0
        while not restless.done():
            more = events(20, name=f"{number}-")
            await bus.publish(topic, more)
            published += more
            number += 1
            await asyncio.sleep(0.05)  # a pace, not a wait
        await restless
        await effects.until_all_of(published)
        await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
    effects.assert_in_order()


async def test_a_member_that_is_cancelled_while_it_joins_leaves_no_partition_stuck(home: BusHome, topic: str) -> None:
    async with home.open() as bus, home.open() as other:
        await bus.publish(topic, events(20))

        async def join() -> None:
            async with other.consume(topic, GROUP, Held().handle):
                await asyncio.Event().wait()

        for _ in range(3):
            joining = asyncio.create_task(join())
            await asyncio.wait({joining}, timeout=0.1)  # somewhere on its way
            joining.cancel()
            await asyncio.wait({joining})
        deliveries = Deliveries()
        async with bus.consume(topic, GROUP, deliveries.handle):
            await deliveries.until_all_of(events(20))


# Looking


async def test_positions_say_what_is_done_what_is_there_and_how_old_it_is(bus: EventBus, topic: str) -> None:
    assert [each.oldest for each in await bus.positions(topic, GROUP)] == [None] * PARTITIONS
    began = time.time()
    await bus.publish(topic, events(60))
    middle = time.time()
    found = await bus.positions(topic, GROUP)
    assert [each.partition for each in found] == list(range(PARTITIONS))
    assert sum(each.end for each in found) == 60
    assert all(each.committed == 0 for each in found)
    for each in found:
        assert (each.oldest is None) == (each.end == 0)
        assert each.oldest is None or began - 0.01 <= each.oldest <= middle + 0.01
    async with bus.consume(topic, GROUP, Deliveries().handle):
        await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
    found = await bus.positions(topic, GROUP)
    assert [each.oldest for each in found] == [None] * PARTITIONS
    assert sum(each.committed for each in found) == 60


async def test_browsing_ends_with_what_was_there_when_it_began(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, events(200))
    found = []
    async for batch in bus.browse(topic):
        if not found:
            await bus.publish(topic, events(200, name="later"))
        found += batch
    assert sorted(message.value for message in found) == [event.value for event in events(200)]
    offsets: dict[int, list[int]] = defaultdict(list)
    for message in found:
        offsets[message.partition].append(message.offset)
    assert all(each == sorted(each) for each in offsets.values())


async def test_browsing_moves_no_group(bus: EventBus, topic: str) -> None:
    await bus.publish(topic, events(10))
    await browsed(bus, topic)
    assert sum(each.committed for each in await bus.positions(topic, GROUP)) == 0


async def test_what_happens_is_counted(home: BusHome, topic: str) -> None:
    registry = CollectorRegistry()
    metrics = BusMetrics(registry)
    tries = 0

    async def handle(batch: Batch) -> int:
        nonlocal tries
        tries += 1
        return 0 if tries == 1 else len(batch.messages)

    async with home.open(metrics) as bus:
        await bus.publish(topic, events(10, keys=1))
        metrics.show_positions(topic, GROUP, await bus.positions(topic, GROUP))
        assert (
            registry.get_sample_value("storage_proxy_bus_oldest_seconds", {"topic": topic, "group": GROUP}) or 0
        ) > 0
        async with bus.consume(topic, GROUP, handle):
            await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))

        async def counted() -> bool:
            found = {
                name: registry.get_sample_value(f"storage_proxy_bus_{name}_total", {"topic": topic, "group": GROUP})
                for name in ("consumed", "retried", "committed")
            }
            return found["consumed"] == 10 and (found["retried"] or 0) >= 1 and found["committed"] == 10

        await eventually(counted)
    assert registry.get_sample_value("storage_proxy_bus_published_total", {"topic": topic}) == 10


# Faults


async def test_a_bus_that_was_away_is_used_again_and_nothing_is_lost(
    fragile_home: EmbeddedHome | KafkaHome, topic: str
) -> None:
    effects = Deliveries()
    async with fragile_home.open() as bus, bus.consume(topic, GROUP, effects.handle):
        await bus.publish(topic, events(20, name="before"))
        await effects.until_all_of(events(20, name="before"))
        await fragile_home.away()
        async with asyncio.timeout(30):
            with pytest.raises(BusUnavailable):
                await bus.publish(topic, events(20, name="lost"))
            with pytest.raises(BusUnavailable):
                await bus.probe()
        late = Deliveries()
        async with fragile_home.open_away() as other, other.consume(topic, "late", late.handle):
            await fragile_home.back()
            await publish_at_last(bus, topic, events(20, name="after"))
            await bus.probe()
            await effects.until_all_of(events(20, name="after"))
            await late.until_all_of([*events(20, name="before"), *events(20, name="after")])
        await eventually(lambda: done_up_to_the_end(bus, topic, GROUP))
    effects.assert_in_order()
