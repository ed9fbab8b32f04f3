"""What may still be said of a blob: how far the ingest topic is consumed, and what lies in its dead letters.

The law: unknown is not absent. Whatever may yet be announced, or was and waits for somebody, counts as wanted.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b

from storage_proxy.bus.port import EventBus, Message
from storage_proxy.common.events import RUNS_PREFIX


async def heard_until(bus: EventBus, topic: str, group: str, now: float) -> float:
    """The moment (epoch seconds) up to which ``group`` has consumed all that was published, ``now`` at the latest."""
    positions = await bus.positions(topic, group)
    return min([now, *(position.oldest for position in positions if position.oldest is not None)])


class DeadLetterKeys:
    """The keys that dead letters name, 8 bytes of each: a collision keeps an object, never removes one."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self._digests

    @classmethod
    async def read(cls, bus: EventBus, topic: str) -> "DeadLetterKeys":
        """Of all dead letters that ``topic`` keeps. A letter that is no JSON names nothing."""
        keys = cls()
        async for messages in bus.browse(topic):
            keys._add(messages)
        return keys

    def _add(self, messages: Sequence[Message]) -> None:
        for message in messages:
            key = _key_in(message.value or b"")
            if key is not None and key.startswith(RUNS_PREFIX):
                self._digests.add(_digest(key))


def _key_in(value: bytes) -> str | None:
    try:
        key = json.loads(value)["payload"]["key"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return key if isinstance(key, str) else None


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
