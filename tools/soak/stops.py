"""Kafka or the S3 server is away for a while, frozen or killed; and a worker of a group comes and goes."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.deployment import Backing, Deployment, deployed
from tests.support.producers import Producer, producing
from tools.soak.faults import judge
from tools.soak.record import Record, Scale

_SEED = 14
_EVERY_SECONDS = 0.15
_SLOW_SECONDS = 5.0
"""More than any answer of the API should take on a busy machine while Kafka is away."""


async def kafka_stopped(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """Kafka is frozen, then killed, for a minute each, during presigns and deletes."""
    rng, seconds = random.Random(_SEED), scale.of(60, 3)
    record.did(
        f"Kafka is frozen (SIGSTOP) for {seconds} s, and later killed (SIGKILL) for {seconds} s, while uploads are "
        "prepared, put to S3 and completed, and runs are deleted."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        for name, stopped in (("frozen", _frozen_kafka), ("killed", _killed_kafka)):
            statuses: Counter[str] = Counter()
            slowest = 0.0
            async with stopped(backing):
                until = time.monotonic() + seconds
                number = 0
                while time.monotonic() < until or number < 4:
                    slowest = max(slowest, await _use(producer, f"{name}-{number}", statuses, deletes=number % 2 == 1))
                    number += 1
                    await asyncio.sleep(_EVERY_SECONDS)
                waiting = len((await deployment.operator.state()).rows("outbox"))
            told = ", ".join(f"{what}: {count}" for what, count in sorted(statuses.items()))
            expected = all(what.endswith((" 201", " 202", " 200")) for what in statuses)
            record.saw(f"{name}: answers of the API", told, holds=expected and bool(statuses))
            record.saw(f"{name}: slowest answer", f"{slowest:.2f} s", holds=slowest < _SLOW_SECONDS)
            record.saw(f"{name}: events waiting in the outbox at the end of it", waiting, holds=waiting > 0)
        await judge(deployment, producer, record, swept=not scale.quick)


async def _use(producer: Producer, run_id: str, statuses: Counter[str], *, deletes: bool) -> float:
    """Upload a blob to a run, and delete the run; the slowest answer in seconds."""
    before, body = time.monotonic(), producer.body()
    status, _ = await producer.prepare_once(run_id, "blob.bin", body)
    slowest = time.monotonic() - before
    statuses[f"presign {status}"] += 1
    if status != 201:
        return slowest
    await producer.upload(run_id, "blob.bin", body)
    if deletes:
        before = time.monotonic()
        status, _ = await producer.api("DELETE", f"/v1/runs/{run_id}", attempts=1)
        slowest = max(slowest, time.monotonic() - before)
        statuses[f"delete {status}"] += 1
        await producer.delete(run_id)
    return slowest


@asynccontextmanager
async def _frozen_kafka(backing: Backing) -> AsyncIterator[None]:
    backing.kafka.pause()
    try:
        yield
    finally:
        backing.kafka.resume()


@asynccontextmanager
async def _killed_kafka(backing: Backing) -> AsyncIterator[None]:
    await backing.kafka.kill()
    try:
        yield
    finally:
        await backing.kafka.start()


async def s3_stopped(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """The S3 server is frozen, then killed, for a minute each, during ingestion."""
    rng, seconds = random.Random(_SEED), scale.of(60, 3)
    record.did(
        f"The S3 server is frozen (SIGSTOP) for {seconds} s, and later killed (SIGKILL) for {seconds} s, while blobs "
        "that are there are announced, and others uploaded."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        for name in ("frozen", "killed"):
            # There before, announced while the server is away: the workers have to look, and cannot.
            numbers = range(scale.of(600, 40))
            stored = {f"there/{number}.bin": producer.body() for number in numbers}
            await asyncio.gather(*(producer.store(f"run-{name}", path, body) for path, body in stored.items()))
            if name == "frozen":
                backing.s3.pause()
            else:
                await backing.s3.kill()
            began = time.monotonic()
            uploads = [
                asyncio.create_task(producer.upload(f"run-{name}", f"put/{number}.bin", producer.body()))
                for number in range(5)
            ]
            for path, body in stored.items():
                await producer.announce(f"run-{name}", path, body)
                await asyncio.sleep(seconds / len(stored) / 2)
            await asyncio.sleep(max(0, seconds - (time.monotonic() - began)))
            listed = await producer.blobs(f"run-{name}", state="verified")
            record.saw(f"{name}: verified while it is away", len(listed), holds=len(listed) == 0)
            letters = len(await deployment.operator.dead_letters())
            record.saw(f"{name}: dead letters while it is away", letters, holds=letters == 0)
            if name == "frozen":
                backing.s3.resume()
            else:
                await backing.s3.start()
            await asyncio.gather(*uploads)
        await judge(deployment, producer, record)


async def worker_comes_and_goes(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """One of two workers of a group is stopped and started 20 times under load."""
    rng, times = random.Random(_SEED), scale.of(20, 3)
    record.did(f"One of two ingest workers of a group is stopped (SIGTERM) and started {times} times under load.")
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        exits: Counter[int] = Counter()
        done = asyncio.Event()
        load = asyncio.create_task(_announce_until(producer, done))
        worker = deployment.ingest[1]
        for _ in range(times):
            exits[await worker.stop(signal.SIGTERM)] += 1
            await worker.start()
            await asyncio.sleep(rng.uniform(0, 1))
        done.set()
        announced = await load
        record.saw("announced meanwhile", f"{announced:,}", holds=announced > 0)
        record.saw(
            "exit codes", ", ".join(f"{code}: {count}" for code, count in exits.items()), holds=set(exits) == {0}
        )
        await judge(deployment, producer, record)
        behind = await _behind(deployment)
        record.saw(
            "partitions with messages that the group has not done", ", ".join(behind) or "none", holds=not behind
        )


async def _announce_until(producer: Producer, done: asyncio.Event) -> int:
    number = 0
    while not done.is_set():
        await asyncio.gather(
            *(
                producer.external(f"run-{each % 16}", f"{each}.bin", producer.body())
                for each in range(number, number + 8)
            )
        )
        number += 8
        await asyncio.sleep(_EVERY_SECONDS)
    return number


async def _behind(deployment: Deployment) -> list[str]:
    """Asked of Kafka itself: the group's offsets and the ends of the topic's partitions."""
    servers, topic = deployment.backing.kafka.broker.bootstrap_servers, deployment.ingest_topic
    admin, consumer = AIOKafkaAdminClient(bootstrap_servers=servers), AIOKafkaConsumer(bootstrap_servers=servers)
    await admin.start()
    await consumer.start()
    try:
        offsets = await admin.list_consumer_group_offsets(deployment.ingest_group)
        (description,) = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, each["partition"]) for each in description["partitions"]]
        ends = await consumer.end_offsets(partitions)
        committed = {each: offsets[each].offset if each in offsets else 0 for each in partitions}
        return [
            f"{each.partition}: {max(0, committed[each])} of {ends[each]}"
            for each in partitions
            if max(0, committed[each]) < ends[each]
        ]
    finally:
        await consumer.stop()
        await admin.close()
