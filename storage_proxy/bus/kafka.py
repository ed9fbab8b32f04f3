"""The EventBus on a Kafka cluster, by aiokafka.

The law: Kafka keeps the promises; this holds one producer, and a consumer for each member and each look.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from storage_proxy.bus.kafka_background import Background
from storage_proxy.bus.kafka_consumer import KafkaMember, message_of
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_logs import drop_repetitions
from storage_proxy.bus.kafka_options import KafkaOptions, reader_options
from storage_proxy.bus.kafka_producer import KafkaProducer
from storage_proxy.bus.kafka_topics import KafkaTopics
from storage_proxy.bus.observer import BusObserver, NoObserver
from storage_proxy.bus.partitions import Consumption
from storage_proxy.bus.port import Event, Handler, Message, TopicPosition
from storage_proxy.bus.sizes import check_sizes
from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.pauses import PausePolicy

_LOOK_MILLISECONDS = 200
_HEAD_BYTES = 2**14  # enough for the first message of a partition; Kafka sends it even if it is larger


@asynccontextmanager
async def open_kafka_bus(
    options: KafkaOptions, *, observer: BusObserver | None = None, jitter: random.Random | None = None
) -> AsyncIterator["KafkaBus"]:
    """The bus, closed on leaving. It opens while Kafka is away; `probe` says whether it is there."""
    drop_repetitions()
    bus = KafkaBus(options, observer or NoObserver(), jitter or random.SystemRandom())
    try:
        yield bus
    finally:
        await bus.aclose()


class KafkaBus:
    """The `EventBus` over one cluster."""

    def __init__(self, options: KafkaOptions, observer: BusObserver, jitter: random.Random) -> None:
        self._options = options
        self._observer = observer
        self._jitter = jitter
        self._background = Background(options.request_timeout)
        self._topics = KafkaTopics(options, self._background)
        self._producer = KafkaProducer(options, self._background)

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        check_sizes(topic, events, self._options.max_event_bytes)
        if not events:
            return
        await self._topics.ensure(topic)
        try:
            await self._producer.send(topic, events)
        except BusUnavailable:
            self._topics.forget(topic)
            raise
        self._observer.published(topic, len(events))

    def consume(self, topic: str, group: str, handler: Handler) -> AbstractAsyncContextManager[None]:
        pauses = PausePolicy(self._options.first_pause, self._options.longest_pause)
        consumption = Consumption(topic, group, handler, pauses, self._observer, self._jitter)
        return KafkaMember(self._options, consumption, self._topics, self._background).running()

    async def positions(self, topic: str, group: str) -> Sequence[TopicPosition]:
        partitions = await self._partitions(topic)
        async with translated(f"looking at {topic}", seconds=self._options.request_timeout):
            return await self._background.finish(self._positions(partitions, group))

    async def _positions(self, partitions: Sequence[TopicPartition], group: str) -> Sequence[TopicPosition]:
        async with self._reader(group, partitions, max_partition_fetch_bytes=_HEAD_BYTES) as reader:
            async with asyncio.timeout(self._options.request_timeout):
                # The offsets before the ends: what is committed is never beyond what there was.
                committed = {each: await reader.committed(each) for each in partitions}
                begins = await reader.beginning_offsets(partitions)
                ends = await reader.end_offsets(partitions)
                nexts = {each: _next(committed[each], begins[each], ends[each]) for each in partitions}
                oldest = await _first_timestamps(reader, nexts, ends)
        return [TopicPosition(each.partition, nexts[each], ends[each], oldest.get(each)) for each in partitions]

    async def browse(self, topic: str) -> AsyncIterator[Sequence[Message]]:
        seconds = self._options.request_timeout
        partitions = await self._partitions(topic)
        async with translated(f"browsing {topic}"), self._reader(None, partitions) as reader:
            async with translated(f"browsing {topic}", seconds=seconds):
                begins = await reader.beginning_offsets(partitions)
                ends = await reader.end_offsets(partitions)
                for each in partitions:
                    reader.seek(each, begins[each])
            waiting = [each for each in partitions if begins[each] < ends[each]]
            while waiting:
                async with translated(f"browsing {topic}", seconds=seconds):
                    found = await _some(reader, waiting)
                    waiting = [each for each in waiting if await reader.position(each) < ends[each]]
                for of, records in found.items():
                    if messages := [message_of(each) for each in records if each.offset < ends[of]]:
                        yield messages

    async def probe(self) -> None:
        await self._producer.probe()

    async def aclose(self) -> None:
        await self._producer.aclose()
        await self._background.aclose()

    async def _partitions(self, topic: str) -> Sequence[TopicPartition]:
        return [TopicPartition(topic, each) for each in range(await self._topics.partitions(topic))]

    @asynccontextmanager
    async def _reader(
        self, group: str | None, partitions: Iterable[TopicPartition], **more: Any
    ) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer of all ``partitions`` that is no member of ``group``."""
        reader = AIOKafkaConsumer(**(dict(reader_options(self._options, group)) | more))
        async with self._background.running(reader):
            reader.assign(partitions)
            yield reader


def _next(committed: int | None, begin: int, end: int) -> int:
    """Where the group goes on: at the beginning where it has not begun, and where the topic was made anew since."""
    return committed if committed is not None and begin <= committed <= end else begin


async def _some(reader: AIOKafkaConsumer, waiting: Sequence[TopicPartition]) -> dict[TopicPartition, list[Any]]:
    """Messages of one of the partitions at least; or none where a partition went past its end without one."""
    before = [await reader.position(each) for each in waiting]
    while True:
        found: dict[TopicPartition, list[Any]] = await reader.getmany(*waiting, timeout_ms=_LOOK_MILLISECONDS)
        if found or before != [await reader.position(each) for each in waiting]:
            return found


async def _first_timestamps(
    reader: AIOKafkaConsumer, nexts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> dict[TopicPartition, float]:
    """When the message at each offset was published; partitions that have none there are left out."""
    waiting = [each for each in nexts if nexts[each] < ends[each]]
    for each in nexts:
        reader.seek(each, nexts[each])
    reader.pause(*(each for each in nexts if each not in waiting))
    oldest: dict[TopicPartition, float] = {}
    while waiting:
        for of, records in (await _some(reader, waiting)).items():
            oldest.setdefault(of, records[0].timestamp / 1000)
        waiting = [each for each in waiting if each not in oldest and await reader.position(each) < ends[each]]
    return oldest
