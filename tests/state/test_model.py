"""Every engine against a plain sorted dict, transaction by transaction, closed and opened again in between."""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from storage_proxy.state.port import KeyValueStore, Row, Transaction, TransactionTooOld
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.state import Clock, fake_client, fake_store, sqlite_store
from tests.support.state_model import Model, Operation, run_on

PIECES = [b"", b"\x00", b"a", b"b", b"\xfe", b"\xff"]
names = st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join).map(lambda name: b"k" + name)
bounds = names | st.sampled_from([b"", b"\xff"])
flags = st.booleans()

operations = st.one_of(
    st.tuples(st.just("get"), names, flags),
    st.tuples(st.just("range"), bounds, bounds, st.integers(1, 12), flags, flags),
    st.tuples(st.just("batches"), bounds, bounds, flags, flags),
    st.tuples(st.just("set"), names, st.binary(max_size=3)),
    st.tuples(st.just("clear"), names),
    st.tuples(st.just("clear_range"), bounds, bounds),
)


class Abandoned(Exception):
    pass


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.rows: dict[bytes, bytes] = {}
        self.store = self.run(self.open())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    async def open(self) -> KeyValueStore:
        raise NotImplementedError

    @rule(planned=st.lists(operations, min_size=1, max_size=12), abandon=st.integers(0, 5).map(lambda n: n == 0))
    def transact(self, planned: list[Operation], abandon: bool) -> None:
        model = Model(self.rows)
        expected = [model.run(each) for each in planned]

        async def fn(transaction: Transaction) -> list[object]:
            found = [await run_on(transaction, each) for each in planned]
            if abandon:
                raise Abandoned
            return found

        try:
            assert self.run(self.store.transact(fn)) == expected
        except Abandoned:
            return
        self.rows = model.rows

    @rule()
    def export(self) -> None:
        async def read() -> list[Row]:
            return [row async for batch in self.store.read_snapshot(b"", b"\xff") for row in batch]

        rows = None
        while rows is None:
            with suppress(TransactionTooOld):  # an error at random: whoever exports begins again
                rows = self.run(read())
        assert rows == sorted(self.rows.items())

    @precondition(lambda self: self.rows)
    @rule()
    def close_and_open_again(self) -> None:
        self.run(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.store = self.run(self.open())

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()


class SqliteMachine(StoreMachine):
    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        super().__init__()

    async def open(self) -> KeyValueStore:
        path = Path(self.directory.name) / "state.db"
        return await self.stack.enter_async_context(sqlite_store(path, batch_rows=3))

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


class SimulatedMachine(StoreMachine):
    """With errors at random that leave nothing behind, so what the last run sees is what the first one saw."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(Clock())
        self.cluster.faults.rate = 0.1
        self.cluster.faults.unknown_commits = False
        super().__init__()

    async def open(self) -> KeyValueStore:
        client = self.stack.enter_context(fake_client(self.cluster))
        return await self.stack.enter_async_context(fake_store(client))


MACHINES: Sequence[type[StoreMachine]] = [SqliteMachine, SimulatedMachine]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_store_is_a_sorted_dict(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
