"""An EventBus in memory. A fake: what real buses do is proven in tests/contracts."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from storage_proxy.bus.port import Batch, Event, Handler, Message, TopicPosition
from storage_proxy.common.errors import BusUnavailable


@dataclass
class MemoryBus:
    """Topics of one partition. While ``is_away`` is true nothing is published."""

    clock: Callable[[], float] = time.time
    is_away: bool = False
    topics: defaultdict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[tuple[str, str], int] = field(default_factory=dict)

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        if self.is_away:
            raise BusUnavailable
        messages = self.topics[topic]
        for event in events:
            key = event.key.encode() if isinstance(event.key, str) else event.key
            messages.append(Message(topic, 0, len(messages), key, event.value, self.clock(), event.headers))

    def consume(self, topic: str, group: str, handler: Handler) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError

    async def give(self, topic: str, group: str, handler: Handler) -> int:
        """Give what ``group`` has not done yet to ``handler``, as one batch; how many are left then."""
        start = self.committed.get((topic, group), 0)
        messages = self.topics[topic][start:]
        if messages:
            self.committed[topic, group] = start + await handler(Batch(topic, 0, messages))
        return len(self.topics[topic]) - self.committed.get((topic, group), 0)

    async def positions(self, topic: str, group: str) -> Sequence[TopicPosition]:
        messages = self.topics[topic]
        committed = self.committed.get((topic, group), 0)
        oldest = messages[committed].timestamp if committed < len(messages) else None
        return [TopicPosition(0, committed, len(messages), oldest)]

    async def browse(self, topic: str) -> AsyncIterator[Sequence[Message]]:
        messages = list(self.topics[topic])
        for first in range(0, len(messages), 100):
            yield messages[first : first + 100]

    async def probe(self) -> None:
        if self.is_away:
            raise BusUnavailable

    async def aclose(self) -> None:
        return
