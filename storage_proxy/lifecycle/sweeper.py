"""The second pass over deleted runs, when their last upload URL has ended.

The law: a sweep row is cleared in the transaction that marks its tombstone as swept, or when there is none; so no
deleted run is forgotten, and one that fails keeps no other from being swept.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import Internal, ServiceError
from storage_proxy.lifecycle.eraser import RunEraser
from storage_proxy.lifecycle.locks import HeldLock, Locks
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.state.keys import after
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Records, RunEnd

SWEEPER_LOCK = "sweeper"

_log = logging.getLogger(__name__)
_ROWS = 100
_PARALLEL_RUNS = 4
_POLL_SECONDS = 5.0

_Due = tuple[bytes, int, str]  # the row's key, when it was due, the run


class Sweeper:
    """The sweeper of one process; only the holder of the lock works. ``owner`` is for people."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        eraser: RunEraser,
        locks: Locks,
        metrics: LifecycleMetrics,
        *,
        owner: str,
        poll_seconds: float = _POLL_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._eraser = eraser
        self._locks = locks
        self._metrics = metrics
        self._owner = owner
        self._poll_seconds = poll_seconds
        self._clock = clock

    async def run(self) -> NoReturn:
        """Sweep what is due, or stand by, until cancelled."""
        await self._locks.stand_by(SWEEPER_LOCK, self._owner, self._work)

    async def run_once(self) -> int:
        """Sweep every run that is due; how many are done. Those that fail stay due. Raises `StateUnavailable`.

        Two at once do the same work twice, and no harm: the lock spares it.
        """
        swept = failed = 0
        position = b""
        while due := await self._due(position):
            outcomes = await map_bounded(_PARALLEL_RUNS, self._sweep, due)
            swept += sum(outcomes)
            failed += len(outcomes) - sum(outcomes)
            position = due[-1][0]
        self._metrics.sweeps_overdue.set(failed)
        return swept

    async def _work(self, _lock: HeldLock) -> None:
        while True:
            await self.run_once()
            await asyncio.sleep(self._poll_seconds)

    async def _due(self, position: bytes) -> Sequence[_Due]:
        async def fn(transaction: Transaction) -> Sequence[_Due]:
            begin, end = self._records.sweeps.until(int(self._clock()) + 1)
            begin = max(begin, after(position)) if position else begin
            rows = await transaction.get_range(begin, end, limit=_ROWS) if begin < end else ()
            return [(key, *self._records.sweeps.elements(key)) for key, _ in rows]

        return await self._store.transact(fn)

    async def _sweep(self, due: _Due) -> bool:
        _, at, run_id = due
        try:
            await self._eraser.second_pass(run_id)
            await self._clear_stray(at, run_id)
        except ServiceError as error:
            self._metrics.run_passes.labels("second", error.code).inc()
            _log.warning("The second pass over run %s has to wait: %s", run_id, error)
            return False
        except Exception:  # noqa: BLE001 a defect that one run shows keeps no other from being swept
            self._metrics.run_passes.labels("second", Internal.code).inc()
            _log.exception("The second pass over run %s has to wait", run_id)
            return False
        self._metrics.run_passes.labels("second", "done").inc()
        return True

    async def _clear_stray(self, at: int, run_id: str) -> None:
        """Clear a row that no tombstone waits for."""

        async def fn(transaction: Transaction) -> None:
            tombstone = await self._records.tombstones.get(transaction, run_id)
            if tombstone is None or tombstone.sweep_at != at or tombstone.state is RunEnd.SWEPT:
                self._records.sweeps.clear(transaction, at, run_id)

        await self._store.transact(fn)
