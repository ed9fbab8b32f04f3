"""Bounded work side by side, and the end of tasks."""

import asyncio

import pytest

from storage_proxy.common.concurrency import cancel_and_wait, map_bounded


async def test_results_are_in_order_and_no_more_run_than_allowed() -> None:
    running, most = 0, 0

    async def doubled(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        return 2 * number

    assert await map_bounded(3, doubled, range(20)) == [2 * number for number in range(20)]
    assert most == 3


async def test_the_first_failure_is_raised_when_the_others_have_ended() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == 1:
            raise KeyError(number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    with pytest.raises(KeyError):
        await map_bounded(3, work, range(10))
    assert sorted(ended) == [0, 2]


async def test_what_is_cancelled_has_ended_whatever_it_raises() -> None:
    ended: list[str] = []

    async def work(name: str, failure: Exception | None = None) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)
            if failure is not None:
                raise failure

    tasks = [asyncio.create_task(work("calm")), asyncio.create_task(work("failing", OSError("full")))]
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks)
    assert sorted(ended) == ["calm", "failing"]
    assert [task.cancelled() for task in tasks] == [True, False]
    await cancel_and_wait(*tasks)  # none is left to wait for
    await cancel_and_wait()
