"""Dead letters as such: what they carry, and that strangers' headers are not believed."""

from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.bus.dead_letters import dead_letter, dead_letter_topic, origin, replayed
from storage_proxy.bus.port import Event, Message

OFFSETS = st.integers(0, 2**63 - 1)
PARTITIONS = st.integers(0, 1_000)


def published(event: Event, topic: str, partition: int, offset: int) -> Message:
    key = event.key.encode() if isinstance(event.key, str) else event.key
    return Message(topic, partition, offset, key, event.value, 0.0, dict(event.headers))


@given(key=st.none() | st.binary(), value=st.binary(), partition=PARTITIONS, offset=st.integers(0, 2**62))
def test_a_letter_keeps_key_value_and_place_through_any_number_of_replays(
    key: bytes | None, value: bytes, partition: int, offset: int
) -> None:
    message = Message("topic", partition, offset, key, value, 0.0, {"other": b"1"})
    for again in range(1, 4):
        letter = published(dead_letter(message, f"reason {again}"), dead_letter_topic("topic"), 0, again)
        assert (letter.key, letter.value) == (key, value)
        assert letter.headers["dlq-reason"] == f"reason {again}".encode()
        assert letter.headers["dlq-topic"] == b"topic"
        assert letter.headers["other"] == b"1"
        assert origin(letter) == (partition, offset)
        message = published(replayed(letter), "topic", partition, offset + again)
        assert origin(message) == (partition, offset)
        assert (message.key, message.value) == (key, value)


def test_a_message_that_was_no_letter_has_no_origin() -> None:
    assert origin(Message("topic", 0, 7, b"key", b"value", 0.0)) is None


@given(
    partition=st.one_of(st.binary(max_size=30), PARTITIONS.map(lambda n: b"%d" % n)),
    offset=st.one_of(st.binary(max_size=30), OFFSETS.map(lambda n: b"%d" % n), st.just(b"9" * 30)),
    topic=st.one_of(st.binary(max_size=10), st.just(b"topic")),
)
def test_headers_that_cannot_be_true_are_not_believed(partition: bytes, offset: bytes, topic: bytes) -> None:
    headers = {"dlq-partition": partition, "dlq-offset": offset, "dlq-topic": topic}
    message = Message("topic", 3, 50, b"key", b"value", 0.0, headers)
    found = origin(message)
    if found is not None:
        assert topic == b"topic"
        assert found == (int(partition), int(offset))
        assert 0 <= found[1] < 2**63
        assert found[0] != 3 or found[1] < 50
    letter = dead_letter(message, "reason")
    assert origin(published(letter, "topic.dlq", 0, 0)) == (found or (3, 50))


def test_digits_of_other_scripts_are_no_numbers() -> None:
    headers = {"dlq-partition": "٣".encode(), "dlq-offset": b"1", "dlq-topic": b"topic"}
    assert origin(Message("topic", 3, 50, b"key", b"value", 0.0, headers)) is None
