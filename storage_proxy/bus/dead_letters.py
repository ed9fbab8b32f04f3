"""Dead letters: messages that can never be processed, kept in a topic of their own until somebody replays them.

The law: a dead letter's value and key are unchanged, and it remembers where it lay at first, through every replay.
Only what the bus cannot take as a letter comes without them: nothing may keep its partition waiting for ever.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from storage_proxy.bus.port import Batch, Event, EventBus, EventTooLarge, Message, TopicPosition
from storage_proxy.common.names import cut

_log = logging.getLogger(__name__)

REASON_HEADER = "dlq-reason"
TOPIC_HEADER = "dlq-topic"
PARTITION_HEADER = "dlq-partition"
OFFSET_HEADER = "dlq-offset"

_ORIGIN_HEADERS = (TOPIC_HEADER, PARTITION_HEADER, OFFSET_HEADER)

_SUFFIX = ".dlq"
_MAX_REASON_BYTES = 1000  # it may quote a name that a stranger gave to a member
_MAX_NUMBER_DIGITS = 19  # an offset is a signed 64-bit number
_LOOK_SECONDS = 1.0


def dead_letter_topic(topic: str) -> str:
    return f"{topic}{_SUFFIX}"


def is_dead_letter_topic(topic: str) -> bool:
    return topic.endswith(_SUFFIX)


def replay_group(topic: str) -> str:
    """The group whose offsets say which dead letters of ``topic`` have been replayed."""
    return f"{dead_letter_topic(topic)}-replay"


def dead_letter(message: Message, reason: str) -> Event:
    """The event for the dead-letter topic of ``message``. A replayed message keeps the origin that it came with."""
    origin_headers = {
        TOPIC_HEADER: message.topic.encode(),
        PARTITION_HEADER: b"%d" % message.partition,
        OFFSET_HEADER: b"%d" % message.offset,
    }
    if origin(message) is not None:
        origin_headers = {name: message.headers[name] for name in origin_headers}
    told = cut(reason, _MAX_REASON_BYTES).encode()
    return Event(message.key, message.value, {**message.headers, **origin_headers, REASON_HEADER: told})


async def bury(bus: EventBus, topic: str, dead: Sequence[tuple[Message, str]]) -> None:
    """Publish the dead letters of these messages of ``topic``, each with its reason. Raises `BusUnavailable`."""
    try:
        await bus.publish(dead_letter_topic(topic), [dead_letter(message, reason) for message, reason in dead])
    except EventTooLarge:
        for message, reason in dead:
            await _bury_large(bus, topic, message, reason)
    for message, reason in dead:
        _log.warning("%s[%d] offset %d is a dead letter: %s", topic, message.partition, message.offset, reason)


async def _bury_large(bus: EventBus, topic: str, message: Message, reason: str) -> None:
    """Publish one letter, with as much of its message as the bus takes."""
    *larger, smallest = _ever_smaller(message, reason)
    for letter in larger:
        with suppress(EventTooLarge):
            await bus.publish(dead_letter_topic(topic), [letter])
            return
    await bus.publish(dead_letter_topic(topic), [smallest])


def _ever_smaller(message: Message, reason: str) -> Iterator[Event]:
    """The letter; without a stranger's headers; and with nothing but where the message lies."""
    yield dead_letter(message, reason)
    known = origin(message) is not None
    bare = replace(message, headers={name: message.headers[name] for name in _ORIGIN_HEADERS} if known else {})
    yield dead_letter(bare, reason)
    yield dead_letter(replace(bare, key=None, value=b""), f"too large for a letter, it is where it was: {reason}")


def replayed(letter: Message) -> Event:
    """The event for the original topic: all headers kept, so that its old place keeps ordering it."""
    return Event(letter.key, letter.value, letter.headers)


def origin(message: Message) -> tuple[int, int] | None:
    """The partition and offset where a replayed message, or a dead letter, lay at first; they order it.

    None for any other message, and for one whose headers cannot be true: a stranger may write anything.
    """
    partition = _number(message.headers, PARTITION_HEADER)
    offset = _number(message.headers, OFFSET_HEADER)
    topic = message.headers.get(TOPIC_HEADER, b"").decode(errors="replace")
    if partition is None or offset is None or message.topic not in (topic, dead_letter_topic(topic)):
        return None
    if message.topic == topic and partition == message.partition and offset >= message.offset:
        return None  # nothing is replayed before it was there
    return partition, offset


def described(letter: Message) -> dict[str, Any]:
    """A dead letter for an operator: where it lay at first, why it is here, and what it says."""
    place = origin(letter)
    return {
        "topic": letter.headers.get(TOPIC_HEADER, b"").decode(errors="replace"),
        "partition": None if place is None else place[0],
        "offset": None if place is None else place[1],
        "reason": letter.headers.get(REASON_HEADER, b"").decode(errors="replace"),
        "key": None if letter.key is None else letter.key.decode(errors="replace"),
        "value": None if letter.value is None else letter.value.decode(errors="replace"),
    }


async def pending_letters(bus: EventBus, topic: str) -> AsyncIterator[Sequence[Message]]:
    """The dead letters of ``topic`` that have not been replayed, up to those that were there when it began."""
    letters = dead_letter_topic(topic)
    committed = {each.partition: each.committed for each in await bus.positions(letters, replay_group(topic))}
    async for batch in bus.browse(letters):
        if pending := [each for each in batch if each.offset >= committed.get(each.partition, 0)]:
            yield pending


async def replay(
    bus: EventBus, topic: str, *, limit: int | None = None, only: Callable[[Message], bool] | None = None
) -> int:
    """Publish pending dead letters to ``topic`` again, then commit that; how many. A crash in between only repeats.

    At most ``limit`` of them, and of those that were there when it began. Letters that ``only`` refuses, and those that
    have become too large for ``topic``, stay pending: they go to the end of the dead letters. Two replays at once share
    the letters. Raises `BusUnavailable`; what was published before that is committed.
    """
    last: dict[int, int] = {}
    async for batch in pending_letters(bus, topic):
        for letter in batch:
            last[letter.partition] = letter.offset
    work = _Replay(bus, topic, last, limit, only)
    if not last or work.is_finished():
        return 0
    async with bus.consume(dead_letter_topic(topic), replay_group(topic), work.handle):
        while not await work.finished(_LOOK_SECONDS):
            # Another replay may have done the rest; and if the bus is away, this says so.
            work.note(await bus.positions(dead_letter_topic(topic), replay_group(topic)))
    if work.failure is not None:
        raise work.failure
    return work.count


class _Replay:
    """One replay. ``last`` has for each partition with pending letters the offset of the last of them."""

    def __init__(
        self,
        bus: EventBus,
        topic: str,
        last: Mapping[int, int],
        limit: int | None,
        only: Callable[[Message], bool] | None,
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._last = last
        self._limit = limit
        self._only = only
        self._waiting = set(last)
        self._finished = asyncio.Event()
        self._under_way = 0
        self.count = 0
        self.failure: Exception | None = None

    async def handle(self, batch: Batch) -> int:
        last = self._last.get(batch.partition, -1)
        self._under_way += 1
        done = 0
        try:
            for letter in batch.messages:
                if self._has_enough() or letter.offset > last:
                    break
                await self._publish(letter)
                done += 1
                if letter.offset == last:
                    self._waiting.discard(batch.partition)
        except Exception as error:  # noqa: BLE001 raised by `replay`: whoever replays decides on another try
            self.failure = error
        finally:
            self._under_way -= 1
        if self.is_finished():
            self._finished.set()
        return done

    async def _publish(self, letter: Message) -> None:
        if self._only is None or self._only(letter):
            self.count += 1  # before it is there: partitions are replayed side by side
            try:
                await self._bus.publish(self._topic, [replayed(letter)])
            except EventTooLarge as error:
                self.count -= 1
                _log.warning("a dead letter of %s is too large for it now: %s", self._topic, error.detail)
            except BaseException:
                self.count -= 1
                raise
            else:
                return
        await self._bus.publish(dead_letter_topic(self._topic), [replayed(letter)])

    def _has_enough(self) -> bool:
        return self.failure is not None or (self._limit is not None and self.count >= self._limit)

    def is_finished(self) -> bool:
        return not self._under_way and (not self._waiting or self._has_enough())

    async def finished(self, seconds: float) -> bool:
        """Whether it is, after ``seconds`` at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._finished.wait()
        except TimeoutError:
            return self.is_finished()
        return True

    def note(self, positions: Sequence[TopicPosition]) -> None:
        """Learn from the group's positions what need not be waited for."""
        for each in positions:
            if each.committed > self._last.get(each.partition, -1):
                self._waiting.discard(each.partition)


def _number(headers: Mapping[str, bytes], name: str) -> int | None:
    text = headers.get(name, b"")
    if not text.isdigit() or len(text) > _MAX_NUMBER_DIGITS:  # of bytes: ASCII digits only
        return None
    number = int(text)
    return number if number < 2**63 else None
