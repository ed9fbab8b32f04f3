"""Transactions that are interleaved in every way hypothesis can think of: some serial order explains what each saw.

The same interleavings, without retries, end in the same conflicts on SQLite and on the simulated FoundationDB.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.port import KeyValueStore, Transaction
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.state import ONCE, PATIENT, Clock, fake_client, fake_store, read_all, sqlite_store
from tests.support.state_model import Model, Operation, run_on

NAMES = [b"a", b"b", b"c", b"d"]
START = {b"b": b"0", b"d": b"0"}
EVERYTHING = (b"", b"\xff")

names = st.sampled_from(NAMES)
bounds = st.sampled_from([*NAMES, b"e"])
isolated = st.just(False)

operations = st.one_of(
    st.tuples(st.just("get"), names, isolated),
    st.tuples(st.just("range"), bounds, bounds, st.integers(1, 3), st.booleans(), isolated),
    st.tuples(st.just("set"), names, st.sampled_from([b"1", b"2", b"3"])),
    st.tuples(st.just("clear"), names),
    st.tuples(st.just("clear_range"), bounds, bounds),
)
Programs = list[list[Operation]]
programs = st.lists(st.lists(operations, min_size=1, max_size=5), min_size=2, max_size=3)
schedules = st.lists(st.integers(0, 2), max_size=20)


@dataclass
class Run:
    """One transaction of an interleaving, and what its last attempt saw; the steps count through all of them."""

    program: list[Operation]
    seen: list[object] = field(default_factory=list)
    committed: bool = False
    began: int = 0
    ended: int = 0


class Conductor:
    """Lets one transaction at a time do one step, a commit being the last one."""

    def __init__(self, count: int) -> None:
        self._gates = [asyncio.Semaphore(0) for _ in range(count)]
        self._arrived = [asyncio.Event() for _ in range(count)]
        self.step = 0

    async def wait_for_turn(self, number: int) -> int:
        self._arrived[number].set()
        await self._gates[number].acquire()
        self.step += 1
        return self.step

    async def give_turn(self, number: int, task: "asyncio.Task[None]") -> None:
        await self._settled(number, task)
        if not task.done():
            self._arrived[number].clear()
            self._gates[number].release()
            await self._settled(number, task)

    async def _settled(self, number: int, task: "asyncio.Task[None]") -> None:
        arrived = asyncio.ensure_future(self._arrived[number].wait())
        await asyncio.wait([arrived, task], return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel()


async def interleave(store: KeyValueStore, planned: Programs, schedule: Sequence[int]) -> list[Run]:
    """Run the programs in the order of the schedule, then to their ends one after the other."""
    runs = [Run(program) for program in planned]
    conductor = Conductor(len(runs))

    async def play(number: int) -> None:
        run = runs[number]

        async def fn(transaction: Transaction) -> None:
            run.seen = []
            for index, operation in enumerate(run.program):
                step = await conductor.wait_for_turn(number)
                run.began = run.began if index else step
                run.seen.append(await run_on(transaction, operation))
            await conductor.wait_for_turn(number)

        try:
            await store.transact(fn)
            run.committed = True
        except StateUnavailable:
            pass
        run.ended = conductor.step

    tasks = [asyncio.create_task(play(number)) for number in range(len(runs))]
    for number in schedule:
        await conductor.give_turn(number % len(tasks), tasks[number % len(tasks)])
    for number, task in enumerate(tasks):
        while not task.done():
            await conductor.give_turn(number, task)
    for task in tasks:
        task.result()
    return runs


async def start(store: KeyValueStore) -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.clear_range(*EVERYTHING)
        for key, value in START.items():
            transaction.set(key, value)

    await store.transact(fn)


def explains(order: Sequence[Run], rows: dict[bytes, bytes]) -> bool:
    """Whether the transactions, one after the other in this order, see what they saw and leave ``rows``."""
    for earlier, later in itertools.combinations(order, 2):
        if later.ended < earlier.began:
            return False  # it was over before the other began, so it comes first
    model = Model(START)
    return all(model.run(each) == seen for run in order for each, seen in zip(run.program, run.seen, strict=True)) and (
        model.rows == rows
    )


async def check_serialisable(store: KeyValueStore, planned: Programs, schedule: Sequence[int]) -> None:
    await start(store)
    runs = [run for run in await interleave(store, planned, schedule) if run.committed]
    rows = dict(await read_all(store, *EVERYTHING))
    assert any(explains(order, rows) for order in itertools.permutations(runs)), (runs, rows)


async def open_sqlite_store(stack: AsyncExitStack, path: Path, retries: RetryPolicy) -> KeyValueStore:
    return await stack.enter_async_context(sqlite_store(path / "state.db", retries=retries, batch_rows=2))


async def open_simulated(stack: AsyncExitStack, _: Path, retries: RetryPolicy) -> KeyValueStore:
    cluster = FakeCluster(Clock())
    client = stack.enter_context(fake_client(cluster))
    return await stack.enter_async_context(fake_store(client, retries=retries))


async def open_faulty(stack: AsyncExitStack, _: Path, retries: RetryPolicy) -> KeyValueStore:
    cluster = FakeCluster(Clock())
    cluster.faults.rate = 0.1
    cluster.faults.unknown_commits = False  # a program that runs twice is no serial order of single runs
    client = stack.enter_context(fake_client(cluster))
    return await stack.enter_async_context(fake_store(client, retries=retries))


Open = Callable[[AsyncExitStack, Path, RetryPolicy], "asyncio.Future[KeyValueStore]"]


@pytest.mark.parametrize(
    ("open_store", "retries"),
    [
        (open_sqlite_store, PATIENT),
        (open_sqlite_store, ONCE),
        (open_simulated, PATIENT),
        (open_simulated, ONCE),
        (open_faulty, PATIENT),
    ],
)
def test_interleaved_transactions_are_serialisable(open_store: Open, retries: RetryPolicy, tmp_path: Path) -> None:
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:

        @settings(max_examples=60)
        @given(planned=programs, schedule=schedules)
        def check(planned: Programs, schedule: list[int]) -> None:
            runner.run(check_serialisable(store, planned, schedule))

        store = runner.run(open_store(stack, tmp_path, retries))  # type: ignore[arg-type]
        try:
            check()
        finally:
            runner.run(stack.aclose())


def test_sqlite_sees_the_conflicts_that_foundationdb_sees(tmp_path: Path) -> None:
    stack = AsyncExitStack()

    async def outcome(store: KeyValueStore, planned: Programs, schedule: list[int]) -> list[tuple[bool, list[object]]]:
        await start(store)
        return [(run.committed, run.seen) for run in await interleave(store, planned, schedule)]

    with asyncio.Runner() as runner:

        @settings(max_examples=200)
        @given(planned=programs, schedule=schedules)
        def check(planned: Programs, schedule: list[int]) -> None:
            on_sqlite = runner.run(outcome(sqlite, planned, schedule))
            assert on_sqlite == runner.run(outcome(simulated, planned, schedule))

        sqlite = runner.run(open_sqlite_store(stack, tmp_path, ONCE))
        simulated = runner.run(open_simulated(stack, tmp_path, ONCE))
        try:
            check()
        finally:
            runner.run(stack.aclose())
