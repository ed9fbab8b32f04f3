"""How large an event may be, the same on every bus.

The law: what was taken once can be buried. A dead letter has a few headers more than the message that it was, so no
bound of ours holds for it.
"""

from collections.abc import Sequence

from storage_proxy.bus.dead_letters import is_dead_letter_topic
from storage_proxy.bus.port import Event, EventTooLarge


def key_bytes(event: Event) -> bytes | None:
    return event.key.encode() if isinstance(event.key, str) else event.key


def event_bytes(event: Event) -> int:
    """Bytes of key, value and headers."""
    headers = sum(len(name.encode()) + len(value) for name, value in event.headers.items())
    return len(key_bytes(event) or b"") + len(event.value or b"") + headers


def check_sizes(topic: str, events: Sequence[Event], limit: int) -> None:
    """Raises `EventTooLarge` when one of them has more than ``limit`` bytes and ``topic`` is not of dead letters."""
    if is_dead_letter_topic(topic):
        return
    for event in events:
        if (size := event_bytes(event)) > limit:
            raise EventTooLarge(f"An event has {size} bytes, the bus takes {limit}")
