"""One member of a group of the embedded bus: it renews its lease, takes partitions and gives them up.

The law: a partition is given up after its handler has ended; a member that finds its lease gone ends all its handlers
before it joins again under another name.
"""

import asyncio
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from storage_proxy.bus import embedded_groups as groups
from storage_proxy.bus import embedded_log as log
from storage_proxy.bus.embedded_groups import Membership, Share
from storage_proxy.bus.embedded_log import BatchLimits, Topic
from storage_proxy.bus.embedded_watch import Watch
from storage_proxy.bus.embedded_worker import Worker
from storage_proxy.bus.partitions import Consumption, PartitionLost, PartitionTasks
from storage_proxy.bus.port import Batch
from storage_proxy.common.concurrency import only_own_cancellation
from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.pauses import Pauses

_log = logging.getLogger(__name__)

_WITHOUT_END = sys.maxsize
# A partition without messages is looked at so often even if nobody rings: a change may have been missed while the file
# was away.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Lease:
    """For how many seconds a member holds what it owns, by which clock (epoch seconds)."""

    seconds: float
    wall_clock: Callable[[], float]

    def until(self) -> float:
        return self.wall_clock() + self.seconds


class _Feed:
    """The partitions of one member; `Feed` of the shared machinery."""

    def __init__(self, me: Membership, worker: Worker, watch: Watch, limits: BatchLimits) -> None:
        self._me = me
        self._worker = worker
        self._watch = watch
        self._limits = limits
        self._next: dict[int, int] = {}

    def start_at(self, partition: int, offset: int) -> None:
        self._next[partition] = offset

    async def next_batch(self, partition: int) -> Batch:
        topic = self._me.topic
        while True:
            heard = self._watch.listen()
            begin = self._next[partition]
            messages = await self._worker.read(
                partial(
                    log.read, topic=topic, partition=partition, begin=begin, before=_WITHOUT_END, limits=self._limits
                )
            )
            if messages:
                self._next[partition] = messages[-1].offset + 1
                return Batch(topic.name, partition, messages)
            await self._watch.change(heard, seconds=_LOOK_SECONDS)

    async def commit(self, partition: int, offset: int) -> None:
        try:
            await self._worker.write(lambda raw: groups.commit(raw, self._me, partition, offset))
        except PartitionLost:
            self._watch.ring()
            raise


class EmbeddedMember:
    """Consumes while it is `running`."""

    def __init__(
        self,
        consumption: Consumption,
        find_topic: Callable[[], Awaitable[Topic]],
        worker: Worker,
        watch: Watch,
        lease: Lease,
        limits: BatchLimits,
    ) -> None:
        self._consumption = consumption
        self._find_topic = find_topic
        self._worker = worker
        self._watch = watch
        self._lease = lease
        self._limits = limits

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name=f"member of {self._consumption.group}")
        try:
            async with self._watch.polling():
                yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        pauses = Pauses(self._consumption.pauses, self._consumption.jitter)
        while True:
            try:
                with only_own_cancellation():
                    me = await self._join()
                    pauses.reset()
                    await self._consume_as(me)
            except PartitionLost:
                _log.warning("%s has lost its lease on %s", self._consumption.group, self._consumption.topic)
                continue
            except BusUnavailable as error:
                _log.warning("%s cannot join for now: %s", self._consumption.group, error.detail)
            except Exception:  # noqa: BLE001 logged, and tried again for ever
                _log.exception("%s joins again", self._consumption.group)
            await pauses.wait()

    async def _join(self) -> Membership:
        me = Membership(await self._find_topic(), self._consumption.group, uuid.uuid4().hex)
        await self._worker.write(lambda raw: groups.join(raw, me, self._lease.until()))
        return me

    async def _consume_as(self, me: Membership) -> None:
        """Consume until the lease is gone, which raises `PartitionLost`."""
        feed = _Feed(me, self._worker, self._watch, self._limits)
        tasks = PartitionTasks(self._consumption, feed)
        self._watch.ring()
        try:
            while True:
                heard = self._watch.listen()
                await self._settle(me, feed, tasks)
                await self._wait(me, heard)
        finally:
            await tasks.aclose()
            with suppress(BusUnavailable):  # else the lease ends by itself
                await self._worker.write(lambda raw: groups.leave(raw, me))
                self._watch.ring()

    async def _settle(self, me: Membership, feed: _Feed, tasks: PartitionTasks) -> None:
        """Renew the lease, and bring the tasks in line with what is owned."""
        try:
            share = await self._worker.write(
                lambda raw: groups.renew(raw, me, self._lease.wall_clock(), self._lease.until())
            )
        except BusUnavailable as error:
            _log.warning("%s cannot renew its lease for now: %s", self._consumption.group, error.detail)
            return
        await tasks.stop(tasks.partitions - share.owned.keys())
        if share.surplus:
            await tasks.stop(share.surplus)
            with suppress(BusUnavailable):  # else it is still surplus at the next look
                await self._worker.write(lambda raw: groups.release(raw, me, share.surplus))
            self._watch.ring()
        for partition in share.owned.keys() - share.surplus - tasks.partitions:
            feed.start_at(partition, share.owned[partition])
            tasks.start(partition)

    async def _wait(self, me: Membership, heard: asyncio.Event) -> None:
        """Until the lease has to be renewed, or the group looks otherwise than it should."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + self._lease.seconds / 3
        while loop.time() < renew_at:
            await self._watch.change(heard, seconds=renew_at - loop.time())
            heard = self._watch.listen()
            with suppress(BusUnavailable):
                share: Share = await self._worker.read(lambda raw: groups.look(raw, me, self._lease.wall_clock()))
                if share.unsettled or share.surplus:
                    return
