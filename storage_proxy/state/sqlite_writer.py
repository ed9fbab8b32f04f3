"""The one thread of a process that writes to the state file: commits that wait together share one fsync.

The law: what is reported as committed is on the disk; a commit is all there or not at all; each is checked against
everything that was committed after its snapshot, by this process or another, under the file's write lock.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.sqlite_file import Connection
from storage_proxy.state import limits
from storage_proxy.state.attempts import TooOld
from storage_proxy.state.overlay import Overlay
from storage_proxy.state.port import AttemptFailed
from storage_proxy.state.sqlite_answers import deliver
from storage_proxy.state.sqlite_commits import History, Reads, Written
from storage_proxy.state.sqlite_file import StateFile, translated

_MAX_COMMITS = 256
_MAX_BYTES = limits.MAX_TRANSACTION_BYTES
# Longer than any transaction lives: the rows in `commits` serve those that are still running.
_KEEP_SECONDS = 2 * limits.MAX_TRANSACTION_SECONDS
_PRUNE_ROWS = 1_000
_LARGE_WAL_BYTES = 64 * 2**20
_CHECKPOINT_MILLISECONDS = 1_000

_PUT = "INSERT INTO rows (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class Commit:
    """What a transaction read from the snapshot of version ``snapshot``, and what it writes.

    ``done`` is settled in the event loop that waits, when the commit is durable or has failed.
    """

    snapshot: int
    reads: Reads
    writes: Overlay
    size: int
    done: "asyncio.Future[None]"


class Writer:
    """Takes commits from any event loop. One whose ``done`` is cancelled before its turn is not made.

    ``wall_clock`` says when a commit happened, for pruning only.
    """

    def __init__(self, file: StateFile, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_clock = wall_clock
        self._executor = ThreadPoolExecutor(1, "state-writer")
        self._queue: deque[Commit] = deque()
        self._connection: Connection | None = None
        self._history = History()
        self._large_wal = _LARGE_WAL_BYTES

    def submit(self, commit: Commit) -> None:
        self._queue.append(commit)
        self._in_thread(self._commit_waiting)

    def probe(self) -> "Future[None]":
        """Whether the file could be written to now."""
        return self._in_thread(self._probe)

    def close(self) -> "Future[None]":
        """Finish what is queued, then close. Idempotent."""
        try:
            closed = self._in_thread(self._disconnect)
        except StateUnavailable:
            closed = Future()
            closed.set_result(None)
        self._executor.shutdown(wait=False)
        return closed

    def _in_thread(self, work: Callable[[], None]) -> "Future[None]":
        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # shut down
            raise StateUnavailable("The state store is closed") from error

    # What follows runs in the thread.

    def _commit_waiting(self) -> None:
        batch = self._take()
        if not batch:  # an earlier call took them
            return
        outcomes = self._outcomes(batch)
        deliver([(commit.done, None, outcome) for commit, outcome in zip(batch, outcomes, strict=True)])
        self._shorten_wal()

    def _outcomes(self, batch: list[Commit]) -> list[Exception | None]:
        """For each commit None, or why it is not committed."""
        try:
            with translated():
                return self._commit(batch)
        except Exception as error:  # noqa: BLE001 whatever it is, somebody waits for it
            self._disconnect()
            detail = error.detail if isinstance(error, StateUnavailable) else "The state store failed in a commit"
            return [_caused(StateUnavailable(detail), error) for _ in batch]

    def _take(self) -> list[Commit]:
        batch: list[Commit] = []
        size = 0
        while self._queue and len(batch) < _MAX_COMMITS and (not batch or size + self._queue[0].size <= _MAX_BYTES):
            commit = self._queue.popleft()
            if not commit.done.cancelled():
                batch.append(commit)
                size += commit.size
        return batch

    def _commit(self, batch: list[Commit]) -> list[Exception | None]:
        connection = self._connected()
        connection.begin_immediate()
        try:
            self._load_history(connection)
            outcomes, written = self._apply(connection, batch)
            if written:
                oldest = self._prune(connection, written[-1].version)
                connection.check_file()
                connection.raw.execute("COMMIT")
                self._history.extend(written)
                self._history.forget(oldest)
        finally:
            if connection.raw.in_transaction:
                connection.raw.execute("ROLLBACK")
        return outcomes

    def _load_history(self, connection: Connection) -> None:
        """Learn what other processes have committed since the last time."""
        since = self._history.newest
        if since is None:
            self._history.start(0)
        rows = connection.raw.execute(
            "SELECT version, written FROM commits WHERE version > ? ORDER BY version", (since or 0,)
        )
        self._history.extend(Written.decode(version, encoded) for version, encoded in rows)

    def _apply(self, connection: Connection, batch: list[Commit]) -> tuple[list[Exception | None], list[Written]]:
        outcomes: list[Exception | None] = []
        written: list[Written] = []
        version = self._history.newest or 0
        for commit in batch:
            outcome = self._refusal(commit, written)
            if outcome is None:
                version += 1
                made = Written(version, frozenset(commit.writes.values), tuple(commit.writes.cleared))
                self._write(connection, commit.writes, made)
                written.append(made)
            outcomes.append(outcome)
        return outcomes, written

    def _refusal(self, commit: Commit, before: list[Written]) -> AttemptFailed | None:
        if not commit.reads:
            return None
        if not self._history.knows_since(commit.snapshot):
            return TooOld("its snapshot is older than what is known of commits")
        if self._history.conflicts(commit.reads, commit.snapshot) or any(
            each.conflicts(commit.reads) for each in before
        ):
            return AttemptFailed("conflict")
        return None

    def _write(self, connection: Connection, writes: Overlay, made: Written) -> None:
        execute = connection.raw.execute
        for begin, end in writes.cleared:
            execute("DELETE FROM rows WHERE key >= ? AND key < ?", (begin, end))
        for key, value in writes.values.items():
            if value is None:
                execute("DELETE FROM rows WHERE key = ?", (key,))
            else:
                execute(_PUT, (key, value))
        execute("INSERT INTO commits VALUES (?, ?, ?)", (made.version, self._wall_clock(), made.encode()))

    def _prune(self, connection: Connection, newest: int) -> int:
        """Forget some commits that no running transaction can conflict with; the oldest version that stays."""
        oldest, committed_at = self._oldest(connection)
        now = self._wall_clock()
        if abs(now - committed_at) > _KEEP_SECONDS:  # in the future, too: the clock may have been set back
            connection.raw.execute(
                "DELETE FROM commits WHERE version < ? AND abs(? - committed_at) > ?",
                (min(newest, oldest + _PRUNE_ROWS), now, _KEEP_SECONDS),
            )
            oldest, _ = self._oldest(connection)
        return oldest

    @staticmethod
    def _oldest(connection: Connection) -> tuple[int, float]:
        row = connection.raw.execute("SELECT version, committed_at FROM commits ORDER BY version LIMIT 1").fetchone()
        version, committed_at = row
        return int(version), float(committed_at)

    def _shorten_wal(self) -> None:
        """Start the log anew when readers that follow on each other have kept it from shrinking by itself."""
        with suppress(OSError, StateUnavailable), translated():
            size = Path(f"{self._file.path}-wal").stat().st_size
            if size < self._large_wal or self._connection is None:
                return
            raw = self._connection.raw
            raw.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MILLISECONDS}")
            try:
                (busy, _, _) = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute("PRAGMA busy_timeout = 0")
            self._large_wal = size + _LARGE_WAL_BYTES if busy else _LARGE_WAL_BYTES

    def _probe(self) -> None:
        try:
            with translated():
                connection = self._connected()
                connection.check_file()
                connection.begin_immediate()
                connection.raw.execute("ROLLBACK")
        except StateUnavailable:
            self._disconnect()
            raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._file.connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._history = History()
        if connection is not None:
            connection.close()


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error
