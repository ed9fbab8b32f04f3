"""A SQLite file that several open, on a real file."""

import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from storage_proxy.common import sqlite_file
from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.sqlite_file import FileKind, SqliteFile

KIND = FileKind("test", 0x54455354, 1, ("CREATE TABLE rows (key BLOB PRIMARY KEY)",), StateUnavailable)


def file(path: Path) -> SqliteFile:
    return SqliteFile(KIND, path, busy_seconds=20, jitter=random.Random(1))


def test_a_file_that_another_one_makes_while_it_is_looked_at_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.db"
    opened: list[sqlite3.Connection] = []
    other = threading.Thread(target=lambda: file(path).connect().close())

    class Looking(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement == "PRAGMA user_version" and not opened:
                opened.append(self)
                other.start()
                other.join(0.3)  # it is through by then, unless what is looked at is held
            return super().execute(statement, *parameters)

    plain = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        factory = sqlite3.Connection if threading.current_thread() is other else Looking
        connection: sqlite3.Connection = plain(*arguments, factory=factory, **options)
        return connection

    monkeypatch.setattr(sqlite_file.sqlite3, "connect", connect)
    connection = file(path).connect()
    other.join(20)
    assert not other.is_alive()
    assert connection.raw.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    connection.close()


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StateUnavailable, match="another program"):
        file(tmp_path / "other.db").connect()
