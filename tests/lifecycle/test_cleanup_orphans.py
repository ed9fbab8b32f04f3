"""cleanup-orphans on real buckets: exactly the orphans go, whatever comes meanwhile and wherever the job is killed."""

import json
import time
from collections.abc import Sequence

import pytest

from storage_proxy.bus.port import Event
from storage_proxy.common.errors import StateUnavailable, StorageTimeout
from storage_proxy.lifecycle import cleanup_orphans as module
from storage_proxy.lifecycle.jobs import JobProgress
from storage_proxy.lifecycle.locks import LockHeld, LockLost, Locks
from storage_proxy.lifecycle.orphan_claims import ACT_SECONDS, CLAIM_SECONDS, OrphanClaims
from storage_proxy.state.records import BlobState, Claim, Import
from tests.support.lifecycle import EVERY_BUCKET, GROUP, INGEST, LOCK_SECONDS, House, Killed, kill_at
from tests.support.orphans_scenario import OrphansScenario

JOB = "job:cleanup-orphans"


@pytest.fixture
async def scenario(house: House) -> OrphansScenario:
    """A few objects, which the clock says are an hour old."""
    house.clock.now = time.time()
    made = OrphansScenario(house, objects=100, orphans=7)
    await made.build()
    house.clock.now += 3600
    return made


async def claims(house: House) -> Sequence[Claim]:
    return [claim for _, claim in await house.rows(house.records.claims)]


async def assert_exactly_the_orphans_go(house: House, *, objects: int, orphans: int) -> None:
    house.clock.now = time.time()
    scenario = OrphansScenario(house, objects=objects, orphans=orphans)
    await scenario.build()
    house.clock.now += 3600
    done = await house.run_job(scenario.job())
    assert (done.looked_at, done.found, done.removed) == (objects, orphans, orphans)
    assert await scenario.left() == scenario.known
    assert await claims(house) == []


async def test_exactly_the_orphans_among_many_objects_are_removed(house: House) -> None:
    await assert_exactly_the_orphans_go(house, objects=2000, orphans=137)


async def test_exactly_the_orphans_of_an_s3_bucket_are_removed(s3_house: House) -> None:
    await assert_exactly_the_orphans_go(s3_house, objects=300, orphans=37)


async def test_a_dry_run_says_what_it_would_remove_and_changes_nothing(scenario: OrphansScenario) -> None:
    reports: list[JobProgress] = []
    done = await scenario.house.run_job(scenario.job(), dry_run=True, report=reports.append)
    assert (done.found, done.removed) == (7, 0)
    assert {name for each in reports for name in each.names} == {f"default/{key}" for key in scenario.orphaned}
    assert await scenario.left() == scenario.known | scenario.orphaned


async def test_a_limit_bounds_what_is_removed(scenario: OrphansScenario) -> None:
    done = await scenario.house.run_job(scenario.job(), limit=3)
    assert (done.found, done.removed) == (3, 3)
    assert len(await scenario.left()) == 97


async def test_young_objects_stay(scenario: OrphansScenario) -> None:
    await scenario.house.run_job(scenario.job(orphan_seconds=4000))
    assert await scenario.left() == scenario.known | scenario.orphaned


async def test_what_was_put_before_the_oldest_message_that_is_not_consumed_stays(scenario: OrphansScenario) -> None:
    house = scenario.house
    house.clock.now -= 3600 - 30  # announced half a minute after the upload, and never consumed
    await house.bus.publish(INGEST, [Event("r", b"{}")])
    house.clock.now += 3600
    await house.run_job(scenario.job())
    assert await scenario.left() == scenario.known | scenario.orphaned
    house.bus.committed[INGEST, GROUP] = 1
    await house.run_job(scenario.job())
    assert await scenario.left() == scenario.known


async def test_what_a_dead_letter_names_stays(scenario: OrphansScenario) -> None:
    kept = sorted(scenario.orphaned)[:2]
    values = [json.dumps({"payload": {"key": key}}).encode() for key in kept]
    junk = [b"{", b"[]", b'{"payload": 1}', b'{"payload": {"key": null}}', b"\xff", b"[" * 5000]
    await scenario.house.bus.publish(f"{INGEST}.dlq", [Event("r", value) for value in values + junk])
    await scenario.house.run_job(scenario.job())
    assert await scenario.left() == scenario.known.union(kept)


async def test_nothing_is_an_orphan_of_a_state_that_is_half_read_in(scenario: OrphansScenario) -> None:
    await scenario.house.set(scenario.house.records.imports, Import("0" * 64))
    with pytest.raises(StateUnavailable, match="being read in"):
        await scenario.house.run_job(scenario.job())
    assert await scenario.left() == scenario.known | scenario.orphaned


@pytest.mark.parametrize("blob_state", list(BlobState))
async def test_whatever_has_a_record_stays(scenario: OrphansScenario, blob_state: BlobState) -> None:
    kept = min(scenario.orphaned)
    _, run_id, path = kept.split("/", 2)
    await scenario.house.record(run_id, [path], state=blob_state)
    await scenario.house.run_job(scenario.job())
    assert await scenario.left() == scenario.known | {kept}


async def test_a_record_in_another_bucket_does_not_keep_an_object(scenario: OrphansScenario) -> None:
    gone = min(scenario.orphaned)
    _, run_id, path = gone.split("/", 2)
    await scenario.house.record(run_id, [path], bucket="media")
    await scenario.house.run_job(scenario.job())
    assert await scenario.left() == scenario.known


async def test_a_deleted_runs_objects_are_the_sweepers_until_it_is_swept(scenario: OrphansScenario) -> None:
    house = scenario.house
    await house.runs.delete("run-0", EVERY_BUCKET)
    of_the_run = {key for key in scenario.orphaned if key.startswith("runs/run-0/")}
    assert of_the_run
    await house.run_job(scenario.job())
    assert await scenario.left() == scenario.known | of_the_run
    await house.eraser.second_pass("run-0")
    await house.put("run-0", ["after all"])
    house.clock.now += 3600
    await house.run_job(scenario.job())
    assert await scenario.left() == {key for key in scenario.known if not key.startswith("runs/run-0/")}


async def test_keys_that_no_run_can_have_are_orphans_and_other_prefixes_are_not_looked_at(house: House) -> None:
    house.clock.now = time.time()
    for key in ("runs/-no-run-id/a", "runs/alone", "data/kept", ".storage-proxy/manifests/kept"):
        await house.stores["default"].put(key, b"x")
    house.clock.now += 3600
    done = await house.run_job(OrphansScenario(house).job())
    assert done.removed == 2
    assert await house.objects("") == [".storage-proxy/manifests/kept", "data/kept"]


async def test_a_blob_announced_between_the_look_and_the_claim_survives(
    scenario: OrphansScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = min(scenario.orphaned)
    _, run_id, path = kept.split("/", 2)
    claim = OrphanClaims.claim

    async def announced_first(self: OrphanClaims, bucket: str, keys: Sequence[str]) -> object:
        await scenario.house.record(run_id, [path])
        return await claim(self, bucket, keys)

    monkeypatch.setattr(OrphanClaims, "claim", announced_first)
    await scenario.house.run_job(scenario.job())
    assert await scenario.left() == scenario.known | {kept}
    assert await claims(scenario.house) == []


async def test_a_blob_uploaded_again_after_it_was_listed_survives(
    scenario: OrphansScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = scenario.house
    kept = min(scenario.orphaned)
    stat = house.stores["default"].stat

    async def as_if_young(key: str) -> object:
        found = await stat(key)
        assert found is not None
        if key != kept:
            return found
        return type(found)(found.key, found.size, found.etag, int(house.clock()))

    monkeypatch.setattr(house.stores["default"], "stat", as_if_young)
    done = await house.run_job(scenario.job())
    assert (done.found, done.removed) == (7, 6)
    assert await scenario.left() == scenario.known | {kept}


@pytest.mark.parametrize("name", ["orphan-claimed", "orphan-deleted"])
async def test_a_job_killed_at_a_step_is_continued_by_the_next(any_house: House, name: str) -> None:
    any_house.clock.now = time.time()
    scenario = OrphansScenario(any_house, objects=100, orphans=7)
    await scenario.build()
    any_house.clock.now += 3600
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, name)
        with pytest.raises(Killed):
            await any_house.run_job(scenario.job())
    assert len(await claims(any_house)) == 7
    await any_house.run_job(scenario.job())
    assert await scenario.left() == scenario.known
    any_house.clock.now += CLAIM_SECONDS
    await any_house.run_job(scenario.job())
    assert await claims(any_house) == []


async def test_a_claim_of_an_earlier_job_outlives_the_next_ones(scenario: OrphansScenario) -> None:
    """It may be of a job that is only paused: until the claim ends, nobody may write what it could remove."""
    house = scenario.house
    gone = min(scenario.orphaned)
    earlier = Claim(fence=-1, until=int(house.clock()) + 50)
    await house.set(house.records.claims, earlier, "default", gone)
    await house.run_job(scenario.job())
    assert await scenario.left() == scenario.known
    assert await claims(house) == [earlier]
    house.clock.now += 50
    await house.run_job(scenario.job())
    assert await claims(house) == []


async def test_a_job_that_was_paused_after_its_claim_removes_nothing(
    scenario: OrphansScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = scenario.house

    def paused(name: str) -> None:
        if name == "orphan-claimed":
            house.clock.now += ACT_SECONDS

    monkeypatch.setattr(module, "step", paused)
    done = await house.run_job(scenario.job())
    assert (done.found, done.removed) == (7, 0)
    assert await scenario.left() == scenario.known | scenario.orphaned


async def test_a_job_that_has_lost_its_lock_claims_nothing(scenario: OrphansScenario) -> None:
    house = scenario.house
    other = Locks(house.store, house.records, lock_seconds=LOCK_SECONDS, clock=house.clock)
    async with house.locks.hold(JOB, "paused") as paused:
        house.clock.now += LOCK_SECONDS
        async with other.hold(JOB, "next"):
            held = OrphanClaims(house.store, house.records, paused, clock=house.clock)
            with pytest.raises(LockLost):
                await held.claim("default", sorted(scenario.orphaned))
    assert await claims(house) == []


async def test_claims_stay_when_it_is_not_known_what_became_of_the_deletion(
    scenario: OrphansScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(keys: Sequence[str]) -> None:
        raise StorageTimeout

    with monkeypatch.context() as patch:
        patch.setattr(scenario.house.stores["default"], "delete_many", lost)
        with pytest.raises(StorageTimeout):
            await scenario.house.run_job(scenario.job())
    assert len(await claims(scenario.house)) == 7


async def test_a_second_instance_is_told_who_runs(scenario: OrphansScenario) -> None:
    async with scenario.house.locks.hold(JOB, "host-a:1"):
        with pytest.raises(LockHeld, match="host-a:1"):
            await scenario.house.run_job(scenario.job())
