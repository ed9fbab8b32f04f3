"""Both kinds of bus for tests: what opens one, takes it away and brings it back, and members that are processes."""

import asyncio
import random
import signal
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from storage_proxy.bus.embedded import EmbeddedBus, EmbeddedOptions, open_embedded_bus
from storage_proxy.bus.kafka import open_kafka_bus
from storage_proxy.bus.observer import BusObserver, NoObserver
from storage_proxy.bus.port import Batch, Event, EventBus, Message
from storage_proxy.common.errors import BusUnavailable
from storage_proxy.common.pauses import PausePolicy
from tests.support.kafka import KafkaBroker, PrivateKafka

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
LEASE_SECONDS = 3.0


def embedded_options(path: Path) -> EmbeddedOptions:
    """Options for tests: few partitions, short pauses, impatient where the file is locked."""
    return EmbeddedOptions(
        path, partitions=PARTITIONS, lease=LEASE_SECONDS, busy=0.5, max_batch_messages=50, pauses=PausePolicy(0.02, 0.2)
    )


class BusHome(Protocol):
    """Where a bus lives. Each opening is a client of its own, as another process would be."""

    arguments: Sequence[str]
    """What tells ``bus_process`` where it is."""

    def open(self, observer: BusObserver | None = None) -> AbstractAsyncContextManager[EventBus]: ...


class EmbeddedHome:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments = ["embedded", str(path)]
        self._lock: sqlite3.Connection | None = None

    def open(self, observer: BusObserver | None = None) -> AbstractAsyncContextManager[EventBus]:
        return open_embedded_bus(embedded_options(self.path), observer=observer)

    def open_away(self) -> AbstractAsyncContextManager[EventBus]:
        """Open another while the file is away: a member that was opened before."""
        return _opened_before(embedded_options(self.path))

    async def away(self) -> None:
        """Lock the file as another program could: nothing can be written."""
        self._lock = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        self._lock.execute("BEGIN IMMEDIATE")

    async def back(self) -> None:
        assert self._lock is not None
        self._lock.close()


class KafkaHome:
    """A broker; the shared one unless it is given a private one."""

    def __init__(self, broker: KafkaBroker, private: PrivateKafka | None = None) -> None:
        self.broker = broker
        self.arguments = ["kafka", broker.bootstrap_servers]
        self._private = private

    def open(self, observer: BusObserver | None = None) -> AbstractAsyncContextManager[EventBus]:
        options = self.broker.options()
        if self._private is not None:  # impatient: it will be away
            options = replace(options, request_timeout=4.0)
        return open_kafka_bus(options, observer=observer)

    def open_away(self) -> AbstractAsyncContextManager[EventBus]:
        """Open another while the broker is away."""
        return self.open()

    async def away(self) -> None:
        assert self._private is not None
        await self._private.kill()

    async def back(self) -> None:
        assert self._private is not None
        await self._private.start()


@asynccontextmanager
async def _opened_before(options: EmbeddedOptions) -> AsyncIterator[EventBus]:
    """Opening probes the file, which a process does when it starts; a lock comes later."""
    bus = EmbeddedBus(options, NoObserver(), time.time, random.SystemRandom())
    try:
        yield bus
    finally:
        await bus.aclose()


class Deliveries:
    """A handler that does nothing but remember, and the effects of all members that share it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._arrived = asyncio.Event()

    async def handle(self, batch: Batch) -> int:
        for message in batch.messages:
            self.note(message)
        return len(batch.messages)

    def note(self, message: Message) -> None:
        self.messages.append(message)
        self._arrived.set()

    @property
    def values(self) -> list[bytes]:
        """In the order of the first delivery."""
        return list(dict.fromkeys(message.value for message in self.messages))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    async def until_all_of(self, events: Sequence[Event]) -> None:
        wanted = {event.value for event in events}
        await self.until(lambda: wanted <= {message.value for message in self.messages})

    def assert_in_order(self) -> None:
        """The first deliveries of each partition have no message before an earlier one; every key has one partition."""
        firsts: dict[int, list[int]] = defaultdict(list)
        partitions: dict[bytes | None, set[int]] = defaultdict(set)
        for message in self.messages:
            if message.offset not in firsts[message.partition]:
                firsts[message.partition].append(message.offset)
            partitions[message.key].add(message.partition)
        for offsets in firsts.values():
            assert offsets == sorted(offsets)
        assert all(len(found) == 1 for found in partitions.values())


def events(count: int, *, keys: int = 11, name: str = "") -> list[Event]:
    """Events with distinct values, over so many keys."""
    return [Event(f"key{number % keys}", f"{name}{number:05}".encode()) for number in range(count)]


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def publish_at_last(bus: EventBus, topic: str, published: Sequence[Event]) -> None:
    """Publish, again and again while the bus is away."""

    async def succeeded() -> bool:
        try:
            await bus.publish(topic, published)
        except BusUnavailable:
            return False
        return True

    await eventually(succeeded)


async def done_up_to_the_end(bus: EventBus, topic: str, group: str) -> bool:
    """False, too, while the bus cannot say so."""
    try:
        return all(each.committed == each.end for each in await bus.positions(topic, group))
    except BusUnavailable:
        return False


async def browsed(bus: EventBus, topic: str) -> list[Message]:
    return [message async for batch in bus.browse(topic) for message in batch]


@asynccontextmanager
async def process(home: BusHome, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`bus_process` with a command; it is killed at the end."""
    arguments = ["-m", "tests.support.bus_process", *home.arguments, *command]
    running = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        yield running
    finally:
        await kill(running)


async def kill(running: asyncio.subprocess.Process) -> None:
    """End it without a chance to say good-bye."""
    if running.returncode is None:
        running.send_signal(signal.SIGKILL)
    await running.communicate()


async def line(running: asyncio.subprocess.Process) -> str:
    """The next line that it prints."""
    assert running.stdout is not None
    async with asyncio.timeout(30):
        return (await running.stdout.readline()).decode().strip()
