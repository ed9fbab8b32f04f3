"""Key-value stores for tests: a file, a simulated cluster, a real one; each with a prefix that nobody else uses."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.fdb_client import FdbOptions
from storage_proxy.state.fdb_engine import FdbKeyValueStore, open_foundationdb
from storage_proxy.state.keys import Subspace
from storage_proxy.state.port import KeyValueStore, Row, Transaction
from storage_proxy.state.sqlite import SqliteKeyValueStore, SqliteOptions, open_sqlite
from tests.support.fake_fdb import FakeFdb
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.fake_fdb_library import real_binding
from tests.support.real_services import unavailable

PATIENT = RetryPolicy(attempts=500, deadline_seconds=60.0)
ONCE = RetryPolicy(attempts=1, deadline_seconds=60.0)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StateBackend:
    """A store, and keys in it that are the test's own.

    ``again`` opens another store on the same content, with other retries if given. ``clock`` is None where time cannot
    be moved.
    """

    store: KeyValueStore
    again: Callable[..., Awaitable[KeyValueStore]]
    clock: Clock | None
    prefix: bytes = field(default_factory=lambda: Subspace("test", uuid.uuid4()).prefix)

    def key(self, name: bytes) -> bytes:
        return self.prefix + name

    @property
    def bounds(self) -> tuple[bytes, bytes]:
        return self.prefix, self.prefix + b"\xff"

    def named(self, rows: list[Row]) -> list[Row]:
        return [(key.removeprefix(self.prefix), value) for key, value in rows]

    async def put(self, **values: bytes) -> None:
        async def fn(transaction: Transaction) -> None:
            for name, value in values.items():
                transaction.set(self.key(name.encode()), value)

        await self.store.transact(fn)

    async def contents(self) -> dict[bytes, bytes]:
        return dict(self.named(await read_all(self.store, *self.bounds)))


async def read_all(store: KeyValueStore, begin: bytes, end: bytes) -> list[Row]:
    async def fn(transaction: Transaction) -> list[Row]:
        return [row async for batch in transaction.get_batches(begin, end) for row in batch]

    return await store.transact(fn)


@asynccontextmanager
async def sqlite_store(
    path: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    retries: RetryPolicy = PATIENT,
    **options: float,
) -> AsyncIterator[SqliteKeyValueStore]:
    """Reads fetch few rows at once, so that most ranges take several."""
    given = {"batch_rows": 7, "start_seconds": 30.0, "probe_seconds": 30.0, "busy_seconds": 30.0} | options
    async with open_sqlite(SqliteOptions(path, retries=retries, **given), clock=clock) as store:  # type: ignore[arg-type]
        yield store


@contextmanager
def fake_client(cluster: FakeCluster, *, seed: int = 0, binding: bool = False) -> Iterator[FakeFdb]:
    """A client of a simulated cluster; nothing may have gone wrong in its network thread.

    With ``binding`` its ``module`` is the real Python package, whose native library alone is simulated.
    """
    client = FakeFdb(cluster, seed=seed)
    try:
        if binding:
            with real_binding(client) as client.module:
                yield client
        else:
            yield client
    finally:
        client.network.stop()
        assert client.network.errors == []


@asynccontextmanager
async def fake_store(
    client: FakeFdb, *, retries: RetryPolicy = PATIENT, **options: float
) -> AsyncIterator[FdbKeyValueStore]:
    given = {"probe_seconds": 30.0} | options
    async with open_foundationdb(FdbOptions(retries=retries, **given), module=client.module) as store:  # type: ignore[arg-type]
        yield store


def real_cluster_file() -> Path:
    """The cluster of the environment; skips, or fails where it is required."""
    path = os.environ.get("TEST_FDB_CLUSTER_FILE")
    if path is None:
        unavailable("fdb", "TEST_FDB_CLUSTER_FILE is not set")
    return Path(path)


@asynccontextmanager
async def real_store(*, retries: RetryPolicy = PATIENT) -> AsyncIterator[FdbKeyValueStore]:
    version = int(os.environ.get("TEST_FDB_API_VERSION", "710"))
    options = FdbOptions(real_cluster_file(), api_version=version, retries=retries, probe_seconds=10.0)
    async with open_foundationdb(options) as store:
        yield store


async def remove_all(backend: StateBackend) -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.clear_range(*backend.bounds)

    await backend.store.transact(fn)


async def runs_when_overtaken(
    store: KeyValueStore,
    fn: Callable[[Transaction], Awaitable[None]],
    by: Callable[[Transaction], Awaitable[None]],
) -> int:
    """How often ``fn`` runs when ``by`` is committed between its first run and its commit."""
    runs = 0

    async def overtaken(transaction: Transaction) -> None:
        nonlocal runs
        runs += 1
        await fn(transaction)
        if runs == 1:
            await store.transact(by)

    await store.transact(overtaken)
    return runs


class Meeting:
    """A point where each of ``parties`` tasks waits once for all the others."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._complete = asyncio.Event()

    async def wait(self) -> None:
        if self._complete.is_set():
            return
        self._missing -= 1
        if self._missing == 0:
            self._complete.set()
        await self._complete.wait()
