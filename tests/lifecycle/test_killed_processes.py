"""Real processes on a SQLite file, an embedded bus and a local bucket, killed by SIGKILL at each labelled step."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from storage_proxy.common.events import run_key
from storage_proxy.common.steps import VARIABLE
from storage_proxy.common.wire import RunAccess
from storage_proxy.lifecycle.runs import Runs
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import BlobRecord, BlobState, RunEnd, RunRecord
from tests.support.deletion_process import Opened, opened

ROOT = Path(__file__).parents[2]
RUNS = ["r1", "r2", "r3"]
BLOBS = 20
DEADLINE = 60.0


async def delete_runs(at: Opened) -> None:
    """Three runs with objects and records, deleted; a fourth that stays."""
    runs = Runs(at.store, at.records, second_pass_seconds=0.0)
    for run_id in [*RUNS, "stays"]:

        async def fn(transaction: Transaction, run_id: str = run_id) -> None:
            at.records.runs.set(transaction, RunRecord("default", 1), run_id)
            for number in range(BLOBS):
                blob = BlobRecord("default", BlobState.VERIFIED, 1, size=1)
                at.records.blobs.set(transaction, blob, run_id, f"{number}/b")

        await at.store.transact(fn)
        for number in range(BLOBS):
            await at.blobs.put(run_key(run_id, f"{number}/b"), b"x")
    for run_id in RUNS:
        await runs.delete(run_id, RunAccess())


async def end_runs(directory: Path, kill_at: str | None = None) -> int:
    """The exit code of a process that ends the runs."""
    environment = os.environ | ({VARIABLE: kill_at} if kill_at else {})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.deletion_process", directory, cwd=ROOT, env=environment
    )
    try:
        async with asyncio.timeout(DEADLINE):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def assert_ended(at: Opened) -> None:
    async def fn(transaction: Transaction) -> tuple[set[str], set[str], dict[str, RunEnd]]:
        blobs = {key[0] for key, _ in await at.records.blobs.page(transaction, limit=1000)}
        runs = {key[0] for key, _ in await at.records.runs.page(transaction, limit=1000)}
        ends = await at.records.tombstones.page(transaction, limit=1000)
        assert await at.records.sweeps.page(transaction, limit=1) == []
        return blobs, runs, {key[0]: tombstone.state for key, tombstone in ends}

    blobs, runs, ends = await at.store.transact(fn)
    assert (blobs, runs) == ({"stays"}, {"stays"})
    assert ends == dict.fromkeys(RUNS, RunEnd.SWEPT)
    keys = [stat.key async for page in at.blobs.list("runs/") for stat in page]
    assert sorted(keys) == sorted(run_key("stays", f"{number}/b") for number in range(BLOBS))


@pytest.mark.parametrize(
    "kill_at", ["outbox-published", "run-erasing:2", "run-clearing:1", "run-clearing:5", "run-deleted:2"]
)
async def test_runs_end_whole_whatever_process_is_killed(tmp_path: Path, kill_at: str) -> None:
    (tmp_path / "blobs").mkdir()
    async with opened(tmp_path) as at:
        await delete_runs(at)
        assert await end_runs(tmp_path, kill_at) == -signal.SIGKILL
        assert await end_runs(tmp_path) == 0
        await assert_ended(at)
