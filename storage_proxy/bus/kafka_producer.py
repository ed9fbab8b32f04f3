"""The one producer of a Kafka bus, replaced by another after a failure.

The law: idempotent, acks=all. A producer that failed is given up with what it still holds: aiokafka would send that
again for ever, and after a lost sequence number it never sends anything again.
"""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from storage_proxy.bus.kafka_closing import Closing
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_options import KafkaOptions, producer_options
from storage_proxy.bus.port import Event
from storage_proxy.common.errors import BusUnavailable


class KafkaProducer:
    """Sends events; started by the first of them."""

    def __init__(self, options: KafkaOptions, closing: Closing) -> None:
        self._options = options
        self._closing = closing
        self._starting = asyncio.Lock()
        self._current: AIOKafkaProducer | None = None
        self._closed = False

    async def send(self, topic: str, events: Sequence[Event]) -> None:
        """Return when all events are acknowledged by every replica in sync."""
        producer: AIOKafkaProducer | None = None
        try:
            async with translated(f"publishing to {topic}", seconds=self._options.request_timeout):
                producer = await self._started()
                sent = [await _send(producer, topic, event) for event in events]
                await asyncio.wait(sent)
                for each in sent:
                    each.result()
        except BusUnavailable:
            self._give_up(producer)
            raise

    async def probe(self) -> None:
        """Return if a broker answers."""
        async with translated("asking for metadata", seconds=self._options.request_timeout):
            answered = await (await self._started()).client.force_metadata_update()
        if not answered:
            raise BusUnavailable("No Kafka broker answers")

    async def aclose(self) -> None:
        self._closed = True
        current, self._current = self._current, None
        if current is not None:
            await self._closing.now(current.stop())

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._closed:
                raise BusUnavailable("The bus is closed")
            if self._current is None:
                producer = AIOKafkaProducer(**producer_options(self._options))
                try:
                    await producer.start()
                except BaseException:
                    self._closing.later(producer.stop())
                    raise
                self._current = producer
            return self._current

    def _give_up(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None and producer is self._current:
            self._current = None
            self._closing.later(_abandon(producer))


async def _send(producer: AIOKafkaProducer, topic: str, event: Event) -> "asyncio.Future[object]":
    key = event.key.encode() if isinstance(event.key, str) else event.key
    sent: asyncio.Future[object] = await producer.send(topic, event.value, key, headers=list(event.headers.items()))
    sent.add_done_callback(lambda each: each.cancelled() or each.exception())  # somebody has seen it
    return sent


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Stop without a flush: `stop` alone waits until all is sent, which may be never."""
    await producer._sender.close()  # noqa: SLF001 there is no other way to it
    await producer.stop()
