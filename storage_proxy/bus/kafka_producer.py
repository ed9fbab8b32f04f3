"""The one producer of a Kafka bus, replaced by another after a failure.

The law: idempotent, acks=all. A producer that failed is given up with what it still holds: aiokafka would send that
again for ever, and after a lost sequence number it never sends anything again.
"""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from storage_proxy.bus.kafka_background import Background
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_options import KafkaOptions, producer_options
from storage_proxy.bus.port import Event
from storage_proxy.bus.sizes import key_bytes
from storage_proxy.common.errors import BusUnavailable


class KafkaProducer:
    """Sends events; started by the first of them."""

    def __init__(self, options: KafkaOptions, background: Background) -> None:
        self._options = options
        self._background = background
        self._starting: asyncio.Task[None] | None = None
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
        producer: AIOKafkaProducer | None = None
        try:
            async with translated("asking for metadata", seconds=self._options.request_timeout):
                producer = await self._started()
                if not await producer.client.force_metadata_update():
                    raise BusUnavailable("No Kafka broker answers")
        except BusUnavailable:
            self._give_up(producer)
            raise

    async def aclose(self) -> None:
        self._closed = True
        current, self._current = self._current, None
        if current is not None:
            await self._background.closed(_abandon(current))

    async def _started(self) -> AIOKafkaProducer:
        if self._current is None:
            if self._starting is None or self._starting.done():
                self._starting = self._background.begin(self._start())
            await asyncio.shield(self._starting)
        if self._current is None:
            raise BusUnavailable("The producer failed or is closed")
        return self._current

    async def _start(self) -> None:
        producer = AIOKafkaProducer(**producer_options(self._options))
        try:
            # Left alone it would look for a broker for ever. Twice: no connection that is being made is cut.
            async with asyncio.timeout(2 * self._options.request_timeout):
                await producer.start()
            if self._closed:
                raise BusUnavailable("The bus is closed")
        except BaseException:
            await producer.stop()
            raise
        self._current = producer

    def _give_up(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None and producer is self._current:
            self._current = None
            self._background.close(_abandon(producer))


async def _send(producer: AIOKafkaProducer, topic: str, event: Event) -> "asyncio.Future[object]":
    sent: asyncio.Future[object] = await producer.send(
        topic, event.value, key_bytes(event), headers=list(event.headers.items())
    )
    sent.add_done_callback(lambda each: each.cancelled() or each.exception())  # somebody has seen it
    return sent


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Stop without a flush: `stop` alone waits until all is sent, which may be never."""
    await producer._sender.close()  # noqa: SLF001 there is no other way to it
    await producer.stop()
