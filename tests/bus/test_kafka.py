"""The Kafka bus beyond the port: brokers that hang or are absent, topics, what the client library is told."""

import asyncio
import logging
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from storage_proxy.bus.dead_letters import dead_letter, dead_letter_topic, described
from storage_proxy.bus.kafka import open_kafka_bus
from storage_proxy.bus.kafka_logs import Repetitions
from storage_proxy.bus.kafka_options import KafkaOptions, client_options
from storage_proxy.bus.port import Event
from storage_proxy.common.errors import BusUnavailable
from tests.support.bus import Deliveries, browsed, done_up_to_the_end, events, eventually, publish_at_last
from tests.support.kafka import KafkaBroker, PrivateKafka, unique_topic
from tools import services

_OF_THE_TOPIC = 1
"""The source of a setting: DYNAMIC_TOPIC_CONFIG (KIP-226)."""


async def test_a_broker_that_hangs_is_unavailable_in_time_and_is_used_again(private_kafka: PrivateKafka) -> None:
    options = replace(private_kafka.broker.options(), request_timeout=2.0)
    deliveries = Deliveries()
    async with open_kafka_bus(options) as bus:
        async with bus.consume("topic", "group", deliveries.handle):
            await bus.publish("topic", events(20, name="before"))
            await deliveries.until_all_of(events(20, name="before"))
            private_kafka.pause()
            try:
                for attempt in (
                    bus.publish("topic", events(1, name="lost")),
                    bus.probe(),
                    bus.positions("topic", "group"),
                    bus.publish("unknown", events(1)),
                    browsed(bus, "topic"),
                ):
                    async with asyncio.timeout(3 * options.request_timeout):
                        with pytest.raises(BusUnavailable):
                            await attempt
            finally:
                private_kafka.resume()
            await publish_at_last(bus, "topic", events(20, name="after"))
            await deliveries.until_all_of(events(20, name="after"))
            await eventually(lambda: done_up_to_the_end(bus, "topic", "group"))
        private_kafka.pause()
        async with asyncio.timeout(10):  # leaving is bounded, too
            async with bus.consume("topic", "another", deliveries.handle):
                pass
        private_kafka.resume()


async def test_it_opens_while_no_broker_is_there_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    options = KafkaOptions(f"127.0.0.1:{services.free_port()}", request_timeout=0.5, first_pause=0.01)
    async with open_kafka_bus(options) as bus:
        with pytest.raises(BusUnavailable):
            await bus.probe()
        with pytest.raises(BusUnavailable):
            await bus.publish("topic", events(1))

        async def complained() -> bool:
            return any("joins again" in record.getMessage() for record in caplog.records)

        async with bus.consume("topic", "group", Deliveries().handle):
            await eventually(complained)


async def test_a_message_without_a_value_is_a_dead_letter_without_one(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.publish(topic, [Event("r1", None), Event("r1", b"")])
        messages = await browsed(bus, topic)
        await bus.publish(dead_letter_topic(topic), [dead_letter(message, "poison") for message in messages])
        letters = await browsed(bus, dead_letter_topic(topic))
    assert [letter.value for letter in letters] == [None, b""]
    assert [described(letter)["value"] for letter in letters] == [None, ""]


async def test_a_topic_that_others_made_is_used_as_it_is(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 3, 1)])
    await admin.close()
    async with open_kafka_bus(kafka.options()) as bus:
        assert len(await bus.positions(topic, "group")) == 3


async def test_partitions_that_an_operator_adds_are_seen(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.publish(topic, events(1))
        assert len(await bus.positions(topic, "group")) == 4
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        await admin.start()
        await admin.create_partitions({topic: NewPartitions(6)})
        await admin.close()

        async def seen() -> bool:
            return len(await bus.positions(topic, "group")) == 6

        await eventually(seen)


async def test_a_topic_that_was_deleted_is_made_again(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(replace(kafka.options(), request_timeout=2.0)) as bus:
        await bus.publish(topic, events(1))
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        await admin.start()
        await admin.delete_topics([topic])
        await admin.close()

        await publish_at_last(bus, topic, events(1, name="again"))
        assert [message.value for message in await browsed(bus, topic)] == [b"again00000"]


async def test_a_topic_that_is_made_has_the_brokers_clock_and_dead_letters_are_kept(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.publish(topic, events(1))
        await bus.publish(dead_letter_topic(topic), events(1))
    found = {name: await configuration(kafka, name) for name in (topic, dead_letter_topic(topic))}
    for each in found.values():  # the topic's own, whatever the broker's defaults are
        assert (each["message.timestamp.type"], each["cleanup.policy"]) == ("LogAppendTime", "delete")
    assert found[dead_letter_topic(topic)]["retention.ms"] == "-1"
    assert "retention.ms" not in found[topic]


async def configuration(kafka: KafkaBroker, topic: str) -> dict[str, str]:
    """What the topic was made with."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    ((_, _, _, _, entries),) = answer.resources
    return {name: value for name, value, _, source, *_ in entries if source == _OF_THE_TOPIC}


async def test_a_topic_is_made_once_however_many_need_it_at_once(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as one, open_kafka_bus(kafka.options()) as two:
        await asyncio.gather(*(bus.publish(topic, [event]) for bus in (one, two) for event in events(10)))
        assert len(await browsed(one, topic)) == 20


async def test_a_message_is_as_old_as_the_broker_says_and_not_as_its_producer_does(kafka: KafkaBroker) -> None:
    """By it cleanup-orphans knows what has been heard: a time to come would let objects go that are still announced."""
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.positions(topic, "group")  # makes it
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as stranger:
            for days in (30, -30):
                forged = int((time.time() + days * 86_400) * 1000)
                await stranger.send_and_wait(topic, b"{}", b"key", timestamp_ms=forged)
        [found] = [each.oldest for each in await bus.positions(topic, "group") if each.oldest is not None]
        times = [message.timestamp for message in await browsed(bus, topic)]
    assert all(abs(moment - time.time()) < 3600 for moment in (found, *times))


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_whatever_compresses_the_messages_of_others_they_are_read(kafka: KafkaBroker, compression: str) -> None:
    """A client library that cannot read one keeps its partition waiting for ever."""
    topic = unique_topic()
    deliveries = Deliveries()
    async with open_kafka_bus(kafka.options()) as bus, bus.consume(topic, unique_topic("group"), deliveries.handle):
        await bus.positions(topic, "group")  # makes it
        async with AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers, compression_type=compression
        ) as stranger:
            for event in events(20):
                await stranger.send_and_wait(topic, event.value, str(event.key).encode())
        await deliveries.until_all_of(events(20))


async def test_a_message_of_a_stranger_may_lack_key_and_value(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.positions(topic, "group")  # makes it
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as stranger:
            await stranger.send_and_wait(topic, None, b"\xff", headers=[("twice", b"1"), ("twice", None)])
        [message] = await browsed(bus, topic)
    assert (message.key, message.value, message.headers) == (b"\xff", None, {"twice": b""})


async def test_a_group_that_was_further_than_the_topic_reaches_has_consumed_nothing(kafka: KafkaBroker) -> None:
    """As when the topic was made anew: the group begins at its beginning again."""
    topic = group = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.publish(topic, events(8))
        ends = {each.partition: each.end for each in await bus.positions(topic, group)}
        beyond = {TopicPartition(topic, partition): end + 1000 for partition, end in ends.items()}
        async with AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as member:
            member.assign(list(beyond))
            await member.commit(beyond)
        for each in await bus.positions(topic, group):
            assert (each.committed, each.end) == (0, ends[each.partition])
            assert (each.oldest is not None) == (each.end > 0)


async def test_a_topic_that_cannot_be_made_is_unavailable(kafka: KafkaBroker) -> None:
    async with open_kafka_bus(replace(kafka.options(), topic_replication=3)) as bus:  # there is one broker
        with pytest.raises(BusUnavailable, match="InvalidReplicationFactor"):
            await bus.publish(unique_topic(), events(1))


async def test_publishers_that_are_cancelled_leave_the_producer_to_the_others(kafka: KafkaBroker) -> None:
    topic = unique_topic()
    async with open_kafka_bus(kafka.options()) as bus:
        await bus.publish(topic, events(1))
        tasks = [asyncio.create_task(bus.publish(topic, [event])) for event in events(50, name="many")]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks[1::2]:
            task.result()
        found = {message.value for message in await browsed(bus, topic)}
        assert {event.value for event in events(50, name="many")[1::2]} <= found


def test_a_complaint_that_is_repeated_passes_once_a_minute() -> None:
    now = 0.0
    repetitions = Repetitions(lambda: now)

    def passes(line: int) -> bool:
        return repetitions.filter(logging.LogRecord("aiokafka", logging.ERROR, "conn.py", line, "away", (), None))

    assert [passes(1), passes(1), passes(2), passes(2)] == [True, False, True, False]
    now = 59.0
    assert not passes(1)
    now = 60.0
    assert passes(1)


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Files with a new key and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    paths = directory / "key.pem", directory / "certificate.pem"
    paths[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(certificate)
    return paths


def test_credentials_and_certificates_are_passed_to_the_client(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    options = KafkaOptions(
        "broker:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="proxy",
        sasl_password="a-secret",
        ssl_cafile=certificate,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    told = client_options(options)
    assert told["security_protocol"] == "SASL_SSL"
    assert told["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (told["sasl_plain_username"], told["sasl_plain_password"]) == ("proxy", "a-secret")
    context = told["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509"] >= 1
    assert "a-secret" not in repr(options)


def test_nothing_of_tls_or_sasl_is_told_where_it_is_not_used() -> None:
    told = client_options(KafkaOptions("broker:9092", sasl_username="proxy", sasl_password="a-secret"))
    assert told["security_protocol"] == "PLAINTEXT"
    assert not [name for name in told if name.startswith(("sasl", "ssl"))]
