"""The file of the SQLite engine: what is in it."""

import random
from pathlib import Path

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.sqlite_file import FileKind, SqliteFile

# A BLOB is compared by memcmp. `commits` names what each of the last commits wrote; see `sqlite_commits`.
STATE_FILE = FileKind(
    "state",
    application_id=0x53504B56,  # "SPKV"
    layout=1,
    schema=(
        "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE commits (version INTEGER PRIMARY KEY, committed_at REAL NOT NULL, written BLOB NOT NULL)",
    ),
    unavailable=StateUnavailable,
)

translated = STATE_FILE.translated


class StateFile(SqliteFile):
    """The state file at ``path``."""

    def __init__(self, path: Path, *, busy_seconds: float, jitter: random.Random) -> None:
        super().__init__(STATE_FILE, path, busy_seconds=busy_seconds, jitter=jitter)
