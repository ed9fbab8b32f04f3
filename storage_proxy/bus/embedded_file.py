"""The file of the embedded bus: what is in it."""

import random
from pathlib import Path

from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.sqlite_file import FileKind, SqliteFile

BUS_FILE = FileKind(
    "bus",
    application_id=0x53504256,  # "SPBV"
    layout=1,
    schema=(
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
    ),
    unavailable=BusUnavailable,
)

translated = BUS_FILE.translated


class BusFile(SqliteFile):
    """The bus file at ``path``."""

    def __init__(self, path: Path, *, busy_seconds: float, jitter: random.Random) -> None:
        super().__init__(BUS_FILE, path, busy_seconds=busy_seconds, jitter=jitter)
