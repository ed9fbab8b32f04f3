"""Deflated archives over a scripted store (a fake: real stores are in tests/contracts and tests/e2e)."""

import asyncio
import io
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import BlobChanged, StorageError, StorageUnavailable
from storage_proxy.downloads.bodies import Body
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.deflated import DeflatedBody, DeflateThreads, deflated_etag
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET, build_manifest
from storage_proxy.downloads.manifests import OpenedArchive, in_memory
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.prefetch import Prefetch
from storage_proxy.downloads.sources import Pin, Sources
from storage_proxy.formats.entries import Entry, EntryBlockBuilder
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobReader
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.sources import QUICK

Learn = Callable[[Pin, int], None]


@pytest.fixture(scope="module")
def threads() -> Iterator[DeflateThreads]:
    started = DeflateThreads(2)
    yield started
    started.close()


def store_of(contents: list[bytes], *, chunk: int = 7) -> ScriptedStore:
    return ScriptedStore(
        {f"k{index}": Blob(content, f'"e{index}"') for index, content in enumerate(contents)}, chunk=chunk
    )


def entries_of(contents: list[bytes], *, known: bool = True) -> list[Entry]:
    return [
        Entry(f"folder/{index}", "default", f"k{index}", len(content), f'"e{index}"', 1_700_000_000, crc)
        for index, content in enumerate(contents)
        for crc in [zlib.crc32(content) if known else None]
    ]


def planned(entries: list[Entry], text: bytes = b"") -> OpenedArchive:
    builder = EntryBlockBuilder(max_entries=3)
    blocks = [builder.add(entry) for entry in entries] + [builder.finish()]
    return in_memory(build_manifest([block for block in blocks if block], text), BytesBoundedCache(1 << 20))


def body_of(
    archive: OpenedArchive,
    store: ScriptedStore,
    threads: DeflateThreads,
    learn: Learn = lambda pin, crc: None,
    contradicted: Callable[[Pin], None] = lambda pin: None,
) -> Body:
    metrics = DownloadMetrics(CollectorRegistry())
    sources = Sources(Buckets({"default": store}), QUICK, metrics, contradicted=contradicted)
    prefetch = Prefetch(ByteBudget(1 << 20))
    return Body(lambda progress: DeflatedBody(archive, sources, prefetch, progress, threads, learn=learn).chunks())


async def collect(body: Body, received: bytearray) -> None:
    async with body:
        await body.begin()
        async for chunk in body:
            received += chunk
            await asyncio.sleep(0)


async def whole_of(body: Body) -> bytes:
    received = bytearray()
    await collect(body, received)
    return bytes(received)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=90), min_size=1, max_size=6), st.booleans(), st.integers(1, 40))
async def test_a_deflated_archive_is_its_blobs_and_learns_what_it_did_not_know(
    contents: list[bytes], known: bool, chunk: int
) -> None:
    threads = DeflateThreads(1)
    learned: dict[str, int] = {}
    store = store_of(contents, chunk=chunk)
    body = body_of(
        planned(entries_of(contents, known=known)), store, threads, lambda pin, crc: learned.update({pin.key: crc})
    )
    whole = await whole_of(body)
    threads.close()
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        assert [opened.read(info) for info in opened.infolist()] == contents
    expected = {f"k{index}": zlib.crc32(content) for index, content in enumerate(contents) if content and not known}
    assert learned == expected
    assert store.open_readers == 0


async def test_folders_empty_blobs_and_the_archives_own_text_are_entries_like_others(threads: DeflateThreads) -> None:
    text = b"gone\tdoes not exist\n" * 40_000
    folder = Entry("empty/", "default", "empty/", 0, '"e"', 1_700_000_000, 0)
    own = Entry("MISSING.txt", OWN_TEXT_BUCKET, "", len(text), "", 1_700_000_000, zlib.crc32(text))
    archive = planned([folder, *entries_of([b"", b"one"]), own], text)
    with zipfile.ZipFile(io.BytesIO(await whole_of(body_of(archive, store_of([b"", b"one"]), threads)))) as opened:
        assert opened.namelist() == ["empty/", "folder/0", "folder/1", "MISSING.txt"]
        assert [opened.read(name) for name in opened.namelist()] == [b"", b"", b"one", text]


async def test_the_first_blob_is_opened_before_the_body_has_begun(threads: DeflateThreads) -> None:
    store = store_of([b"one", b"two"])
    del store.blobs["k0"]
    async with body_of(planned(entries_of([b"one", b"two"])), store, threads) as body:
        with pytest.raises(BlobChanged):
            await body.begin()
    store = store_of([bytes(1 << 20)], chunk=1000)
    async with body_of(planned(entries_of([bytes(1 << 20)])), store, threads) as body:
        await body.begin()  # at the first bytes, however well they compress
        assert len(store.opened) == 1
    assert store.open_readers == 0


async def test_content_that_contradicts_its_crc_ends_before_its_entry_does(threads: DeflateThreads) -> None:
    contents = [b"right" * 30_000, b"wrong" * 30_000]
    store = store_of(contents, chunk=50_000)
    store.blobs["k1"].content = b"WRONG" * 30_000
    received, told, entries = bytearray(), list[Pin](), entries_of(contents)
    with pytest.raises(StorageError):
        await collect(body_of(planned(entries), store, threads, contradicted=told.append), received)
    assert told == [Pin.of(entries[1])]
    assert received.count(b"PK\x07\x08") <= 1  # the second entry's descriptor is not there, nor is a directory
    assert b"PK\x01\x02" not in received
    assert store.open_readers == 0


async def test_a_source_that_breaks_is_resumed_unseen_and_one_that_stays_broken_fails(threads: DeflateThreads) -> None:
    contents = [b"0123456789" * 50, b"x" * 99]
    store = store_of(contents)
    store.breaks = [(100, StorageUnavailable()), (-1, StorageUnavailable()), (50, StorageUnavailable())]
    with zipfile.ZipFile(io.BytesIO(await whole_of(body_of(planned(entries_of(contents)), store, threads)))) as opened:
        assert [opened.read(info) for info in opened.infolist()] == contents
    store.breaks = [(100, StorageUnavailable()), *[(-1, StorageUnavailable())] * 20]
    received = bytearray()
    with pytest.raises(StorageUnavailable):
        await collect(body_of(planned(entries_of(contents)), store, threads), received)
    assert b"PK\x05\x06" not in received


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 120))
async def test_a_deflate_that_is_cancelled_anywhere_leaves_nothing(steps: int) -> None:
    contents = [bytes(range(256)) * 2000, b"y" * 300_000]
    threads, store = DeflateThreads(1), store_of(contents, chunk=200_000)
    task = asyncio.create_task(collect(body_of(planned(entries_of(contents)), store, threads), bytearray()))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.open_readers == 0
    threads.close()
    assert not [thread for thread in threading.enumerate() if thread in threads._pool._threads]


async def test_cancellation_waits_until_the_thread_has_let_go() -> None:
    """What a source's buffer holds may be overwritten as soon as the read is closed."""
    threads, began, go = DeflateThreads(1), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    ended: list[str] = []

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        go.wait()
        ended.append("work")

    async def run() -> None:
        try:
            await threads.run(work)
        finally:
            ended.append("run")

    task = asyncio.create_task(run())
    await began.wait()
    queued = asyncio.create_task(threads.run(lambda: ended.append("queued")))
    await asyncio.sleep(0)
    queued.cancel()  # what has not begun never does
    await asyncio.gather(queued, return_exceptions=True)
    assert queued.cancelled()
    for _ in range(3):  # a second impatience changes nothing
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go.set()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert ended == ["work", "run"]
    threads.close()


class CountedReads(ScriptedStore):
    """How many bytes were read of it."""

    read_bytes = 0

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        reader = await super().open(key, start=start, stop=stop, if_match=if_match)
        read = reader.read

        async def counted() -> bytes | memoryview:
            chunk = await read()
            self.read_bytes += len(chunk)
            return chunk

        reader.read = counted  # type: ignore[method-assign]
        return reader


async def test_a_client_that_takes_nothing_holds_back_the_reading_and_no_other_download() -> None:
    contents = [b"0123456789abcdef" * 500_000]
    one_thread, store = DeflateThreads(1), CountedReads({"k0": Blob(contents[0], '"e0"')}, chunk=100_000)
    archive = planned(entries_of(contents))
    async with body_of(archive, store, one_thread) as slow:
        await slow.begin()
        await anext(slow.__aiter__())
        other = store_of(contents, chunk=100_000)
        with zipfile.ZipFile(io.BytesIO(await whole_of(body_of(archive, other, one_thread)))) as opened:
            assert opened.testzip() is None
        assert store.read_bytes == 100_000
        assert store.open_readers == 1
    assert store.open_readers == 0
    one_thread.close()


def test_the_etag_is_weak_and_of_the_plan() -> None:
    assert deflated_etag('"a"') == deflated_etag('"a"') != deflated_etag('"b"')
    assert deflated_etag('"a"').startswith('W/"')
    assert deflated_etag('"a"').endswith('"')
