"""Looks again at blobs that were announced and had not arrived.

The law: a record changes only when it is still the one that was looked at, so any number of reconcilers may run; a blob
expires only after a look that began after its deadline; a fault of a store postpones, and decides nothing.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import ServiceError
from storage_proxy.common.steps import step
from storage_proxy.ingest import transitions
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.ingest.verification import Seen, Verifier, contradiction
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Records

_BATCH = 200
_IDLE_SECONDS = 0.5
"""How often the due rows are looked for when there are none."""
_SETTLED_SECONDS = 3.0
"""A younger file of a local bucket may still be in the writing: what it lacks is no contradiction yet."""
_log = logging.getLogger(__name__)


class Found(StrEnum):
    """What a look at a due row came to."""

    VERIFIED = "verified"
    REJECTED = "rejected"
    EXPIRED = "expired"
    WAITING = "waiting"  # not there yet; it will be looked at again
    FAILED = "failed"  # its bucket did not answer; it will be looked at again
    GONE = "gone"  # not pending any more: the row is cleared


@dataclass(frozen=True, slots=True)
class _Due:
    """A due row with the pending record it is for, None when there is none; and what was then found of the blob."""

    due_ms: int
    run_id: str
    path: str
    blob: BlobRecord | None
    seen: Seen | None = None
    looked_at: float = 0.0
    failed: bool = False


class Reconciler:
    """Settles pending blobs. ``clock`` gives seconds since the epoch, ``jitter`` spreads the looks."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        verifier: Verifier,
        *,
        options: IngestOptions,
        metrics: IngestMetrics,
        clock: Callable[[], float] = time.time,
        jitter: random.Random | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._verifier = verifier
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._jitter = jitter or random.SystemRandom()

    async def run(self) -> NoReturn:
        """Look at what is due until cancelled. Raises as `run_once`: whoever runs it begins it again."""
        while True:
            counts = await self.run_once(_BATCH)
            # Postponed rows are not due again at once, so a full page that failed is followed by another one.
            if counts.total() < _BATCH:
                await asyncio.sleep(_IDLE_SECONDS * self._jitter.uniform(0.5, 1))

    async def run_once(self, limit: int, *, dry_run: bool = False) -> Counter[Found]:
        """Look at up to ``limit`` rows that are due; how many came to what. ``dry_run`` changes nothing."""
        due = await self._due(limit)
        looked = await map_bounded(self._options.parallel_requests, self._look, due)
        counts: Counter[Found] = Counter()
        for first in range(0, len(looked), _BATCH):
            counts += await self._settle(looked[first : first + _BATCH], dry_run)
            step("reconciled")
        if not dry_run:
            for found, count in counts.items():
                self._metrics.looks.labels(found.value).inc(count)
        return counts

    async def _due(self, limit: int) -> Sequence[_Due]:
        begin, end = self._records.due.until(int(self._clock() * 1000) + 1)

        async def fn(transaction: Transaction) -> Sequence[_Due]:
            keys = [
                self._records.due.elements(key)
                for key, _ in await transaction.get_range(begin, end, limit=limit, snapshot=True)
            ]
            blobs = await self._records.blobs.get_many(transaction, [(run_id, path) for _, run_id, path in keys])
            return [
                _Due(due_ms, run_id, path, _still_pending(blob, due_ms))
                for (due_ms, run_id, path), blob in zip(keys, blobs, strict=True)
            ]

        return await self._store.transact(fn)

    async def _look(self, due: _Due) -> _Due:
        if due.blob is None:
            return due
        began = self._clock()
        try:
            seen = await self._verifier.look(Place(due.blob.bucket, due.run_id, due.path), size=due.blob.size)
        except ServiceError as error:
            _log.info("a pending blob cannot be looked at", extra={"code": error.code, "bucket": due.blob.bucket})
            return _Due(due.due_ms, due.run_id, due.path, due.blob, failed=True)
        return _Due(due.due_ms, due.run_id, due.path, due.blob, seen, began)

    async def _settle(self, looked: Sequence[_Due], dry_run: bool) -> Counter[Found]:
        async def fn(transaction: Transaction) -> Counter[Found]:
            now = self._clock()
            rows = await Rows.read(transaction, self._records, map(_place, looked), now=now)
            found = [self._settle_one(rows, due, now) for due in looked]
            if not dry_run:
                rows.write()
                for due, each in zip(looked, found, strict=True):
                    if each is Found.GONE:
                        self._records.due.clear(transaction, due.due_ms, due.run_id, due.path)
            return Counter(found)

        return await self._store.transact(fn)

    def _settle_one(self, rows: Rows, due: _Due, now: float) -> Found:
        place = _place(due)
        before = _still_pending(rows.blob(place), due.due_ms)
        if before is None or rows.is_deleted(place.run_id):
            return Found.GONE
        if before != due.blob:  # announced anew since the look: the row stays, and is due
            return Found.WAITING
        if due.failed:
            rows.put(place, transitions.looked_at(before, due_ms=self._next_look(before, now)))
            return Found.FAILED
        if due.seen is None:
            if before.deadline is not None and due.looked_at >= before.deadline:
                rows.put(place, transitions.expired(before))
                return Found.EXPIRED
            rows.put(place, transitions.looked_at(before, due_ms=self._next_look(before, now)))
            return Found.WAITING
        announced = Announced.by_record(before)
        why = contradiction(announced, due.seen)
        if why is not None and 0 <= due.looked_at - due.seen.stat.last_modified < _SETTLED_SECONDS:
            rows.put(place, transitions.looked_at(before, due_ms=int((now + _SETTLED_SECONDS) * 1000)))
            return Found.WAITING
        if why is None:
            rows.put(place, transitions.verified(place, before, announced, due.seen, order=before.order, now=now))
            return Found.VERIFIED
        rows.put(place, transitions.rejected(place, before, announced, why, order=before.order, now=now))
        return Found.REJECTED

    def _next_look(self, before: BlobRecord, now: float) -> int:
        """Milliseconds since the epoch: after twice the time of the look before, but no later than the deadline."""
        options = self._options
        delay = min(options.max_look_seconds, options.first_look_seconds * 2.0 ** min(before.looks + 1, 32))
        at = now + delay * self._jitter.uniform(0.5, 1)
        if before.deadline is not None and before.deadline > now:
            at = min(at, before.deadline)
        return int(at * 1000) + 1


def _still_pending(blob: BlobRecord | None, due_ms: int) -> BlobRecord | None:
    """``blob`` if the row at ``due_ms`` is its own."""
    return blob if blob is not None and blob.state is BlobState.PENDING and blob.due_ms == due_ms else None


def _place(due: _Due) -> Place:
    return Place(due.blob.bucket if due.blob is not None else "", due.run_id, due.path)
