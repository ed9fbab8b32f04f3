"""Locks on a real SQLite file, the clock moved by hand: who holds one, who may write, and who takes over."""

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.lifecycle.locks import HeldLock, LockHeld, LockLost, Locks
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import Lock
from tests.support.lifecycle import LOCK_SECONDS, House

DEADLINE = 20.0


async def check(house: House, lock: HeldLock) -> None:
    async def fn(transaction: Transaction) -> None:
        await lock.check(transaction)

    await house.store.transact(fn)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_second_learns_who_holds_the_lock_and_until_when(house: House) -> None:
    async with house.locks.hold("job", "host-a:17"):
        with pytest.raises(LockHeld, match="host-a:17") as held:
            async with house.locks.hold("job", "host-b:4"):
                pass
    assert held.value.owner.startswith("host-a:17#")
    assert held.value.until == house.clock() + LOCK_SECONDS


async def test_locks_of_two_names_do_not_meet(house: House) -> None:
    async with house.locks.hold("a", "x"), house.locks.hold("b", "x"):
        pass


async def test_a_released_lock_is_free_at_once_and_its_fence_grows_on(house: House) -> None:
    fences = []
    for _ in range(3):
        async with house.locks.hold("job", "a") as lock:
            fences.append(lock.fence)
    assert fences == [1, 2, 3]


async def test_one_process_does_not_hold_a_lock_twice(house: House) -> None:
    async with house.locks.hold("job", "a"):
        with pytest.raises(LockHeld):
            async with house.locks.hold("job", "a"):
                pass


async def test_a_paused_holder_cannot_write_after_the_takeover(house: House) -> None:
    other = Locks(house.store, house.records, lock_seconds=LOCK_SECONDS, clock=house.clock)
    async with house.locks.hold("job", "paused") as old:
        house.clock.now += LOCK_SECONDS - 1
        with pytest.raises(LockHeld):
            async with other.hold("job", "next"):
                pass
        house.clock.now += 1
        await check(house, old)  # late, and still nobody else's
        async with other.hold("job", "next") as new:
            assert new.fence == old.fence + 1
            with pytest.raises(LockLost):
                await check(house, old)
            await check(house, new)


async def test_a_write_checked_before_a_takeover_that_overtakes_it_fails(house: House) -> None:
    other = Locks(house.store, house.records, lock_seconds=LOCK_SECONDS, clock=house.clock)
    async with house.locks.hold("job", "paused") as old:
        house.clock.now += LOCK_SECONDS

        async def slow(transaction: Transaction) -> None:
            await old.check(transaction)
            async with other.hold("job", "next"):
                pass
            transaction.set(house.records.locks.key("written"), b"x")

        with pytest.raises(LockLost):
            await house.store.transact(slow)
    assert (await house.get(house.records.locks, "job")).fence == 2


async def test_what_a_former_holder_releases_is_not_the_next_ones(house: House) -> None:
    other = Locks(house.store, house.records, lock_seconds=LOCK_SECONDS, clock=house.clock)
    entering = house.locks.hold("job", "paused")
    await entering.__aenter__()
    house.clock.now += LOCK_SECONDS
    async with other.hold("job", "next"):
        await entering.__aexit__(None, None, None)
        assert (await house.get(house.records.locks, "job")).expires_at > house.clock()


async def test_a_lock_is_renewed_while_it_is_held(house: House) -> None:
    locks = Locks(house.store, house.records, lock_seconds=0.3)
    async with locks.hold("job", "a"):
        first = (await house.get(house.records.locks, "job")).expires_at
        async with asyncio.timeout(DEADLINE):
            while (await house.get(house.records.locks, "job")).expires_at <= first + 0.3:
                await asyncio.sleep(0.01)


async def test_losing_the_lock_cancels_what_runs_under_it(house: House) -> None:
    locks = Locks(house.store, house.records, lock_seconds=0.3)
    was_cancelled = False
    with pytest.raises(LockLost):
        async with locks.hold("job", "a"):
            await house.set(house.records.locks, Lock("thief", 99, time.time() + 600), "job")
            try:
                await asyncio.sleep(DEADLINE)
            except asyncio.CancelledError:
                was_cancelled = True
                raise
    assert was_cancelled
    assert (await house.get(house.records.locks, "job")).owner == "thief"


async def test_a_cancellation_from_outside_stays_one_and_releases_the_lock(house: House) -> None:
    entered = asyncio.Event()

    async def hold() -> None:
        async with house.locks.hold("job", "a"):
            entered.set()
            await asyncio.sleep(DEADLINE)

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with house.locks.hold("job", "b"):
        pass


async def test_the_one_that_stands_by_takes_over_and_survives_failures_of_its_work(house: House) -> None:
    locks = Locks(house.store, house.records, lock_seconds=0.2, jitter=random.Random(1))
    worked: list[int] = []

    async def work(lock: HeldLock) -> None:
        worked.append(lock.fence)
        if len(worked) < 3:
            raise StateUnavailable

    async with locks.hold("job", "first"):
        standing_by = asyncio.create_task(locks.stand_by("job", "second", work))
        await asyncio.sleep(0)
    await until(lambda: len(worked) >= 3)
    assert worked[:3] == [2, 3, 4]
    standing_by.cancel()
    with pytest.raises(asyncio.CancelledError):
        await standing_by
