"""A SQLite file of ours: how it is opened, shared by processes, and what its errors mean.

The law: a commit is on the disk before it is reported (WAL, synchronous=FULL), and a file that is not ours, is damaged
or cannot be written to is refused with its reason; it is never repaired, emptied or replaced. A file that this process
had open and that is gone is away until it is back: an empty one in its place would forget everything.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage_proxy.common.errors import ServiceError

_T = TypeVar("_T")

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


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is for. ``name`` is what messages call it; ``application_id`` and ``layout`` stand in the file, the
    statements of ``schema`` make a new one, ``unavailable`` is what its errors are raised as.
    """

    name: str
    application_id: int
    layout: int
    schema: Sequence[str]
    unavailable: type[ServiceError]

    def failure(self, what: str) -> ServiceError:
        """The error that says ``what`` of the file."""
        return self.unavailable(f"The {self.name} file {what}")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)  # absent where the module itself complains
            if code is None:
                raise self.failure("is closed") from error
            name = error.sqlite_errorname
            if code & 0xFF in _BUSY:
                raise self.failure(f"is locked by other programs ({name})") from error
            raise self.failure(f"{_MEANINGS.get(code & 0xFF, 'failed')} ({name})") from error
        except OSError as error:
            raise self.failure(f"cannot be reached ({type(error).__name__})") from error


class SqliteFile:
    """Opens connections to ``path``. Waits for other processes' locks up to ``busy_seconds``, with jitter.

    The first connection makes the file where there is none.
    """

    def __init__(self, kind: FileKind, path: Path, *, busy_seconds: float, jitter: random.Random) -> None:
        self.kind = kind
        self.path = path
        self._busy_seconds = busy_seconds
        self._jitter = jitter
        self._may_create = True

    def connect(self) -> "Connection":
        """A connection for the calling thread alone."""
        with self.kind.translated():
            mode = "rwc" if self._may_create else "rw"
            if not self._may_create and not self.path.stat().st_size:  # SQLite would remove what its log still holds
                raise self.kind.failure("was emptied while it was open")
            address = f"{self.path.absolute().as_uri()}?mode={mode}"
            raw = sqlite3.connect(address, uri=True, timeout=0, isolation_level=None, cached_statements=64)
            try:
                self.patiently(lambda: self._prepare(raw))
                self._may_create = False
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
        raw.execute("BEGIN")
        with committed(raw):  # of one moment: another process may be making the file
            (application,) = raw.execute("PRAGMA application_id").fetchone()
            (layout,) = raw.execute("PRAGMA user_version").fetchone()
            (tables,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            self._create(raw)
        elif application != self.kind.application_id:
            raise self.kind.failure("is a database of another program")
        elif layout != self.kind.layout:
            raise self.kind.failure(f"has layout {layout}, this program knows {self.kind.layout}")
        (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self.kind.failure(f"cannot have a write-ahead log here (it is in mode {mode!r})")

    def _create(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("BEGIN IMMEDIATE")
        with committed(raw):
            (tables,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:  # another process may have been first
                for statement in self.kind.schema:
                    raw.execute(statement)
                raw.execute(f"PRAGMA application_id = {self.kind.application_id}")
                raw.execute(f"PRAGMA user_version = {self.kind.layout}")


class Connection:
    """One connection, and which file it is connected to."""

    def __init__(self, file: SqliteFile, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self._file = file
        self._identity = self._identify()

    def check_file(self) -> None:
        """Raise when the path names another file by now, or none: what is written here would be lost."""
        if self._identify() != self._identity:
            raise self._file.kind.failure("was removed or replaced while it was open")

    def _identify(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            status = self._file.path.stat()
            return status.st_dev, status.st_ino
        return None

    def begin_immediate(self) -> None:
        """Begin a transaction that may write; waits for other processes'."""
        self._file.patiently(lambda: self.raw.execute("BEGIN IMMEDIATE"))

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may write; waits for other processes'."""
        self.begin_immediate()
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
