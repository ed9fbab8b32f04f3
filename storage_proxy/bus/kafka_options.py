"""What the Kafka bus is told, in the words of its client library."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

# A dead letter is as large as the message was, and some headers. Kafka takes requests of 100 MiB by default.
MAX_MESSAGE_BYTES = 2**26

# An idle partition's messages wait for the fetch that is under way for the others: so long at most.
_FETCH_MILLISECONDS = 100


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """``bootstrap_servers`` is host:port, or several with commas. Times are in seconds.

    ``request_timeout`` is the deadline of every method of the bus. A member that has not been heard of for
    ``session_timeout`` has lost its partitions. A topic that does not exist is made with ``topic_partitions`` and
    ``topic_replication`` replicas; None is three, or as many as there are brokers if they are fewer.
    ``ssl_cafile`` None trusts what the machine trusts.
    """

    bootstrap_servers: str
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    topic_partitions: int = 8
    topic_replication: int | None = None
    request_timeout: float = 10.0
    session_timeout: float = 10.0
    first_pause: float = 0.5
    longest_pause: float = 30.0
    max_batch_messages: int = 500
    max_batch_bytes: int = 2**20
    max_event_bytes: int = 2**20


def client_options(options: KafkaOptions) -> Mapping[str, Any]:
    """What every client is made with."""
    common: dict[str, Any] = {
        "bootstrap_servers": options.bootstrap_servers,
        "security_protocol": options.security_protocol,
        "request_timeout_ms": int(options.request_timeout * 1000),
        "retry_backoff_ms": 100,
    }
    if options.security_protocol.startswith("SASL"):
        common |= {
            "sasl_mechanism": options.sasl_mechanism,
            "sasl_plain_username": options.sasl_username,
            "sasl_plain_password": options.sasl_password,
        }
    if options.security_protocol.endswith("SSL"):
        common["ssl_context"] = _ssl_context(options)
    return common


def producer_options(options: KafkaOptions) -> Mapping[str, Any]:
    return {
        **client_options(options),
        "enable_idempotence": True,
        "acks": "all",
        "max_request_size": MAX_MESSAGE_BYTES,
        "max_batch_size": 2**17,
    }


def member_options(options: KafkaOptions, group: str) -> Mapping[str, Any]:
    session = int(options.session_timeout * 1000)
    return {
        **reader_options(options, group),
        # A join waits for the members that have to come, up to the session's timeout.
        "request_timeout_ms": int((options.request_timeout + options.session_timeout) * 1000),
        "session_timeout_ms": session,
        # A rebalance waits for the heartbeat by which each member learns of it.
        "heartbeat_interval_ms": min(3000, session // 10),
    }


def reader_options(options: KafkaOptions, group: str | None) -> Mapping[str, Any]:
    return {
        **client_options(options),
        "group_id": group,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "max_partition_fetch_bytes": options.max_batch_bytes,
        "max_poll_records": options.max_batch_messages,
        "fetch_max_wait_ms": _FETCH_MILLISECONDS,
        # For so long a partition whose batch is not asked for yet holds up the fetches of the others.
        "consumer_timeout_ms": _FETCH_MILLISECONDS // 4,
    }


def _ssl_context(options: KafkaOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.ssl_cafile)
    if options.ssl_certfile is not None:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    return context
