"""Uploads on a real SQLite file; the bucket is in memory. Real buckets: test_uploads_s3 and tests/http."""

import asyncio
import uuid
from typing import Any

import pytest

from storage_proxy.common.errors import (
    BlobExists,
    BucketNotFound,
    Busy,
    ChecksumMismatch,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    RunBucketMismatch,
    RunDeleted,
    ServiceError,
    SizeMismatch,
    StorageTimeout,
    StorageUnavailable,
    UnsafeName,
    UploadIncomplete,
)
from storage_proxy.common.events import run_key
from storage_proxy.common.tokens import UploadClaims
from storage_proxy.common.wire import RunAccess, UploadOrder, Via
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobState, Claim, RunTotals
from storage_proxy.stores.port import UploadTerms
from tests.support.ingest import WritePath, chunks, crc32_of
from tests.support.scripted_store import ScriptedStore

ANYONE = RunAccess()


def order(path: str = "a", **more: Any) -> UploadOrder:
    return UploadOrder(**{"run_id": "r1", "bucket": "media", "path": path, "expires_in": 600, **more})


def claims(path: str = "a", **more: Any) -> UploadClaims:
    registered = {"iss": "i", "aud": "a", "iat": 1, "nbf": 1, "exp": 1_700_000_600, "jti": uuid.uuid4().hex}
    grant = {"bucket": "media", "run_id": "r1", "path": path, "key": run_key("r1", path)}
    return UploadClaims(**{**registered, **grant, **more})


async def state_of(path: WritePath, name: str = "a") -> BlobState | None:
    blob = await path.blob("r1", name)
    return blob and blob.state


async def claim(path: WritePath, until: float, fence: int = 1) -> None:
    async def fn(transaction: Transaction) -> None:
        path.records.claims.set(transaction, Claim(fence, int(until)), "media", "runs/r1/a")

    await path.store.transact(fn)


# Prepare


async def test_a_prepared_upload_is_announced_in_the_same_transaction(path: WritePath) -> None:
    prepared = await path.uploads.prepare(order(size=7, crc32="00000007", content_type="text/x"))
    now = int(path.clock())
    assert prepared.url == "https://s3.example/1"
    assert prepared.key == "runs/r1/a"
    assert prepared.expires_at.timestamp() == now + 600
    assert path.bucket.presigned == [("runs/r1/a", UploadTerms("text/x", 7, 7), 600)]
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.size, blob.crc32, blob.content_type) == (BlobState.PENDING, 7, 7, "text/x")
    assert blob.deadline == now + 600 + 300
    assert await path.due() == [(blob.due_ms, "r1", "a")]
    run = await path.run("r1")
    assert run is not None
    assert run.bucket == "media"
    assert now + 600 <= run.upload_until < now + 660
    assert run.upload_until % 10 == 0
    [event] = await path.outbox()
    assert event["payload"] == {"bucket": "media", "key": "runs/r1/a", "path": "a"}
    assert event["type"] == "blob_ref"
    assert uuid.UUID(event["id"])


async def test_preparing_again_gives_a_new_url_for_the_same_upload(path: WritePath) -> None:
    first = await path.uploads.prepare(order(size=7))
    path.clock.now += 100
    second = await path.uploads.prepare(order(expires_in=10))
    assert first.upload_id == second.upload_id
    assert first.url != second.url
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert blob.size is None
    assert blob.deadline == int(path.clock()) - 100 + 600 + 300  # the first URL still works
    assert len(await path.due()) == 1


async def test_an_older_announcement_of_the_same_path_does_not_count(path: WritePath) -> None:
    await path.uploads.prepare(order(size=3))
    await path.uploads.prepare(order(size=7))
    path.bucket.place("runs/r1/a", b"content")
    await path.relay()
    await path.deliver()
    assert await state_of(path) is BlobState.VERIFIED
    assert path.bus.dead() == []


async def test_what_a_prepared_upload_announced_holds_for_its_message(path: WritePath) -> None:
    await path.uploads.prepare(order(size=3))
    path.bucket.place("runs/r1/a", b"content")
    await path.relay()
    await path.deliver()
    assert await state_of(path) is BlobState.REJECTED


async def test_the_message_of_a_prepared_upload_does_not_extend_its_time(path: WritePath) -> None:
    await path.uploads.prepare(order())
    before = await path.blob("r1", "a")
    await path.relay()
    await path.deliver()
    after = await path.blob("r1", "a")
    assert before is not None
    assert after is not None
    assert (after.deadline, after.due_ms) == (before.deadline, before.due_ms)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"path": "../a"}, UnsafeName),
        ({"path": "a/"}, UnsafeName),
        ({"path": "a\\b"}, UnsafeName),
        ({"path": "/".join(["x" * 200] * 6)}, UnsafeName),
        ({"bucket": "unheard"}, BucketNotFound),
        ({"size": 5_368_709_121}, PayloadTooLarge),
    ],
)
async def test_what_cannot_be_uploaded_is_refused_and_leaves_no_row(
    path: WritePath, more: dict[str, Any], error: type[ServiceError]
) -> None:
    with pytest.raises(error) as refused:
        await path.uploads.prepare(order(**more))
    if error is UnsafeName:
        assert refused.value.errors[0]["loc"] == ["path"]
    assert await path.blobs() == {}
    assert await path.outbox() == []


async def test_a_bucket_without_urls_of_its_own_takes_uploads_through_the_proxy(path: WritePath) -> None:
    prepared = await path.uploads.prepare(order(via=Via.PROXY, size=7, content_type="text/x"))
    assert prepared.url is None
    assert prepared.headers == {"Content-Type": "text/x", "Content-Length": "7"}
    plain = WritePath(path.store, buckets={"media": ScriptedStore()})
    with pytest.raises(InvalidRequest):
        await plain.uploads.prepare(order(via=Via.DIRECT))


async def test_a_run_that_is_deleted_or_lives_elsewhere_takes_no_upload(path: WritePath) -> None:
    await path.uploads.prepare(order())
    with pytest.raises(RunBucketMismatch):
        await path.uploads.prepare(order("b", bucket="other"))
    await path.delete_run("r1")
    with pytest.raises(RunDeleted):
        await path.uploads.prepare(order())


async def test_a_verified_path_takes_no_second_upload(path: WritePath) -> None:
    prepared = await path.uploads.prepare(order())
    path.bucket.place("runs/r1/a", b"content")
    await path.uploads.complete(prepared.upload_id, ANYONE)
    with pytest.raises(BlobExists):
        await path.uploads.prepare(order())


async def test_the_object_of_a_rejected_path_makes_room_for_a_new_upload(path: WritePath) -> None:
    prepared = await path.uploads.prepare(order(size=8))
    path.bucket.place("runs/r1/a", b"content")
    with pytest.raises(SizeMismatch):
        await path.uploads.complete(prepared.upload_id, ANYONE)
    again = await path.uploads.prepare(order(size=9))
    assert again.upload_id == prepared.upload_id
    assert path.bucket.blobs == {}
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.size, blob.reason) == (BlobState.PENDING, 9, None)
    assert await path.store.transact(lambda each: path.records.claims.get(each, "media", "runs/r1/a")) is None


async def test_a_claimed_key_is_waited_for_and_then_the_caller_is_told(path: WritePath) -> None:
    await claim(path, path.clock() + 60)
    with pytest.raises(Busy):
        await path.uploads.prepare(order())
    with pytest.raises(Busy):
        await path.uploads.receive(claims(), chunks(b"content"), 7)
    preparing = asyncio.create_task(path.uploads.prepare(order()))
    await claim(path, 0)
    await preparing
    assert await state_of(path) is BlobState.PENDING


async def test_a_claim_stands_while_the_object_of_a_rejected_path_cannot_be_removed(path: WritePath) -> None:
    prepared = await path.uploads.prepare(order(size=8))
    path.bucket.place("runs/r1/a", b"content")
    with pytest.raises(SizeMismatch):
        await path.uploads.complete(prepared.upload_id, ANYONE)
    path.bucket.away = True
    with pytest.raises(StorageUnavailable):
        await path.uploads.prepare(order())
    path.bucket.away = False
    with pytest.raises(Busy):
        await path.uploads.prepare(order())
    path.clock.now += 61
    await path.uploads.prepare(order())
    assert path.bucket.blobs == {}


async def test_a_process_that_was_paused_after_its_claim_removes_nothing(
    path: WritePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = await path.uploads.prepare(order(size=8))
    path.bucket.place("runs/r1/a", b"content")
    with pytest.raises(SizeMismatch):
        await path.uploads.complete(prepared.upload_id, ANYONE)
    transact = path.store.transact

    async def paused_after_the_claim(fn: Any) -> Any:
        result = await transact(fn)
        if await transact(lambda each: path.records.claims.get(each, "media", "runs/r1/a")) is not None:
            monkeypatch.undo()
            path.clock.now += 61
            await path.uploads.prepare(order(size=9))  # by another process, when the claim has lapsed
            path.bucket.place("runs/r1/a", b"contents!")
            await path.uploads.complete(prepared.upload_id, ANYONE)
        return result

    monkeypatch.setattr(path.store, "transact", paused_after_the_claim)
    with pytest.raises(StorageTimeout):
        await path.uploads.prepare(order(size=9))
    assert path.bucket.blobs["runs/r1/a"].content == b"contents!"
    assert await state_of(path) is BlobState.VERIFIED


async def test_uploads_prepared_at_once_for_one_path_are_one_upload(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"wrong")
    await path.announce("r1", "a", size=1)
    await path.deliver()
    prepared = await asyncio.gather(*(path.uploads.prepare(order()) for _ in range(8)), return_exceptions=True)
    assert not [each for each in prepared if isinstance(each, BaseException) and not isinstance(each, Busy)]
    assert await state_of(path) is BlobState.PENDING
    assert path.bucket.blobs == {}


# Receive


async def test_a_received_upload_is_verified_at_once(path: WritePath) -> None:
    await path.uploads.prepare(order(via=Via.PROXY))
    blob = await path.uploads.receive(claims(), chunks(b"content"), 7)
    assert blob == await path.blob("r1", "a")
    assert (blob.state, blob.size, blob.crc32) == (BlobState.VERIFIED, 7, int(crc32_of(b"content"), 16))
    assert await path.totals("r1") == RunTotals(1, 7)
    assert await path.due() == []


async def test_a_token_of_another_issuer_makes_the_record_before_the_object(path: WritePath) -> None:
    async def body() -> Any:
        assert await state_of(path) is BlobState.PENDING
        yield b"content"

    await path.uploads.receive(claims(), body(), 7)
    assert await state_of(path) is BlobState.VERIFIED
    assert await path.outbox() == []


@pytest.mark.parametrize(
    ("given", "length", "error"),
    [
        ({"max_downloads": 1}, 7, InvalidRequest),
        ({"key": "runs/r1/b"}, 7, InvalidRequest),
        ({"key": "runs/r2/a", "run_id": "r1"}, 7, InvalidRequest),
        ({"key": "runs/../a", "run_id": ".."}, 7, InvalidRequest),
        ({"bucket": "unheard"}, 7, BucketNotFound),
        ({"size": 8}, 7, SizeMismatch),
        ({"content_type": "a\r\nb"}, 7, InvalidRequest),
        ({}, 5_368_709_121, PayloadTooLarge),
    ],
)
async def test_what_a_token_does_not_permit_is_refused_unread(
    path: WritePath, given: dict[str, Any], length: int, error: type[ServiceError]
) -> None:
    async def body() -> Any:
        raise AssertionError("the body is not read")
        yield b""

    with pytest.raises(error):
        await path.uploads.receive(claims(**given), body(), length)
    assert path.bucket.blobs == {}


async def test_an_upload_is_held_to_what_was_announced_last_too(path: WritePath) -> None:
    await path.uploads.prepare(order(size=8, via=Via.PROXY))
    with pytest.raises(SizeMismatch):
        await path.uploads.receive(claims(), chunks(b"content"), 7)
    await path.uploads.prepare(order("b", crc32="00000001", via=Via.PROXY))
    with pytest.raises(ChecksumMismatch):
        await path.uploads.receive(claims("b", crc32="00000002"), chunks(b"content"), 7)


async def test_a_run_that_is_deleted_during_an_upload_keeps_nothing_of_it(path: WritePath) -> None:
    async def body() -> Any:
        yield b"con"
        await path.delete_run("r1")
        yield b"tent"

    with pytest.raises(RunDeleted):
        await path.uploads.receive(claims(), body(), 7)
    assert path.bucket.blobs == {}
    assert await path.blobs() == {}
    with pytest.raises(RunDeleted):
        await path.uploads.receive(claims(), chunks(b"content"), 7)


async def test_an_upload_does_not_come_to_the_next_run_of_its_id(path: WritePath) -> None:
    async def body() -> Any:
        yield b"con"
        await path.delete_run("r1")
        await path.store.transact(lambda each: clear_tombstone(path, each))
        yield b"tent"

    with pytest.raises(RunDeleted):
        await path.uploads.receive(claims(), body(), 7)
    assert path.bucket.blobs == {}
    assert await path.run("r1") is None


async def clear_tombstone(path: WritePath, transaction: Transaction) -> None:
    path.records.tombstones.clear(transaction, "r1")


async def test_what_is_announced_during_an_upload_holds_for_it(path: WritePath) -> None:
    async def body() -> Any:
        yield b"con"
        await path.announce("r1", "a", size=8)
        await path.deliver()
        yield b"tent"

    with pytest.raises(SizeMismatch):
        await path.uploads.receive(claims(), body(), 7)
    assert await state_of(path) is BlobState.REJECTED


async def test_a_second_upload_by_the_same_token_is_refused(path: WritePath) -> None:
    await path.uploads.receive(claims(), chunks(b"content"), 7)
    with pytest.raises(BlobExists):
        await path.uploads.receive(claims(), chunks(b"content"), 7)


async def test_an_upload_that_breaks_stays_pending_and_can_be_tried_again(path: WritePath) -> None:
    async def body() -> Any:
        yield b"con"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await path.uploads.receive(claims(), body(), 7)
    assert path.bucket.blobs == {}
    assert await state_of(path) is BlobState.PENDING
    await path.uploads.receive(claims(), chunks(b"content"), 7)
    assert await state_of(path) is BlobState.VERIFIED


# Complete


async def test_complete_verifies_now_and_gives_the_record_again(path: WritePath) -> None:
    upload = (await path.uploads.prepare(order(size=7))).upload_id
    with pytest.raises(UploadIncomplete):
        await path.uploads.complete(upload, ANYONE)
    path.bucket.place("runs/r1/a", b"content")
    first = await path.uploads.complete(upload, ANYONE)
    assert first[:2] == ("r1", "a")
    assert first[2].state is BlobState.VERIFIED
    assert await path.uploads.complete(upload, RunAccess(buckets="x,media")) == first
    assert await path.totals("r1") == RunTotals(1, 7)


async def test_complete_tells_what_contradicts(path: WritePath) -> None:
    upload = (await path.uploads.prepare(order(crc32="00000001"))).upload_id
    path.bucket.place("runs/r1/a", b"content")
    with pytest.raises(ChecksumMismatch):
        await path.uploads.complete(upload, ANYONE)
    assert await state_of(path) is BlobState.REJECTED
    with pytest.raises(ChecksumMismatch):
        await path.uploads.complete(upload, ANYONE)


async def test_an_upload_that_is_unknown_or_another_buckets_is_not_found(path: WritePath) -> None:
    upload = (await path.uploads.prepare(order())).upload_id
    for name in ("", "r1", "r1~", "r1~0", "~", "../x~0", "r1~\udc80"):
        with pytest.raises(NotFound):
            await path.uploads.complete(name, ANYONE)
    with pytest.raises(NotFound):
        await path.uploads.complete(upload, RunAccess(buckets="other"))
    await path.delete_run("r1")
    with pytest.raises(NotFound):
        await path.uploads.complete(upload, RunAccess(buckets="other"))
    with pytest.raises(RunDeleted):
        await path.uploads.complete(upload, ANYONE)


async def test_an_upload_that_arrived_after_its_time_can_still_be_completed(path: WritePath) -> None:
    upload = (await path.uploads.prepare(order())).upload_id
    path.clock.now += 1_000
    await path.reconciler.run_once(10)
    assert await state_of(path) is BlobState.EXPIRED
    path.bucket.place("runs/r1/a", b"content")
    await path.uploads.complete(upload, ANYONE)
    assert await state_of(path) is BlobState.VERIFIED


def test_the_options_are_the_contracts_where_nothing_is_configured() -> None:
    assert IngestOptions().max_upload_bytes == 5_368_709_120
