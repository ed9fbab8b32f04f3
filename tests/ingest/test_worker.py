"""The ingest worker on a real SQLite file; bucket and bus are in memory, and fail when told to."""

import pytest

from storage_proxy.bus.dead_letters import REASON_HEADER, replayed
from storage_proxy.bus.port import Event, Message
from storage_proxy.common.errors import BusUnavailable, StorageError, StorageUnavailable
from storage_proxy.ingest.reconciler import Found
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Claim, Order, RunTotals
from storage_proxy.stores.port import BlobStat
from tests.support.ingest import TOPIC, WritePath, crc32_of, reference


async def state_of(path: WritePath, name: str = "a") -> BlobState | None:
    blob = await path.blob("r1", name)
    return blob and blob.state


def reasons(path: WritePath) -> list[str]:
    return [message.headers[REASON_HEADER].decode() for message in path.bus.dead()]


async def test_an_announced_blob_that_is_there_is_verified_with_the_objects_own_figures(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a", size=7, crc32=crc32_of(b"content"), content_type="text/x", attributes={"n": 1})
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob == BlobRecord(
        bucket="media",
        state=BlobState.VERIFIED,
        created_at=int(path.clock()),
        content_type="application/x-stored",
        size=7,
        crc32=int(crc32_of(b"content"), 16),
        attributes={"n": 1},
        order=Order(0, 0),
        etag='"v1"',
        last_modified=1_700_000_001,
    )
    assert await path.totals("r1") == RunTotals(1, 7)
    run = await path.run("r1")
    assert run is not None
    assert run.bucket == "media"


async def test_a_blob_that_is_not_there_yet_stays_pending_with_what_was_announced(path: WritePath) -> None:
    await path.announce("r1", "a", size=7)
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.size, blob.due_ms) == (BlobState.PENDING, 7, int(path.clock() * 1000) + 1000)
    assert await path.due() == [(blob.due_ms, "r1", "a")]
    assert await path.totals("r1") == RunTotals()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"size": 8}, "the size 8 was announced, the object has 7"),
        ({"crc32": "00000001"}, "the CRC-32 00000001 was announced, the object has"),
    ],
)
async def test_a_contradicting_announcement_is_rejected_and_a_dead_letter(
    path: WritePath, said: dict[str, object], reason: str
) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a", **said)
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert blob.state is BlobState.REJECTED
    assert blob.reason is not None
    assert blob.reason.startswith(reason)
    assert reasons(path) == [blob.reason]
    assert await path.totals("r1") == RunTotals()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[]", "should be an object"),
        (reference("r1", "a").replace(b'"schema": 1', b'"schema": 2'), "schema"),
        (reference("r1", "a", key="runs/r2/a"), "payload.key: is not runs/<run_id>/<path>"),
        (reference("r1", "../a"), "payload.path"),
        (reference("r1", "a", bucket="unheard"), "payload.bucket: is not configured"),
    ],
)
async def test_what_can_never_be_processed_is_a_dead_letter_and_the_rest_is_recorded(
    path: WritePath, value: bytes, reason: str
) -> None:
    path.bucket.place("runs/r1/b", b"content")
    await path.bus.publish(TOPIC, [Event("r1", value)])
    await path.announce("r1", "b")
    await path.deliver()
    [letter] = path.bus.dead()
    assert letter.value == value
    assert reason in letter.headers[REASON_HEADER].decode()
    assert await state_of(path, "b") is BlobState.VERIFIED


async def test_a_run_lives_in_one_bucket(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a")
    await path.announce("r1", "b", bucket="other")
    await path.deliver()
    assert reasons(path) == ["the run lives in another bucket"]
    assert await path.blob("r1", "b") is None


async def test_a_message_of_a_deleted_run_is_dropped_and_counted(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.delete_run("r1")
    await path.announce("r1", "a")
    await path.announce("r1", "b", size=1)
    await path.deliver()
    assert await path.blobs() == {}
    assert await path.run("r1") is None
    assert path.bus.dead() == []
    assert path.registry.get_sample_value("storage_proxy_ingest_messages_total", {"outcome": "dropped"}) == 2


async def test_a_redelivered_batch_changes_nothing(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    for name in ("a", "b"):
        await path.announce("r1", name)
    await path.deliver()
    before = await path.blobs(), await path.totals("r1"), await path.due()
    path.clock.now += 100
    path.bus.committed.clear()
    await path.deliver()
    assert (await path.blobs(), await path.totals("r1"), await path.due()) == before


async def test_a_newer_announcement_follows_the_object(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a", attributes={"version": 1})
    await path.deliver()
    path.bucket.place("runs/r1/a", b"other content")
    await path.announce("r1", "a", attributes={"version": 2}, size=13)
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.etag, blob.size, blob.attributes, blob.order) == ('"v2"', 13, {"version": 2}, Order(0, 1))
    assert await path.totals("r1") == RunTotals(1, 13)


async def test_a_wrong_announcement_does_not_harm_a_verified_blob(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a")
    await path.deliver()
    before = await path.blob("r1", "a")
    await path.announce("r1", "a", size=1)
    await path.deliver()
    assert await path.blob("r1", "a") == before
    assert len(path.bus.dead()) == 1


async def test_a_wrong_announcement_of_a_replaced_object_hides_it(path: WritePath) -> None:
    """The record would show a version that is gone, and nobody has announced the one that is there."""
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a")
    await path.deliver()
    path.bucket.place("runs/r1/a", b"replaced")
    await path.announce("r1", "a", size=1)
    await path.deliver()
    assert await state_of(path) is BlobState.REJECTED
    assert await path.totals("r1") == RunTotals()


async def test_a_look_that_began_before_the_record_does_not_replace_it(path: WritePath) -> None:
    """While the worker looks at the blob it is replaced and verified by another; the worker looks again."""
    path.bucket.place("runs/r1/a", b"old")
    await path.announce("r1", "a")
    look = path.verifier.look
    looks = 0

    async def overtaken(*arguments: object, **named: object) -> object:
        nonlocal looks
        looks += 1
        seen = await look(*arguments, **named)  # type: ignore[arg-type]
        if looks == 1:
            path.bucket.place("runs/r1/a", b"newer")
            await path.store.transact(record_newer)
        return seen

    async def record_newer(transaction: Transaction) -> None:
        blob = BlobRecord("media", BlobState.VERIFIED, 1, size=5, etag='"v2"')
        path.records.blobs.set(transaction, blob, "r1", "a")

    path.verifier.look = overtaken  # type: ignore[method-assign, assignment]
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.etag, blob.order, looks) == ('"v2"', Order(0, 0), 2)


async def test_a_replayed_dead_letter_has_its_effect_once_its_object_is_right(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"wrong")
    await path.announce("r1", "a", size=7)
    await path.deliver()
    assert await state_of(path) is BlobState.REJECTED
    path.bucket.place("runs/r1/a", b"content")
    await path.bus.publish(TOPIC, [replayed(path.bus.dead()[0])])
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.order) == (BlobState.VERIFIED, Order(0, 0))


async def test_a_replayed_dead_letter_does_not_undo_what_was_heard_since(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a", size=8, attributes={"old": True})
    await path.announce("r1", "a", size=7, attributes={"new": True})
    await path.deliver()
    await path.bus.publish(TOPIC, [replayed(path.bus.dead()[0])])
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.attributes, blob.order) == (BlobState.VERIFIED, {"new": True}, Order(0, 1))
    assert len(path.bus.dead()) == 1


async def test_a_fault_of_the_bucket_makes_the_partition_wait(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a")
    path.bucket.away = True
    batch = path.bus.batch(0)
    assert batch is not None
    with pytest.raises(StorageUnavailable):
        await path.worker.handle(batch)
    assert await path.blobs() == {}
    assert path.bus.dead() == []
    path.bucket.away = False
    await path.deliver()
    assert await state_of(path) is BlobState.VERIFIED


async def test_a_blob_that_is_written_all_the_time_keeps_no_partition_waiting(
    path: WritePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.bucket.place("runs/r1/a", b"first")
    await path.announce("r1", "a")
    await path.deliver()
    stat = path.bucket.stat

    async def another_each_time(key: str) -> BlobStat | None:
        path.bucket.place(key, b"again" * path.bucket.versions)
        return await stat(key)

    monkeypatch.setattr(path.bucket, "stat", another_each_time)
    for number in range(40):
        await path.announce("r1", "a", attributes={"number": number})
    batch = path.bus.batch(0)
    assert batch is not None
    assert await path.worker.handle(batch) == 40
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.attributes, blob.order) == (BlobState.VERIFIED, {"number": 39}, Order(0, 40))
    assert await path.totals("r1") == RunTotals(1, blob.size or 0)


async def test_an_object_that_the_bucket_refuses_to_show_keeps_no_other_waiting(
    path: WritePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 refuses what is encrypted with a key of its producer's; a bucket that refuses everything is waited for."""
    for name in ("a", "b"):
        path.bucket.place(f"runs/r1/{name}", b"content")
        await path.announce("r1", name)
    stat = path.bucket.stat
    refused = {"runs/r1/a"}

    async def refusing(key: str) -> BlobStat | None:
        if key in refused:
            raise StorageError
        return await stat(key)

    async def refused_too() -> None:
        raise StorageError

    monkeypatch.setattr(path.bucket, "stat", refusing)
    with monkeypatch.context() as patch:
        patch.setattr(path.bucket, "probe", refused_too)
        batch = path.bus.batch(0)
        assert batch is not None
        with pytest.raises(StorageError):
            await path.worker.handle(batch)
        assert await path.blobs() == {}
    await path.deliver()
    assert (await state_of(path, "a"), await state_of(path, "b")) == (BlobState.PENDING, BlobState.VERIFIED)
    path.clock.now += 61
    assert await path.reconciler.run_once(10) == {Found.FAILED: 1}
    refused.clear()
    path.clock.now += 61
    assert await path.reconciler.run_once(10) == {Found.VERIFIED: 1}
    assert path.bus.dead() == []


async def test_nothing_of_a_portion_is_recorded_before_its_dead_letters_are_out(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    await path.announce("r1", "a", size=1)
    await path.announce("r1", "a", size=7)
    path.bus.failures = 2
    batch = path.bus.batch(0)
    assert batch is not None
    with pytest.raises(BusUnavailable):
        await path.worker.handle(batch)
    assert await path.blobs() == {}
    path.bus.failures = 0
    await path.deliver()
    assert await state_of(path) is BlobState.VERIFIED
    assert {message.value for message in path.bus.dead()} == {batch.messages[0].value}


async def test_a_claimed_key_waits_and_what_is_before_it_is_done(path: WritePath) -> None:
    for name in ("a", "b", "c"):
        path.bucket.place(f"runs/r1/{name}", b"content")
        await path.announce("r1", name)
    await path.bus.publish(TOPIC, [Event("r1", b"poison after the claimed one")])
    until = int(path.clock()) + 60
    await claim(path, "runs/r1/b", until)
    await path.deliver()
    assert set(await path.blobs()) == {("r1", "a")}
    assert path.bus.committed == {(TOPIC, 0): 1}
    assert path.bus.dead() == []
    path.clock.now = until  # a lapsed claim is void
    await path.deliver()
    assert set(await path.blobs()) == {("r1", "a"), ("r1", "b"), ("r1", "c")}
    assert len(path.bus.dead()) == 1


async def claim(path: WritePath, key: str, until: int) -> None:
    async def fn(transaction: Transaction) -> None:
        path.records.claims.set(transaction, Claim(1, until), "media", key)

    await path.store.transact(fn)


async def test_a_crc32_that_the_bucket_does_not_know_is_read_and_remembered(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content", knows_crc32=False)
    await path.announce("r1", "a", crc32=crc32_of(b"content"))
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert blob.crc32 == int(crc32_of(b"content"), 16)
    path.bus.committed.clear()
    await path.deliver()
    assert len(path.bucket.opened) == 1
    assert path.bucket.opened[0][3] == '"v1"'


async def test_a_wrong_crc32_is_found_by_reading(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content", knows_crc32=False)
    await path.announce("r1", "a", crc32="00000000")
    await path.deliver()
    assert await state_of(path) is BlobState.REJECTED


async def test_an_announced_crc32_that_nothing_confirms_is_not_believed(path: WritePath) -> None:
    path = WritePath(path.store, options=type(path.options)(crc32_read_bytes=6))
    path.bucket.place("runs/r1/a", b"content", knows_crc32=False)
    await path.announce("r1", "a", crc32="00000000")
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.state, blob.crc32) == (BlobState.VERIFIED, None)
    assert path.bucket.opened == []


async def test_a_blob_that_changes_while_it_is_read_is_looked_at_again(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content", knows_crc32=False)
    await path.announce("r1", "a")
    original = path.bucket.open

    async def open_after_a_change(key: str, **named: object) -> object:
        path.bucket.open = original  # type: ignore[method-assign]
        path.bucket.place(key, b"changed", knows_crc32=False)
        return await original(key, **named)  # type: ignore[arg-type]

    path.bucket.open = open_after_a_change  # type: ignore[method-assign, assignment]
    await path.deliver()
    blob = await path.blob("r1", "a")
    assert blob is not None
    assert (blob.etag, blob.crc32) == ('"v2"', int(crc32_of(b"changed"), 16))


async def test_a_batch_is_split_to_what_a_transaction_takes(path: WritePath) -> None:
    """1,200 references with 16 kB of attributes each: 19 MB in all."""
    attributes = {"text": "x" * 16_000}
    for number in range(1_200):
        await path.announce("r1", f"{number}", attributes=attributes)
    await path.bus.deliver(path.worker.handle, size=1_200)
    assert len(await path.blobs()) == 1_200
    assert path.bus.committed == {(TOPIC, 0): 1_200}


async def test_messages_without_a_key_and_with_senseless_headers_are_recorded(path: WritePath) -> None:
    path.bucket.place("runs/r1/a", b"content")
    headers = {"dlq-topic": b"x", "dlq-partition": b"-1", "dlq-offset": b"\xff"}
    path.bus.log(TOPIC)[0].append(Message(TOPIC, 0, 0, None, reference("r1", "a"), 0.0, headers))
    await path.deliver()
    assert await state_of(path) is BlobState.VERIFIED
