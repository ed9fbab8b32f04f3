"""The relay: publishes the outbox.

The law: publish first, then clear the row. A row may be published twice, by a relay that was killed in between or has
lost its lock, and is never cleared without having been published. Only the holder of the lock works, so that rows come
out in their order; the others stand by.
"""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from storage_proxy.bus.port import Event, EventBus
from storage_proxy.common.errors import Internal, ServiceError
from storage_proxy.common.pauses import PausePolicy, Pauses
from storage_proxy.common.steps import step
from storage_proxy.lifecycle.locks import HeldLock, Locks
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import OutboxRow, Records

RELAY_LOCK = "relay"

_log = logging.getLogger(__name__)
_BATCH_ROWS = 500
_PAUSES = PausePolicy(first=0.2, longest=10.0)
_COUNTED_ROWS = 10_000
_MEASURE_SECONDS = 5.0

_Rows = Sequence[tuple[tuple[Any, ...], OutboxRow]]


class Relay:
    """The relay of one process. ``topics`` maps what a row calls its topic to the topic's name on the bus.

    ``owner`` is for people; ``poll_seconds`` is how often an empty outbox is looked at. Safe to run anywhere, any
    number of times.
    """

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        bus: EventBus,
        topics: Mapping[str, str],
        locks: Locks,
        metrics: LifecycleMetrics,
        *,
        owner: str,
        poll_seconds: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pauses: PausePolicy = _PAUSES,
        jitter: random.Random | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._bus = bus
        self._topics = dict(topics)
        self._locks = locks
        self._metrics = metrics
        self._owner = owner
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._pauses = Pauses(pauses, jitter or random.SystemRandom())
        self._measured_at = float("-inf")

    async def run(self) -> NoReturn:
        """Publish, or stand by, until cancelled."""
        await self._locks.stand_by(RELAY_LOCK, self._owner, self._work)

    async def run_once(self, lock: HeldLock) -> int:
        """Publish and clear the next rows; how many. Raises `LockLost`, `BusUnavailable` and `StateUnavailable`."""

        async def next_rows(transaction: Transaction) -> _Rows:
            await lock.check(transaction)
            return await self._records.outbox.page(transaction, limit=_BATCH_ROWS)

        rows = await self._store.transact(next_rows)
        if not rows:
            return 0
        await self._publish(rows)
        step("outbox-published")

        async def clear(transaction: Transaction) -> None:
            for key, _ in rows:
                self._records.outbox.clear(transaction, *key)

        await self._store.transact(clear)  # right without the lock, too: what is published may be cleared
        return len(rows)

    async def _work(self, lock: HeldLock) -> None:
        self._metrics.relay_active.set(1)
        try:
            while True:
                try:
                    published = await self.run_once(lock)
                    await self._measure()
                except ServiceError as error:
                    self._metrics.relay_errors.labels(error.code).inc()
                    _log.warning("The outbox has to wait: %s", error)
                    await self._pauses.wait()
                    await self._measure_if_possible()
                    continue
                self._pauses.reset()
                if published < _BATCH_ROWS:
                    await asyncio.sleep(self._poll_seconds)
        finally:
            for gauge in (self._metrics.relay_active, self._metrics.outbox_rows, self._metrics.outbox_oldest_seconds):
                gauge.set(0)

    async def _publish(self, rows: _Rows) -> None:
        by_topic: defaultdict[str, list[Event]] = defaultdict(list)
        for _, row in rows:
            topic = self._topics.get(row.topic)
            if topic is None:
                raise Internal(f"The outbox has an event for {row.topic!r}, a topic that this version does not know")
            by_topic[topic].append(Event(row.key, row.value.encode()))
        for topic, events in by_topic.items():
            await self._bus.publish(topic, events)
            self._metrics.published.labels(topic).inc(len(events))

    async def _measure_if_possible(self) -> None:
        try:
            await self._measure()
        except ServiceError:
            _log.debug("The outbox cannot be measured", exc_info=True)

    async def _measure(self) -> None:
        """Count what waits, now and then, and not without end."""
        if self._monotonic() < self._measured_at + _MEASURE_SECONDS:
            return
        self._measured_at = self._monotonic()

        async def fn(transaction: Transaction) -> tuple[int, int | None]:
            count, oldest_ms = 0, None
            async for batch in transaction.get_batches(*self._records.outbox.range(), snapshot=True):
                if oldest_ms is None:
                    oldest_ms = self._records.outbox.elements(batch[0][0])[0]
                count += len(batch)
                if count >= _COUNTED_ROWS:
                    break
            return min(count, _COUNTED_ROWS), oldest_ms

        count, oldest_ms = await self._store.transact(fn)
        self._metrics.outbox_rows.set(count)
        self._metrics.outbox_oldest_seconds.set(0 if oldest_ms is None else max(0, self._clock() - oldest_ms / 1000))
