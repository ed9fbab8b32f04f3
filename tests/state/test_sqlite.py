"""What is SQLite's own: the file, its locks, and the thread that writes."""

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state import sqlite_reader
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.limits import TransactionFinished
from storage_proxy.state.port import Transaction
from storage_proxy.state.sqlite import SqliteKeyValueStore, SqliteOptions, open_sqlite
from storage_proxy.state.sqlite_file import StateFile
from storage_proxy.state.sqlite_reader import Reader
from storage_proxy.state.sqlite_writer import Commit
from tests.support.state import ONCE, read_all, sqlite_store

_T = TypeVar("_T")


async def put(store: SqliteKeyValueStore, key: bytes, value: bytes = b"") -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.set(key, value)

    await store.transact(fn)


def other_program(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


# The file


def garbage(path: Path) -> None:
    path.write_bytes(b"These are not the bytes of a database. " * 200)


def database_of_another_program(path: Path) -> None:
    other = other_program(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (garbage, "SQLITE_NOTADB"),
        (database_of_another_program, "of another program"),
        (directory, "SQLITE_CANTOPEN"),
    ],
)
async def test_a_file_that_is_not_ours_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "state.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StateUnavailable, match=reason):
        async with open_sqlite(SqliteOptions(path)):
            pass
    assert before is None or path.read_bytes() == before


async def test_a_file_of_a_later_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path):
        pass
    other = other_program(path)
    other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(StateUnavailable, match="layout 2"):
        async with open_sqlite(SqliteOptions(path)):
            pass


async def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="cannot be opened"):
        async with open_sqlite(SqliteOptions(tmp_path / "nowhere" / "state.db")):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
async def test_a_file_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path):
        pass
    path.chmod(0o400)
    with pytest.raises(StateUnavailable, match="cannot be written to"):
        async with open_sqlite(SqliteOptions(path)):
            pass


async def test_a_damaged_file_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        for number in range(50):
            await put(store, b"%05d" % number, bytes(5_000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    async with open_sqlite(SqliteOptions(path)) as store:
        with pytest.raises(StateUnavailable, match="SQLITE_CORRUPT"):
            await read_all(store, b"", b"\xff")
        with pytest.raises(StateUnavailable):
            await put(store, b"00001")


async def test_a_file_that_is_away_stays_away_until_it_is_back(tmp_path: Path) -> None:
    path, away = tmp_path / "state.db", tmp_path / "elsewhere" / "state.db"
    away.parent.mkdir()
    async with sqlite_store(path) as store:
        await put(store, b"a")
        path.rename(away)
        for reason in ("removed or replaced", "cannot be reached", "cannot be reached"):
            with pytest.raises(StateUnavailable, match=reason):
                await store.probe()
        assert not path.exists()
        path.touch()
        with pytest.raises(StateUnavailable, match="was emptied"):
            await put(store, b"b")
        assert not path.stat().st_size
        away.rename(path)
        await store.probe()
        await put(store, b"c")
        assert [key for key, _ in await read_all(store, b"", b"\xff")] == [b"a", b"c"]


async def test_a_file_that_was_removed_takes_no_more_commits(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        await put(store, b"a")
        for each in tmp_path.iterdir():
            each.unlink()
        with pytest.raises(StateUnavailable, match="removed or replaced"):
            await store.probe()
    async with sqlite_store(path) as store:
        await put(store, b"a")
        (tmp_path / "elsewhere").mkdir()
        for each in tmp_path.glob("state.db*"):
            each.rename(tmp_path / "elsewhere" / each.name)
        with pytest.raises(StateUnavailable, match="removed or replaced"):
            await put(store, b"b")


# Locks


async def test_a_lock_of_another_program_is_waited_for(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        other = other_program(tmp_path / "state.db")
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(put(store, b"a"))
        assert await read_all(store, b"", b"\xff") == []  # readers do not wait
        assert not writing.done()
        other.execute("COMMIT")
        await writing
        other.close()
        assert await read_all(store, b"", b"\xff") == [(b"a", b"")]


async def test_a_file_that_is_slow_at_the_start_is_waited_for_longer_than_a_probe_would(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db"):
        pass
    other = other_program(tmp_path / "state.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateUnavailable, match=r"in 0\.05 s"):
        async with sqlite_store(tmp_path / "state.db", start_seconds=0.05, busy_seconds=0.1):
            pass
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(release(other, after_seconds=0.2))
        async with sqlite_store(tmp_path / "state.db", probe_seconds=0.05) as store:
            await put(store, b"a")
    other.close()


async def release(other: sqlite3.Connection, *, after_seconds: float) -> None:
    await asyncio.sleep(after_seconds)
    other.execute("ROLLBACK")


async def test_a_lock_that_is_never_released_is_given_up(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db", busy_seconds=0.05) as store:
        other = other_program(tmp_path / "state.db")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable, match="SQLITE_BUSY"):
            await put(store, b"a")
        with pytest.raises(StateUnavailable, match="SQLITE_BUSY"):
            await store.probe()
        other.execute("ROLLBACK")
        other.close()
        await put(store, b"b")
        assert await read_all(store, b"", b"\xff") == [(b"b", b"")]


async def test_a_deadline_ends_a_transaction_whatever_it_waits_for(tmp_path: Path) -> None:
    retries = RetryPolicy(deadline_seconds=0.05)
    async with sqlite_store(tmp_path / "state.db", retries=retries, busy_seconds=0.5) as store:
        other = other_program(tmp_path / "state.db")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable, match=r"in 0\.05 s"):
            await put(store, b"a")
        other.execute("ROLLBACK")
        other.close()


async def test_who_finds_no_free_reader_waits_for_one_and_not_for_ever(tmp_path: Path) -> None:
    retries = RetryPolicy(deadline_seconds=0.2)
    async with sqlite_store(tmp_path / "state.db", retries=retries, readers=1) as store:

        async def nested(transaction: Transaction) -> None:
            await transaction.get(b"a")
            await read_all(store, b"", b"\xff")

        with pytest.raises(StateUnavailable):
            await store.transact(nested)
        assert await read_all(store, b"", b"\xff") == []


# Commits


async def test_commits_that_wait_together_are_all_decided(tmp_path: Path) -> None:
    """Sixty that read and write the same key and try once: each that says it was committed was."""
    async with sqlite_store(tmp_path / "state.db", retries=ONCE) as store:

        async def add() -> bool:
            async def fn(transaction: Transaction) -> None:
                count = int(await transaction.get(b"count") or 0)
                transaction.set(b"count", b"%d" % (count + 1))

            try:
                await store.transact(fn)
            except StateUnavailable:
                return False
            return True

        committed = sum(await asyncio.gather(*(add() for _ in range(60))))
        assert 1 <= committed <= 60
        assert await read_all(store, b"", b"\xff") == [(b"count", b"%d" % committed)]


async def test_what_commits_wrote_is_forgotten_when_nobody_can_conflict_with_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        now = [1_000.0]
        store._writer._wall_clock = lambda: now[0]
        for number in range(30):
            await put(store, b"%d" % number)
            now[0] += 1.0
        now[0] -= 3_600.0  # the clock is set back
        await put(store, b"x")
        now[0] += 20.0
        await put(store, b"y")
    other = other_program(path)
    versions = [version for (version,) in other.execute("SELECT version FROM commits ORDER BY version")]
    other.close()
    assert versions[-1] == 32
    assert len(versions) <= 2


async def test_a_snapshot_older_than_what_is_known_of_commits_is_not_committed(tmp_path: Path) -> None:
    runs = 0
    async with sqlite_store(tmp_path / "state.db") as store:

        async def fn(transaction: Transaction) -> None:
            nonlocal runs
            runs += 1
            await transaction.get(b"a")
            transaction.set(b"b", b"")
            if runs == 1:
                await put(store, b"c")
                await put(store, b"d")
                other = other_program(tmp_path / "state.db")
                other.execute("DELETE FROM commits WHERE version < (SELECT max(version) FROM commits)")
                other.close()
                store._writer._history.start(store._writer._history.newest or 0)

        await store.transact(fn)
    assert runs == 2


async def test_a_long_log_is_started_anew_while_readers_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        store._writer._large_wal = 2**20
        log = Path(f"{path}-wal")
        largest = 0

        async def fn(transaction: Transaction) -> None:
            await transaction.get(b"a")
            for number in range(20):
                transaction.set(b"%d" % number, bytes(50_000))

        for _ in range(5):
            await store.transact(fn)
            largest = max(largest, log.stat().st_size)
        assert largest > 2**20
        await store.aclose()
        assert not log.exists() or log.stat().st_size < largest


# Cancellation


async def test_cancellation_at_any_moment_leaves_nothing_behind(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db", readers=1) as store:

        async def fn(transaction: Transaction) -> None:
            await transaction.get(b"a")
            rows = await transaction.get_range(b"", b"\xff", limit=100)
            transaction.set(b"left", b"%d" % len(rows))
            await transaction.get(b"b")
            transaction.set(b"right", b"%d" % len(rows))

        async def read(steps: int) -> None:
            async for _ in store.read_snapshot(b"", b"\xff"):
                await asyncio.sleep(0)

        for steps in range(60):
            tasks = [asyncio.create_task(store.transact(fn)), asyncio.create_task(read(steps))]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert store._readers.busy == 0
        rows = dict(await read_all(store, b"", b"\xff"))
        assert rows.get(b"left") == rows.get(b"right")
        await put(store, b"a")


async def test_what_is_read_at_once_goes_to_the_thread_together(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        await put(store, b"7", b"seven")
    hops = 0

    class CountingReader(Reader):
        def _submit(self, work: Callable[[], _T]) -> "Future[_T]":
            nonlocal hops
            hops += 1
            return super()._submit(work)

    reader = CountingReader(StateFile(path, busy_seconds=1, jitter=random.Random(1)))
    found = await asyncio.gather(*(reader.read(partial(sqlite_reader.get, key=b"%d" % key)) for key in range(500)))
    assert [value for _, value in found if value is not None] == [b"seven"]
    assert {version for version, _ in found} == {1}
    assert hops == 1
    await asyncio.wrap_future(reader.close())


async def test_after_a_failed_read_nothing_is_read_without_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        await put(store, b"a")
    reader = Reader(StateFile(path, busy_seconds=1, jitter=random.Random(1)))
    read = partial(sqlite_reader.get, key=b"a")

    def broken(raw: sqlite3.Connection) -> None:
        raw.execute("SELECT broken")

    first, *others = await asyncio.gather(
        reader.read(read), reader.read(broken), reader.read(read), return_exceptions=True
    )
    assert first == (1, b"")
    assert [type(each) for each in others] == [StateUnavailable, StateUnavailable]
    reader.roll_back()
    assert await reader.read(read) == (1, b"")
    await asyncio.wrap_future(reader.close())


async def test_a_read_that_a_function_left_behind_is_refused_and_takes_no_snapshot(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        left: list[asyncio.Task[bytes | None]] = []

        async def fn(transaction: Transaction) -> None:
            left.append(asyncio.create_task(transaction.get(b"a")))
            await asyncio.sleep(0)  # it has asked, and nothing is sent yet
            raise LookupError

        with pytest.raises(LookupError):
            await store.transact(fn)
        with pytest.raises(TransactionFinished):
            await left[0]
        await put(store, b"a", b"1")
        assert await read_all(store, b"", b"\xff") == [(b"a", b"1")]


def test_a_loop_that_was_closed_during_a_commit_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteKeyValueStore(SqliteOptions(path), clock=time.monotonic, jitter=random.Random(1))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.probe())
    other = other_program(path)
    other.execute("BEGIN IMMEDIATE")
    taken = threading.Event()
    take = store._writer._take

    def take_and_tell() -> list[Commit]:
        batch = take()
        taken.set()
        return batch

    store._writer._take = take_and_tell
    writing = loop.create_task(put(store, b"a"))
    loop.run_until_complete(asyncio.sleep(0))
    assert taken.wait(30)
    loop.close()
    other.execute("ROLLBACK")
    other.close()
    store._writer.close().result()
    del writing

    async def again() -> None:
        async with sqlite_store(path) as later:
            await put(later, b"b")
            assert [key for key, _ in await read_all(later, b"", b"\xff")] == [b"a", b"b"]

    asyncio.run(again())
