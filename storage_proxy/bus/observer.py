"""What a bus tells of its work, for whoever counts it.

The law: an observer is told after the fact, does not wait, and changes nothing.
"""

from typing import Protocol


class BusObserver(Protocol):
    """Told what happens to messages, by topic and group."""

    def published(self, topic: str, events: int) -> None:
        """So many events are durable."""
        ...

    def consumed(self, topic: str, group: str, messages: int) -> None:
        """So many messages are given to the handler; not told again when they come again."""
        ...

    def retried(self, topic: str, group: str, messages: int) -> None:
        """So many messages were given to the handler, are not done and will come again."""
        ...

    def committed(self, topic: str, group: str, messages: int) -> None:
        """So many messages are done, and their offset is committed."""
        ...


class NoObserver:
    """Counts nothing."""

    def published(self, topic: str, events: int) -> None:
        pass

    def consumed(self, topic: str, group: str, messages: int) -> None:
        pass

    def retried(self, topic: str, group: str, messages: int) -> None:
        pass

    def committed(self, topic: str, group: str, messages: int) -> None:
        pass
