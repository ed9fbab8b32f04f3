"""Manifests: digests, damage, and what is read of them."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import BlobNotFound, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.common.names import MANIFESTS_PREFIX
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.manifest import (
    TEXT_PIECE_BYTES,
    ManifestBuilder,
    build_manifest,
    decode_head,
    decode_piece,
)
from storage_proxy.downloads.manifests import PlanCache
from storage_proxy.formats.entries import Entry, EntryBlock, EntryBlockBuilder
from tests.support.manifests import manifests_in
from tests.support.scripted_store import ScriptedStore


def entries(count: int) -> list[Entry]:
    return [
        Entry(f"folder/näme {i}.bin", "default", f"keys/{i}", i * 3, f'"e{i}"', 1_700_000_000 + i, i or None)
        for i in range(count)
    ]


def blocks_of(count: int, per_block: int) -> list[EntryBlock]:
    builder = EntryBlockBuilder(max_entries=per_block)
    blocks = [builder.add(entry) for entry in entries(count)] + [builder.finish()]
    return [block for block in blocks if block is not None]


async def test_what_was_written_is_what_is_opened() -> None:
    manifest = build_manifest(blocks_of(25, 10), b"k\treason\n")
    store = ScriptedStore(chunk=100)
    manifests = manifests_in(store)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    read = [entry for index in range(3) for entry in (await archive.block(index)).block]
    assert read == [entry._replace(crc32=0 if entry.size == 0 else entry.crc32) for entry in entries(25)]
    assert archive.head.etag == manifest.head.etag
    assert archive.head.plan.size == manifest.head.plan.size
    assert archive.head.last_modified == 1_700_000_024
    assert await archive.own_text(2, 8) == b"reason"


async def test_only_the_pieces_that_are_needed_are_read() -> None:
    manifest = build_manifest(blocks_of(3000, 10))
    store = ScriptedStore(chunk=1 << 16)
    manifests = manifests_in(store)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    store.opened.clear()
    await archive.block(299)
    ((_, start, stop, _),) = store.opened
    assert stop - start == manifest.head.pieces[299].stored


async def test_own_text_of_several_pieces_is_read_piece_by_piece() -> None:
    text = bytes(range(256)) * 2100
    assert len(text) > 2 * TEXT_PIECE_BYTES
    manifest = build_manifest(blocks_of(3, 10), text)
    store = ScriptedStore(chunk=1 << 16)
    manifests = manifests_in(store)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    read = bytearray()
    while len(read) < len(text) - 5:
        read += await archive.own_text(5 + len(read), len(text))
    assert read == text[5:]


@pytest.mark.parametrize("given", [-1, 10])
async def test_a_piece_that_breaks_is_read_again_where_that_may_be_waited_for(given: int) -> None:
    manifest = build_manifest(blocks_of(25, 10), b"k\treason\n")
    store = ScriptedStore()
    manifests = manifests_in(store)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    store.breaks = [(given, StorageUnavailable("S3 is away")), (-1, StorageTimeout())]
    assert len((await archive.block(1, heal=lambda: True)).block) == 10
    assert not store.breaks
    store.breaks = [(given, StorageUnavailable("S3 is away")), (-1, StorageTimeout())]
    assert await archive.own_text(0, 8, heal=lambda: True) == b"k\treason"
    assert not store.breaks
    assert not store.open_readers


async def test_a_piece_that_cannot_be_opened_is_told_at_once_otherwise() -> None:
    manifest = build_manifest(blocks_of(25, 10))
    store = ScriptedStore()
    manifests = manifests_in(store)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    store.opened.clear()
    store.breaks = [(-1, StorageUnavailable("S3 is away"))]
    with pytest.raises(StorageUnavailable):
        await archive.block(1)
    assert len(store.opened) == 1


async def test_a_manifest_that_is_gone_is_not_found() -> None:
    with pytest.raises(BlobNotFound):
        await manifests_in(ScriptedStore()).open("sha256:" + "0" * 64)


def test_the_same_entries_have_the_same_name_and_etag_and_others_do_not() -> None:
    one, same = build_manifest(blocks_of(25, 10)), build_manifest(blocks_of(25, 10))
    assert (one.head.name, one.head.etag, one.encode()) == (same.head.name, same.head.etag, same.encode())
    builder = EntryBlockBuilder()
    for entry in entries(25):
        builder.add(entry._replace(etag=entry.etag + "x"))
    block = builder.finish()
    assert block is not None
    assert build_manifest([block]).head.etag != one.head.etag


@settings(max_examples=150, deadline=None)
@given(st.data())
async def test_a_damaged_manifest_is_never_believed(data: st.DataObject) -> None:
    manifest = build_manifest(blocks_of(12, 5), b"text")
    good = manifest.encode()
    position = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                good[:position] + bytes([good[position] ^ data.draw(st.integers(1, 255))]) + good[position + 1 :],
                good[:position],
                good[:position] + b"\x00" * 9 + good[position:],
            ]
        )
    )
    store = ScriptedStore(chunk=1 << 16)
    await store.put(f"{MANIFESTS_PREFIX}{manifest.head.digest}", damaged)
    manifests = manifests_in(store)
    try:
        archive = await manifests.open(manifest.head.name)
        read = [entry for index in range(archive.head.blocks) for entry in (await archive.block(index)).block]
        text = await archive.own_text(0, 4)
    except StorageError:
        return
    assert [entry.key for entry in read] == [entry.key for entry in entries(12)]
    assert text == b"text"


def test_a_piece_that_inflates_to_more_than_it_says_is_refused() -> None:
    manifest = build_manifest(blocks_of(3, 5))
    bomb = zlib.compress(b"\x00" * (64 << 20))
    with pytest.raises(StorageError):
        decode_piece(manifest.head.pieces[0], bomb)


def test_a_head_of_another_version_is_refused() -> None:
    manifest = build_manifest(blocks_of(3, 5))
    with pytest.raises(StorageError):
        decode_head(manifest.encode(), "0" * 64)


async def test_the_cache_stays_within_its_bytes() -> None:
    small: PlanCache = BytesBoundedCache(20_000)
    manifest = build_manifest(blocks_of(3000, 50))
    store = ScriptedStore(chunk=1 << 16)
    manifests = manifests_in(store, small)
    await manifests.write(manifest)
    archive = await manifests.open(manifest.head.name)
    for index in range(archive.head.blocks):
        await archive.block(index)
        assert small.nbytes <= 20_000
    assert small.misses > 0
    await archive.block(archive.head.blocks - 1)
    assert small.hits > 0


def test_the_head_of_an_archive_without_runs_is_as_it_always_was() -> None:
    manifest = build_manifest(blocks_of(25, 10))
    assert manifest.encoded_head.startswith(b'{"blocks":3,"last_modified":1700000024,"version":1}\n')
    assert manifest.head.runs == ()


def test_a_manifest_names_its_runs_in_order_and_its_etag_does_not_depend_on_them() -> None:
    builder = ManifestBuilder()
    for block in blocks_of(25, 10):
        builder.add(block)
    manifest = builder.finish(runs={"r2", "r1"})
    assert manifest.encoded_head.startswith(b'{"blocks":3,"last_modified":1700000024,"runs":["r1","r2"],"version":1}\n')
    assert manifest.head.runs == ("r1", "r2")
    assert manifest.head.etag == build_manifest(blocks_of(25, 10)).head.etag
