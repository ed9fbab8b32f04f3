"""The embedded bus beyond the port: leases, retention, its file."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.bus import embedded_groups as groups
from storage_proxy.bus import embedded_log as log
from storage_proxy.bus.embedded import EmbeddedBus, open_embedded_bus
from storage_proxy.bus.embedded_file import BUS_FILE
from storage_proxy.bus.embedded_groups import Membership
from storage_proxy.bus.partitions import PartitionLost
from storage_proxy.bus.port import Batch
from storage_proxy.common.errors import BusUnavailable
from tests.support.bus import (
    LEASE_SECONDS,
    PARTITIONS,
    Deliveries,
    browsed,
    done_up_to_the_end,
    embedded_options,
    events,
    eventually,
)


class WallClock:
    """Epoch seconds that a test can move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.db"


@pytest.fixture
async def bus(path: Path) -> AsyncIterator[EmbeddedBus]:
    async with open_embedded_bus(embedded_options(path)) as opened:
        yield opened


async def test_a_member_whose_lease_was_taken_commits_nothing_and_comes_back(bus: EmbeddedBus, path: Path) -> None:
    await bus.publish("topic", events(40))
    may_end, entered = asyncio.Event(), asyncio.Event()
    slow = Deliveries()

    async def handle(batch: Batch) -> int:
        entered.set()
        await may_end.wait()
        return await slow.handle(batch)

    clock = WallClock()
    clock.ahead = 10 * LEASE_SECONDS  # to this one the lease of the other is over
    async with bus.consume("topic", "group", handle):
        await entered.wait()
        async with open_embedded_bus(embedded_options(path), wall_clock=clock) as other:
            quick = Deliveries()
            async with other.consume("topic", "group", quick.handle):
                await quick.until_all_of(events(40))
                await eventually(lambda: done_up_to_the_end(bus, "topic", "group"))
        may_end.set()
        await bus.publish("topic", events(5, name="later"))
        await slow.until_all_of(events(5, name="later"))
        await eventually(lambda: done_up_to_the_end(bus, "topic", "group"))


@given(
    partitions=st.integers(1, 12),
    steps=st.lists(st.tuples(st.sampled_from(["come", "renew", "go", "die"]), st.integers(0, 4)), max_size=40),
)
def test_a_partition_has_one_owner_and_shares_are_fair_when_all_have_settled(
    partitions: int, steps: list[tuple[str, int]]
) -> None:
    raw = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in BUS_FILE.schema:
            raw.execute(statement)
        topic = log.ensure_topic(raw, "topic", partitions)
        now, born = 0.0, 0
        members: dict[int, Membership] = {}

        def settle(me: Membership) -> frozenset[int]:
            share = groups.renew(raw, me, now, now + 10)
            groups.release(raw, me, share.surplus)
            return frozenset(share.owned) - share.surplus

        for step, slot in steps:
            if step == "come" and slot not in members:
                born += 1
                members[slot] = Membership(topic, "group", f"member{born}")
                groups.join(raw, members[slot], now + 10)
            elif step == "renew" and slot in members:
                settle(members[slot])
            elif step == "go" and slot in members:
                groups.leave(raw, members.pop(slot))
            elif step == "die" and slot in members:
                dead = members.pop(slot)
                for me in members.values():
                    settle(me)
                now += 11
                for each in list(members):
                    try:
                        settle(members[each])
                    except PartitionLost:  # another came first, after the lease
                        del members[each]
                with pytest.raises(PartitionLost):
                    for partition in range(partitions):
                        groups.commit(raw, dead, partition, 1)
                    raise PartitionLost
        for _ in range(2):
            shares = {}
            for slot in list(members):
                try:
                    shares[slot] = settle(members[slot])
                except PartitionLost:
                    del members[slot]
        if members:
            owned = sorted(partition for share in shares.values() for partition in share)
            assert owned == list(range(partitions))
            sizes = [len(share) for share in shares.values()]
            assert max(sizes) - min(sizes) <= 1
    finally:
        raw.close()


async def test_old_messages_go_when_every_group_has_them_and_offsets_go_on(path: Path) -> None:
    clock = WallClock()
    options = replace(embedded_options(path), retention=60.0)
    async with open_embedded_bus(options, wall_clock=clock) as bus:
        await bus.publish("topic", events(40))
        async with bus.consume("topic", "first", Deliveries().handle):
            await eventually(lambda: done_up_to_the_end(bus, "topic", "first"))
        refused = asyncio.Event()

        async def refuse(_: Batch) -> int:
            refused.set()
            return 0

        async with bus.consume("topic", "second", refuse):
            await refused.wait()
            await eventually(lambda: knows_group(bus, "second"))
        clock.ahead = 120.0
        await bus._prune()
        assert len(await browsed(bus, "topic")) == 40
        async with bus.consume("topic", "second", Deliveries().handle):
            await eventually(lambda: done_up_to_the_end(bus, "topic", "second"))
        await bus.publish("topic", events(4, name="young"))
        await bus._prune()
        assert {message.value for message in await browsed(bus, "topic")} == {e.value for e in events(4, name="young")}
        assert sum(each.end for each in await bus.positions("topic", "third")) == 44
        assert sum(each.end - each.committed for each in await bus.positions("topic", "third")) == 4


async def knows_group(bus: EmbeddedBus, group: str) -> bool:
    (known,) = await bus._worker.read(
        lambda raw: raw.execute("SELECT count(*) FROM offsets WHERE name = ?", (group,)).fetchone()
    )
    return bool(known == PARTITIONS)


async def test_a_topic_without_a_group_keeps_all_however_old(path: Path) -> None:
    clock = WallClock()
    async with open_embedded_bus(replace(embedded_options(path), retention=60.0), wall_clock=clock) as bus:
        await bus.publish("topic", events(4))
        clock.ahead = 1e6
        await bus._prune()
        assert len(await browsed(bus, "topic")) == 4


async def test_a_topic_keeps_its_partitions_when_the_option_changes(path: Path) -> None:
    async with open_embedded_bus(embedded_options(path)) as bus:
        await bus.publish("topic", events(4))
    async with open_embedded_bus(replace(embedded_options(path), partitions=32)) as bus:
        assert len(await bus.positions("topic", "group")) == PARTITIONS
        assert len(await bus.positions("another", "group")) == 32


async def test_many_publications_at_once_are_all_there(bus: EmbeddedBus) -> None:
    await asyncio.gather(*(bus.publish("topic", [event]) for event in events(300)))
    assert {message.value for message in await browsed(bus, "topic")} == {event.value for event in events(300)}


async def test_a_database_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (value)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(BusUnavailable, match="another program"):
        async with open_embedded_bus(embedded_options(path)):
            pass
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(BusUnavailable, match="not an SQLite database"):
        async with open_embedded_bus(embedded_options(path)):
            pass


async def test_a_file_that_was_replaced_is_noticed_before_anything_is_written(bus: EmbeddedBus, path: Path) -> None:
    await bus.publish("topic", events(1))
    path.rename(path.with_suffix(".old"))
    with pytest.raises(BusUnavailable, match="removed or replaced"):
        await bus.publish("topic", events(1))


async def test_a_closed_bus_says_so(bus: EmbeddedBus) -> None:
    await bus.aclose()
    await bus.aclose()
    with pytest.raises(BusUnavailable):
        await bus.publish("topic", events(1))


@given(key=st.none() | st.binary(), value=st.binary(), partitions=st.integers(1, 100))
def test_a_key_has_one_partition(key: bytes | None, value: bytes, partitions: int) -> None:
    found = log.partition_of(key, value, partitions)
    assert 0 <= found < partitions
    assert found == log.partition_of(key, value if key is None else b"another", partitions)
