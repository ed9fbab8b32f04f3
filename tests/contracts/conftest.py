"""The engines that the suites of the KeyValueStore port run on."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from storage_proxy.bus.port import EventBus
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.port import KeyValueStore
from tests.support.bus import BusHome, EmbeddedHome, KafkaHome
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.kafka import PrivateKafka
from tests.support.state import (
    PATIENT,
    Clock,
    StateBackend,
    fake_client,
    fake_store,
    real_store,
    remove_all,
    sqlite_store,
)


@pytest.fixture
async def sqlite_state(tmp_path: Path) -> AsyncIterator[StateBackend]:
    clock = Clock()
    async with AsyncExitStack() as stack:

        async def another(retries: RetryPolicy = PATIENT) -> KeyValueStore:
            return await stack.enter_async_context(sqlite_store(tmp_path / "state.db", clock=clock, retries=retries))

        yield StateBackend(await another(), another, clock)


@pytest.fixture
async def simulated_state() -> AsyncIterator[StateBackend]:
    async with _simulated(binding=False) as backend:
        yield backend


@pytest.fixture
async def binding_state() -> AsyncIterator[StateBackend]:
    async with _simulated(binding=True) as backend:
        yield backend


@asynccontextmanager
async def _simulated(*, binding: bool) -> AsyncIterator[StateBackend]:
    clock = Clock()
    cluster = FakeCluster(clock)
    async with AsyncExitStack() as stack:

        async def another(retries: RetryPolicy = PATIENT) -> KeyValueStore:
            client = stack.enter_context(fake_client(cluster, binding=binding))
            return await stack.enter_async_context(fake_store(client, retries=retries))

        yield StateBackend(await another(), another, clock)


@pytest.fixture
async def foundationdb_state() -> AsyncIterator[StateBackend]:
    async with AsyncExitStack() as stack:

        async def another(retries: RetryPolicy = PATIENT) -> KeyValueStore:
            return await stack.enter_async_context(real_store(retries=retries))

        backend = StateBackend(await another(), another, None)
        yield backend
        backend.store = await another()  # the test may have closed the other
        await remove_all(backend)


@pytest.fixture(params=["sqlite", "simulated", "binding", "foundationdb"])
def state(request: pytest.FixtureRequest) -> StateBackend:
    """Each engine of the KeyValueStore port: SQLite, a simulated FoundationDB client, the real Python binding on a
    simulated native library, a real cluster."""
    made: StateBackend = request.getfixturevalue(f"{request.param}_state")
    return made


@pytest.fixture(params=["embedded", "kafka"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> BusHome:
    """Where a bus lives: a file, or the shared broker."""
    if request.param == "embedded":
        return EmbeddedHome(tmp_path / "bus.db")
    return KafkaHome(request.getfixturevalue("kafka"))


@pytest.fixture(params=["embedded", "kafka"])
async def fragile_home(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EmbeddedHome | KafkaHome]:
    """Where a bus lives that the test may take away and bring back."""
    if request.param == "embedded":
        yield EmbeddedHome(tmp_path / "bus.db")
        return
    private = PrivateKafka(tmp_path / "private-kafka")
    await private.start()
    try:
        yield KafkaHome(private.broker, private)
    finally:
        await private.kill()


@pytest.fixture
async def bus(home: BusHome) -> AsyncIterator[EventBus]:
    async with home.open() as opened:
        yield opened
