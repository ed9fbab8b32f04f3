"""The rows of some blobs and their runs within one transaction.

The law: what belongs together is written together. Totals count verified blobs, a pending blob has its due row, a run
with a blob has its RunRecord; nothing is written for a deleted run, nor outside of the run's bucket.
"""

from collections.abc import Iterable
from typing import Self

from storage_proxy.common.errors import RunBucketMismatch, RunDeleted
from storage_proxy.ingest.places import Place
from storage_proxy.state.keys import after
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import (
    BlobRecord,
    BlobState,
    Claim,
    Mark,
    Records,
    RunRecord,
    RunTotals,
    Tombstone,
)

NO_TOTALS = RunTotals()


class Rows:
    """What was read, with what is to be written on top. `write` writes it; without it nothing happens.

    The rows conflict with whoever changes any of them, but a run's totals only where they are written: an upload that
    is announced need not wait for the blobs of its run that are being verified.
    """

    def __init__(self, transaction: Transaction, records: Records, *, now: float) -> None:
        self._transaction = transaction
        self._records = records
        self._now = now
        self._tombstones: dict[str, Tombstone | None] = {}
        self._runs: dict[str, RunRecord | None] = {}
        self._totals: dict[str, RunTotals | None] = {}
        self._claims: dict[Place, Claim | None] = {}
        self._read: dict[tuple[str, str], BlobRecord | None] = {}
        self._blobs: dict[tuple[str, str], BlobRecord] = {}
        self._changed_runs: dict[str, RunRecord] = {}

    @classmethod
    async def read(cls, transaction: Transaction, records: Records, places: Iterable[Place], *, now: float) -> Self:
        """The rows of ``places``; ``now`` in seconds since the epoch decides which claims have lapsed."""
        rows = cls(transaction, records, now=now)
        wanted = list(dict.fromkeys(places))
        runs = list(dict.fromkeys(place.run_id for place in wanted))
        blobs = list(dict.fromkeys((place.run_id, place.path) for place in wanted))
        values = iter(
            await transaction.get_many(
                [table.key(run_id) for table in (records.tombstones, records.runs) for run_id in runs]
                + [records.blobs.key(*blob) for blob in blobs]
                + [records.claims.key(place.bucket, place.key) for place in wanted]
            )
        )
        rows._tombstones = {run_id: records.tombstones.found(next(values)) for run_id in runs}
        rows._runs = {run_id: records.runs.found(next(values)) for run_id in runs}
        rows._read = {blob: records.blobs.found(next(values)) for blob in blobs}
        rows._claims = {place: records.claims.found(next(values)) for place in wanted}
        totals = await transaction.get_many([records.totals.key(run_id) for run_id in runs], snapshot=True)
        rows._totals = {run_id: records.totals.found(value) for run_id, value in zip(runs, totals, strict=True)}
        return rows

    def admit(self, place: Place) -> None:
        """Raises `RunDeleted` and `RunBucketMismatch` where nothing may be written."""
        if self.is_deleted(place.run_id):
            raise RunDeleted
        run = self.run(place.run_id)
        if run is not None and run.bucket != place.bucket:
            raise RunBucketMismatch

    def is_deleted(self, run_id: str) -> bool:
        return self._tombstones[run_id] is not None

    def run(self, run_id: str) -> RunRecord | None:
        return self._changed_runs.get(run_id) or self._runs[run_id]

    def blob(self, place: Place) -> BlobRecord | None:
        blob = (place.run_id, place.path)
        return self._blobs.get(blob) or self._read[blob]

    def claim(self, place: Place) -> Claim | None:
        """The claim on the blob's object; None, too, when it has lapsed."""
        claim = self._claims[place]
        return claim if claim is not None and claim.until > self._now else None

    def put(self, place: Place, blob: BlobRecord, *, upload_until: int = 0) -> None:
        """Write ``blob`` in the end. ``upload_until`` (epoch seconds) raises the run's."""
        self._blobs[place.run_id, place.path] = blob
        run = self.run(place.run_id)
        if run is None:
            self._changed_runs[place.run_id] = RunRecord(place.bucket, int(self._now), upload_until)
        elif upload_until > run.upload_until:
            self._changed_runs[place.run_id] = RunRecord(run.bucket, run.created_at, upload_until)

    def write(self) -> None:
        """Write what was put: blobs, their due rows, totals, runs. Claims that have lapsed are cleared."""
        totals = dict(self._totals)
        for (run_id, path), blob in self._blobs.items():
            before = self._read[run_id, path]
            if blob == before:
                continue
            self._records.blobs.set(self._transaction, blob, run_id, path)
            self._move_due(run_id, path, before, blob)
            totals[run_id] = _counted(totals[run_id], before, blob)
        for run_id, counted in totals.items():
            if counted is not None and counted != (self._totals[run_id] or NO_TOTALS):
                key = self._records.totals.key(run_id)
                self._transaction.add_read_conflict_range(key, after(key))
                self._records.totals.set(self._transaction, counted, run_id)
        for run_id, run in self._changed_runs.items():
            self._records.runs.set(self._transaction, run, run_id)
        for place, claim in self._claims.items():
            if claim is not None and claim.until <= self._now and (place.run_id, place.path) in self._blobs:
                self._records.claims.clear(self._transaction, place.bucket, place.key)

    def _move_due(self, run_id: str, path: str, before: BlobRecord | None, after: BlobRecord) -> None:
        old = before.due_ms if before is not None else None
        if old == after.due_ms:
            return
        if old is not None:
            self._records.due.clear(self._transaction, old, run_id, path)
        if after.due_ms is not None:
            self._records.due.set(self._transaction, Mark(), after.due_ms, run_id, path)


def _counted(totals: RunTotals | None, before: BlobRecord | None, after: BlobRecord) -> RunTotals:
    totals = totals or NO_TOTALS
    blobs, size = totals.blobs, totals.bytes
    for record, sign in ((before, -1), (after, 1)):
        if record is not None and record.state is BlobState.VERIFIED:
            blobs += sign
            size += sign * (record.size or 0)
    return RunTotals(blobs, size)
