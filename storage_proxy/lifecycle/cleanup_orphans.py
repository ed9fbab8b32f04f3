"""cleanup-orphans: removes objects under ``runs/`` that no record knows.

The law: whatever is or may yet be announced stays. An announcement follows its upload within ``orphan_seconds``; so of
an object that is older than that, seen from the oldest message that is not consumed, every announcement has been heard,
and has left a record or a dead letter. What is removed is claimed before (see `orphan_claims`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage_proxy.bus.dead_letters import dead_letter_topic
from storage_proxy.bus.port import EventBus
from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import StorageTimeout
from storage_proxy.common.events import RUNS_PREFIX
from storage_proxy.common.steps import step
from storage_proxy.lifecycle.horizon import DeadLetterNames, heard_until
from storage_proxy.lifecycle.jobs import Tally, portions
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.lifecycle.orphan_claims import ACT_SECONDS, OrphanClaims
from storage_proxy.state.port import KeyValueStore
from storage_proxy.state.records import Records
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat, BlobStore, DeletesBlobs

_log = logging.getLogger(__name__)
_CLAIMED_AT_ONCE = 200
_PARALLEL_STATS = 16
_LONGEST_UPLOAD_SECONDS = 86_400.0
"""Uploads that were begun later may be under way, however young orphans may be."""


@dataclass(frozen=True, slots=True)
class OrphanOptions:
    """``ingest_topic`` is read by ``ingest_group``."""

    ingest_topic: str
    ingest_group: str
    orphan_seconds: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What protects an object: being as young as ``cutoff`` (epoch seconds), or named in a dead letter."""

    cutoff: float
    letters: DeadLetterNames

    def may_be_orphan(self, stat: BlobStat) -> bool:
        """Folders are left alone, and so is a file name that is no text: no record, and no claim, can be of it."""
        return (
            stat.last_modified < self.cutoff
            and not stat.key.endswith("/")
            and _is_text(stat.key)
            and stat.key not in self.letters
        )


class CleanupOrphans:
    """The job."""

    name = "cleanup-orphans"

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        bus: EventBus,
        options: OrphanOptions,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        self._bus = bus
        self._options = options
        self._clock = clock

    async def run(self, lock: HeldLock, tally: Tally) -> None:
        claims = OrphanClaims(self._store, self._records, lock, clock=self._clock)
        if not tally.dry_run:
            await claims.clear_lapsed()
        wanted = await self._wanted()
        for name, store in self._buckets:
            if isinstance(store, DeletesBlobs):
                await _BucketCleaning(name, store, store, wanted, claims, self._clock).run(tally)
                if not tally.dry_run:
                    await self._discard_uploads(name, store)
            else:
                _log.warning("The bucket %s cannot delete: its orphans stay", name)

    async def _wanted(self) -> _Wanted:
        """First how far the group is, then the dead letters: what was consumed before lies there by now."""
        options = self._options
        heard = await heard_until(self._bus, options.ingest_topic, options.ingest_group, self._clock())
        letters = await DeadLetterNames.read(self._bus, dead_letter_topic(options.ingest_topic))
        return _Wanted(heard - options.orphan_seconds, letters)

    async def _discard_uploads(self, name: str, store: DeletesBlobs) -> None:
        seconds = max(self._options.orphan_seconds, _LONGEST_UPLOAD_SECONDS)
        if count := await store.discard_uploads(RUNS_PREFIX, older_than=self._clock() - seconds):
            _log.info("Discarded %d uploads to bucket %s that were never completed", count, name)


class _BucketCleaning:
    """One bucket's part of a run. ``store`` and ``deletes`` are one object, of two abilities."""

    def __init__(
        self,
        name: str,
        store: BlobStore,
        deletes: DeletesBlobs,
        wanted: _Wanted,
        claims: OrphanClaims,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._store = store
        self._deletes = deletes
        self._wanted = wanted
        self._claims = claims
        self._clock = clock

    async def run(self, tally: Tally) -> None:
        async for page in self._store.list(RUNS_PREFIX):
            if tally.is_full:
                return
            tally.look_at(len(page))
            old = [stat.key for stat in page if self._wanted.may_be_orphan(stat)]
            orphans = (await self._claims.orphans(self._name, old))[: tally.room] if old else []
            tally.find([f"{self._name}/{key}" for key in orphans])
            if not tally.dry_run:
                for keys in portions(orphans, _CLAIMED_AT_ONCE):
                    tally.remove(await self._remove(keys))
            tally.tell()

    async def _remove(self, keys: Sequence[str]) -> int:
        claimed = await self._claims.claim(self._name, keys)
        step("orphan-claimed")
        removed = await self._delete(claimed.keys, deadline=claimed.at + ACT_SECONDS)
        step("orphan-deleted")
        # Not reached when the deletion failed: it may be under way, so the claims stay until they end.
        await self._claims.clear(claimed)
        return removed

    async def _delete(self, keys: Sequence[str], *, deadline: float) -> int:
        """Delete those that are still old: one may have been written again since it was listed."""
        stats = await map_bounded(_PARALLEL_STATS, self._store.stat, keys)
        old = [stat.key for stat in stats if stat is not None and self._wanted.may_be_orphan(stat)]
        left = deadline - self._clock()
        if left <= 0:
            _log.warning("The claims of %d objects are too old to act on: they stay for the next run", len(old))
            return 0
        if not old:
            return 0
        try:
            async with asyncio.timeout(left):
                await self._deletes.delete_many(old)
        except TimeoutError as error:
            raise StorageTimeout("The orphans were not deleted in time") from error
        return len(old)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
