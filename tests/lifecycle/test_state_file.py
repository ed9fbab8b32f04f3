"""The state as a file: whole or refused, between SQLite and (simulated) FoundationDB, cut off and continued."""

import json
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from storage_proxy.lifecycle import state_file
from storage_proxy.lifecycle.state_file import StateFileError, export_state, import_state
from storage_proxy.state.port import KeyValueStore, Row, Transaction
from storage_proxy.state.records import (
    BlobRecord,
    BlobState,
    Claim,
    Import,
    LearnedCrc,
    LinkRecord,
    Lock,
    Mark,
    Order,
    OutboxRow,
    Records,
    RunEnd,
    RunRecord,
    RunTotals,
    Tombstone,
    UploadRecord,
)
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.state import Clock, fake_client, fake_store, read_all, sqlite_store

RECORDS = Records()
BLOBS = 2500


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def source(stack: AsyncExitStack, tmp_path: Path) -> KeyValueStore:
    """A store with rows of every kind."""
    store = await stack.enter_async_context(sqlite_store(tmp_path / "source.db", batch_rows=500))
    await fill(store, RECORDS)
    return store


async def fill(store: KeyValueStore, to: Records) -> None:
    async def fn(transaction: Transaction) -> None:
        to.runs.set(transaction, RunRecord("default", 1, 2), "r1")
        to.totals.set(transaction, RunTotals(BLOBS, BLOBS), "r1")
        to.uploads.set(transaction, UploadRecord("ü\U0001f600"), "r1", "digest")
        to.due.set(transaction, Mark(), 17, "r1", "a")
        to.tombstones.set(transaction, Tombstone(None, RunEnd.SWEPT, 1, 2, 3), "r2")
        to.sweeps.set(transaction, Mark(), 3, "r2")
        to.outbox.set(transaction, OutboxRow("ingest", "r1", '{"a":"\\n"}'), 5, "id")
        to.crc32s.set(transaction, LearnedCrc(2**32 - 1, 1), "default", b"a/\xff\x00", '"etag"', 2**62)
        to.links.set(transaction, LinkRecord("blob", 5, revoked=True), "jti")
        to.link_ends.set(transaction, Mark(), 5, "jti")
        to.locks.set(transaction, Lock("me", 3, 1.5), "relay")
        to.claims.set(transaction, Claim(3, 9), "default", "runs/r1/x")
        for number in range(BLOBS):
            attributes = {"number": number, "f": 0.1, "ü": [None, True, "\x00\u2028"]}
            blob = BlobRecord("default", BlobState.VERIFIED, 1, attributes=attributes, order=Order(1, number))
            to.blobs.set(transaction, blob, "r1", f"{number:05}")

    await store.transact(fn)


async def state_of(store: KeyValueStore, records: Records) -> Sequence[Row]:
    """Every row of the state, without the prefix, and without what belongs to processes."""
    rows = await read_all(store, *records.root.range())
    kept = [(key, value) for key, value in rows if records.root.unpack(key)[0] not in ("lock", "claim")]
    return [(key.removeprefix(records.root.prefix), value) for key, value in kept]


async def test_a_state_moves_from_sqlite_to_foundationdb_and_back(
    source: KeyValueStore, stack: AsyncExitStack, tmp_path: Path
) -> None:
    expected = await state_of(source, RECORDS)
    assert await export_state(source, RECORDS, tmp_path / "a.ndjson") == len(expected) == BLOBS + 10
    client = stack.enter_context(fake_client(FakeCluster(Clock())))
    moved = await stack.enter_async_context(fake_store(client))
    other = Records("another-prefix")
    assert await import_state(moved, other, tmp_path / "a.ndjson") == len(expected)
    assert await state_of(moved, other) == expected
    await export_state(moved, other, tmp_path / "b.ndjson")
    back = await stack.enter_async_context(sqlite_store(tmp_path / "back.db", batch_rows=500))
    await import_state(back, RECORDS, tmp_path / "b.ndjson")
    assert await state_of(back, RECORDS) == expected
    lines = [(tmp_path / name).read_bytes().splitlines()[1:] for name in ("a.ndjson", "b.ndjson")]
    assert lines[0] == lines[1]


async def test_a_line_can_be_read_by_a_person(source: KeyValueStore, tmp_path: Path) -> None:
    await export_state(source, RECORDS, tmp_path / "a", clock=lambda: 0.0)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert lines[0] == {"format": "storage-proxy-state", "version": 1, "exported_at": "1970-01-01T00:00:00Z"}
    assert {"table": "totals", "key": ["r1"], "value": {"v": 1, "blobs": BLOBS, "bytes": BLOBS}} in lines
    assert lines[-1]["rows"] == len(lines) - 2


async def test_an_export_is_of_one_moment_whatever_is_written_meanwhile(
    source: KeyValueStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await state_of(source, RECORDS)
    snapshot = source.read_snapshot

    async def written_meanwhile(begin: bytes, end: bytes) -> AsyncIterator[Sequence[Row]]:
        async for batch in snapshot(begin, end):
            yield batch

            async def fn(transaction: Transaction) -> None:
                transaction.clear_range(begin, end)

            await source.transact(fn)

    monkeypatch.setattr(source, "read_snapshot", written_meanwhile)
    assert await export_state(source, RECORDS, tmp_path / "a") == len(expected)


async def test_an_export_that_fails_leaves_the_file_that_was_there(
    source: KeyValueStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "a"
    path.write_text("before")
    await _set(source, RECORDS.imports, Import("x"))
    with pytest.raises(StateFileError, match="not finished"):
        await export_state(source, RECORDS, path)
    assert [path.read_text(), *(path.parent.iterdir())] == ["before", path]


async def test_only_the_owner_may_read_a_file(source: KeyValueStore, tmp_path: Path) -> None:
    await export_state(source, RECORDS, tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def _cut(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def _cut_within_a_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:-1]]


def _without_a_row(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], *lines[6:]]


def _with_a_changed_row(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"number":7,', b'"number":8,') for line in lines]


def _with_more_after_the_end(lines: list[bytes]) -> list[bytes]:
    return [*lines, b"\n"]


def _of_another_version(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"version":1', b'"version":2'), *lines[1:]]


def _with_an_unknown_table(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"table":"totals"', b'"table":"unknown"') for line in lines]


def _with_a_value_of_another_version(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"key":["r1"],"value":{"v":1', b'"key":["r1"],"value":{"v":2') for line in lines]


def _with_a_lock(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b'{"table":"lock","key":["x"],"value":{"v":1,"owner":"","fence":1,"expires_at":0}}\n', *lines[1:]]


def _empty(lines: list[bytes]) -> list[bytes]:
    return []


DAMAGES = [
    _cut,
    _cut_within_a_line,
    _without_a_row,
    _with_a_changed_row,
    _with_more_after_the_end,
    _of_another_version,
    _with_an_unknown_table,
    _with_a_value_of_another_version,
    _with_a_lock,
    _empty,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_file_that_is_not_whole_is_refused_before_anything_is_written(
    source: KeyValueStore, stack: AsyncExitStack, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = tmp_path / "a"
    await export_state(source, RECORDS, path)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    target = await stack.enter_async_context(sqlite_store(tmp_path / "target.db", batch_rows=500))
    with pytest.raises(StateFileError):
        await import_state(target, RECORDS, path)
    assert await read_all(target, b"", b"\xff") == []


async def test_a_store_with_rows_is_refused_and_one_with_locks_is_not(
    source: KeyValueStore, stack: AsyncExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    await export_state(source, RECORDS, path)
    target = await stack.enter_async_context(sqlite_store(tmp_path / "target.db", batch_rows=500))
    await _set(target, RECORDS.locks, Lock("me", 1, 0.0), "relay")
    await import_state(target, RECORDS, path)
    before = await read_all(target, b"", b"\xff")
    with pytest.raises(StateFileError, match="not empty"):
        await import_state(target, RECORDS, path)
    assert await read_all(target, b"", b"\xff") == before


async def test_an_import_that_was_cut_off_goes_on_with_the_same_file_and_no_other(
    source: KeyValueStore, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    await export_state(source, RECORDS, path)
    await _set(source, RECORDS.runs, RunRecord("default", 1), "r3")
    await export_state(source, RECORDS, other)
    target = await stack.enter_async_context(sqlite_store(tmp_path / "target.db", batch_rows=500))
    write, written = state_file._write, 0

    async def killed(transaction: Transaction, **more: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise KeyboardInterrupt
        await write(transaction, **more)

    with monkeypatch.context() as patch:
        patch.setattr(state_file, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            await import_state(target, RECORDS, path)
    with pytest.raises(StateFileError, match="another file"):
        await import_state(target, RECORDS, other)
    with pytest.raises(StateFileError, match="not finished"):
        await export_state(target, RECORDS, tmp_path / "c")
    count = await import_state(target, RECORDS, path)
    rows = await state_of(target, RECORDS)
    assert count == len(rows) == BLOBS + 10


async def _set(store: KeyValueStore, table: Any, record: Any, *key: Any) -> None:
    async def fn(transaction: Transaction) -> None:
        table.set(transaction, record, *key)

    await store.transact(fn)
