"""A user of a bus in a process of its own, to be killed.

`embedded|kafka WHERE publish TOPIC COUNT` publishes, says so and stays; `... hold TOPIC GROUP` is a member that prints
the value of the first message of each batch and never gets done with it.
"""

import asyncio
import sys
from pathlib import Path

from storage_proxy.bus.port import Batch
from tests.support.bus import BusHome, EmbeddedHome, KafkaHome, events
from tests.support.kafka import KafkaBroker


async def publish(home: BusHome, topic: str, count: int) -> None:
    async with home.open() as bus:
        await bus.publish(topic, events(count))
        print("published", flush=True)
        await asyncio.Event().wait()


async def hold(home: BusHome, topic: str, group: str) -> None:
    async def handle(batch: Batch) -> int:
        print(batch.messages[0].value.decode(), flush=True)
        await asyncio.Event().wait()
        return 0

    async with home.open() as bus, bus.consume(topic, group, handle):
        await asyncio.Event().wait()


if __name__ == "__main__":
    kind, where, command, topic, last = sys.argv[1:]
    home: BusHome = EmbeddedHome(Path(where)) if kind == "embedded" else KafkaHome(KafkaBroker(where))
    asyncio.run(publish(home, topic, int(last)) if command == "publish" else hold(home, topic, last))
