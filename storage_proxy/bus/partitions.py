"""The work on the partitions that a member of a group holds: one task each, the same for every backend.

The law: a partition has one batch under way. An offset is committed after the handler has said what is done, up to the
first message that is not, and never for a partition that is lost or a batch whose handler was cancelled.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from storage_proxy.bus.observer import BusObserver
from storage_proxy.bus.port import Batch, Handler
from storage_proxy.common.concurrency import cancel_and_wait, only_own_cancellation
from storage_proxy.common.errors import ServiceError
from storage_proxy.common.pauses import PausePolicy, Pauses

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

# How long a partition that is taken away may still wait for the commit of what was done.
_COMMIT_GRACE_SECONDS = 2.0


class PartitionLost(Exception):
    """Another member has the partition by now, or may have: nothing can be committed for it."""


class Feed(Protocol):
    """What a backend gives of the partitions that its member holds. Errors other than those named are retried."""

    async def next_batch(self, partition: int) -> Batch:
        """Wait for the messages after those of the last batch, or after the committed offset.

        Raises `PartitionLost`, and `BusUnavailable` while the bus is away.
        """
        ...

    async def commit(self, partition: int, offset: int) -> None:
        """Commit ``offset``, the next one to be consumed. Raises `PartitionLost`, and `BusUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Consumption:
    """Who consumes what, and how patiently."""

    topic: str
    group: str
    handler: Handler
    pauses: PausePolicy
    observer: BusObserver
    jitter: random.Random


class PartitionTasks:
    """The tasks of one member. Its backend starts and stops them as partitions come and go."""

    def __init__(self, consumption: Consumption, feed: Feed) -> None:
        self._consumption = consumption
        self._feed = feed
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def partitions(self) -> frozenset[int]:
        """Those that have been started and not stopped."""
        return frozenset(self._tasks)

    def start(self, partition: int) -> None:
        name = f"{self._consumption.group}: {self._consumption.topic}[{partition}]"
        self._tasks[partition] = asyncio.create_task(self._run(partition), name=name)

    async def stop(self, partitions: Iterable[int]) -> None:
        """Cancel the handlers of ``partitions`` and wait for their end, and for commits that had begun."""
        tasks = [self._tasks.pop(partition) for partition in partitions if partition in self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        await self.stop(self.partitions)

    async def _run(self, partition: int) -> None:
        pauses = self._pauses()
        try:
            while True:
                batch = await self._patiently(lambda: self._feed.next_batch(partition))
                self._observe_consumed(batch)
                while batch.messages:
                    done = await self._done(batch)
                    if done:
                        await self._commit(batch, done)
                        batch = Batch(batch.topic, partition, batch.messages[done:])
                        pauses.reset()
                    if batch.messages:
                        self._observe_retried(batch)
                        await pauses.wait()
        except PartitionLost:
            _log.info("%s has lost partition %d of %s", self._consumption.group, partition, self._consumption.topic)

    async def _done(self, batch: Batch) -> int:
        """How many of the batch's messages are done; 0 when the handler fails."""
        where = (batch.topic, batch.partition, batch.messages[0].offset)
        try:
            with only_own_cancellation():
                done = await self._consumption.handler(batch)
            if not 0 <= done <= len(batch.messages):
                raise ValueError(f"{done} of {len(batch.messages)} messages cannot be done")
        except ServiceError as error:
            _log.warning("%s[%d] waits at offset %d: %s: %s", *where, error.code, error.detail)
            return 0
        except Exception:  # noqa: BLE001 logged, and tried again for ever
            _log.exception("%s[%d] waits at offset %d: its handler failed", *where)
            return 0
        return done

    async def _commit(self, batch: Batch, done: int) -> None:
        """Commit what is done. A cancellation waits a little for it: what is committed is not done again."""
        offset = batch.messages[done - 1].offset + 1
        commit = asyncio.ensure_future(self._patiently(lambda: self._feed.commit(batch.partition, offset)))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait({commit}, timeout=_COMMIT_GRACE_SECONDS)
            raise
        finally:
            await cancel_and_wait(commit)
        self._consumption.observer.committed(batch.topic, self._consumption.group, done)

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What the feed answers in the end: the bus may be away for any time."""
        pauses = self._pauses()
        while True:
            try:
                with only_own_cancellation():
                    return await ask()
            except PartitionLost:
                raise
            except ServiceError as error:
                _log.warning("%s waits for the bus: %s", self._consumption.topic, error.detail)
            except Exception:  # noqa: BLE001 logged, and tried again for ever
                _log.exception("%s waits: the bus failed unexpectedly", self._consumption.topic)
            await pauses.wait()

    def _pauses(self) -> Pauses:
        return Pauses(self._consumption.pauses, self._consumption.jitter)

    def _observe_consumed(self, batch: Batch) -> None:
        self._consumption.observer.consumed(batch.topic, self._consumption.group, len(batch.messages))

    def _observe_retried(self, batch: Batch) -> None:
        self._consumption.observer.retried(batch.topic, self._consumption.group, len(batch.messages))
