"""The relay on a real SQLite file: everything is published in its order, perhaps twice, whoever is killed or away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from storage_proxy.common.errors import Internal
from storage_proxy.lifecycle.locks import LockLost, Locks
from storage_proxy.lifecycle.relay import RELAY_LOCK, Relay
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import OutboxRow
from tests.support.lifecycle import CONTROL, INGEST, LOCK_SECONDS, House, Killed, kill_at

DEADLINE = 20.0


async def fill(house: House, start: int, stop: int, topic: str = "ingest") -> None:
    async def fn(transaction: Transaction) -> None:
        for number in range(start, stop):
            row = OutboxRow(topic, f"r{number % 3}", str(number))
            house.records.outbox.set(transaction, row, number, f"id-{number}")

    await house.store.transact(fn)


def published(house: House, topic: str = INGEST) -> list[int]:
    return [int(message.value) for message in house.bus.topics[topic]]


async def is_drained(house: House) -> bool:
    return await house.rows(house.records.outbox) == []


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def working(*relays: Relay) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_rows_come_out_in_their_order_each_on_its_topic_and_are_cleared(house: House) -> None:
    await fill(house, 0, 1200)
    await fill(house, 1200, 1300, "control")
    await house.relay_all()
    assert published(house) == list(range(1200))
    assert published(house, CONTROL) == list(range(1200, 1300))
    assert {message.key for message in house.bus.topics[INGEST]} == {b"r0", b"r1", b"r2"}
    assert await is_drained(house)


async def test_a_relay_killed_between_publishing_and_clearing_publishes_twice_and_loses_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(house, 0, 700)
    with monkeypatch.context() as patch:
        kill_at(patch, "outbox-published", passes=2)
        with pytest.raises(Killed):
            await house.relay_all()
    await house.relay_all()
    assert published(house) == [*range(700), *range(500, 700)]
    assert await is_drained(house)


async def test_while_the_bus_is_away_the_outbox_grows_and_after_it_drains_in_order(house: House) -> None:
    house.bus.is_away = True
    async with working(house.relay):
        await fill(house, 0, 10)
        await until(lambda: _failed(house, 3))
        await fill(house, 10, 20)
        assert len(await house.rows(house.records.outbox)) == 20
        house.bus.is_away = False
        await until(lambda: is_drained(house))
    assert published(house) == list(range(20))


async def _failed(house: House, times: int) -> bool:
    failures: float = house.metrics.relay_errors.labels("bus-unavailable")._value.get()
    return failures >= times


async def test_a_row_for_an_unknown_topic_waits_and_is_not_dropped(house: House) -> None:
    await fill(house, 0, 1, "from-a-newer-version")
    async with house.locks.hold(RELAY_LOCK, "test") as lock:
        with pytest.raises(Internal):
            await house.relay.run_once(lock)
    assert not await is_drained(house)


async def test_of_two_relays_one_works_and_the_other_takes_over(house: House) -> None:
    locks = Locks(house.store, house.records, lock_seconds=0.2)
    relays = [house.new_relay(name, locks) for name in ("first", "second")]
    async with working(*relays) as tasks:
        await fill(house, 0, 50)
        await until(lambda: is_drained(house))
        holder = (await house.get(house.records.locks, RELAY_LOCK)).owner.split("#")[0]
        tasks[["first", "second"].index(holder)].cancel()
        await fill(house, 50, 100)
        await until(lambda: is_drained(house))
        assert (await house.get(house.records.locks, RELAY_LOCK)).owner.split("#")[0] != holder
    assert published(house) == list(range(100))


async def test_a_relay_that_was_paused_publishes_nothing_more(house: House) -> None:
    await fill(house, 0, 3)
    other = Locks(house.store, house.records, lock_seconds=LOCK_SECONDS, clock=house.clock)
    async with house.locks.hold(RELAY_LOCK, "paused") as paused:
        house.clock.now += LOCK_SECONDS
        async with other.hold(RELAY_LOCK, "next"):
            with pytest.raises(LockLost):
                await house.relay.run_once(paused)
    assert published(house) == []


async def test_what_waits_is_measured_and_not_without_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_proxy.lifecycle.relay._COUNTED_ROWS", 20)
    await fill(house, int(house.clock() * 1000) - 5000, int(house.clock() * 1000) - 4970)
    await house.relay._measure()
    assert house.metrics.outbox_rows._value.get() == 20
    assert house.metrics.outbox_oldest_seconds._value.get() == pytest.approx(5.0)
