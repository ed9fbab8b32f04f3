"""The layout of keys and values: what is written comes back, in byte order, and nothing else is read."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state.port import KeyValueStore, Transaction
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
    Record,
    Records,
    RunEnd,
    RunRecord,
    RunTotals,
    Table,
    Tombstone,
    UploadRecord,
)
from tests.support.state import sqlite_store

RECORDS = Records()
TABLES = [table for table in vars(RECORDS).values() if isinstance(table, Table)]

texts = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers(0, 2**63 - 1)
optional_texts = st.none() | texts
optional_numbers = st.none() | numbers
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
values: dict[str, st.SearchStrategy[Record]] = {
    "runs": st.builds(RunRecord, texts, numbers, numbers),
    "totals": st.builds(RunTotals, numbers, numbers),
    "blobs": st.builds(
        BlobRecord,
        bucket=texts,
        state=st.sampled_from(BlobState),
        created_at=numbers,
        content_type=optional_texts,
        size=optional_numbers,
        crc32=optional_numbers,
        attributes=st.dictionaries(texts, json_values, max_size=3),
        order=st.none() | st.builds(Order, numbers, numbers),
        etag=texts,
        last_modified=numbers,
        content_encoding=optional_texts,
        due_ms=optional_numbers,
        deadline=optional_numbers,
        looks=numbers,
        reason=optional_texts,
    ),
    "uploads": st.builds(UploadRecord, texts),
    "due": st.builds(Mark),
    "tombstones": st.builds(Tombstone, optional_texts, st.sampled_from(RunEnd), numbers, numbers, numbers),
    "sweeps": st.builds(Mark),
    "outbox": st.builds(OutboxRow, texts, texts, texts),
    "crc32s": st.builds(LearnedCrc, st.integers(0, 2**32 - 1), numbers),
    "claims": st.builds(Claim, numbers, numbers),
    "links": st.builds(LinkRecord, texts, numbers, st.booleans()),
    "link_ends": st.builds(Mark),
    "locks": st.builds(Lock, texts, numbers, st.floats(0, 1e10)),
    "imports": st.builds(Import, texts),
}
rows = st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name]))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[KeyValueStore]:
    async with sqlite_store(tmp_path / "state.db") as opened:
        yield opened


def raw(table: Table[Any], record: Record) -> bytes:
    encoded: bytes = table._codec.encode(record)
    return encoded


def test_every_table_has_its_values_tested() -> None:
    assert {name for name, table in vars(RECORDS).items() if isinstance(table, Table)} == values.keys()


@given(row=rows)
def test_a_value_that_is_written_comes_back_with_its_types(row: tuple[str, Record]) -> None:
    name, record = row
    table: Table[Any] = getattr(RECORDS, name)
    key, read = table.read((table.key("k"), raw(table, record)))
    assert (key, read) == (("k",), record)
    assert type(read) is type(record)
    if isinstance(read, BlobRecord):
        assert isinstance(read.state, BlobState)
        assert read.order is None or isinstance(read.order, Order)


@given(row=rows, version=st.integers(2, 9))
def test_a_value_of_another_version_is_refused(row: tuple[str, Record], version: int) -> None:
    name, record = row
    table: Table[Any] = getattr(RECORDS, name)
    newer = json.dumps({**json.loads(raw(table, record)), "v": version}).encode()
    with pytest.raises(StateUnavailable, match=f"version {version}"):
        table.read((table.key("k"), newer))


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"null", b"{}", b'{"v":1}', b'{"v":1,"bucket":"b","created_at":1,"unknown":1}', b"\xff"],
)
def test_a_damaged_value_is_refused(damaged: bytes) -> None:
    with pytest.raises(StateUnavailable):
        RECORDS.runs.read((RECORDS.runs.key("k"), damaged))


@pytest.mark.parametrize("table", TABLES)
def test_a_key_of_another_table_is_refused(table: Table[Any]) -> None:
    for other in TABLES:
        if other is not table:
            with pytest.raises(ValueError, match="not of this subspace"):
                table.elements(other.key("k"))


@given(paths=st.lists(texts, min_size=2, max_size=8))
def test_rows_of_a_run_lie_in_the_byte_order_of_their_paths(paths: list[str]) -> None:
    by_key = sorted(paths, key=lambda path: RECORDS.blobs.key("r", path))
    assert by_key == sorted(paths, key=str.encode)


@given(path=texts, beginning=texts)
def test_a_range_of_texts_has_exactly_those_with_the_beginning(path: str, beginning: str) -> None:
    for candidate in (path, beginning + path, beginning):
        begin, end = RECORDS.blobs.range("r", text=beginning)
        assert (begin <= RECORDS.blobs.key("r", candidate) < end) == candidate.startswith(beginning)
        for other_run in ("q", "r\x00", "s"):
            assert not begin <= RECORDS.blobs.key(other_run, candidate) < end


@given(at=numbers, other=numbers)
def test_what_is_due_until_a_moment_is_before_it(at: int, other: int) -> None:
    begin, end = RECORDS.due.until(at)
    assert (begin <= RECORDS.due.key(other, "r", "p") < end) == (other < at)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(texts, max_size=7), beginning=texts, limit=st.integers(1, 3))
async def test_pages_give_every_row_with_a_beginning_once(
    store: KeyValueStore, paths: set[str], beginning: str, limit: int
) -> None:
    wanted = sorted((path for path in paths if path.startswith(beginning)), key=str.encode)

    async def fn(transaction: Transaction) -> list[str]:
        RECORDS.uploads.clear_all(transaction, "r")
        for path in paths:
            RECORDS.uploads.set(transaction, UploadRecord(path), "r", path)
        found: list[str] = []
        position = b""
        while page := await RECORDS.uploads.page(transaction, "r", text=beginning, limit=limit, start_after=position):
            assert len(page) <= limit
            found += [key[1] for key, _ in page]
            position = RECORDS.uploads.key(*page[-1][0])
        return found

    assert await store.transact(fn) == wanted


async def test_records_of_two_prefixes_do_not_see_each_other(store: KeyValueStore) -> None:
    mine, other, longer = Records("a"), Records("b"), Records("a\x00")

    async def fn(transaction: Transaction) -> None:
        mine.runs.set(transaction, RunRecord("bucket", 1), "r")
        for stranger in (other, longer):
            assert await stranger.runs.get(transaction, "r") is None
            assert await stranger.runs.page(transaction, limit=9) == []
            stranger.runs.clear_all(transaction)
            transaction.clear_range(*stranger.root.range())
        assert await mine.runs.get(transaction, "r") == RunRecord("bucket", 1)

    await store.transact(fn)


async def test_many_rows_come_in_the_order_they_were_asked_for(store: KeyValueStore) -> None:
    async def fn(transaction: Transaction) -> None:
        RECORDS.totals.set(transaction, RunTotals(1, 1), "a")
        RECORDS.totals.set(transaction, RunTotals(2, 2), "b")
        found = await RECORDS.totals.get_many(transaction, [("b",), ("none",), ("a",)])
        assert found == [RunTotals(2, 2), None, RunTotals(1, 1)]

    await store.transact(fn)
