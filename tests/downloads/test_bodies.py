"""Bodies of responses over a scripted store (a fake: real stores are in tests/contracts and tests/e2e)."""

import asyncio
import io
import zipfile
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import BlobChanged, ServiceError, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.downloads.bodies import ArchiveBody, Body, Progress, blob_bytes
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET, build_manifest
from storage_proxy.downloads.manifests import OpenedArchive, in_memory
from storage_proxy.downloads.prefetch import Prefetch
from storage_proxy.downloads.sources import Chunk, HealPolicy, Pin
from storage_proxy.formats.entries import Entry, EntryBlockBuilder
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.sources import QUICK, sources_of


def prefetch(total: int = 1 << 20) -> Prefetch:
    return Prefetch(ByteBudget(total))


def planned(entries: Sequence[Entry], text: bytes = b"", per_block: int = 3) -> OpenedArchive:
    builder = EntryBlockBuilder(max_entries=per_block)
    blocks = [builder.add(entry) for entry in entries] + [builder.finish()]
    return in_memory(build_manifest([b for b in blocks if b], text), BytesBoundedCache(1 << 20))


def store_of(contents: Sequence[bytes]) -> ScriptedStore:
    return ScriptedStore({f"k{index}": Blob(content, f'"e{index}"') for index, content in enumerate(contents)})


def entries_of(contents: Sequence[bytes], *, known: Sequence[bool] | None = None) -> list[Entry]:
    return [
        Entry(
            name=f"folder/{index}.bin",
            bucket="default",
            key=f"k{index}",
            size=len(content),
            etag=f'"e{index}"',
            last_modified=1_700_000_000 + index,
            crc32=zlib.crc32(content) if known is None or known[index] else None,
        )
        for index, content in enumerate(contents)
    ]


async def collect(body: Body) -> bytes:
    """What a client has received when the body ends, well or not."""
    received = bytearray()
    async with body:
        await body.begin()
        async for chunk in body:
            received += chunk
            await asyncio.sleep(0)
    return bytes(received)


def archive_body(archive: OpenedArchive, store: ScriptedStore, start: int, stop: int) -> Body:
    return Body(lambda body: ArchiveBody(archive, sources_of(store), prefetch(), body).chunks(start, stop))


contents = st.lists(st.binary(max_size=60), min_size=1, max_size=8)
temporary = st.sampled_from([StorageUnavailable(), StorageTimeout()])


@settings(deadline=None)
@given(contents, st.data())
async def test_any_slice_of_an_archive_is_that_slice_of_the_whole(files: list[bytes], data: st.DataObject) -> None:
    archive, store = planned(entries_of(files)), store_of(files)
    whole = await collect(archive_body(archive, store, 0, archive.head.plan.size))
    assert len(whole) == archive.head.plan.size
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        assert opened.testzip() is None
        assert [opened.read(name) for name in opened.namelist()] == files
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    store.chunk = data.draw(st.integers(1, 50))
    assert await collect(archive_body(archive, store, start, stop)) == whole[start:stop]
    assert store.open_readers == 0


@settings(deadline=None)
@given(contents, st.data())
async def test_an_archive_with_unknown_crcs_learns_them_on_the_way(files: list[bytes], data: st.DataObject) -> None:
    known = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    archive = planned(entries_of(files, known=known))
    whole = await collect(archive_body(archive, store_of(files), 0, archive.head.plan.size))
    assert len(whole) == archive.head.plan.size
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        assert opened.testzip() is None
        assert [info.CRC for info in opened.infolist()] == [zlib.crc32(content) for content in files]


@settings(deadline=None)
@given(contents, st.data())
async def test_any_slice_of_an_archive_whose_crcs_were_learned_is_that_slice_of_the_whole(
    files: list[bytes], data: st.DataObject
) -> None:
    known = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    archive, store = planned(entries_of(files, known=known)), store_of(files)
    learned: dict[str, int] = {}

    def learning(progress: Progress) -> AsyncGenerator[Chunk, None]:
        body = ArchiveBody(
            archive, sources_of(store), prefetch(), progress, learn=lambda pin, crc: learned.update({pin.key: crc})
        )
        return body.chunks(0, archive.head.plan.size)

    whole = await collect(Body(learning))
    assert learned == {
        f"k{index}": zlib.crc32(content) for index, content in enumerate(files) if content and not known[index]
    }
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    remembered = [learned.get(f"k{index}", 0) for index in range(len(files))]

    def remembering(progress: Progress) -> AsyncGenerator[Chunk, None]:
        return ArchiveBody(archive, sources_of(store), prefetch(), progress, remembered=remembered).chunks(start, stop)

    assert await collect(Body(remembering)) == whole[start:stop]


@settings(deadline=None)
@given(contents, st.data())
async def test_a_source_that_breaks_is_resumed_unseen(files: list[bytes], data: st.DataObject) -> None:
    archive, store = planned(entries_of(files)), store_of(files)
    whole = await collect(archive_body(archive, store, 0, archive.head.plan.size))
    breaks = data.draw(st.lists(st.tuples(st.integers(1, 40), temporary), max_size=3))
    store.breaks = list(breaks)
    store.chunk = data.draw(st.integers(1, 50))
    assert await collect(archive_body(archive, store, 0, archive.head.plan.size)) == whole
    assert store.open_readers == 0


async def test_a_source_is_reopened_at_its_offset_with_its_etag() -> None:
    store = ScriptedStore({"k": Blob(b"0123456789", '"e"')}, [(4, StorageUnavailable()), (3, StorageUnavailable())])
    body = Body(lambda body: blob_bytes(sources_of(store), Pin("default", "k", '"e"', 10), None, 0, 10, body))
    assert await collect(body) == b"0123456789"
    assert store.opened == [("k", 0, 10, '"e"'), ("k", 4, 10, '"e"'), ("k", 7, 10, '"e"')]


async def test_a_source_that_stays_broken_fails_after_a_bounded_number_of_tries() -> None:
    store = ScriptedStore({"k": Blob(b"0123456789")}, [(4, StorageUnavailable())] + [(-1, StorageUnavailable())] * 50)
    body = Body(lambda body: blob_bytes(sources_of(store), Pin("default", "k", '"v1"', 10), None, 0, 10, body))
    with pytest.raises(StorageUnavailable):
        await collect(body)
    assert len(store.opened) == 1 + QUICK.attempts
    assert store.open_readers == 0


async def test_before_the_first_byte_a_failure_is_told_at_once() -> None:
    store = ScriptedStore({"k": Blob(b"0123456789")}, [(-1, StorageUnavailable())])
    body = Body(lambda body: blob_bytes(sources_of(store), Pin("default", "k", '"v1"', 10), None, 0, 10, body))
    async with body:
        with pytest.raises(StorageUnavailable):
            await body.begin()
    assert len(store.opened) == 1


@pytest.mark.parametrize("change", ["replaced", "vanished"])
async def test_a_blob_that_changes_while_it_is_healed_is_never_mixed(change: str) -> None:
    store = ScriptedStore({"k": Blob(b"0123456789", '"e"')}, [(4, StorageUnavailable())])
    body = Body(lambda body: blob_bytes(sources_of(store), Pin("default", "k", '"e"', 10), None, 0, 10, body))
    received = b""
    with pytest.raises(ServiceError):
        async with body:
            await body.begin()
            if change == "replaced":
                store.blobs["k"] = Blob(b"abcdefghij", '"f"')
            else:
                del store.blobs["k"]
            async for chunk in body:
                received += chunk
    assert received == b"0123"


async def test_an_entry_that_is_gone_is_changed_not_missing() -> None:
    files = [b"one", b"two"]
    store = store_of(files)
    del store.blobs["k0"]
    archive = planned(entries_of(files))
    body = archive_body(archive, store, 0, archive.head.plan.size)
    async with body:
        with pytest.raises(BlobChanged):
            await body.begin()


async def test_content_that_contradicts_its_crc_never_ends_cleanly() -> None:
    files = [b"right" * 30_000, b"wrong" * 30_000]
    store = store_of(files)
    archive = planned(entries_of(files))
    store.blobs["k1"].content = b"WRONG" * 30_000
    store.chunk = 100_000
    received = 0
    with pytest.raises(StorageError):
        async with archive_body(archive, store, 0, archive.head.plan.size) as body:
            await body.begin()
            async for chunk in body:
                received += len(chunk)
    assert received < archive.head.plan.size - 50_000
    assert store.open_readers == 0


async def test_who_believes_a_crc_is_told_that_the_content_contradicts_it() -> None:
    store = ScriptedStore({"k": Blob(b"0123456789")}, chunk=4)
    told: list[Pin] = []
    watched = replace(sources_of(store), contradicted=told.append)
    pin = Pin("default", "k", '"v1"', 10)
    for crc in (zlib.crc32(b"0123456789"), 0xBAD):
        assert not told
        with suppress(StorageError):
            await watched.read(pin, 0, 10, crc=crc).content()
    assert told == [pin]


async def test_a_blob_whose_crc_is_known_is_compared_with_it() -> None:
    store = ScriptedStore({"k": Blob(b"0123456789")}, chunk=4)
    body = Body(lambda body: blob_bytes(sources_of(store), Pin("default", "k", '"v1"', 10), 0xBAD, 0, 10, body))
    received = b""
    with pytest.raises(StorageError):
        async with body:
            await body.begin()
            async for chunk in body:
                received += chunk
    assert received == b"01234567"  # the last bytes are kept back, so no length is ever met


async def test_the_archives_own_text_is_an_entry_like_another() -> None:
    text = b"a\tdoes not exist\n" * 40_000
    own = Entry("MISSING.txt", OWN_TEXT_BUCKET, "", len(text), "", 1_700_000_000, zlib.crc32(text))
    archive = planned([*entries_of([b"one"]), own], text)
    whole = await collect(archive_body(archive, store_of([b"one"]), 0, archive.head.plan.size))
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        assert opened.read("MISSING.txt") == text
    assert await collect(archive_body(archive, store_of([b"one"]), 5000, 600_000)) == whole[5000:600_000]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40))
async def test_a_body_that_is_cancelled_anywhere_closes_its_reader(steps: int) -> None:
    files = [b"x" * 90_000, b"y" * 90_000]
    store, archive = store_of(files), planned(entries_of(files))
    store.chunk = 10_000
    task = asyncio.create_task(collect(archive_body(archive, store, 0, archive.head.plan.size)))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.open_readers == 0


def test_delays_grow_and_stay_bounded() -> None:
    policy = HealPolicy(first_delay=0.1, max_delay=2.0)
    assert all(0.05 <= policy.delay(1) <= 0.1 for _ in range(100))
    assert all(1.0 <= policy.delay(50) <= 2.0 for _ in range(100))
