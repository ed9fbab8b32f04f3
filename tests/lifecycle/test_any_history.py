"""Any sequence of uploads, deletions, passes and jobs, killed at any step: nothing wanted goes, the rest does.

Real SQLite and a real local bucket, one of each for a history; a plain set is what must be there.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from storage_proxy.common.errors import RunNotFound
from storage_proxy.common.events import run_key
from storage_proxy.common.wire import RunBlobsQuery
from storage_proxy.lifecycle import eraser as eraser_module
from storage_proxy.lifecycle.runs import RunStillDeleting
from storage_proxy.state.records import RunEnd
from storage_proxy.stores.local import LocalBlobStore
from tests.support.lifecycle import CONTROL, EVERY_BUCKET, LOCK_SECONDS, SECOND_PASS_SECONDS, House, Killed, kill_at
from tests.support.orphans_scenario import OrphansScenario
from tests.support.state import sqlite_store

runs = st.sampled_from(["a", "b", "a-b"])
paths = st.sampled_from(["x", "y", "z/z"])
STEPS = ["outbox-published", "run-erasing", "run-clearing", "run-deleted", "orphan-claimed", "orphan-deleted"]
kills = st.none() | st.tuples(st.sampled_from(STEPS), st.integers(1, 3))
Kill = tuple[str, int] | None


class EndOfBlobs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.recorded: set[tuple[str, str]] = set()
        self.deleted: set[str] = set()
        self.house = self.runner.run(self._open())

    async def _open(self) -> House:
        root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "blobs").mkdir()
        store = await self.stack.enter_async_context(sqlite_store(root / "state.db", batch_rows=1000))
        blobs = LocalBlobStore(root / "blobs")
        self.stack.push_async_callback(blobs.aclose)
        house = House(store, {"default": blobs})
        house.clock.now = time.time() + 7200  # whatever is put now is old already
        return house

    def attempt(self, work: Any, kill: Kill) -> None:
        """Run ``work``, killed at a step if it passes it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eraser_module, "_ROWS", 2)
            if kill is not None:
                kill_at(patch, kill[0], passes=kill[1])
            try:
                self.runner.run(work)
            except Killed:
                self.house.clock.now += LOCK_SECONDS

    @rule(run_id=runs, path=paths)
    def a_blob_is_uploaded_and_recorded(self, run_id: str, path: str) -> None:
        if run_id not in self.deleted and (run_id, path) not in self.recorded:
            self.runner.run(self.house.put(run_id, [path]))
            self.runner.run(self.house.record(run_id, [path]))
            self.recorded.add((run_id, path))

    @rule(run_id=runs, path=paths)
    def an_object_is_uploaded_that_nobody_announces(self, run_id: str, path: str) -> None:
        if (run_id, path) not in self.recorded:
            self.runner.run(self.house.put(run_id, [path]))

    @rule(run_id=runs)
    def a_run_is_deleted(self, run_id: str) -> None:
        self.runner.run(self.house.runs.delete(run_id, EVERY_BUCKET))
        self.deleted.add(run_id)
        self.recorded = {each for each in self.recorded if each[0] != run_id}

    @precondition(lambda self: self.deleted)
    @rule(chosen=st.integers(0, 2), force=st.booleans())
    def a_tombstone_is_cleared(self, chosen: int, force: bool) -> None:
        run_id = sorted(self.deleted)[chosen % len(self.deleted)]
        try:
            assert self.runner.run(self.house.runs.clear_tombstone(run_id, force=force))
            self.deleted.remove(run_id)
        except RunStillDeleting:
            assert not force

    @rule(kill=kills)
    def the_relay_works(self, kill: Kill) -> None:
        self.attempt(self.house.relay_all(), kill)

    @rule(kill=kills)
    def the_control_worker_works(self, kill: Kill) -> None:
        self.attempt(self.house.control_all(), kill)

    @rule()
    def the_control_worker_hears_everything_again(self) -> None:
        self.house.bus.committed.pop((CONTROL, "control"), None)

    @rule(kill=kills, seconds=st.sampled_from([1.0, SECOND_PASS_SECONDS]))
    def the_sweeper_works(self, kill: Kill, seconds: float) -> None:
        self.house.clock.now += seconds
        self.attempt(self.house.sweeper.run_once(), kill)

    @rule(kill=kills)
    def orphans_are_cleaned_up(self, kill: Kill) -> None:
        self.attempt(self.house.run_job(OrphansScenario(self.house).job()), kill)

    @invariant()
    def what_is_recorded_is_there_and_nothing_else_is_listed(self) -> None:
        for run_id in ("a", "b", "a-b"):
            wanted = [path for each, path in sorted(self.recorded) if each == run_id]
            try:
                rows, cursor = self.runner.run(self.house.runs.page(run_id, RunBlobsQuery()))
            except RunNotFound:
                assert not wanted
                assert run_id not in self.deleted
            else:
                assert ([path for path, _ in rows], cursor) == (wanted, None)
        assert {run_key(*each) for each in self.recorded} <= set(self.runner.run(self.house.objects()))

    def teardown(self) -> None:
        """Whatever happened, in the end all that nobody wants is gone, and each deleted run is one swept tombstone."""
        try:
            self.runner.run(self._all_is_done())
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()

    async def _all_is_done(self) -> None:
        house = self.house
        await house.relay_all()
        assert await house.control_all() == 0
        house.clock.now += 2 * SECOND_PASS_SECONDS
        await house.sweeper.run_once()
        await house.run_job(OrphansScenario(house).job())
        assert set(await house.objects()) == {run_key(*each) for each in self.recorded}
        ends = {key[0]: tombstone.state for key, tombstone in await house.rows(house.records.tombstones)}
        assert ends == dict.fromkeys(self.deleted, RunEnd.SWEPT)
        assert {key for key, _ in await house.rows(house.records.blobs)} == self.recorded
        for table in (house.records.outbox, house.records.sweeps, house.records.claims):
            assert await house.rows(table) == []


def test_any_history_ends_with_what_is_wanted_and_nothing_else() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        EndOfBlobs, settings=settings(max_examples=15, stateful_step_count=20)
    )
