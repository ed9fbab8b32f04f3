"""From DELETE to swept: control worker, sweeper and relay, killed at each step; real SQLite, local buckets, real S3."""

import json
from typing import Any

import pytest

from storage_proxy.bus.dead_letters import REASON_HEADER, dead_letter_topic, replayed
from storage_proxy.bus.port import Event
from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.common.events import run_deleted
from storage_proxy.common.wire import RunAccess
from storage_proxy.lifecycle import eraser as eraser_module
from storage_proxy.lifecycle.control_worker import ControlWorker
from storage_proxy.state.records import BlobState, Mark, RunEnd
from storage_proxy.stores.local import LocalBlobStore
from tests.support.lifecycle import CONTROL, EVERY_BUCKET, NOW, SECOND_PASS_SECONDS, House, Killed, kill_at

PATHS = [f"{number:03}/b.bin" for number in range(40)]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eraser_module, "_ROWS", 7)


async def deleted_run(house: House, run_id: str = "r1", *, bucket: str = "default") -> None:
    """A run with objects and rows, deleted, its event on the bus."""
    await house.record(run_id, PATHS[:20], bucket=bucket)
    await house.record(run_id, PATHS[20:], bucket=bucket, state=BlobState.PENDING)
    await house.put(run_id, PATHS, bucket=bucket)
    await house.runs.delete(run_id, EVERY_BUCKET)
    await house.relay_all()


async def state_of(house: House, run_id: str = "r1") -> RunEnd:
    tombstone = await house.tombstone(run_id)
    assert tombstone is not None
    return tombstone.state


async def sweep_everything(house: House) -> None:
    house.clock.now += SECOND_PASS_SECONDS + 1
    await house.sweeper.run_once()


async def test_a_deleted_run_ends_with_no_object_no_record_and_one_swept_tombstone(house: House) -> None:
    await deleted_run(house, "r1")
    await deleted_run(house, "r2", bucket="media")
    await house.record("r10", ["kept"])
    await house.put("r10", ["kept"])
    assert await house.control_all() == 0
    assert (await state_of(house, "r1"), await state_of(house, "r2")) == (RunEnd.DELETED, RunEnd.DELETED)
    assert await house.objects() == ["runs/r10/kept"]
    assert await house.objects(bucket="media") == []
    assert [key for key, _ in await house.rows(house.records.blobs)] == [("r10", "kept")]
    await sweep_everything(house)
    assert (await state_of(house, "r1"), await state_of(house, "r2")) == (RunEnd.SWEPT, RunEnd.SWEPT)
    assert await house.nothing_left_of("r1")
    assert await house.nothing_left_of("r2")


async def test_what_a_late_upload_puts_there_is_removed_by_the_second_pass_and_not_before_it_is_due(
    house: House,
) -> None:
    await deleted_run(house)
    await house.control_all()
    await house.put("r1", ["late"])
    assert await house.sweeper.run_once() == 0
    assert await house.objects() == ["runs/r1/late"]
    await sweep_everything(house)
    assert await house.objects() == []


async def test_an_unknown_run_is_looked_for_in_every_bucket(house: House) -> None:
    for bucket in ("default", "media"):
        await house.put("r1", ["a"], bucket=bucket)
    await house.runs.delete("r1", EVERY_BUCKET)
    await house.relay_all()
    await house.control_all()
    assert [*await house.objects(), *await house.objects(bucket="media")] == []


async def test_whoever_may_see_some_buckets_has_an_unknown_run_removed_from_no_other(house: House) -> None:
    for bucket in ("default", "media"):
        await house.put("r1", ["a"], bucket=bucket)
    await house.runs.delete("r1", RunAccess(buckets="media,other"))
    await house.relay_all()
    await house.control_all()
    await sweep_everything(house)
    assert await house.objects() == ["runs/r1/a"]
    assert await house.objects(bucket="media") == []


async def test_the_tombstones_bucket_is_believed_and_not_the_messages(house: House) -> None:
    await deleted_run(house)
    await house.put("r1", ["elsewhere"], bucket="media")
    lie = json.loads(run_deleted("r1", "media", event_id="x", now=int(NOW)))
    lie["payload"]["prefix"] = "runs/r2/"
    await house.put("r2", ["kept"])
    await house.bus.publish(CONTROL, [Event("r1", json.dumps(lie).encode())])
    await house.control_all()
    assert await house.objects() == ["runs/r2/kept"]
    assert await house.objects(bucket="media") == ["runs/r1/elsewhere"]


async def test_an_event_of_a_run_that_is_not_deleted_removes_nothing(house: House) -> None:
    await house.record("r1", ["a"])
    await house.put("r1", ["a"])
    await house.bus.publish(CONTROL, [Event("r1", run_deleted("r1", None, event_id="x", now=1).encode())])
    assert await house.control_all() == 0
    assert await house.objects() == ["runs/r1/a"]


async def test_poison_goes_to_the_dead_letters_and_what_follows_is_done(house: House) -> None:
    await house.bus.publish(CONTROL, [Event("r1", b"{")])
    await deleted_run(house)
    assert await house.control_all() == 0
    [letter] = house.bus.topics[f"{CONTROL}.dlq"]
    assert letter.value == b"{"
    assert await state_of(house) is RunEnd.DELETED


class Broken(LocalBlobStore):
    """Cannot be reached for one run."""

    async def erase(self, prefix: str) -> Any:
        if prefix == "runs/broken/":
            raise StorageUnavailable
        async for removed in super().erase(prefix):
            yield removed


async def test_a_run_that_fails_waits_and_the_others_of_its_batch_do_not(house: House, tmp_path: Any) -> None:
    for run_id in ("r1", "broken", "r2"):
        await deleted_run(house, run_id)
    whole = House(house.store, house.stores, house.clock)
    whole.bus = house.bus
    faulty = House(house.store, {"default": Broken(tmp_path / "default")}, house.clock)
    faulty.bus = house.bus
    assert await faulty.control_all() == 2
    assert [await state_of(house, run_id) for run_id in ("r1", "broken", "r2")] == [
        RunEnd.DELETED,
        RunEnd.DELETING,
        RunEnd.DELETED,
    ]
    assert faulty.metrics.run_passes.labels("first", "storage-unavailable")._value.get() == 1
    assert await whole.control_all() == 0
    assert await state_of(house, "broken") is RunEnd.DELETED
    await faulty.stores["default"].aclose()


async def test_a_run_whose_bucket_is_not_configured_keeps_no_other_from_being_erased(house: House) -> None:
    """Its event is a dead letter, its sweep row stays: so it ends once its bucket is there, by either."""
    await deleted_run(house, "r1", bucket="media")
    await deleted_run(house, "r2")
    lacking = House(house.store, {"default": house.stores["default"]}, house.clock)
    lacking.bus = house.bus
    lacking.worker = ControlWorker(lacking.eraser, house.bus, lacking.metrics)
    assert await lacking.control_all() == 0
    assert (await state_of(house, "r1"), await state_of(house, "r2")) == (RunEnd.DELETING, RunEnd.DELETED)
    [letter] = house.bus.topics[dead_letter_topic(CONTROL)]
    assert letter.headers[REASON_HEADER] == b"the run's bucket is not configured"
    await sweep_everything(lacking)
    assert lacking.metrics.sweeps_overdue._value.get() == 1
    await house.bus.publish(CONTROL, [replayed(letter)])
    assert await house.control_all() == 0
    assert await state_of(house, "r1") is RunEnd.DELETED
    assert await house.sweeper.run_once() == 1
    assert await state_of(house, "r1") is RunEnd.SWEPT


async def test_a_run_whose_event_was_lost_is_ended_by_the_sweeper(house: House) -> None:
    await deleted_run(house)
    house.bus.topics.clear()
    await sweep_everything(house)
    assert await state_of(house) is RunEnd.SWEPT
    assert await house.objects() == []
    assert await house.nothing_left_of("r1")


async def test_a_sweep_row_without_its_tombstone_is_cleared(house: House) -> None:
    await house.set(house.records.sweeps, Mark(), int(NOW), "gone")
    await house.sweeper.run_once()
    assert await house.rows(house.records.sweeps) == []


async def test_a_slow_first_pass_does_not_take_a_swept_run_back(house: House) -> None:
    await deleted_run(house)
    tombstone = await house.tombstone("r1")
    assert tombstone is not None
    await sweep_everything(house)
    await house.eraser._reach("r1", tombstone, RunEnd.DELETED)
    assert await state_of(house) is RunEnd.SWEPT


async def test_giving_an_id_free_in_the_middle_of_a_pass_stops_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deleted_run(house)

    def step(name: str) -> None:
        if name == "run-erasing":
            freed.append(name)

    freed: list[str] = []
    monkeypatch.setattr(eraser_module, "step", step)
    check = house.eraser._still

    async def freed_meanwhile(run_id: str, tombstone: Any) -> None:
        await house.runs.clear_tombstone("r1", force=True)
        await house.record("r1", ["new"])
        await check(run_id, tombstone)

    monkeypatch.setattr(house.eraser, "_still", freed_meanwhile)
    await house.eraser.first_pass("r1")
    assert freed == ["run-erasing"]
    assert await house.tombstone("r1") is None
    assert [key for key, _ in await house.rows(house.records.blobs)] == [("r1", "new")]


STEPS = [
    ("outbox-published", 1),
    ("run-erasing", 1),
    ("run-clearing", 1),
    ("run-clearing", 4),
    ("run-clearing", 7),
    ("run-deleted", 1),
]


async def _end_the_run(house: House) -> None:
    await house.relay_all()
    await house.control_all()
    await sweep_everything(house)


@pytest.mark.parametrize(("name", "passes"), STEPS)
async def test_a_process_killed_at_a_step_is_continued_by_the_next(any_house: House, name: str, passes: int) -> None:
    house = any_house
    await house.record("r1", PATHS, state=BlobState.PENDING)
    await house.put("r1", PATHS)
    await house.runs.delete("r1", EVERY_BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, name, passes=passes)
        with pytest.raises(Killed):
            await _end_the_run(house)
    house.clock.now += SECOND_PASS_SECONDS  # the lock of the killed one ends
    await _end_the_run(house)
    assert await house.objects() == []
    assert await house.nothing_left_of("r1")
    assert await house.rows(house.records.outbox) == []
    assert await state_of(house) is RunEnd.SWEPT
