"""What may still be said of a blob: how far the ingest topic is consumed, and what lies in its dead letters.

The law: unknown is not absent. Whatever may yet be announced, or was and waits for somebody, counts as wanted.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b

from storage_proxy.bus.port import EventBus


async def heard_until(bus: EventBus, topic: str, group: str, now: float) -> float:
    """The moment (epoch seconds) up to which ``group`` has consumed all that was published, ``now`` at the latest."""
    positions = await bus.positions(topic, group)
    return min([now, *(position.oldest for position in positions if position.oldest is not None)])


class DeadLetterNames:
    """The keys and the run ids that dead letters name, 8 bytes of each: a collision keeps one more, removes none."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __contains__(self, name: str) -> bool:
        """Whether a letter names this key, or this run: no run id is a key of a run's."""
        return _digest(name) in self._digests

    @classmethod
    async def read(cls, bus: EventBus, topic: str) -> "DeadLetterNames":
        """Of all dead letters that ``topic`` keeps. A letter that is no JSON names nothing."""
        names = cls()
        async for messages in bus.browse(topic):
            for message in messages:
                names._digests.update(map(_digest, _names_in(message.value or b"")))
        return names


def _names_in(value: bytes) -> Iterator[str]:
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return
    if not isinstance(event, dict):
        return
    payload = event.get("payload")
    for name in (event.get("run_id"), payload.get("key") if isinstance(payload, dict) else None):
        if isinstance(name, str):
            yield name


def _digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
