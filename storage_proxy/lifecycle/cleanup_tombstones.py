"""cleanup-tombstones: forgets runs that were deleted long ago.

The law: a tombstone stays while a message of its run may still come: for ``tombstone_seconds`` after the second pass,
seen from the oldest message of the ingest topic that is not consumed; and for as long as a dead letter names the run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from storage_proxy.bus.dead_letters import dead_letter_topic
from storage_proxy.bus.port import EventBus
from storage_proxy.lifecycle.horizon import DeadLetterNames, heard_until
from storage_proxy.lifecycle.jobs import Tally
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Records, RunEnd, Tombstone

_ROWS = 500


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What keeps a tombstone: an end as late as ``cutoff`` (epoch seconds), or a dead letter of its run."""

    cutoff: float
    letters: DeadLetterNames

    def may_go(self, run_id: str, tombstone: Tombstone) -> bool:
        return tombstone.state is RunEnd.SWEPT and tombstone.ended_at < self.cutoff and run_id not in self.letters


class CleanupTombstones:
    """The job. ``ingest_topic`` is read by ``ingest_group``."""

    name = "cleanup-tombstones"

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        bus: EventBus,
        *,
        ingest_topic: str,
        ingest_group: str,
        tombstone_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._bus = bus
        self._ingest_topic = ingest_topic
        self._ingest_group = ingest_group
        self._tombstone_seconds = tombstone_seconds
        self._clock = clock

    async def run(self, lock: HeldLock, tally: Tally) -> None:
        heard = await heard_until(self._bus, self._ingest_topic, self._ingest_group, self._clock())
        letters = await DeadLetterNames.read(self._bus, dead_letter_topic(self._ingest_topic))
        wanted = _Wanted(heard - self._tombstone_seconds, letters)
        position: bytes | None = b""
        while position is not None and not tally.is_full:
            position = await self._page(lock, tally, wanted, position)

    async def _page(self, lock: HeldLock, tally: Tally, wanted: _Wanted, position: bytes) -> bytes | None:
        """Returns where to go on, None at the end."""

        async def fn(transaction: Transaction) -> tuple[int, list[str], bytes | None]:
            await lock.check(transaction)
            rows = await self._records.tombstones.page(transaction, limit=_ROWS, start_after=position)
            old = [run_id for (run_id,), tombstone in rows if wanted.may_go(run_id, tombstone)][: tally.room]
            if not tally.dry_run:
                for run_id in old:
                    self._records.tombstones.clear(transaction, run_id)
            return len(rows), old, self._records.tombstones.key(*rows[-1][0]) if len(rows) == _ROWS else None

        looked_at, old, position_after = await self._store.transact(fn)
        tally.look_at(looked_at)
        tally.find(old)
        tally.remove(0 if tally.dry_run else len(old))
        tally.tell()
        return position_after
