"""Dead letters on every bus: they are shown until they are replayed, and replayed once."""

import pytest

from storage_proxy.bus.dead_letters import dead_letter, dead_letter_topic, origin, pending_letters, replay
from storage_proxy.bus.port import Batch, Event, EventBus, Message
from storage_proxy.common.errors import BusUnavailable
from tests.support.bus import Deliveries, browsed, events
from tests.support.kafka import unique_topic


@pytest.fixture
async def topic(bus: EventBus) -> str:
    """A topic whose twenty messages are all dead letters by now."""
    name = unique_topic()
    await bus.publish(name, events(20))
    letters = [dead_letter(message, "poison") for message in await browsed(bus, name)]
    await bus.publish(dead_letter_topic(name), letters)
    return name


async def pending(bus: EventBus, topic: str) -> list[Message]:
    return [letter async for batch in pending_letters(bus, topic) for letter in batch]


async def replayed_messages(bus: EventBus, topic: str) -> list[Message]:
    """What lies in the topic behind the first twenty."""
    return [message for message in await browsed(bus, topic) if origin(message) is not None]


async def test_replayed_letters_are_ordered_by_their_old_place_and_are_not_pending(bus: EventBus, topic: str) -> None:
    places = {message.value: (message.partition, message.offset) for message in await browsed(bus, topic)}
    assert {letter.value for letter in await pending(bus, topic)} == places.keys()
    assert await replay(bus, topic) == 20
    assert {message.value: origin(message) for message in await replayed_messages(bus, topic)} == places
    assert await pending(bus, topic) == []
    assert await replay(bus, topic) == 0
    assert len(await replayed_messages(bus, topic)) == 20


async def test_a_limit_leaves_the_rest_pending(bus: EventBus, topic: str) -> None:
    assert await replay(bus, topic, limit=0) == 0
    assert await replay(bus, topic, limit=7) == 7
    assert len(await replayed_messages(bus, topic)) == 7
    assert len(await pending(bus, topic)) == 13
    assert await replay(bus, topic, limit=100) == 13


async def test_letters_that_are_not_wanted_stay_pending(bus: EventBus, topic: str) -> None:
    def wanted(letter: Message) -> bool:
        return int(letter.value) % 4 == 0

    before = {letter.value: letter.headers for letter in await pending(bus, topic)}
    assert await replay(bus, topic, only=wanted) == 5
    assert {int(message.value) % 4 for message in await replayed_messages(bus, topic)} == {0}
    after = {letter.value: letter.headers for letter in await pending(bus, topic)}
    assert after == {value: headers for value, headers in before.items() if int(value) % 4}
    assert await replay(bus, topic, only=wanted) == 0


async def test_a_letter_whose_publication_failed_is_pending_still(bus: EventBus, topic: str) -> None:
    class Failing:
        """The bus, which fails to publish to the topic after the first few."""

        def __init__(self) -> None:
            self.left = 3

        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def publish(self, to: str, published: list[Event]) -> None:
            if not self.left:
                raise BusUnavailable
            self.left -= 1
            await bus.publish(to, published)

    with pytest.raises(BusUnavailable):
        await replay(Failing(), topic)  # type: ignore[arg-type]
    sent = {message.value for message in await replayed_messages(bus, topic)}
    assert len(sent) == 3
    assert await replay(bus, topic) >= 17
    assert {message.value for message in await replayed_messages(bus, topic)} == {each.value for each in events(20)}
    assert await pending(bus, topic) == []


async def test_the_largest_message_can_be_buried_and_is_pending_while_its_topic_does_not_take_it_back(
    bus: EventBus,
) -> None:
    topic = unique_topic()
    value = bytes(2**20 - 100)
    await bus.publish(topic, [Event("key", value)])
    (message,) = await browsed(bus, topic)
    await bus.publish(dead_letter_topic(topic), [dead_letter(message, "poison " * 20)])
    assert await replay(bus, topic) == 0
    (letter,) = await pending(bus, topic)
    assert letter.value == value


async def test_a_letter_that_dies_again_is_pending_again_with_its_first_place(bus: EventBus, topic: str) -> None:
    deliveries = Deliveries()

    async def bury(batch: Batch) -> int:
        letters = [dead_letter(message, "still poison") for message in batch.messages if origin(message) is not None]
        await bus.publish(dead_letter_topic(topic), letters)
        return await deliveries.handle(batch)

    places = {message.value: (message.partition, message.offset) for message in await browsed(bus, topic)}
    assert await replay(bus, topic) == 20
    async with bus.consume(topic, "group", bury):
        await deliveries.until(lambda: len(deliveries.messages) == 40)
    again = await pending(bus, topic)
    assert {letter.value: origin(letter) for letter in again} == places
    assert {letter.headers["dlq-reason"] for letter in again} == {b"still poison"}
