"""Who holds which partition: the members of a group in the bus file, and the offsets they commit.

The law: a partition has one owner at most, an owner is a living member, and nobody else commits for it. A member whose
lease was taken is never one again: it comes back under another name, so that what it still holds cannot be committed.
Everything here runs in a transaction of its caller's, in the bus's thread.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage_proxy.bus import embedded_log as log
from storage_proxy.bus.embedded_log import Topic
from storage_proxy.bus.partitions import PartitionLost


@dataclass(frozen=True, slots=True)
class Membership:
    """One member of one group."""

    topic: Topic
    group: str
    member: str

    @property
    def key(self) -> tuple[int, str]:
        return self.topic.id, self.group


@dataclass(frozen=True, slots=True)
class Share:
    """What a member owns, with the offset where each partition goes on; those that it should give up; whether there
    are free ones that it should take, or members that have died."""

    owned: Mapping[int, int] = field(default_factory=dict)
    surplus: frozenset[int] = frozenset()
    unsettled: bool = False


def join(raw: sqlite3.Connection, me: Membership, expires: float) -> None:
    raw.execute("INSERT INTO members VALUES (?, ?, ?, ?)", (*me.key, me.member, expires))


def look(raw: sqlite3.Connection, me: Membership, now: float) -> Share:
    """The member's share, changing nothing. Raises `PartitionLost` when it is no member any more."""
    rows = raw.execute("SELECT member, expires FROM members WHERE topic = ? AND name = ?", me.key).fetchall()
    if me.member not in {member for member, _ in rows}:
        raise PartitionLost
    living = sorted(member for member, expires in rows if expires >= now or member == me.member)
    owners = dict(raw.execute("SELECT partition, member FROM owners WHERE topic = ? AND name = ?", me.key).fetchall())
    mine = sorted(partition for partition, member in owners.items() if member == me.member)
    quota = _quota(me.topic.partitions, living, me.member)
    free = me.topic.partitions - sum(owner in living for owner in owners.values())
    return Share(
        owned={partition: log.committed(raw, me.topic, me.group, partition) for partition in mine},
        surplus=frozenset(mine[quota:]),
        unsettled=len(living) < len(rows) or (free > 0 and len(mine) < quota),
    )


def renew(raw: sqlite3.Connection, me: Membership, now: float, expires: float) -> Share:
    """Extend the lease, bury the dead, take free partitions up to a fair share. Raises `PartitionLost` like `look`."""
    look(raw, me, now)
    raw.execute(
        "UPDATE members SET expires = ? WHERE topic = ? AND name = ? AND member = ?", (expires, *me.key, me.member)
    )
    raw.execute("DELETE FROM members WHERE topic = ? AND name = ? AND expires < ?", (*me.key, now))
    raw.execute(
        "DELETE FROM owners WHERE topic = ?1 AND name = ?2"
        " AND member NOT IN (SELECT member FROM members WHERE topic = ?1 AND name = ?2)",
        me.key,
    )
    living = [
        row[0] for row in raw.execute("SELECT member FROM members WHERE topic = ? AND name = ? ORDER BY member", me.key)
    ]
    owners = dict(raw.execute("SELECT partition, member FROM owners WHERE topic = ? AND name = ?", me.key).fetchall())
    room = _quota(me.topic.partitions, living, me.member) - sum(owner == me.member for owner in owners.values())
    free = [partition for partition in range(me.topic.partitions) if partition not in owners]
    for partition in free[: max(0, room)]:
        raw.execute("INSERT INTO owners VALUES (?, ?, ?, ?)", (*me.key, partition, me.member))
        # From now on the group is known, and what it has not consumed is kept for it.
        next_offset = log.committed(raw, me.topic, me.group, partition)
        raw.execute("INSERT OR IGNORE INTO offsets VALUES (?, ?, ?, ?)", (*me.key, partition, next_offset))
    return look(raw, me, now)


def commit(raw: sqlite3.Connection, me: Membership, partition: int, offset: int) -> None:
    """Raises `PartitionLost` when the member does not own the partition."""
    owner = raw.execute(
        "SELECT member FROM owners WHERE topic = ? AND name = ? AND partition = ?", (*me.key, partition)
    )
    if owner.fetchone() != (me.member,):
        raise PartitionLost
    raw.execute(
        "UPDATE offsets SET next = ? WHERE topic = ? AND name = ? AND partition = ?", (offset, *me.key, partition)
    )


def release(raw: sqlite3.Connection, me: Membership, partitions: frozenset[int]) -> None:
    raw.executemany(
        "DELETE FROM owners WHERE topic = ? AND name = ? AND partition = ? AND member = ?",
        [(*me.key, partition, me.member) for partition in partitions],
    )


def leave(raw: sqlite3.Connection, me: Membership) -> None:
    raw.execute("DELETE FROM owners WHERE topic = ? AND name = ? AND member = ?", (*me.key, me.member))
    raw.execute("DELETE FROM members WHERE topic = ? AND name = ? AND member = ?", (*me.key, me.member))


def _quota(partitions: int, living: list[str], member: str) -> int:
    """A fair share: they differ by one at most."""
    share, rest = divmod(partitions, len(living))
    return share + (living.index(member) < rest)
