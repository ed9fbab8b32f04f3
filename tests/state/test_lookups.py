"""Many rows at once: the same as one by one, on a real SQLite file and a simulated FoundationDB."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_proxy.state.lookups import get_many
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Records, UploadRecord
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.state import Clock, fake_client, fake_store, sqlite_store

RECORDS = Records()
numbers = st.integers(0, 40)


@pytest.fixture(params=["sqlite", "simulated"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyValueStore]:
    if request.param == "sqlite":
        async with sqlite_store(tmp_path / "state.db") as opened:
            yield opened
        return
    with fake_client(FakeCluster(Clock())) as client:
        async with fake_store(client) as opened:
            yield opened


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(there=st.sets(numbers), wanted=st.lists(numbers))
async def test_many_rows_are_those_that_one_by_one_would_find(
    store: KeyValueStore, there: set[int], wanted: list[int]
) -> None:
    async def fill(transaction: Transaction) -> None:
        RECORDS.uploads.clear_all(transaction)
        for number in there:
            RECORDS.uploads.set(transaction, UploadRecord(f"p{number}"), "r", number)

    async def look(transaction: Transaction) -> dict[tuple[str, int], UploadRecord]:
        return await get_many(transaction, RECORDS.uploads, [("r", number) for number in wanted])

    await store.transact(fill)
    found = await store.transact(look)
    assert found == {("r", number): UploadRecord(f"p{number}") for number in there & set(wanted)}
