"""Runs as ingestion leaves them, made without it: records in a state file, objects in the S3 server's directory.

Only what is not measured is made so: an object that was put there as a file has no metadata, and is listed and deleted
as any other.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from storage_proxy.common.events import run_key, run_prefix
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Order, Records, RunRecord, RunTotals
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite

BLOB_BYTES = 100
_ROWS = 1000
_FOLDER_BLOBS = 1000


def paths_of(count: int) -> Sequence[str]:
    """``count`` paths in order, a thousand a folder."""
    return [f"{number // _FOLDER_BLOBS:04}/{number:07}.bin" for number in range(count)]


async def record_run(state: Path, run_id: str, bucket: str, paths: Sequence[str]) -> None:
    """A run of verified blobs in the state file ``state``."""
    records = Records()
    now = int(time.time())
    async with open_sqlite(SqliteOptions(state)) as store:
        for first in range(0, len(paths), _ROWS):

            async def write(transaction: Transaction, first: int = first) -> None:
                records.runs.set(transaction, RunRecord(bucket, now), run_id)
                records.totals.set(transaction, RunTotals(len(paths), len(paths) * BLOB_BYTES), run_id)
                for number, path in enumerate(paths[first : first + _ROWS], first):
                    records.blobs.set(transaction, _record(bucket, number, now), run_id, path)

            await store.transact(write)


def _record(bucket: str, number: int, now: int) -> BlobRecord:
    return BlobRecord(
        bucket,
        BlobState.VERIFIED,
        now,
        content_type="application/octet-stream",
        size=BLOB_BYTES,
        crc32=number,
        order=Order(0, number),
        etag=f'"{number:032x}"',
        last_modified=now,
    )


async def place_files(root: Path, run_id: str, paths: Sequence[str]) -> None:
    """A file for each blob of the run beneath ``root``, a local bucket's or the S3 server's directory of one."""

    def write() -> None:
        body = bytes(BLOB_BYTES)
        for folder in dict.fromkeys(path.rpartition("/")[0] for path in paths):
            (root / run_prefix(run_id) / folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            (root / run_key(run_id, path)).write_bytes(body)

    await asyncio.to_thread(write)
