"""The file of the SQLite engine: how it is opened, what is in it, and what its errors mean to the port.

The law: a commit is on the disk before it is reported (WAL, synchronous=FULL), and a file that is not ours, is damaged
or cannot be written to is refused with its reason; it is never repaired, emptied or replaced.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from storage_proxy.common.errors import StateUnavailable

_T = TypeVar("_T")

_APPLICATION_ID = 0x53504B56  # "SPKV"
_LAYOUT = 1

# A BLOB is compared by memcmp. `commits` names what each of the last commits wrote; see `sqlite_commits`.
_SCHEMA = (
    "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE commits (version INTEGER PRIMARY KEY, committed_at REAL NOT NULL, written BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_LAYOUT}",
)

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_MEANINGS = {
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database, or is damaged",
    sqlite3.SQLITE_READONLY: "cannot be written to",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "cannot be opened",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
}


class StateFile:
    """Opens connections to ``path``. Waits for other processes' locks up to ``busy_seconds``, with jitter."""

    def __init__(self, path: Path, *, busy_seconds: float, jitter: random.Random) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._jitter = jitter

    def connect(self) -> "Connection":
        """A connection for the calling thread alone."""
        with translated():
            raw = sqlite3.connect(self.path, timeout=0, isolation_level=None, cached_statements=64)
            try:
                self.patiently(lambda: self._prepare(raw))
                return Connection(self, raw)
            except BaseException:
                raw.close()
                raise

    def patiently(self, work: Callable[[], _T]) -> _T:
        """The result of ``work``, tried again while another process holds the lock that it needs."""
        deadline = time.monotonic() + self._busy_seconds
        pause = 0.001
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(self._jitter.uniform(pause / 2, pause))
            pause = min(pause * 2, 0.05)

    def _prepare(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA fullfsync = ON")  # macOS
        (application,) = raw.execute("PRAGMA application_id").fetchone()
        (layout,) = raw.execute("PRAGMA user_version").fetchone()
        (tables,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            self._create(raw)
        elif application != _APPLICATION_ID:
            raise StateUnavailable("The state file is a database of another program")
        elif layout != _LAYOUT:
            raise StateUnavailable(f"The state file has layout {layout}, this program knows {_LAYOUT}")
        (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StateUnavailable(f"The state file cannot have a write-ahead log here (it is in mode {mode!r})")

    def _create(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA journal_mode = WAL")
        with immediate(raw):
            (tables,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:  # another process may have been first
                for statement in _SCHEMA:
                    raw.execute(statement)


class Connection:
    """One connection, and which file it is connected to."""

    def __init__(self, file: StateFile, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self._file = file
        self._identity = self._identify()

    def check_file(self) -> None:
        """Raise when the path names another file by now, or none: what is written here would be lost."""
        if self._identify() != self._identity:
            raise StateUnavailable("The state file was removed or replaced while it was open")

    def _identify(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            status = self._file.path.stat()
            return status.st_dev, status.st_ino
        return None

    def begin_immediate(self) -> None:
        """Begin a transaction that may write; waits for other processes'."""
        self._file.patiently(lambda: self.raw.execute("BEGIN IMMEDIATE"))

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.raw.close()


@contextmanager
def immediate(raw: sqlite3.Connection) -> Iterator[None]:
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield
        raw.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            raw.execute("ROLLBACK")
        raise


@contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors as the port's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # absent where the module itself complains
        if code is None:
            raise StateUnavailable("The state file is closed") from error
        name = error.sqlite_errorname
        if code & 0xFF in _BUSY:
            raise StateUnavailable(f"The state file is locked by other programs ({name})") from error
        meaning = _MEANINGS.get(code & 0xFF, "failed")
        raise StateUnavailable(f"The state file {meaning} ({name})") from error
    except OSError as error:
        raise StateUnavailable(f"The state file cannot be reached ({type(error).__name__})") from error
