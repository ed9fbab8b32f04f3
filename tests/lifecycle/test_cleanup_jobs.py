"""The other clean-up jobs on a real SQLite file and real local buckets."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_proxy.bus.port import Event
from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.common.names import MANIFESTS_PREFIX
from storage_proxy.lifecycle import cleanup_expired, cleanup_tombstones
from storage_proxy.lifecycle.cleanup_expired import CleanupExpired
from storage_proxy.lifecycle.cleanup_manifests import LONGEST_TOKEN_SECONDS, CleanupManifests
from storage_proxy.lifecycle.cleanup_tombstones import CleanupTombstones
from storage_proxy.lifecycle.jobs import Job
from storage_proxy.lifecycle.locks import LockLost
from storage_proxy.state.records import LearnedCrc, LinkRecord, Lock, Mark, RunEnd
from tests.support.lifecycle import EVERY_BUCKET, GROUP, INGEST, SECOND_PASS_SECONDS, House

DAY = 86_400
TOMBSTONE_SECONDS = 30.0 * DAY
GRACE = 3600.0


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cleanup_tombstones, cleanup_expired):
        monkeypatch.setattr(module, "_ROWS", 2)


def tombstones_job(house: House) -> CleanupTombstones:
    return CleanupTombstones(
        house.store,
        house.records,
        house.bus,
        ingest_topic=INGEST,
        ingest_group=GROUP,
        tombstone_seconds=TOMBSTONE_SECONDS,
        clock=house.clock,
    )


def manifests_job(house: House) -> CleanupManifests:
    return CleanupManifests(house.store, house.stores["default"], resume_grace_seconds=GRACE, clock=house.clock)


def expired_job(house: House) -> CleanupExpired:
    return CleanupExpired(house.store, house.records, house.buckets, resume_grace_seconds=GRACE, clock=house.clock)


async def swept(house: House, *run_ids: str) -> None:
    for run_id in run_ids:
        await house.runs.delete(run_id, EVERY_BUCKET)
    house.clock.now += SECOND_PASS_SECONDS + 1
    await house.sweeper.run_once()


async def tombstones(house: House) -> list[str]:
    return [key[0] for key, _ in await house.rows(house.records.tombstones)]


async def test_tombstones_go_when_they_were_swept_long_ago(house: House) -> None:
    await swept(house, "a", "b", "c")
    house.clock.now += TOMBSTONE_SECONDS / 2
    await swept(house, "d")
    await house.runs.delete("e", EVERY_BUCKET)
    house.clock.now += TOMBSTONE_SECONDS / 2
    done = await house.run_job(tombstones_job(house))
    assert (done.looked_at, done.found, done.removed) == (5, 3, 3)
    assert await tombstones(house) == ["d", "e"]


async def test_a_run_that_is_not_swept_keeps_its_tombstone_for_ever(house: House) -> None:
    await house.runs.delete("a", EVERY_BUCKET)
    await house.eraser.first_pass("a")
    house.clock.now += 10 * TOMBSTONE_SECONDS
    assert (await house.run_job(tombstones_job(house))).removed == 0
    tombstone = await house.tombstone("a")
    assert tombstone is not None
    assert tombstone.state is RunEnd.DELETED


async def test_tombstones_wait_for_messages_that_are_not_consumed(house: House) -> None:
    await swept(house, "a")
    house.clock.now += 1
    await house.bus.publish(INGEST, [Event("a", b"{}")])
    house.clock.now += 2 * TOMBSTONE_SECONDS
    assert (await house.run_job(tombstones_job(house))).removed == 0
    house.bus.committed[INGEST, GROUP] = 1
    assert (await house.run_job(tombstones_job(house))).removed == 1


async def test_a_run_that_a_dead_letter_names_keeps_its_tombstone(house: House) -> None:
    """Replayed after all that time, it would bring the run back."""
    await swept(house, "a", "b")
    letter = json.dumps({"run_id": "a", "payload": {"key": "runs/a/b"}}).encode()
    await house.bus.publish(f"{INGEST}.dlq", [Event("a", letter), Event("b", b"["), Event("b", b'{"run_id": 1}')])
    house.clock.now += 2 * TOMBSTONE_SECONDS
    assert (await house.run_job(tombstones_job(house))).removed == 1
    assert await tombstones(house) == ["a"]


async def written(house: House, root: Path, name: str, age: float) -> None:
    await house.stores["default"].put(MANIFESTS_PREFIX + name, b"x")
    moment = house.clock() - age
    os.utime(root / MANIFESTS_PREFIX / name, (moment, moment))


async def test_manifests_go_when_no_link_can_name_them_any_more(house: House, tmp_path: Path) -> None:
    oldest = LONGEST_TOKEN_SECONDS + GRACE + DAY
    await written(house, tmp_path / "default", "old", oldest + 2)
    await written(house, tmp_path / "default", "younger", oldest - 2)
    await house.put("r1", ["a"])
    done = await house.run_job(manifests_job(house))
    assert (done.looked_at, done.removed) == (2, 1)
    assert await house.objects("") == [f"{MANIFESTS_PREFIX}younger", "runs/r1/a"]


async def test_a_manifest_that_is_written_again_meanwhile_stays(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.clock.now = time.time()
    await written(house, tmp_path / "default", "old", 100 * DAY)
    check = "storage_proxy.lifecycle.cleanup_manifests.check_fence"

    async def minted_meanwhile(*_: object) -> None:
        await house.stores["default"].put(f"{MANIFESTS_PREFIX}old", b"x")

    monkeypatch.setattr(check, minted_meanwhile)
    done = await house.run_job(manifests_job(house))
    assert (done.found, done.removed) == (1, 0)
    assert await house.objects(MANIFESTS_PREFIX) == [f"{MANIFESTS_PREFIX}old"]


async def link(house: House, jti: str, ends: float) -> None:
    await house.set(house.records.links, LinkRecord("blob", int(ends), revoked=True), jti)
    await house.set(house.records.link_ends, Mark(), int(ends), jti)


async def test_links_go_when_no_download_of_them_can_be_resumed(house: House) -> None:
    for number in range(5):
        await link(house, f"old{number}", house.clock() - GRACE - DAY - number - 1)
    await link(house, "ended", house.clock() - GRACE)
    await link(house, "runs", house.clock() + 10)
    assert (await house.run_job(expired_job(house))).removed == 5
    assert [key[0] for key, _ in await house.rows(house.records.links)] == ["ended", "runs"]
    assert [key[1] for key, _ in await house.rows(house.records.link_ends)] == ["ended", "runs"]


async def test_a_link_that_was_given_a_later_end_is_kept_until_then(house: House) -> None:
    await link(house, "a", house.clock() - 10 * DAY)
    await house.set(house.records.links, LinkRecord("blob", int(house.clock()) + 10), "a")
    await house.run_job(expired_job(house))
    assert [key for key, _ in await house.rows(house.records.links)] == [("a",)]
    assert [key for key, _ in await house.rows(house.records.link_ends)] == [(int(house.clock()) + 10, "a")]


async def learned(house: House, bucket: str, key: str, *, etag: str | None = None, size: int = 1) -> None:
    if etag is None:
        stat = await house.stores[bucket].stat(key)
        assert stat is not None
        etag = stat.etag
    await house.set(house.records.crc32s, LearnedCrc(1, 1), bucket, key.encode(), etag, size)


async def crc32s(house: House) -> list[tuple[str, str]]:
    return [(key[0], key[1].decode()) for key, _ in await house.rows(house.records.crc32s)]


async def test_crc32s_go_with_the_version_that_they_were_learned_of(house: House) -> None:
    await house.put("r1", ["kept", "other-size", "other-etag"])
    await learned(house, "default", "runs/r1/kept")
    await learned(house, "default", "runs/r1/other-size", size=2)
    await learned(house, "default", "runs/r1/other-etag", etag='"x"')
    await learned(house, "default", "runs/r1/gone", etag='"x"')
    await learned(house, "not-configured", "gone", etag='"x"')
    dry = await house.run_job(expired_job(house), dry_run=True)
    assert (dry.found, dry.removed, len(await crc32s(house))) == (3, 0, 5)
    done = await house.run_job(expired_job(house))
    assert (done.found, done.removed) == (3, 3)
    assert await crc32s(house) == [("default", "runs/r1/kept"), ("not-configured", "gone")]


async def test_crc32s_stay_while_their_bucket_does_not_answer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await learned(house, "default", "gone", etag='"x"')

    async def away(key: str) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(house.stores["default"], "stat", away)
    with pytest.raises(StorageUnavailable):
        await house.run_job(expired_job(house))
    assert len(await crc32s(house)) == 1


JOBS: list[Callable[[House], Job]] = [tombstones_job, manifests_job, expired_job]


async def something_for_each(house: House, root: Path) -> None:
    await swept(house, "a", "b")
    house.clock.now += 2 * TOMBSTONE_SECONDS
    for name in ("a", "b"):
        await written(house, root, name, 100 * DAY)
        await link(house, name, 1)


@pytest.mark.parametrize("make", JOBS)
async def test_a_job_keeps_its_limit_and_a_dry_run_changes_nothing(
    house: House, tmp_path: Path, make: Callable[[House], Job]
) -> None:
    await something_for_each(house, tmp_path / "default")
    for wanted in ((True, 2), (False, 1), (True, 1), (False, 1), (True, 0)):
        dry_run, found = wanted
        done = await house.run_job(make(house), dry_run=dry_run, limit=None if dry_run else 1)
        assert (done.found, done.removed) == (found, 0 if dry_run else found)


@pytest.mark.parametrize("make", JOBS)
async def test_a_job_that_has_lost_its_lock_removes_nothing(
    house: House, tmp_path: Path, make: Callable[[House], Job]
) -> None:
    await something_for_each(house, tmp_path / "default")
    job = make(house)
    run = job.run

    async def robbed(lock: object, tally: object) -> None:
        await house.set(house.records.locks, Lock("next", 99, house.clock() + 60), f"job:{job.name}")
        await run(lock, tally)  # type: ignore[arg-type]

    job.run = robbed  # type: ignore[method-assign]
    with pytest.raises(LockLost):
        await house.run_job(job)
    house.clock.now += 60
    assert (await house.run_job(make(house), dry_run=True)).found == 2
