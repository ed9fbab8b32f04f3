"""The consumer of the control topic: a run_deleted becomes the first pass over its run.

The law: the tombstone is believed, never the message; a message is done when its run is `deleted`, or has no tombstone.
A fault of anything makes the message wait. What is no event goes to the dead letters, and so does a run whose bucket is
not configured here, which nothing that is waited for would change: its sweep row keeps it.
"""

import logging
from collections.abc import Sequence
from enum import Enum, auto

from storage_proxy.bus.dead_letters import bury
from storage_proxy.bus.port import Batch, EventBus, Message
from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import BucketNotFound, Internal, ServiceError
from storage_proxy.common.events import Poison, parse_run_deleted
from storage_proxy.lifecycle.eraser import RunEraser
from storage_proxy.lifecycle.metrics import LifecycleMetrics

_log = logging.getLogger(__name__)
_PARALLEL_RUNS = 8


class _Outcome(Enum):
    """What became of a run's first pass."""

    DONE = auto()
    WAITS = auto()
    HOMELESS = auto()  # its bucket is not configured here


class ControlWorker:
    """The handler for batches of the control topic."""

    def __init__(
        self,
        eraser: RunEraser,
        bus: EventBus,
        metrics: LifecycleMetrics,
        *,
        parallel_runs: int = _PARALLEL_RUNS,
    ) -> None:
        self._eraser = eraser
        self._bus = bus
        self._metrics = metrics
        self._parallel_runs = parallel_runs

    async def handle(self, batch: Batch) -> int:
        """How many messages are done, from the first. Runs are erased side by side, so one that is large or fails
        keeps none of the others of its batch from being erased."""
        runs = [await self._run_of(message) for message in batch.messages]
        deleted = list(dict.fromkeys(run for run in runs if run is not None))
        outcomes = dict(zip(deleted, await map_bounded(self._parallel_runs, self._erase, deleted), strict=True))
        waiting = (index for index, run in enumerate(runs) if outcomes.get(run or "") is _Outcome.WAITS)
        done = next(waiting, len(runs))
        homeless = [
            message
            for message, run in zip(batch.messages[:done], runs, strict=False)
            if outcomes.get(run or "") is _Outcome.HOMELESS
        ]
        await self._bury(batch.topic, homeless, "the run's bucket is not configured")
        return done

    async def _run_of(self, message: Message) -> str | None:
        """Which run the message is of; None, and a dead letter, when it is none."""
        try:
            return parse_run_deleted(message.value or b"").run_id
        except Poison as poison:
            reason = poison.reason
        await self._bury(message.topic, [message], reason)
        return None

    async def _bury(self, topic: str, dead: Sequence[Message], reason: str) -> None:
        if dead:
            await bury(self._bus, topic, [(message, reason) for message in dead])
            self._metrics.poison.inc(len(dead))

    async def _erase(self, run_id: str) -> _Outcome:
        try:
            await self._eraser.first_pass(run_id)
        except ServiceError as error:
            self._metrics.run_passes.labels("first", error.code).inc()
            _log.warning("The deletion of run %s has to wait: %s", run_id, error)
            return _Outcome.HOMELESS if isinstance(error, BucketNotFound) else _Outcome.WAITS
        except Exception:  # noqa: BLE001 a defect that one run shows keeps no other from being deleted
            self._metrics.run_passes.labels("first", Internal.code).inc()
            _log.exception("The deletion of run %s has to wait", run_id)
            return _Outcome.WAITS
        self._metrics.run_passes.labels("first", "done").inc()
        _log.info("Run %s is deleted", run_id)
        return _Outcome.DONE
