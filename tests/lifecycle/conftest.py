"""The house on a real SQLite file and a real local bucket, and on a real S3 server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage_proxy.state.sqlite import SqliteKeyValueStore
from storage_proxy.stores.local import LocalBlobStore
from tests.support.lifecycle import House
from tests.support.s3 import S3Bucket, open_store
from tests.support.state import sqlite_store


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[SqliteKeyValueStore]:
    async with sqlite_store(tmp_path / "state.db", batch_rows=1000) as store:
        yield store


@pytest.fixture
async def house(state: SqliteKeyValueStore, tmp_path: Path) -> AsyncIterator[House]:
    """Two local buckets."""
    stores = {name: LocalBlobStore(tmp_path / name) for name in ("default", "media")}
    for name in stores:
        (tmp_path / name).mkdir()
    yield House(state, dict(stores))
    for store in stores.values():
        await store.aclose()


@pytest.fixture
async def s3_house(state: SqliteKeyValueStore, s3_bucket: S3Bucket) -> AsyncIterator[House]:
    """One bucket of a real S3 server."""
    async with open_store(s3_bucket.options()) as store:
        yield House(state, {"default": store})


@pytest.fixture(params=["local", "s3"])
def any_house(request: pytest.FixtureRequest) -> House:
    """The house on each kind of bucket."""
    made: House = request.getfixturevalue("house" if request.param == "local" else "s3_house")
    return made
