"""The EventBus port: durable topics of partitions, consumed in order, at least once.

The law: effects come before offsets. A message is done when its handler has said so; only then, and only up to the
first that is not done, is its offset committed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from storage_proxy.common.errors import Internal


class EventTooLarge(Internal):
    """An event that no topic takes: a defect of whoever made it."""


@dataclass(frozen=True, slots=True)
class Event:
    """What is published. Messages of one ``key`` come to one partition, in the order of their publication.

    A str is UTF-8. None is the key of what a stranger published without one: it comes to any partition. A ``value``
    of None is a stranger's, too: a topic of Kafka tells it from an empty one, the embedded bus does not.
    """

    key: str | bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """What was published, where it lies. ``timestamp`` is in seconds since the epoch: when the bus took it.

    ``offset`` grows along a partition, not always by one. ``key`` and ``value`` are None where a stranger gave none.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: float
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """The next messages of one partition in their order; never empty, and bounded in number and bytes."""

    topic: str
    partition: int
    messages: Sequence[Message]


Handler = Callable[[Batch], Awaitable[int]]
"""Does the effects of a batch's messages in order, each idempotent, and returns how many of them are done: those
before the first that has to wait. The others come again after a pause that grows with each try. So does the whole
batch when it raises, a `ServiceError` or anything else: the partition waits, for as long as it takes, and the others
go on.

It is cancelled when its partition is taken away or the consumer ends; nothing is committed for it then, so another
consumer may do the same effects again, even before this one has noticed.
"""


@dataclass(frozen=True, slots=True)
class TopicPosition:
    """How far a group is in one partition. ``committed`` is the next offset it will get; ``end`` that of the next
    message to be published. ``oldest`` is the timestamp of the message at ``committed``, None when there is none.
    """

    partition: int
    committed: int
    end: int
    oldest: float | None


class EventBus(Protocol):
    """Topics. Safe for any number of tasks of one event loop.

    Every method raises `BusUnavailable` when the bus cannot be reached or refuses, within a deadline: no method hangs.
    A topic that does not exist is made where the bus allows it.
    """

    async def publish(self, topic: str, events: Sequence[Event]) -> None:
        """Return when all of ``events`` are durable: acknowledged by every replica in sync, or on disk.

        When it raises, some of them may have been published, and may be yet: whoever publishes again publishes twice.
        An event that the bus can never take (too large) raises `EventTooLarge` and none of ``events`` need be there.
        """
        ...

    def consume(self, topic: str, group: str, handler: Handler) -> AbstractAsyncContextManager[None]:
        """While entered, give ``group``'s share of the topic to ``handler``, from the earliest message for a new group.

        Entering does not wait for the bus: whoever consumes may start while it is away.
        The members of a group, in any number of processes, share the partitions. A partition has one batch under way,
        partitions run side by side. Members come and go, and the bus may be away for any time: each message is still
        given until it is done, and those of a partition in their order; one that is done may be given again. Leaving
        cancels the handlers, gives the partitions up and commits what was done.
        """
        ...

    async def positions(self, topic: str, group: str) -> Sequence[TopicPosition]:
        """How far ``group`` is, one each partition, as of one moment."""
        ...

    def browse(self, topic: str) -> AsyncIterator[Sequence[Message]]:
        """All messages that the topic keeps, up to those published when it began, in batches. No group is concerned."""
        ...

    async def probe(self) -> None:
        """Return if the bus answers, raise `BusUnavailable` otherwise. Cheap."""
        ...

    async def aclose(self) -> None:
        """Release what the bus holds. Consumers have been left before. Idempotent."""
        ...
