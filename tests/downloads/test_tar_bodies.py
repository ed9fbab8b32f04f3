"""Bodies of tar archives over a scripted store (a fake): zip's streamer, and CRC-32s that no header holds."""

import asyncio
import io
import tarfile
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import StorageError, StorageUnavailable
from storage_proxy.common.tokens import ArchiveFormat
from storage_proxy.downloads.bodies import ArchiveBody, Body
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifest import build_manifest, decode_head
from storage_proxy.downloads.manifests import OpenedArchive, in_memory
from storage_proxy.downloads.prefetch import Prefetch
from storage_proxy.downloads.sources import Pin
from storage_proxy.formats.entries import Entry, EntryBlock, EntryBlockBuilder
from tests.support.scripted_store import Blob, ScriptedStore
from tests.support.sources import sources_of


def store_of(contents: list[bytes]) -> ScriptedStore:
    return ScriptedStore({f"k{index}": Blob(content, f'"e{index}"') for index, content in enumerate(contents)})


def blocks_of(contents: list[bytes], *, known: bool = True) -> list[EntryBlock]:
    builder = EntryBlockBuilder(max_entries=3)
    rows = [
        Entry(f"ü/{index}", "default", f"k{index}", len(content), f'"e{index}"', 1_700_000_000, zlib.crc32(content))
        for index, content in enumerate(contents)
    ]
    made = [builder.add(row if known else row._replace(crc32=None)) for row in rows] + [builder.finish()]
    return [block for block in made if block]


def planned(contents: list[bytes], *, known: bool = True) -> OpenedArchive:
    manifest = build_manifest(blocks_of(contents, known=known), archive_format=ArchiveFormat.TAR)
    return in_memory(manifest, BytesBoundedCache(1 << 20))


async def received(
    archive: OpenedArchive,
    store: ScriptedStore,
    start: int,
    stop: int,
    learn: Callable[[Pin, int], None] | None = None,
    into: bytearray | None = None,
) -> bytes:
    sources = sources_of(store)
    into = bytearray() if into is None else into
    prefetch = Prefetch(ByteBudget(1 << 20))
    body = Body(lambda progress: ArchiveBody(archive, sources, prefetch, progress, learn=learn).chunks(start, stop))
    async with body:
        await body.begin()
        async for chunk in body:
            into += chunk
            await asyncio.sleep(0)
    return bytes(into)


contents_of = st.lists(st.one_of(st.binary(max_size=60), st.just(bytes(512))), min_size=1, max_size=8)


@settings(deadline=None)
@given(contents_of, st.booleans(), st.data())
async def test_any_slice_of_a_tar_is_that_slice_of_the_whole_whatever_is_known(
    contents: list[bytes], known: bool, data: st.DataObject
) -> None:
    archive, store = planned(contents, known=known), store_of(contents)
    whole = await received(archive, store, 0, archive.head.plan.size)
    assert len(whole) == archive.head.plan.size
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        files = [opened.extractfile(member) for member in opened.getmembers()]
        assert [file.read() for file in files if file] == contents
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    store.chunk = data.draw(st.integers(1, 50))
    store.breaks = data.draw(st.lists(st.tuples(st.integers(1, 40), st.just(StorageUnavailable())), max_size=2))
    assert await received(archive, store, start, stop) == whole[start:stop]
    assert store.open_readers == 0


async def test_a_known_crc_is_compared_while_an_entry_streams_whole() -> None:
    contents = [b"right" * 30_000, b"wrong" * 30_000]
    archive, store = planned(contents), store_of(contents)
    store.blobs["k1"].content = b"WRONG" * 30_000
    store.chunk = 100_000
    into = bytearray()
    with pytest.raises(StorageError):
        await received(archive, store, 0, archive.head.plan.size, into=into)
    assert len(into) < archive.head.plan.size - 50_000


async def test_an_unknown_crc_is_learned_and_only_from_all_of_an_entry() -> None:
    contents = [b"one" * 100, b"two" * 100]
    archive, learned = planned(contents, known=False), dict[str, int]()

    def learn(pin: Pin, crc: int) -> None:
        learned[pin.key] = crc

    await received(archive, store_of(contents), 1600, archive.head.plan.size, learn)
    assert learned == {"k1": zlib.crc32(contents[1])}
    await received(archive, store_of(contents), 0, archive.head.plan.size, learn)
    assert learned == {f"k{index}": zlib.crc32(content) for index, content in enumerate(contents)}


def test_a_manifest_says_its_layout_and_a_zips_is_as_it_was() -> None:
    blocks = blocks_of([b"one"])
    tar, zipped = build_manifest(blocks, archive_format=ArchiveFormat.TAR), build_manifest(blocks)
    assert zipped.encoded_head.startswith(b'{"blocks":1,"last_modified":1700000000,"version":1}\n')
    assert tar.encoded_head.startswith(b'{"blocks":1,"last_modified":1700000000,"version":2}\n')
    assert tar.head.etag != zipped.head.etag
    read = decode_head(tar.encode(), tar.head.digest)
    assert read.layout.format is ArchiveFormat.TAR
    assert (read.plan.size, read.etag) == (tar.head.plan.size, tar.head.etag)


def test_a_layout_that_this_version_does_not_know_is_damage() -> None:
    manifest = build_manifest(blocks_of([b"one"]))
    encoded = manifest.encoded_head.replace(b'"version":1', b'"version":3')
    with pytest.raises(ValueError, match="head"):
        type(manifest.head)(encoded)
