"""Runs on a real SQLite file: described, listed page by page, hidden at once, and given free again."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import InvalidRequest, RunNotFound
from storage_proxy.common.events import parse_run_deleted
from storage_proxy.common.wire import BlobStateFilter, RunAccess, RunBlobsQuery
from storage_proxy.lifecycle import runs as runs_module
from storage_proxy.lifecycle.runs import Runs, RunStillDeleting
from storage_proxy.state.records import BlobState
from tests.support.lifecycle import EVERY_BUCKET, NOW, SECOND_PASS_SECONDS, House

MEDIA_ONLY = RunAccess(buckets="media")


async def listed(house: House, run_id: str, **query: object) -> Sequence[Sequence[str]]:
    """The paths of every page."""
    pages, cursor = [], None
    while True:
        rows, cursor = await house.runs.page(run_id, RunBlobsQuery.model_validate({**query, "cursor": cursor}))
        pages.append([path for path, _ in rows])
        if cursor is None:
            return pages


async def test_a_run_is_its_bucket_and_what_is_verified_of_it(house: House) -> None:
    await house.record("r1", ["a", "b"], bucket="media")
    await house.record("r1", ["c"], bucket="media", state=BlobState.PENDING)
    described = await house.runs.describe("r1", EVERY_BUCKET)
    assert described.model_dump() == {"run_id": "r1", "bucket": "media", "state": "active", "blobs": 2, "bytes": 2}


async def test_an_unknown_run_is_not_found(house: House) -> None:
    for asked in (house.runs.describe("r1", EVERY_BUCKET), house.runs.page("r1", RunBlobsQuery())):
        with pytest.raises(RunNotFound):
            await asked


async def test_a_run_in_a_bucket_that_is_not_allowed_does_not_exist_whatever_is_asked(house: House) -> None:
    await house.record("r1", ["a"])
    query = RunBlobsQuery(buckets="media")
    for asked in (house.runs.describe, house.runs.delete):
        with pytest.raises(RunNotFound):
            await asked("r1", MEDIA_ONLY)
    with pytest.raises(RunNotFound):
        await house.runs.page("r1", query)
    await house.runs.delete("r1", EVERY_BUCKET)
    for asked in (house.runs.describe, house.runs.delete):
        with pytest.raises(RunNotFound):
            await asked("r1", MEDIA_ONLY)
    with pytest.raises(RunNotFound):
        await house.runs.page("r1", query)


async def test_deleting_hides_the_run_at_once_and_says_so_in_one_event(house: House) -> None:
    await house.record("r1", ["a"], bucket="media", upload_until=int(NOW) + 600)
    for _ in range(3):
        answer = await house.runs.delete("r1", EVERY_BUCKET)
        assert (answer.state, answer.bucket, answer.blobs, answer.bytes) == ("deleting", "media", 0, 0)
    assert await listed(house, "r1") == [[]]
    tombstone = await house.tombstone("r1")
    assert tombstone is not None
    assert tombstone.sweep_at == NOW + 600 + SECOND_PASS_SECONDS
    assert [key for key, _ in await house.rows(house.records.sweeps)] == [(tombstone.sweep_at, "r1")]
    [(_, row)] = await house.rows(house.records.outbox)
    event = parse_run_deleted(row.value.encode())
    assert (row.topic, row.key, event.payload.bucket, event.payload.prefix) == ("control", "r1", "media", "runs/r1/")


async def test_an_unknown_run_leaves_a_tombstone_without_a_bucket(house: House) -> None:
    answer = await house.runs.delete("r1", MEDIA_ONLY)
    assert (answer.state, answer.bucket) == ("deleting", None)
    assert (await house.runs.describe("r1", EVERY_BUCKET)).state == "deleting"


async def test_a_swept_run_is_a_deleted_one(house: House) -> None:
    await house.runs.delete("r1", EVERY_BUCKET)
    await house.eraser.first_pass("r1")
    assert (await house.runs.describe("r1", EVERY_BUCKET)).state == "deleted"
    await house.eraser.second_pass("r1")
    assert (await house.runs.delete("r1", EVERY_BUCKET)).state == "deleted"


async def test_a_page_ends_with_the_last_blob_and_not_after_it(house: House) -> None:
    await house.record("r1", "abcd")
    assert await listed(house, "r1", limit=2) == [["a", "b"], ["c", "d"]]
    assert await listed(house, "r1", limit=4) == [["a", "b", "c", "d"]]
    assert await listed(house, "r1", limit=3, state="all") == [["a", "b", "c"], ["d"]]


async def test_only_blobs_in_the_state_that_is_asked_for_are_listed(house: House) -> None:
    for state in BlobState:
        await house.record("r1", [f"{number}-{state}" for number in range(3)], state=state)
    for asked in BlobStateFilter:
        expected = [f"{n}-{state}" for n in range(3) for state in sorted(BlobState) if asked in ("all", state)]
        assert [path for page in await listed(house, "r1", state=asked, limit=2) for path in page] == expected


async def test_a_scan_for_a_rare_state_stops_in_time_with_a_cursor(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_SCAN_ROWS", 3)
    slow = Runs(
        house.store,
        house.records,
        second_pass_seconds=0,
        clock=house.clock,
        monotonic=iter(float(seconds) for seconds in range(10_000)).__next__,  # each look takes a second
    )
    await house.record("r1", [f"{number:02}" for number in range(20)], state=BlobState.PENDING)
    await house.record("r1", ["99"])
    found, cursor, pages = [], None, 0
    while True:
        rows, cursor = await slow.page("r1", RunBlobsQuery(cursor=cursor))
        found += [path for path, _ in rows]
        pages += 1
        if cursor is None:
            break
    assert found == ["99"]
    assert pages > 2


@pytest.mark.parametrize("cursor", ["!", "YQ==", "YR", "Li4", "L2E", "_w"])
async def test_a_cursor_that_no_page_gave_is_refused(house: House, cursor: str) -> None:
    await house.record("r1", ["a"])
    with pytest.raises(InvalidRequest):
        await house.runs.page("r1", RunBlobsQuery(cursor=cursor))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "S"]), min_size=1, max_size=3), max_size=9
    ),
    limit=st.integers(1, 4),
)
async def test_pages_give_every_path_once_in_byte_order(house: House, paths: list[str], limit: int) -> None:
    await house.runs.clear_tombstone("r1")
    await house.runs.delete("r1", EVERY_BUCKET)
    await house.runs.clear_tombstone("r1", force=True)  # a fresh run each time
    await house.record("r1", set(paths))
    pages = await listed(house, "r1", limit=limit)
    assert [path for page in pages for path in page] == sorted(set(paths), key=str.encode)
    assert all(len(page) <= limit for page in pages)


async def test_a_tombstone_is_not_cleared_before_the_objects_are_gone_unless_forced(house: House) -> None:
    await house.record("r1", ["a"])
    await house.put("r1", ["a"])
    await house.runs.delete("r1", EVERY_BUCKET)
    with pytest.raises(RunStillDeleting):
        await house.runs.clear_tombstone("r1")
    assert await house.runs.clear_tombstone("r1", force=True)
    assert await house.nothing_left_of("r1")
    assert not await house.runs.clear_tombstone("r1")


async def test_a_run_id_that_is_given_free_begins_anew(house: House) -> None:
    await house.record("r1", ["a"])
    await house.runs.delete("r1", EVERY_BUCKET)
    await house.relay_all()
    await house.control_all()
    assert await house.runs.clear_tombstone("r1")
    await house.record("r1", ["b"], bucket="media")
    await house.put("r1", ["b"], bucket="media")
    await house.bus.give("blob-control", "another group", house.worker.handle)  # the old event again
    house.clock.now += 10 * SECOND_PASS_SECONDS
    await house.sweeper.run_once()
    assert await listed(house, "r1") == [["b"]]
    assert await house.objects(bucket="media") == ["runs/r1/b"]
    assert await house.tombstone("r1") is None
