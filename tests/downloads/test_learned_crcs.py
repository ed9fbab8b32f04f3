"""Learned CRC-32s in a real SQLite state."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import Pin
from tests.support.runs import Runs, temporary_runs

PIN = Pin("default", "a/\udcffb", '"e"', 3)


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    async with temporary_runs() as opened:
        yield opened


def remembering(runs: Runs, **more: float) -> LearnedCrcs:
    return LearnedCrcs(runs.store, runs.records, DownloadMetrics(CollectorRegistry()), **more)  # type: ignore[arg-type]


async def test_what_was_noted_is_known_at_once_and_to_others_once_it_is_written(runs: Runs) -> None:
    ours, others = remembering(runs), remembering(runs)
    async with ours.writing():
        ours.note(PIN, 7)
        assert await ours.known([PIN]) == [7]
    assert await others.known([PIN, Pin("default", "b", '"e"', 3)]) == [7, None]


async def test_it_is_written_in_the_background(runs: Runs) -> None:
    ours, others = remembering(runs, gather_seconds=0.0), remembering(runs)
    async with ours.writing():
        ours.note(PIN, 7)
        async with asyncio.timeout(20):
            while await others.known([PIN]) != [7]:
                await asyncio.sleep(0.01)


async def test_a_defect_of_the_state_does_not_end_the_writing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = remembering(runs, gather_seconds=0.0, retry_seconds=0.0), remembering(runs)
    transact = runs.store.transact
    failures = [RuntimeError("a defect")]

    async def failing(*arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return await transact(*arguments, **named)

    monkeypatch.setattr(runs.store, "transact", failing)
    async with ours.writing():
        ours.note(PIN, 7)
        async with asyncio.timeout(20):
            while failures or await others.known([PIN]) != [7]:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "other", [Pin("other", PIN.key, '"e"', 3), Pin("default", PIN.key, '"f"', 3), Pin("default", PIN.key, '"e"', 4)]
)
async def test_another_version_is_not_known_by_it(runs: Runs, other: Pin) -> None:
    ours = remembering(runs)
    ours.note(PIN, 7)
    await ours.flush()
    assert await remembering(runs).known([other, PIN]) == [None, 7]


async def test_what_its_content_contradicts_is_forgotten_at_once_and_for_others_once_that_is_written(
    runs: Runs,
) -> None:
    ours = remembering(runs)
    ours.note(PIN, 7)
    await ours.flush()
    ours.forget(PIN)
    assert await ours.known([PIN]) == [None]
    await ours.flush()
    assert await remembering(runs).known([PIN]) == [None]


async def test_what_no_etag_pins_is_never_remembered(runs: Runs) -> None:
    ours = remembering(runs)
    ours.note(Pin("default", "a", "", 3), 7)
    assert await ours.known([Pin("default", "a", "", 3)]) == [None]


async def test_what_waits_is_bounded_and_the_rest_is_dropped(runs: Runs) -> None:
    ours = remembering(runs, max_waiting=2)
    pins = [Pin("default", f"{number}", '"e"', 3) for number in range(4)]
    for number, pin in enumerate(pins):
        ours.note(pin, number)
    assert await ours.known(pins) == [0, 1, None, None]


async def test_a_contradiction_is_kept_where_what_was_learned_fills_all(runs: Runs) -> None:
    ours = remembering(runs)
    ours.note(PIN, 7)
    await ours.flush()
    full = remembering(runs, max_waiting=2)
    pins = [Pin("default", f"{number}", '"e"', 3) for number in range(2)]
    for pin in pins:
        full.note(pin, 1)
    full.forget(pins[1])
    full.forget(PIN)
    assert await full.known([*pins, PIN]) == [None, None, None]
    await full.flush()
    assert await remembering(runs).known([*pins, PIN]) == [None, None, None]


async def test_a_state_that_is_away_costs_nothing_but_the_knowledge() -> None:
    async with temporary_runs() as closed:
        ours = remembering(closed)
    async with ours.writing():  # the store is closed: every transaction fails
        ours.note(PIN, 7)
        assert await ours.known([PIN, Pin("default", "b", '"e"', 3)]) == [7, None]
    with pytest.raises(StateUnavailable):
        await ours.flush()
