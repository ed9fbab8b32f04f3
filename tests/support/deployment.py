"""The programs as they are deployed: workers of both roles over a Kafka and an S3 server that the test may stop."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kafka import PrivateKafka, unique_topic
from tests.support.operator import Operator
from tests.support.programs import Program, Service, service
from tests.support.s3 import PrivateS3

WORKERS = ("ingest", "ingest", "control")
BLOB_URI_KEY = "dGVzdHMtb25seS1ibG9iLXVyaS1rZXktMDEyMzQ1Njc="
IMPATIENT = {
    "ingest": "first_look_seconds = 0.2\nmax_look_seconds = 2.0",
    "lifecycle": "second_pass_seconds = 1.0\nlock_seconds = 2.0\norphan_seconds = 3.0",
    "blob_uris": f'keys = ["{BLOB_URI_KEY}"]',
}
"""What makes a test's waits short: tables of the proxy's configuration."""


@dataclass(frozen=True, slots=True)
class Backing:
    """A Kafka and an S3 server of the test's own."""

    kafka: PrivateKafka
    s3: PrivateS3

    @classmethod
    def beneath(cls, directory: Path) -> "Backing":
        return cls(PrivateKafka(directory / "kafka"), PrivateS3(directory / "s3"))

    async def start(self) -> None:
        await self.kafka.start()
        await self.s3.start()

    async def kill(self) -> None:
        await self.kafka.kill()
        await self.s3.kill()


@dataclass(frozen=True, slots=True)
class Deployment:
    """The programs over a bucket ``media`` and topics that nobody else has."""

    backing: Backing
    service: Service
    s3_bucket: str
    ingest_topic: str
    ingest_group: str
    operator: Operator

    @property
    def ingest(self) -> Sequence[Program]:
        return [each for each in self.service.workers if each.command[1] == "ingest"]

    @property
    def control(self) -> Program:
        return next(each for each in self.service.workers if each.command[1] == "control")


@asynccontextmanager
async def deployed(
    backing: Backing, directory: Path, *, workers: Sequence[str] = WORKERS, local: bool = False
) -> AsyncIterator[Deployment]:
    """Deploy, with state in SQLite. ``local`` adds a bucket ``files`` in a directory."""
    name = uuid.uuid4().hex
    async with backing.s3.server.client() as client:
        await client.create_bucket(Bucket=name)
    buckets: dict[str, dict[str, object]] = {"media": bucket_table(backing.s3, name)}
    if local:
        (directory / "files").mkdir(parents=True)
        buckets["files"] = {"kind": "local", "root": str(directory / "files")}
    topic, group = unique_topic("ingest"), f"group-{name}"
    bus = [
        'kind = "kafka"',
        "session_timeout_seconds = 6",
        f'bootstrap_servers = "{backing.kafka.broker.bootstrap_servers}"',
        f'ingest_topic = "{topic}"',
        f'control_topic = "{unique_topic("control")}"',
    ]
    tables = {"bus": "\n".join(bus), **IMPATIENT}
    tables["ingest"] += f'\ngroup = "{group}"'
    tables["lifecycle"] += f'\ngroup = "control-{name}"'
    more = "\n".join(f"[{table}]\n{text}" for table, text in tables.items())
    async with service(directory / "programs", buckets, workers=workers, more=more) as running:
        yield Deployment(backing, running, name, topic, group, Operator(running.proxies[0].config))


def bucket_table(server: PrivateS3, bucket: str) -> dict[str, object]:
    """The configuration of a bucket, impatient enough for tests of faults."""
    return {
        "kind": "s3",
        "endpoint": server.server.endpoint,
        "bucket": bucket,
        "access_key": server.server.access_key,
        "secret_key": server.server.secret_key,
        "addressing": "path",
        "connect_timeout_seconds": 1.0,
        "read_timeout_seconds": 5.0,
        "request_timeout_seconds": 5.0,
    }
