"""The file of the embedded bus: how it is opened, what is in it, and what its errors mean to the port.

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

from storage_proxy.common.errors import BusUnavailable

_T = TypeVar("_T")

_APPLICATION_ID = 0x53504256  # "SPBV"
_LAYOUT = 1

SCHEMA = (
    "CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL)",
    # `next` is the offset of the next message: it outlives the messages themselves.
    """CREATE TABLE ends (topic INTEGER, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY (topic, partition))
    WITHOUT ROWID""",
    """CREATE TABLE messages (topic INTEGER, partition INTEGER, offset INTEGER, key BLOB, value BLOB NOT NULL,
    headers TEXT NOT NULL, timestamp REAL NOT NULL, PRIMARY KEY (topic, partition, offset))""",
    """CREATE TABLE offsets (topic INTEGER, name TEXT, partition INTEGER, next INTEGER NOT NULL,
    PRIMARY KEY (topic, name, partition)) WITHOUT ROWID""",
    # `name` is a group's. A member holds what it owns until `expires`, in seconds since the epoch.
    """CREATE TABLE members (topic INTEGER, name TEXT, member TEXT, expires REAL NOT NULL,
    PRIMARY KEY (topic, name, member)) WITHOUT ROWID""",
    """CREATE TABLE owners (topic INTEGER, name TEXT, partition INTEGER, member TEXT NOT NULL,
    PRIMARY KEY (topic, name, partition)) WITHOUT ROWID""",
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


class BusFile:
    """Opens connections to ``path``. Waits for other processes' locks up to ``busy_seconds``, with jitter."""

    def __init__(self, path: Path, *, busy_seconds: float, jitter: random.Random) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._jitter = jitter

    def connect(self) -> "Connection":
        """A connection for the calling thread alone."""
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
            raise BusUnavailable("The bus file is a database of another program")
        elif layout != _LAYOUT:
            raise BusUnavailable(f"The bus file has layout {layout}, this program knows {_LAYOUT}")
        (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise BusUnavailable(f"The bus file cannot have a write-ahead log here (it is in mode {mode!r})")

    def _create(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("BEGIN IMMEDIATE")
        with committed(raw):
            (tables,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:  # another process may have been first
                for statement in SCHEMA:
                    raw.execute(statement)


class Connection:
    """One connection, and which file it is connected to."""

    def __init__(self, file: BusFile, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self._file = file
        self._identity = self._identify()

    def check_file(self) -> None:
        """Raise when the path names another file by now, or none: what is written here would be lost."""
        if self._identify() != self._identity:
            raise BusUnavailable("The bus file was removed or replaced while it was open")

    def _identify(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            status = self._file.path.stat()
            return status.st_dev, status.st_ino
        return None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may write; waits for other processes'."""
        self._file.patiently(lambda: self.raw.execute("BEGIN IMMEDIATE"))
        with committed(self.raw):
            yield self.raw

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one moment."""
        self.raw.execute("BEGIN")
        with committed(self.raw):
            yield self.raw

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.raw.close()


@contextmanager
def committed(raw: sqlite3.Connection) -> Iterator[None]:
    """Commit the open transaction, or roll it back when anything is raised."""
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
            raise BusUnavailable("The bus file is closed") from error
        name = error.sqlite_errorname
        if code & 0xFF in _BUSY:
            raise BusUnavailable(f"The bus file is locked by other programs ({name})") from error
        meaning = _MEANINGS.get(code & 0xFF, "failed")
        raise BusUnavailable(f"The bus file {meaning} ({name})") from error
    except OSError as error:
        raise BusUnavailable(f"The bus file cannot be reached ({type(error).__name__})") from error
