"""One member of a consumer group: aiokafka's consumer, made again whenever it fails.

The law: a rebalance takes every partition away first; the group goes on when their handlers have ended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from storage_proxy.bus.kafka_background import Background
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_options import KafkaOptions, member_options
from storage_proxy.bus.kafka_topics import KafkaTopics
from storage_proxy.bus.partitions import Consumption, PartitionLost, PartitionTasks
from storage_proxy.bus.port import Batch, Message
from storage_proxy.common.concurrency import only_own_cancellation
from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.pauses import Pauses

_log = logging.getLogger(__name__)

_POLL_MILLISECONDS = 1_000


def message_of(record: ConsumerRecord) -> Message:
    headers = {name: value or b"" for name, value in record.headers}
    return Message(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        record.timestamp / 1000,
        headers,
    )


class _Feed:
    """The partitions of one consumer; `Feed` of the shared machinery."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    async def next_batch(self, partition: int) -> Batch:
        """aiokafka fetches the next messages of a partition when the last were taken: one batch ahead, no more."""
        of = TopicPartition(self._topic, partition)
        while True:
            try:
                async with translated(f"fetching from {self._topic}"):
                    found = await self._consumer.getmany(of, timeout_ms=_POLL_MILLISECONDS)
            except BusUnavailable as error:
                if isinstance(error.__cause__, ConsumerStoppedError):
                    raise PartitionLost from error
                raise
            if records := found.get(of):
                return Batch(self._topic, partition, [message_of(record) for record in records])

    async def commit(self, partition: int, offset: int) -> None:
        try:
            async with translated(f"committing to {self._topic}"):
                await self._consumer.commit({TopicPartition(self._topic, partition): offset})
        except BusUnavailable as error:
            # The group has gone on, or goes on now. To try again could commit for nobody: the client has forgotten
            # its generation then, and Kafka believes a commit without one when the group has no member.
            if isinstance(error.__cause__, CommitFailedError | IllegalStateError):
                raise PartitionLost from error
            raise


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Starts and stops the tasks; aiokafka awaits it, and keeps the membership meanwhile."""

    def __init__(self, tasks: PartitionTasks) -> None:
        self._tasks = tasks
        self._left = False

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._tasks.aclose()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if not self._left:
            for each in assigned:
                self._tasks.start(each.partition)

    async def leave(self) -> None:
        self._left = True
        await self._tasks.aclose()


class KafkaMember:
    """Consumes while it is `running`."""

    def __init__(
        self, options: KafkaOptions, consumption: Consumption, topics: KafkaTopics, background: Background
    ) -> None:
        self._options = options
        self._consumption = consumption
        self._topics = topics
        self._background = background

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name=f"member of {self._consumption.group}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        pauses = Pauses(self._consumption.pauses, self._consumption.jitter)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                with only_own_cancellation():
                    await self._topics.ensure(self._consumption.topic)
                    await self._consume()
            except BusUnavailable as error:
                _log.warning("%s joins again: %s", self._consumption.group, error.detail)
            except Exception:  # noqa: BLE001 logged, and tried again for ever
                _log.exception("%s joins again", self._consumption.group)
            self._topics.forget(self._consumption.topic)
            if asyncio.get_running_loop().time() - began > self._consumption.pauses.longest:
                pauses.reset()  # it had worked meanwhile
            await pauses.wait()

    async def _consume(self) -> None:
        """Consume until the consumer fails: it always ends by raising."""
        topic, group = self._consumption.topic, self._consumption.group
        consumer = AIOKafkaConsumer(**member_options(self._options, group))
        rebalances = _Rebalances(PartitionTasks(self._consumption, _Feed(consumer, topic)))
        async with translated(f"consuming {topic}"), self._background.running(consumer):
            try:
                consumer.subscribe([topic], listener=rebalances)  # it joins behind this
                await self._watch(consumer)
            finally:
                await rebalances.leave()

    async def _watch(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for messages of a partition that does not exist, for ever: that brings no message and every error, and
        tells aiokafka that somebody is there, however long the handlers take for those of the others."""
        nothing = TopicPartition(self._consumption.topic, -1)
        while True:
            await consumer.getmany(nothing, timeout_ms=_POLL_MILLISECONDS)
            if consumer._fetcher.error_future.done():  # noqa: SLF001 aiokafka tells nobody
                raise KafkaError("the fetching has ended")
