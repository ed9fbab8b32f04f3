"""What the bus counts."""

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from storage_proxy.bus.port import TopicPosition


class BusMetrics:
    """The metrics of the bus, in ``registry``; the `BusObserver` of a process. ``wall_clock`` is in epoch seconds."""

    def __init__(self, registry: CollectorRegistry, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._published = Counter("storage_proxy_bus_published", "Events made durable", ["topic"], registry=registry)
        labels = ["topic", "group"]
        self._consumed = Counter("storage_proxy_bus_consumed", "Messages given to handlers", labels, registry=registry)
        self._retried = Counter(
            "storage_proxy_bus_retried", "Messages that have to come again", labels, registry=registry
        )
        self._committed = Counter(
            "storage_proxy_bus_committed", "Messages done, their offset committed", labels, registry=registry
        )
        self._lag = Gauge(
            "storage_proxy_bus_lag", "Messages that a group has not done", [*labels, "partition"], registry=registry
        )
        self._age = Gauge(
            "storage_proxy_bus_oldest_seconds", "Age of the oldest message not done", labels, registry=registry
        )

    def published(self, topic: str, events: int) -> None:
        self._published.labels(topic).inc(events)

    def consumed(self, topic: str, group: str, messages: int) -> None:
        self._consumed.labels(topic, group).inc(messages)

    def retried(self, topic: str, group: str, messages: int) -> None:
        self._retried.labels(topic, group).inc(messages)

    def committed(self, topic: str, group: str, messages: int) -> None:
        self._committed.labels(topic, group).inc(messages)

    def show_positions(self, topic: str, group: str, positions: Sequence[TopicPosition]) -> None:
        """Set lag and age to what `EventBus.positions` said; its caller decides how often to ask."""
        for each in positions:
            self._lag.labels(topic, group, str(each.partition)).set(each.end - each.committed)
        oldest = min((each.oldest for each in positions if each.oldest is not None), default=None)
        self._age.labels(topic, group).set(0 if oldest is None else max(0.0, self._wall_clock() - oldest))
