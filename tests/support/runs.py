"""Runs as the write path leaves them: records in a real SQLite state, written directly."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_proxy.common.events import run_key
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Records, RunEnd, RunRecord, Tombstone
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite
from storage_proxy.stores.port import BlobStat, BlobStore


@dataclass(frozen=True, slots=True)
class Runs:
    """A state with runs in it."""

    store: KeyValueStore
    records: Records

    @property
    def blobs(self) -> RunBlobs:
        return RunBlobs(self.store, self.records)

    async def record(self, run_id: str, path: str, *, bucket: str = "default", **known: Any) -> None:
        """A blob's record, verified unless ``known`` says otherwise."""
        given = {"state": BlobState.VERIFIED, "created_at": 1, "size": 3, "etag": '"e"', "last_modified": 1_700_000_000}
        record = BlobRecord(bucket=bucket, **{**given, **known})

        async def fn(transaction: Transaction) -> None:
            self.records.runs.set(transaction, RunRecord(bucket, created_at=1), run_id)
            self.records.blobs.set(transaction, record, run_id, path)

        await self.store.transact(fn)

    async def record_object(
        self, store: BlobStore, run_id: str, path: str, *, bucket: str = "default", **known: Any
    ) -> BlobStat:
        """The record of an object that is there."""
        stat = await store.stat(run_key(run_id, path))
        assert stat is not None
        seen = {"size": stat.size, "etag": stat.etag, "last_modified": stat.last_modified, "crc32": stat.crc32}
        await self.record(run_id, path, bucket=bucket, **{**seen, **known})
        return stat

    async def delete(self, run_id: str) -> None:
        """What deleting a run does at once: a tombstone; the blobs' rows go later."""

        async def fn(transaction: Transaction) -> None:
            self.records.runs.clear(transaction, run_id)
            tombstone = Tombstone("default", RunEnd.DELETING, deleted_at=2, ended_at=2, sweep_at=3)
            self.records.tombstones.set(transaction, tombstone, run_id)

        await self.store.transact(fn)


@asynccontextmanager
async def open_runs(path: Path) -> AsyncIterator[Runs]:
    """The state in the file ``path``, which other processes may have open, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    async with open_sqlite(SqliteOptions(path)) as store:
        yield Runs(store, Records())


@asynccontextmanager
async def temporary_runs() -> AsyncIterator[Runs]:
    """A state that is gone at the end."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_runs(Path(directory) / "state.db") as runs:
            yield runs
