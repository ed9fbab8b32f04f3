"""The real Kafka under the ingest workers, and what is published to it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.processes import BenchmarkError
from benchmarks.storage import WORKSPACE
from storage_proxy.bus.kafka import open_kafka_bus
from storage_proxy.bus.kafka_options import KafkaOptions
from storage_proxy.bus.port import Event, EventBus
from tools import services

_DONE_SECONDS = 600
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Broker:
    """A running Kafka, and a bus on it to publish with."""

    bootstrap_servers: str
    bus: EventBus

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        for first in range(0, len(events), 1000):
            await self.bus.publish(topic, events[first : first + 1000])

    @asynccontextmanager
    async def watching(self, topic: str, group: str) -> AsyncIterator["Offsets"]:
        partitions = [TopicPartition(topic, each.partition) for each in await self.bus.positions(topic, group)]
        watcher = AIOKafkaConsumer(bootstrap_servers=self.bootstrap_servers, group_id=group, enable_auto_commit=False)
        await watcher.start()
        try:
            watcher.assign(partitions)
            yield Offsets(watcher, partitions)
        finally:
            await watcher.stop()


@dataclass(frozen=True, slots=True)
class Offsets:
    """What a group has committed, looked at from outside of it."""

    watcher: AIOKafkaConsumer
    partitions: Sequence[TopicPartition]

    async def reach(self, count: int) -> None:
        """Wait until the offsets say that ``count`` messages are done."""
        try:
            async with asyncio.timeout(_DONE_SECONDS):
                while sum([await self.watcher.committed(each) or 0 for each in self.partitions]) < count:
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise BenchmarkError(f"{count} messages were not consumed in {_DONE_SECONDS} s") from None


@asynccontextmanager
async def running_kafka() -> AsyncIterator[Broker]:
    """One broker as `make services` installs it, on a directory of its own."""
    run = services.Run(services.Kafka(), WORKSPACE / "kafka")
    try:
        port = await asyncio.to_thread(run.start)
    except services.Failed as failure:
        raise BenchmarkError(str(failure)) from failure
    try:
        options = KafkaOptions(f"127.0.0.1:{port}")
        async with open_kafka_bus(options) as bus:
            yield Broker(options.bootstrap_servers, bus)
    finally:
        await asyncio.to_thread(run.stop)


def fresh(name: str) -> str:
    """A topic or group that nobody has."""
    return f"{name}-{uuid.uuid4().hex[:12]}"
