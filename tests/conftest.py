"""Fixtures that every part of the house may use."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings

from storage_proxy.common.service.loops import LoopChoice, loop_factory, uvloop_is_installed
from tests.support.deployment import Backing
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kafka import KafkaBroker, PrivateKafka, kafka_broker
from tests.support.s3 import PrivateS3, S3Bucket, S3Server, fresh_bucket, s3_server

# A busy machine is not a failure: property tests prove offsets, not speed. Every check tries the same examples; a
# soak tries many others.
settings.register_profile("house", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


_LONGEST_FIRST = ("soak/test_faults.py", "soak", "e2e", "interop", "contracts", "bus")
"""What takes long begins first: tests run in several processes, each file in one, and none should be left for last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = [here / place for place in _LONGEST_FIRST]

    def rank(item: pytest.Item) -> int:
        return next((rank for rank, place in enumerate(places) if item.path.is_relative_to(place)), len(places))

    items.sort(key=rank)


@pytest.hookimpl
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test runs on asyncio's loop; one that is marked ``both_loops`` on uvloop, too, where there is one."""
    both = item.get_closest_marker("both_loops") is not None and uvloop_is_installed()
    names: Sequence[LoopChoice] = ("asyncio", "uvloop") if both else ("asyncio",)
    return {name: loop_factory(name) for name in names}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server, shared; skips, or fails where REQUIRE_SERVICES says so, when there is none."""
    with s3_server() as server:
        yield server


@pytest.fixture
async def s3_bucket(s3: S3Server) -> AsyncIterator[S3Bucket]:
    """A fresh bucket on the shared server."""
    async with fresh_bucket(s3) as bucket:
        yield bucket


@pytest.fixture
async def private_s3(tmp_path: Path) -> AsyncIterator[PrivateS3]:
    """A server that the test may kill and start again."""
    server = PrivateS3(tmp_path / "private-s3")
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@pytest.fixture
async def faulty(s3: S3Server) -> AsyncIterator[FaultyProxy]:
    """The shared server behind a proxy that misbehaves on request."""
    async with FaultyProxy(s3.address).running() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """A real Kafka broker, shared; skips, or fails where REQUIRE_SERVICES says so, when there is none."""
    with kafka_broker() as broker:
        yield broker


@pytest.fixture
async def private_kafka(tmp_path: Path) -> AsyncIterator[PrivateKafka]:
    """A broker that the test may kill, pause and start again."""
    broker = PrivateKafka(tmp_path / "private-kafka")
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()


@pytest.fixture(scope="session")
def backing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    """A Kafka and an S3 server that tests may stop, and leave running: they are started once for all."""
    services = Backing.beneath(tmp_path_factory.mktemp("backing"))
    with ThreadPoolExecutor(1) as thread:  # with a loop of its own, which the tests' loops know nothing of
        try:
            thread.submit(asyncio.run, services.start()).result()
            yield services
        finally:
            thread.submit(asyncio.run, services.kill()).result()
