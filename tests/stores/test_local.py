"""What is special about a bucket that is a local directory: paths, links, special files, changes in place."""

import asyncio
import errno
import os
import random
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    ServiceError,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
)
from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStore, ReadsCrc32, whole_seconds
from tests.support.blobs import found, list_all, list_keys, read_all, read_range

CHUNK = 4096
CONTENT = random.Random(2).randbytes(20 * CHUNK + 5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(root, chunk_bytes=CHUNK)
    yield store
    await store.aclose()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


# What is not there


@pytest.mark.parametrize(
    "key",
    ["../outside/secret", "a/../../outside/secret", "{outside}/secret", "/{outside}/secret", "a/./b", "a//b", "a/b\0"],
)
async def test_no_key_leaves_the_root(store: LocalBlobStore, root: Path, key: str) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").write_bytes(b"1")
    key = key.format(outside=root.parent / "outside")
    assert await store.stat(key) is None
    with pytest.raises(BlobNotFound):
        await store.open(key, start=0, stop=1, if_match=None)
    with pytest.raises(StorageError):
        await store.put(key, b"1")
    assert await list_keys(store, key) == []
    assert (root.parent / "outside" / "secret").read_bytes() == b"secret"


async def test_symlinks_are_not_there_wherever_they_lead(store: LocalBlobStore, root: Path) -> None:
    (root / "file").write_bytes(b"1")
    (root / "folder").mkdir()
    (root / "folder" / "child").write_bytes(b"1")
    (root / "link").symlink_to("file")
    (root / "up").symlink_to(root.parent / "outside")
    (root / "loop").symlink_to("loop")
    (root / "same").symlink_to("folder")
    assert await list_keys(store) == ["file", "folder/child"]
    for key in ("link", "up/secret", "up/", "loop", "loop/x", "same/child", "same/"):
        assert await store.stat(key) is None, key
        with pytest.raises(BlobNotFound):
            await store.open(key, start=0, stop=1, if_match=None)
        assert await list_keys(store, key) == []


async def test_nothing_is_put_through_a_symlink(store: LocalBlobStore, root: Path) -> None:
    (root / "up").symlink_to(root.parent / "outside")
    with pytest.raises(StorageError):
        await store.put("up/secret", b"overwritten")
    assert (root.parent / "outside" / "secret").read_bytes() == b"secret"
    (root / "link").symlink_to(root.parent / "outside" / "secret")
    await store.put("link", b"a file in the link's place")
    assert (root.parent / "outside" / "secret").read_bytes() == b"secret"
    assert not (root / "link").is_symlink()


async def test_a_symlink_slipped_in_between_two_lookups_is_not_followed(root: Path) -> None:
    """Swaps a directory for a link to the outside as fast as it can, while another thread reads through it."""
    (root / "folder").mkdir()
    (root / "folder" / "secret").write_bytes(b"inside")
    (root / "trap").symlink_to(root.parent / "outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(root / "folder", root / "aside")
            os.rename(root / "trap", root / "folder")
            os.rename(root / "folder", root / "trap")
            os.rename(root / "aside", root / "folder")

    thread = threading.Thread(target=swap)
    thread.start()
    store = LocalBlobStore(root)
    seen = set()
    try:
        for _ in range(2_000):
            try:
                seen.add(await read_range(store, "folder/secret", 0, 6))
            except BlobNotFound:
                seen.add(b"")
    finally:
        stop.set()
        thread.join()
        await store.aclose()
    assert b"secret" not in seen
    assert b"inside" in seen


async def test_pipes_sockets_and_devices_are_not_there(store: LocalBlobStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is short
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("socket")
    finally:
        os.chdir(here)
    special = ["pipe", "socket"]
    try:
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        special.append("null")
    except PermissionError:
        pass  # making devices needs root
    try:
        for key in special:
            assert await store.stat(key) is None
            with pytest.raises(BlobNotFound):
                await store.open(key, start=0, stop=1, if_match=None)
        assert await list_keys(store) == []
    finally:
        listener.close()


async def test_a_directory_is_not_a_blob(store: LocalBlobStore, root: Path) -> None:
    (root / "folder").mkdir()
    assert await store.stat("folder") is None
    with pytest.raises(BlobNotFound):
        await store.open("folder", start=0, stop=1, if_match=None)
    with pytest.raises(StorageError):
        await store.put("folder", b"1")


async def test_the_root_may_itself_be_a_symlink(root: Path) -> None:
    (root / "k").write_bytes(b"1")
    alias = root.parent / "alias"
    alias.symlink_to(root)
    store = LocalBlobStore(alias)
    assert await list_keys(store) == ["k"]
    assert await read_range(store, "k", 0, 1) == b"1"
    await store.aclose()


# Names


async def test_names_that_are_not_utf8_are_escaped_and_can_be_read(store: LocalBlobStore, root: Path) -> None:
    os.makedirs(os.fsencode(root) + b"/d\xff")
    raw = os.fsencode(root) + b"/d\xff/caf\xe9"
    with open(raw, "wb") as file:
        file.write(b"latin")
    key = "d\udcff/caf\udce9"
    assert await list_keys(store) == [key]
    assert await list_keys(store, "d\udcff/") == [key]
    assert await list_keys(store, "", start_after="d\udcfe") == [key]
    assert await list_keys(store, "", start_after=key) == []
    blob = await found(store, key)
    assert await read_range(store, key, 0, 5, blob.etag) == b"latin"
    await store.put("d\udcff/neu\udce9", b"written")
    assert sorted(os.listdir(os.fsencode(root) + b"/d\xff")) == [b"caf\xe9", b"neu\xe9"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.txt", "text/plain"),
        ("a.json", "application/json"),
        ("a/b.tar.gz", "application/gzip"),
        ("a.zip", "application/zip"),
        ("a.txt/noextension", None),
        ("data:text/html,x", None),
        ("https://host/a.html", "text/html"),
    ],
)
async def test_the_type_follows_from_the_name(store: LocalBlobStore, key: str, expected: str | None) -> None:
    key = key.replace("//", "/")
    await store.put(key, b"1")
    assert (await found(store, key)).content_type == expected


SEGMENT = st.text(alphabet="ab-.0/é\x01 ", min_size=1, max_size=5).filter(
    lambda s: "/" not in s and s not in {".", ".."}
)
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(PATH, max_size=25), prefix=st.one_of(st.just(""), PATH, PATH.map(lambda p: p + "/")), start=PATH)
async def test_any_tree_lists_as_its_sorted_keys(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], prefix: str, start: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    store = LocalBlobStore(root)
    keys = set()
    for path in paths:
        # A file may be where a directory should be, or the other way round.
        with suppress(NotADirectoryError, IsADirectoryError, FileExistsError):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(b"")
            keys.add(path)
    for directory, folders, files in os.walk(root):
        if not folders and not files and Path(directory) != root:
            keys.add(os.path.relpath(directory, root) + "/")
    expected = sorted(keys, key=str.encode)
    assert await list_keys(store) == expected
    assert await list_keys(store, prefix) == [key for key in expected if key.startswith(prefix)]
    after = [key for key in expected if key.startswith(prefix) and key.encode() > start.encode()]
    assert await list_keys(store, prefix, start) == after
    for key in expected:
        assert await store.stat(key) is not None
    await store.aclose()


# Folders and listings


async def test_a_directory_with_nothing_to_serve_is_an_empty_folder(store: LocalBlobStore, root: Path) -> None:
    (root / "e" / "inner").mkdir(parents=True)
    (root / "only-a-link").mkdir()
    (root / "only-a-link" / "l").symlink_to("/etc")
    assert await list_keys(store) == ["e/inner/", "only-a-link/"]
    marker = await found(store, "e/inner/")
    assert (marker.size, await store.stat("e/")) == (0, None)
    (root / "e" / "inner" / "x").write_bytes(b"1")
    assert await store.stat("e/inner/") is None
    (root / "e" / "inner" / "x").unlink()
    assert (await found(store, "e/inner/")).etag == marker.etag
    assert await store.read_crc32s([("e/inner/", marker.etag)], timeout=10) == [0]


async def test_a_prefix_is_listed_without_a_look_outside_of_its_directory(store: LocalBlobStore, root: Path) -> None:
    for name in ("wanted", "other"):
        (root / name / "deep").mkdir(parents=True)
        (root / name / "deep" / "k").write_bytes(b"1")
    looked = []
    names = store._tree.names

    def spy(fd: int, parts: tuple[bytes, ...]) -> list[bytes]:
        looked.append(parts)
        return names(fd, parts)

    store._tree.names = spy  # type: ignore[method-assign]
    assert await list_keys(store, "wanted/deep/") == ["wanted/deep/k"]
    assert looked == [(b"wanted", b"deep")]
    looked.clear()
    assert await list_keys(store, "wanted/d") == ["wanted/deep/k"]
    assert looked == [(b"wanted",), (b"wanted", b"deep")]


async def test_files_and_directories_that_vanish_during_a_listing_are_left_out(
    store: LocalBlobStore, root: Path
) -> None:
    for i in range(1_500):
        (root / f"k{i:04}").write_bytes(b"")
    (root / "z").mkdir()
    (root / "z" / "k").write_bytes(b"")
    pages = store.list("")
    first = await anext(pages)
    assert len(first) == 1_000
    (root / "z" / "k").unlink()
    (root / "z").rmdir()
    (root / "k1400").unlink()
    rest = [blob.key async for page in pages for blob in page]
    assert rest == [f"k{i}" for i in range(1_000, 1_500) if i != 1_400]


async def test_a_listing_leaves_no_descriptor_open(store: LocalBlobStore, root: Path) -> None:
    for i in range(30):
        (root / f"d{i}").mkdir()
        (root / f"d{i}" / "k").write_bytes(b"")
    await list_keys(store)
    before = open_files()
    await list_keys(store)
    async for _ in store.list(""):
        break
    assert open_files() == before


async def test_temporaries_of_put_are_never_blobs(store: LocalBlobStore, root: Path) -> None:
    await store.put("k", b"1")
    await store.put(".storage-proxy/manifests/m", b"2")
    scratch = root / ".storage-proxy" / "tmp"
    assert list(scratch.iterdir()) == []
    (scratch / "half").write_bytes(b"half")
    assert await list_keys(store) == [".storage-proxy/manifests/m", "k"]
    assert await list_keys(store, ".storage-proxy/t") == []
    assert await list_keys(store, ".storage-proxy/tmp/") == []
    assert await store.stat(".storage-proxy/tmp/half") is None
    assert await store.stat(".storage-proxy/tmp/") is None


async def test_a_put_that_fails_leaves_nothing_behind(store: LocalBlobStore, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "child").write_bytes(b"1")
    with pytest.raises(StorageError):
        await store.put("folder", b"2")
    with pytest.raises(StorageError):
        await store.put("folder/child/below", b"2")
    assert list((root / ".storage-proxy" / "tmp").iterdir()) == []
    assert await list_keys(store) == ["folder/child"]


# Versions


async def test_a_file_modified_in_place_while_it_is_read_is_changed(store: LocalBlobStore, root: Path) -> None:
    (root / "k").write_bytes(CONTENT)
    os.utime(root / "k", (1, 1))  # the kernel's clock ticks every few ms: what is written now could keep its time
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    assert await reader.read() == CONTENT[:CHUNK]
    with (root / "k").open("r+b") as file:
        file.seek(10 * CHUNK)
        file.write(b"!")
    with pytest.raises(BlobChanged):
        await reader.read()
    await reader.aclose()


async def test_a_file_truncated_while_it_is_read_is_changed_before_a_byte_of_it_is_given(
    store: LocalBlobStore, root: Path
) -> None:
    (root / "k").write_bytes(CONTENT)
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    assert await reader.read() == CONTENT[:CHUNK]
    os.truncate(root / "k", CHUNK + 100)
    with pytest.raises(BlobChanged):
        await reader.read()
    await reader.aclose()


async def test_a_file_that_grew_is_another_version(store: LocalBlobStore, root: Path) -> None:
    (root / "k").write_bytes(CONTENT)
    blob = await found(store, "k")
    with (root / "k").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BlobChanged):
        await store.open("k", start=0, stop=5, if_match=blob.etag)


async def test_a_file_replaced_while_it_is_read_is_read_to_its_end(store: LocalBlobStore, root: Path) -> None:
    (root / "k").write_bytes(CONTENT)
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    await store.put("k", b"new")
    assert await read_all(reader) == CONTENT


# Descriptors, threads and time


async def test_closed_readers_leave_no_descriptor_open(store: LocalBlobStore, root: Path) -> None:
    (root / "k").write_bytes(CONTENT)
    await read_range(store, "k", 0, 1)
    before = open_files()
    readers = [await store.open("k", start=0, stop=len(CONTENT), if_match=None) for _ in range(50)]
    assert open_files() == before + 50
    for reader in readers:
        await reader.read()
        await reader.aclose()
    assert open_files() == before
    assert [await read_range(store, "k", i, i + 1) for i in range(50)] == [CONTENT[i : i + 1] for i in range(50)]
    assert open_files() == before


class Gate:
    """Stands in for `os.pread` and `os.preadv`, and blocks as a file system that does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        for name in ("pread", "preadv"):
            monkeypatch.setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(20)
        return function(*arguments)


async def test_a_file_system_that_does_not_answer_is_a_timeout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "k").write_bytes(CONTENT)
    store = LocalBlobStore(root, chunk_bytes=CHUNK, stall_timeout=0.05)
    reader = await store.open("k", start=0, stop=len(CONTENT), if_match=None)
    await reader.read()
    before = open_files()
    gate = Gate(monkeypatch)
    with pytest.raises(StorageTimeout):
        await reader.read()
    await reader.aclose()
    assert open_files() == before, "the descriptor must stay while a thread reads from it"
    gate.opened.set()
    await until(lambda: open_files() == before - 1)
    await store.aclose()


async def test_an_open_that_is_cancelled_closes_what_its_thread_opens(
    store: LocalBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "k").write_bytes(CONTENT)
    await read_range(store, "k", 0, 1)
    before = open_files()
    gate = Gate(monkeypatch)
    opening = asyncio.ensure_future(store.open("k", start=0, stop=len(CONTENT), if_match=None))
    await until(gate.entered.is_set)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    gate.opened.set()
    await until(lambda: open_files() == before)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, StorageError),
        (errno.EIO, StorageError),
        (errno.ESTALE, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable),
        (errno.ETIMEDOUT, StorageTimeout),
    ],
    ids=errno.errorcode.get,
)
async def test_an_error_of_the_file_system_is_an_error_of_the_storage_and_names_no_path(
    store: LocalBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[ServiceError]
) -> None:
    (root / "name-of-a-blob").write_bytes(b"1")

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code), str(root / "name-of-a-blob"))

    monkeypatch.setattr(os, "open", fail)
    for call in (
        store.stat("name-of-a-blob"),
        store.open("name-of-a-blob", start=0, stop=1, if_match=None),
        store.put("name-of-a-blob", b""),
        store.probe(),
        list_keys(store),
    ):
        with pytest.raises(expected) as caught:
            await call
        assert type(caught.value) is expected
        assert "name-of-a-blob" not in caught.value.detail
        assert str(root) not in caught.value.detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_without_permission_is_an_error_and_not_absent(store: LocalBlobStore, root: Path) -> None:
    (root / "k").write_bytes(b"1")
    (root / "k").chmod(0)
    with pytest.raises(StorageError):
        await store.open("k", start=0, stop=1, if_match=None)


async def test_a_root_that_is_a_file_does_not_answer_the_probe(root: Path) -> None:
    (root / "file").write_bytes(b"")
    store = LocalBlobStore(root / "file")
    with pytest.raises(StorageError):
        await store.probe()
    await store.aclose()


# CRC-32


async def test_the_crc32_of_a_version_is_zips(store: LocalBlobStore, root: Path) -> None:
    for body in (b"", b"123456789", CONTENT):
        (root / "k").write_bytes(body)
        blob = await found(store, "k")
        assert await store.read_crc32s([("k", blob.etag)], timeout=10) == [zlib.crc32(body)]


async def test_the_crc32_of_another_version_or_of_nothing_is_unknown_and_the_others_are_read(
    store: LocalBlobStore, root: Path
) -> None:
    (root / "k").write_bytes(CONTENT)
    blob = await found(store, "k")
    versions = [("k", '"another"'), ("missing", '"any"'), ("k", blob.etag)]
    assert await store.read_crc32s(versions, timeout=10) == [None, None, zlib.crc32(CONTENT)]


async def test_a_crc32_that_takes_too_long_is_none_and_its_thread_stops(
    store: LocalBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "k").write_bytes(CONTENT)
    blob = await found(store, "k")
    before = open_files()
    gate = Gate(monkeypatch)
    assert await store.read_crc32s([("k", blob.etag)] * 3, timeout=0.05) == [None] * 3
    gate.opened.set()
    await until(lambda: open_files() == before)


async def test_a_crc32_that_is_cancelled_stops_between_two_chunks(
    store: LocalBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (root / "k").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take for ever
    blob = await found(store, "k")
    before = open_files()
    gate = Gate(monkeypatch)
    gate.opened.set()
    summing = asyncio.ensure_future(store.read_crc32s([("k", blob.etag)], timeout=1_000))
    await until(gate.entered.is_set)
    summing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await summing
    await until(lambda: open_files() == before)


async def test_the_store_has_the_abilities_it_says(store: LocalBlobStore) -> None:
    port: BlobStore = store
    assert isinstance(port, ReadsCrc32)


async def test_a_page_of_a_listing_never_knows_type_or_crc32(store: LocalBlobStore, root: Path) -> None:
    (root / "a.txt").write_bytes(b"1")
    assert [(blob.content_type, blob.crc32) for blob in await list_all(store)] == [(None, None)]


@pytest.mark.parametrize(("moment", "told"), [(-5, 0), (0, 0), (1.9, 1), (10**12, 253_402_300_799)])
def test_a_time_that_nobody_can_write_is_drawn_to_one_that_can_be(moment: float, told: int) -> None:
    assert whole_seconds(moment) == told


# Buffers


async def test_a_large_file_is_read_in_pooled_buffers_that_are_given_back(root: Path) -> None:
    content = random.Random(4).randbytes(9 << 20)
    (root / "k").write_bytes(content)
    pool = BufferPool()
    store = LocalBlobStore(root, buffers=pool)
    reader = await store.open("k", start=0, stop=len(content), if_match=None)
    sizes, received = [], bytearray()
    while chunk := await reader.read():
        sizes.append(len(chunk))
        received += chunk
        assert pool.budget.taken <= 2 << 20
    assert pool.budget.taken == 0, "at the end, before it is closed"
    await reader.aclose()
    assert received == content
    assert (sizes[0], max(sizes)) == (64 << 10, 1 << 20)
    early = await store.open("k", start=0, stop=len(content), if_match=None)
    for _ in range(6):
        await early.read()
    await early.aclose()
    assert (pool.budget.taken, pool.readers) == (0, 0)
    await store.aclose()


async def test_a_view_of_a_file_stays_as_it_is_until_the_next_read(root: Path) -> None:
    content = random.Random(4).randbytes(9 << 20)
    (root / "k").write_bytes(content)
    store = LocalBlobStore(root)
    reader = await store.open("k", start=0, stop=len(content), if_match=None)
    offset = 0
    while chunk := await reader.read():
        await asyncio.to_thread(lambda: None)  # a thread that reads ahead has its turn
        assert chunk == content[offset : offset + len(chunk)]
        offset += len(chunk)
    await reader.aclose()
    await store.aclose()
