"""Several processes on one state file, killed while they write."""

import asyncio
import random
import sys
from pathlib import Path

from storage_proxy.state.sqlite import SqliteOptions, open_sqlite
from tests.support.state import read_all, sqlite_store
from tests.support.state_process import COUNT, halves

ROOT = Path(__file__).parents[2]
ROUNDS = 3


async def started(path: Path, name: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.state_process", path, name, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )


async def written(process: asyncio.subprocess.Process, count: int) -> list[int]:
    """The next ``count`` numbers that the process reports."""
    assert process.stdout is not None
    return [int(await process.stdout.readline()) for _ in range(count)]


async def rest(process: asyncio.subprocess.Process) -> list[int]:
    """What it had reported when it was killed."""
    assert process.stdout is not None
    lines = (await process.stdout.read()).split(b"\n")[:-1]  # the last one is not whole
    await process.wait()
    return [int(line) for line in lines]


async def test_killed_processes_leave_whole_transactions_and_all_that_were_reported(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    chance = random.Random(4)
    reported: dict[str, list[int]] = {}
    for round_number in range(ROUNDS):
        names = [f"{round_number}{letter}" for letter in "abc"]
        processes = dict(zip(names, [await started(path, name) for name in names], strict=True))
        for name in names:
            reported[name] = await written(processes[name], chance.randint(1, 15))
        for name in names:
            processes[name].kill()
        for name in names:
            reported[name] += await rest(processes[name])
    async with sqlite_store(path) as store:
        rows = dict(await read_all(store, b"", b"\xff"))
    for name, numbers in reported.items():
        assert numbers == list(range(len(numbers)))
        for number in numbers:
            assert set(halves(name, number)) <= rows.keys()
    left = {key.removeprefix(b"left/"): value for key, value in rows.items() if key.startswith(b"left/")}
    right = {key.removeprefix(b"right/"): value for key, value in rows.items() if key.startswith(b"right/")}
    assert left == right
    # Each saw the count that the one before it had left: nothing was lost, nothing was counted twice.
    assert sorted(map(int, left.values())) == list(range(int(rows[COUNT])))
    assert len(left) - sum(map(len, reported.values())) <= len(reported)


async def test_processes_that_open_a_new_file_at_once_agree_on_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    processes = [await started(path, f"p{number}") for number in range(4)]
    try:
        for process in processes:
            assert await written(process, 2) == [0, 1]
    finally:
        for process in processes:
            process.kill()
            await rest(process)
    async with open_sqlite(SqliteOptions(path)) as store:
        await store.probe()
