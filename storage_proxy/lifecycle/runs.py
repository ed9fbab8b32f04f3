"""Runs as a whole: what one is, which blobs it has, and that it is to be gone.

The law: a run is hidden by the transaction that writes its tombstone, and its objects are removed by nothing else than
the outbox row of that same transaction.
"""

import asyncio
import base64
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage_proxy.common.errors import InvalidRequest, RunNotFound
from storage_proxy.common.events import run_deleted, unsafe_path_reason
from storage_proxy.common.wire import BlobStateFilter, RunAccess, RunBlobsQuery, RunDescription
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import (
    BlobRecord,
    Mark,
    OutboxRow,
    Records,
    RunEnd,
    RunRecord,
    RunTotals,
    Tombstone,
)

CONTROL_TOPIC = "control"
"""What an outbox row calls the topic of deletions."""

NamedBlob = tuple[str, BlobRecord]
"""A blob's path, and its record."""

_SCAN_ROWS = 1000
_SCAN_SECONDS = 2.0


class RunStillDeleting(Exception):
    """The first pass of the run's deletion is not through: its objects are still there."""


@dataclass(frozen=True, slots=True)
class _Scanned:
    rows: Sequence[NamedBlob]
    at_end: bool


class Runs:
    """The runs in a store. Times are in seconds, the clock's since the epoch.

    A deleted run is swept ``second_pass_seconds`` after its deletion and after the end of its last upload URL.
    """

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        *,
        second_pass_seconds: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._store = store
        self._records = records
        self._second_pass_seconds = second_pass_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._new_id = new_id

    async def describe(self, run_id: str, access: RunAccess) -> RunDescription:
        """The run as it is now. Raises `RunNotFound`, also when ``access`` does not allow its bucket."""

        async def fn(transaction: Transaction) -> RunDescription:
            tombstone, run = await self._known(transaction, run_id, access)
            if tombstone is not None:
                return _ended(run_id, tombstone)
            if run is None:
                raise RunNotFound
            totals = await self._records.totals.get(transaction, run_id) or RunTotals()
            return RunDescription(
                run_id=run_id, bucket=run.bucket, state="active", blobs=totals.blobs, bytes=totals.bytes
            )

        return await self._store.transact(fn)

    async def page(self, run_id: str, query: RunBlobsQuery) -> tuple[list[NamedBlob], str | None]:
        """The next blobs in the byte order of their paths, and the cursor of the page after; None at the end.

        The work of a call is bounded: where few blobs are in the state that is asked for, a page may hold fewer than
        ``query.limit``, or none, and a cursor. A deleted run has no blobs. Raises `RunNotFound`, and `InvalidRequest`
        for a cursor that is none.
        """
        position = None if query.cursor is None else _path_of(query.cursor)
        give_up = self._monotonic() + _SCAN_SECONDS
        found: list[NamedBlob] = []
        while True:
            scanned = await self._scan(run_id, query, position)
            for path, record in scanned.rows:
                if query.state in (BlobStateFilter.ALL, record.state):
                    if len(found) == query.limit:
                        return found, _cursor(found[-1][0])
                    found.append((path, record))
                position = path
            if scanned.at_end:
                return found, None
            if position is not None and (len(found) == query.limit or self._monotonic() >= give_up):
                return found, _cursor(position)

    async def delete(self, run_id: str, access: RunAccess) -> RunDescription:
        """Hide the run at once and for good, and have its objects removed. Again, or for an unknown run, no error.

        Raises `RunNotFound` when ``access`` does not allow its bucket.
        """
        event_id = self._new_id()

        async def fn(transaction: Transaction) -> RunDescription:
            tombstone, run = await self._known(transaction, run_id, access)
            if tombstone is None:
                tombstone = self._bury(transaction, run_id, run, event_id, access)
            return _ended(run_id, tombstone)

        return await self._store.transact(fn)

    async def clear_tombstone(self, run_id: str, *, force: bool = False) -> bool:
        """Let the run's id be used again; False when it has no tombstone.

        Raises `RunStillDeleting` before the first pass has removed every object, unless ``force``: what is left then
        are objects without records, for cleanup-orphans.
        """

        async def fn(transaction: Transaction) -> bool:
            tombstone = await self._records.tombstones.get(transaction, run_id)
            if tombstone is None:
                return False
            if tombstone.state is RunEnd.DELETING and not force:
                raise RunStillDeleting(run_id)
            self._records.tombstones.clear(transaction, run_id)
            self._records.sweeps.clear(transaction, tombstone.sweep_at, run_id)
            # Without its tombstone a row that the first pass has not come to would be visible again.
            self._records.blobs.clear_all(transaction, run_id)
            self._records.uploads.clear_all(transaction, run_id)
            return True

        return await self._store.transact(fn)

    async def _known(
        self, transaction: Transaction, run_id: str, access: RunAccess
    ) -> tuple[Tombstone | None, RunRecord | None]:
        tombstone, run = await asyncio.gather(
            self._records.tombstones.get(transaction, run_id), self._records.runs.get(transaction, run_id)
        )
        known = tombstone or run
        if known is not None and not access.allows(known.bucket):
            raise RunNotFound
        return tombstone, run

    def _bury(
        self, transaction: Transaction, run_id: str, run: RunRecord | None, event_id: str, access: RunAccess
    ) -> Tombstone:
        now = self._clock()
        upload_until = run.upload_until if run is not None else 0
        sweep_at = math.ceil(max(now, upload_until) + self._second_pass_seconds)
        bucket = run.bucket if run is not None else None
        tombstone = Tombstone(
            bucket,
            RunEnd.DELETING,
            deleted_at=int(now),
            ended_at=int(now),
            sweep_at=sweep_at,
            within=access.names if bucket is None else None,
        )
        event = run_deleted(run_id, bucket, event_id=event_id, now=int(now))
        self._records.tombstones.set(transaction, tombstone, run_id)
        self._records.sweeps.set(transaction, Mark(), sweep_at, run_id)
        self._records.outbox.set(transaction, OutboxRow(CONTROL_TOPIC, run_id, event), int(now * 1000), event_id)
        self._records.runs.clear(transaction, run_id)
        self._records.totals.clear(transaction, run_id)
        return tombstone

    async def _scan(self, run_id: str, query: RunBlobsQuery, position: str | None) -> _Scanned:
        """Rows beyond ``position``, whatever their state."""
        limit = query.limit + 1 if query.state is BlobStateFilter.ALL else _SCAN_ROWS

        async def fn(transaction: Transaction) -> _Scanned:
            tombstone, run = await self._known(transaction, run_id, query)
            if tombstone is not None:
                return _Scanned((), at_end=True)
            if run is None:
                raise RunNotFound
            start_after = b"" if position is None else self._records.blobs.key(run_id, position)
            rows = await self._records.blobs.page(transaction, run_id, limit=limit, start_after=start_after)
            return _Scanned([(key[1], record) for key, record in rows], at_end=len(rows) < limit)

        return await self._store.transact(fn)


def _ended(run_id: str, tombstone: Tombstone) -> RunDescription:
    state = "deleting" if tombstone.state is RunEnd.DELETING else "deleted"
    return RunDescription(run_id=run_id, bucket=tombstone.bucket, state=state, blobs=0, bytes=0)


def _cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")


def _path_of(cursor: str) -> str:
    """Raises `InvalidRequest` for what `_cursor` does not make of any blob's path."""
    try:
        path = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        path = ""
    if unsafe_path_reason(path) is not None or _cursor(path) != cursor:
        raise InvalidRequest(errors=[{"loc": ["cursor"], "msg": "is not a cursor of this listing"}])
    return path
