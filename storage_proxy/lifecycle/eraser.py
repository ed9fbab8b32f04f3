"""The passes over a deleted run: everything under its prefix is removed, then its rows.

The law: what is removed, and where, is decided by the tombstone, and it is looked at again between the steps: without
it nothing more is removed. Each step is idempotent, so a pass that was killed is begun again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from storage_proxy.common.errors import BucketNotFound, StorageError
from storage_proxy.common.events import run_prefix
from storage_proxy.common.steps import step
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.state.keys import after
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Records, RunEnd, Tombstone
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import DeletesBlobs

_ROWS = 500
_PROGRESS = (RunEnd.DELETING, RunEnd.DELETED, RunEnd.SWEPT)


class _TombstoneGone(Exception):
    """The run's id was given free meanwhile: what is there now may be another run's."""


class RunEraser:
    """Removes what deleted runs have left."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        metrics: LifecycleMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        self._metrics = metrics
        self._clock = clock

    async def first_pass(self, run_id: str) -> None:
        """Remove the run's objects and rows; then it is `deleted`. Nothing to do for a run that is, or is not deleted.

        Raises as the stores do, `BucketNotFound` when the run's bucket is not configured here, and `StorageError` when
        it cannot delete.
        """
        tombstone = await self._tombstone(run_id)
        if tombstone is None or tombstone.state is not RunEnd.DELETING:
            return
        try:
            await self._erase(run_id, tombstone)
            await self._clear_rows(run_id, tombstone)
            await self._reach(run_id, tombstone, RunEnd.DELETED)
        except _TombstoneGone:
            return
        step("run-deleted")

    async def second_pass(self, run_id: str) -> None:
        """Remove what uploads have put there since; then the run is `swept`. Raises as the first pass does.

        A first pass that is not through is done before: its event may have outlived its topic's retention.
        """
        await self.first_pass(run_id)
        tombstone = await self._tombstone(run_id)
        if tombstone is None or tombstone.state is not RunEnd.DELETED:
            return
        try:
            await self._erase(run_id, tombstone)
            await self._reach(run_id, tombstone, RunEnd.SWEPT)
        except _TombstoneGone:
            return

    async def _erase(self, run_id: str, tombstone: Tombstone) -> None:
        for name, store in self._stores_of(tombstone):
            async for removed in store.erase(run_prefix(run_id)):
                self._metrics.erased.labels(name).inc(removed)
                step("run-erasing")
                await self._still(run_id, tombstone)

    def _stores_of(self, tombstone: Tombstone) -> Sequence[tuple[str, DeletesBlobs]]:
        names: Sequence[str] = [name for name, _ in self._buckets]
        if tombstone.bucket is not None:
            names = [tombstone.bucket]
        elif tombstone.within is not None:
            names = [name for name in names if name in tombstone.within]
        found = []
        for name in names:
            try:
                store = self._buckets.get(name)
            except BucketNotFound:
                raise BucketNotFound(f"The bucket {name} of a deleted run is not configured here") from None
            if not isinstance(store, DeletesBlobs):
                raise StorageError(f"The bucket {name} of a deleted run cannot delete")
            found.append((name, store))
        return found

    async def _clear_rows(self, run_id: str, tombstone: Tombstone) -> None:
        """Clear the run's blobs, what is due of them, and its upload ids, a bounded number at a time."""
        blobs, due, uploads = self._records.blobs, self._records.due, self._records.uploads

        async def some_blobs(transaction: Transaction) -> bool:
            await self._check(transaction, run_id, tombstone)
            rows = await blobs.page(transaction, run_id, limit=_ROWS)
            for (_, path), record in rows:
                if record.due_ms is not None:
                    due.clear(transaction, record.due_ms, run_id, path)
            if rows:
                transaction.clear_range(blobs.range(run_id)[0], after(blobs.key(*rows[-1][0])))
            return len(rows) == _ROWS

        async def some_uploads(transaction: Transaction) -> bool:
            await self._check(transaction, run_id, tombstone)
            rows = await uploads.page(transaction, run_id, limit=_ROWS)
            if rows:
                transaction.clear_range(uploads.range(run_id)[0], after(uploads.key(*rows[-1][0])))
            return len(rows) == _ROWS

        for some in (some_blobs, some_uploads):
            while await self._store.transact(some):
                step("run-clearing")
            step("run-clearing")

    async def _reach(self, run_id: str, tombstone: Tombstone, end: RunEnd) -> None:
        async def fn(transaction: Transaction) -> None:
            found = await self._check(transaction, run_id, tombstone)
            if _PROGRESS.index(found.state) >= _PROGRESS.index(end):  # never back: another pass may have been faster
                return
            reached = replace(found, state=end, ended_at=int(self._clock()))
            self._records.tombstones.set(transaction, reached, run_id)
            if end is RunEnd.SWEPT:
                self._records.sweeps.clear(transaction, tombstone.sweep_at, run_id)

        await self._store.transact(fn)

    async def _tombstone(self, run_id: str) -> Tombstone | None:
        async def fn(transaction: Transaction) -> Tombstone | None:
            return await self._records.tombstones.get(transaction, run_id)

        return await self._store.transact(fn)

    async def _still(self, run_id: str, tombstone: Tombstone) -> None:
        async def fn(transaction: Transaction) -> None:
            await self._check(transaction, run_id, tombstone)

        await self._store.transact(fn)

    async def _check(self, transaction: Transaction, run_id: str, tombstone: Tombstone) -> Tombstone:
        """The tombstone as it stands: another process may have brought it further, or an attempt of unknown result."""
        found = await self._records.tombstones.get(transaction, run_id)
        if found is None or (found.deleted_at, found.sweep_at) != (tombstone.deleted_at, tombstone.sweep_at):
            raise _TombstoneGone
        return found
