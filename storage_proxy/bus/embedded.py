"""The EventBus in one SQLite file, for any number of processes of one machine.

The law: the file is the bus. What a process knows besides is only what to look at next.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from storage_proxy.bus import embedded_log as log
from storage_proxy.bus.embedded_consumer import EmbeddedMember, Lease
from storage_proxy.bus.embedded_file import BusFile
from storage_proxy.bus.embedded_log import BatchLimits, Topic
from storage_proxy.bus.embedded_watch import Watch
from storage_proxy.bus.embedded_worker import Worker
from storage_proxy.bus.observer import BusObserver, NoObserver
from storage_proxy.bus.partitions import Consumption
from storage_proxy.bus.port import Event, Handler, Message, TopicPosition
from storage_proxy.bus.sizes import check_sizes
from storage_proxy.common.pauses import PausePolicy


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """``path`` is made if it does not exist, its directory is not. Times are in seconds.

    ``partitions`` is what a new topic gets, for ever. A member that has not been heard of for ``lease`` has lost its
    partitions. Messages older than ``retention`` that every group has consumed are removed; None keeps all. Other
    processes' messages are noticed within ``poll``. ``busy`` is how long a write waits for other processes' writes.
    """

    path: Path
    partitions: int = 8
    lease: float = 10.0
    retention: float | None = None
    poll: float = 0.03
    busy: float = 5.0
    max_batch_messages: int = 500
    max_batch_bytes: int = 2**20
    max_event_bytes: int = 2**20
    pauses: PausePolicy = field(default_factory=PausePolicy)


@asynccontextmanager
async def open_embedded_bus(
    options: EmbeddedOptions,
    *,
    observer: BusObserver | None = None,
    wall_clock: Callable[[], float] = time.time,
    jitter: random.Random | None = None,
) -> AsyncIterator["EmbeddedBus"]:
    """The bus, closed on leaving. Call it in the process that uses it, not before a fork.

    Raises `BusUnavailable` where the file cannot be what it has to be.
    """
    bus = EmbeddedBus(options, observer or NoObserver(), wall_clock, jitter or random.SystemRandom())
    try:
        await bus.probe()
        yield bus
    finally:
        await bus.aclose()


class EmbeddedBus:
    """The `EventBus` over one file."""

    def __init__(
        self, options: EmbeddedOptions, observer: BusObserver, wall_clock: Callable[[], float], jitter: random.Random
    ) -> None:
        self._options = options
        self._observer = observer
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._worker = Worker(BusFile(options.path, busy_seconds=options.busy, jitter=jitter))
        self._watch = Watch(self._worker, poll_seconds=options.poll, upkeep=self._prune)
        self._limits = BatchLimits(options.max_batch_messages, options.max_batch_bytes)
        self._topics: dict[str, Topic] = {}

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        check_sizes(topic, events, self._options.max_event_bytes)
        if not events:
            return
        into = await self._topic(topic)
        await self._worker.write(lambda raw: log.append(raw, into, events, self._wall_clock()))
        self._watch.ring()
        self._observer.published(topic, len(events))

    def consume(self, topic: str, group: str, handler: Handler) -> AbstractAsyncContextManager[None]:
        consumption = Consumption(topic, group, handler, self._options.pauses, self._observer, self._jitter)
        lease = Lease(self._options.lease, self._wall_clock)
        find_topic = partial(self._topic, topic)
        return EmbeddedMember(consumption, find_topic, self._worker, self._watch, lease, self._limits).running()

    async def positions(self, topic: str, group: str) -> Sequence[TopicPosition]:
        of = await self._topic(topic)
        return await self._worker.read(lambda raw: log.positions(raw, of, group))

    async def browse(self, topic: str) -> AsyncIterator[Sequence[Message]]:
        of = await self._topic(topic)
        ends = await self._worker.read(lambda raw: [log.end(raw, of, each) for each in range(of.partitions)])
        for partition, end in enumerate(ends):
            begin = 0
            while messages := await self._worker.read(
                partial(log.read, topic=of, partition=partition, begin=begin, before=end, limits=self._limits)
            ):
                yield messages
                begin = messages[-1].offset + 1

    async def probe(self) -> None:
        await self._worker.probe()

    async def aclose(self) -> None:
        await self._worker.aclose()

    async def _topic(self, name: str) -> Topic:
        if name not in self._topics:
            partitions = self._options.partitions
            self._topics[name] = await self._worker.write(lambda raw: log.ensure_topic(raw, name, partitions))
        return self._topics[name]

    async def _prune(self) -> None:
        if self._options.retention is not None:
            older_than = self._wall_clock() - self._options.retention
            while await self._worker.write(lambda raw: log.prune(raw, older_than)):
                pass
