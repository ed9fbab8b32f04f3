"""Topics and their messages in the bus file: what is published, read, counted and removed.

The law: an offset is given once. Everything here runs in a transaction of its caller's, in the bus's thread.
"""

import json
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from storage_proxy.bus.port import Event, Message, TopicPosition
from storage_proxy.bus.sizes import key_bytes

_PRUNED_AT_ONCE = 1_000

_READ = """SELECT offset, key, value, headers, timestamp FROM messages
WHERE topic = ? AND partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?"""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much is read at once: so many messages, so many bytes of theirs."""

    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that exists."""

    id: int
    name: str
    partitions: int


def ensure_topic(raw: sqlite3.Connection, name: str, partitions: int) -> Topic:
    """The topic, made with so many partitions if it does not exist."""
    raw.execute("INSERT OR IGNORE INTO topics (name, partitions) VALUES (?, ?)", (name, partitions))
    topic, existing = raw.execute("SELECT id, partitions FROM topics WHERE name = ?", (name,)).fetchone()
    raw.executemany("INSERT OR IGNORE INTO ends VALUES (?, ?, 0)", [(topic, each) for each in range(existing)])
    return Topic(topic, name, existing)


def partition_of(key: bytes | None, value: bytes, partitions: int) -> int:
    """Where an event goes: the same key to the same partition, in every process and for ever."""
    return zlib.crc32(value if key is None else key) % partitions


def append(raw: sqlite3.Connection, topic: Topic, events: Sequence[Event], timestamp: float) -> None:
    ends: dict[int, int] = {}
    rows = []
    for event in events:
        key = key_bytes(event)
        value = event.value or b""
        partition = partition_of(key, value, topic.partitions)
        if partition not in ends:
            ends[partition] = end(raw, topic, partition)
        headers = json.dumps({name: each.decode("latin-1") for name, each in event.headers.items()})
        rows.append((topic.id, partition, ends[partition], key, value, headers, timestamp))
        ends[partition] += 1
    raw.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    raw.executemany(
        "UPDATE ends SET next = ? WHERE topic = ? AND partition = ?",
        [(following, topic.id, partition) for partition, following in ends.items()],
    )


def end(raw: sqlite3.Connection, topic: Topic, partition: int) -> int:
    """The offset of the next message to be published."""
    row = raw.execute("SELECT next FROM ends WHERE topic = ? AND partition = ?", (topic.id, partition)).fetchone()
    return int(row[0])


def read(
    raw: sqlite3.Connection, topic: Topic, partition: int, begin: int, before: int, limits: BatchLimits
) -> list[Message]:
    """Messages from offset ``begin`` to below ``before``; at least one if there is any, however large."""
    messages: list[Message] = []
    taken = 0
    cursor = raw.execute(_READ, (topic.id, partition, begin, before, limits.messages))
    for offset, key, value, headers, timestamp in cursor:
        taken += len(key or b"") + len(value) + len(headers)
        if messages and taken > limits.bytes:
            break
        decoded = {name: each.encode("latin-1") for name, each in json.loads(headers).items()}
        messages.append(Message(topic.name, partition, offset, key, value, timestamp, decoded))
    cursor.close()
    return messages


def earliest(raw: sqlite3.Connection, topic: Topic, partition: int) -> int:
    """The offset of the first message that is kept, or of the next one where none is."""
    row = raw.execute(
        "SELECT min(offset) FROM messages WHERE topic = ? AND partition = ?", (topic.id, partition)
    ).fetchone()
    return end(raw, topic, partition) if row[0] is None else int(row[0])


def committed(raw: sqlite3.Connection, topic: Topic, group: str, partition: int) -> int:
    """The next offset that the group gets."""
    row = raw.execute(
        "SELECT next FROM offsets WHERE topic = ? AND name = ? AND partition = ?", (topic.id, group, partition)
    ).fetchone()
    return earliest(raw, topic, partition) if row is None else int(row[0])


def positions(raw: sqlite3.Connection, topic: Topic, group: str) -> list[TopicPosition]:
    found = []
    for partition in range(topic.partitions):
        offset = committed(raw, topic, group, partition)
        row = raw.execute(
            "SELECT timestamp FROM messages WHERE topic = ? AND partition = ? AND offset >= ? ORDER BY offset LIMIT 1",
            (topic.id, partition, offset),
        ).fetchone()
        found.append(TopicPosition(partition, offset, end(raw, topic, partition), None if row is None else row[0]))
    return found


def prune(raw: sqlite3.Connection, older_than: float) -> int:
    """Remove some messages that are older and that every group has consumed; how many. There may be more.

    A topic that no group has consumed keeps all: nobody has seen them.
    """
    removed = 0
    consumed = raw.execute("SELECT topic, partition, min(next) FROM offsets GROUP BY topic, partition").fetchall()
    for topic, partition, before in consumed:
        oldest = raw.execute(
            "SELECT offset, timestamp FROM messages WHERE topic = ? AND partition = ? AND offset < ?"
            " ORDER BY offset LIMIT ?",
            (topic, partition, before, _PRUNED_AT_ONCE),
        )
        old = [offset for offset, _ in takewhile(lambda row: row[1] < older_than, oldest)]
        oldest.close()
        if old:
            removed += raw.execute(
                "DELETE FROM messages WHERE topic = ? AND partition = ? AND offset <= ?", (topic, partition, old[-1])
            ).rowcount
    return removed
