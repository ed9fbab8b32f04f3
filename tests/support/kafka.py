"""A real Kafka for tests: found by environment, else started, else the test is skipped or fails."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage_proxy.bus.kafka_options import KafkaOptions
from tests.support.real_services import PrivateService, shared
from tools import services


@dataclass(frozen=True, slots=True)
class KafkaBroker:
    """Where a broker listens."""

    bootstrap_servers: str

    def options(self) -> KafkaOptions:
        """Options for tests: few partitions, short pauses."""
        return KafkaOptions(
            self.bootstrap_servers,
            topic_partitions=4,
            request_timeout=20.0,
            session_timeout=6.0,
            first_pause=0.05,
            longest_pause=0.5,
        )


def unique_topic(name: str = "topic") -> str:
    """A topic that no other test has."""
    return f"{name}-{uuid.uuid4().hex}"


@contextmanager
def kafka_broker() -> Iterator[KafkaBroker]:
    """The broker of the environment, or the one of .services, which is stopped if it is started here."""
    if bootstrap_servers := os.environ.get("TEST_KAFKA_BOOTSTRAP"):
        yield KafkaBroker(bootstrap_servers)
        return
    with shared(services.Kafka(), before_start=_forget_topics) as port:
        yield KafkaBroker(f"127.0.0.1:{port}")


def _forget_topics(run: services.Run) -> None:
    """The topics of earlier tests only make it slow."""
    shutil.rmtree(run.directory / "data", ignore_errors=True)


class PrivateKafka(PrivateService):
    """A broker of the test's own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(services.Kafka(), directory)
        self.broker = KafkaBroker(f"127.0.0.1:{self._port}")
