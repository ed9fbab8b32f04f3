"""What is FoundationDB's own: its errors, its futures, and a cluster that does not answer."""

import asyncio
import gc
import importlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storage_proxy.common.errors import Internal, StateUnavailable
from storage_proxy.state import limits
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.fdb_bridge import outcome
from storage_proxy.state.fdb_client import FdbOptions, open_client
from storage_proxy.state.fdb_engine import FdbKeyValueStore
from storage_proxy.state.port import KeyValueStore, Transaction, TransactionTooOld
from tests.support.fake_fdb import FakeFdb
from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.fake_fdb_network import FakeFuture, FakeValue
from tests.support.state import Clock, fake_client, fake_store, read_all

_T = TypeVar("_T")

EVERYTHING = (b"", b"\xff")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(clock: Clock) -> FakeCluster:
    return FakeCluster(clock)


@pytest.fixture(params=["simulated", "binding"])
async def client(cluster: FakeCluster, request: pytest.FixtureRequest) -> AsyncIterator[FakeFdb]:
    """A simulated client, and the real Python binding on a simulated native library."""
    with fake_client(cluster, binding=request.param == "binding") as made:
        yield made


@pytest.fixture
async def store(client: FakeFdb) -> AsyncIterator[FdbKeyValueStore]:
    async with fake_store(client) as made:
        yield made


class Adding:
    """Adds one to a counter; run again, it finds what it did and leaves it."""

    def __init__(self, event: bytes = b"event") -> None:
        self.runs = 0
        self._event = event

    async def __call__(self, transaction: Transaction) -> None:
        self.runs += 1
        if await transaction.get(self._event) is None:
            transaction.set(self._event, b"")
            count = int(await transaction.get(b"count") or 0)
            transaction.set(b"count", b"%d" % (count + 1))


async def write_250(transaction: Transaction) -> None:
    for number in range(250):
        transaction.set(b"%03d" % number, b"")


async def until_available(work: Callable[[], Awaitable[_T]]) -> _T:
    while True:
        with suppress(StateUnavailable):
            return await work()


async def count(store: KeyValueStore) -> bytes:
    return dict(await read_all(store, *EVERYTHING))[b"count"]


# Errors that another attempt heals


@pytest.mark.parametrize("kind", ["get", "commit"])
@pytest.mark.parametrize("code", [1007, 1009, 1020, 1037])
async def test_a_retryable_error_runs_the_function_again(
    cluster: FakeCluster, store: FdbKeyValueStore, kind: str, code: int
) -> None:
    cluster.faults.script(kind, code, code)
    adding = Adding()
    await store.transact(adding)
    assert adding.runs == 3
    assert await count(store) == b"1"


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_unknown_result_is_run_again_and_counts_once(
    cluster: FakeCluster, store: FdbKeyValueStore, committed: bool
) -> None:
    cluster.faults.script("commit", 1021, committed=committed)
    adding = Adding()
    await store.transact(adding)
    assert adding.runs == 2
    assert await count(store) == b"1"


@pytest.mark.parametrize("committed", [True, False])
async def test_the_run_after_an_unknown_result_sees_its_own_writes_if_they_were_committed(
    cluster: FakeCluster, store: FdbKeyValueStore, committed: bool
) -> None:
    """A move of 250 rows from one place to another, done once: what is left to move says how far it came."""
    await store.transact(write_250)
    seen: list[tuple[int, int]] = []

    async def move(transaction: Transaction) -> int:
        here = await transaction.get_range(b"0", b"9", limit=1_000)
        there = await transaction.get_range(b"moved/", b"moved0", limit=1_000)
        seen.append((len(here), len(there)))
        for key, value in here:
            transaction.clear(key)
            transaction.set(b"moved/" + key, value)
        total = int(await transaction.get(b"total") or 0) + len(here)
        transaction.set(b"total", b"%d" % total)
        return total

    cluster.faults.script("commit", 1021, committed=committed)
    assert await store.transact(move) == 250
    assert seen == [(250, 0), (0, 250) if committed else (250, 0)]
    rows = await read_all(store, *EVERYTHING)
    assert [key for key, _ in rows] == [b"moved/%03d" % number for number in range(250)] + [b"total"]


async def test_forty_at_once_with_errors_at_random_each_count_once(
    cluster: FakeCluster, store: FdbKeyValueStore
) -> None:
    cluster.faults.rate = 0.2
    await asyncio.gather(*(store.transact(Adding(b"event/%d" % number)) for number in range(40)))
    cluster.faults.rate = 0
    assert await count(store) == b"40"


async def test_an_error_in_the_middle_of_a_range_runs_the_function_again(
    cluster: FakeCluster, store: FdbKeyValueStore
) -> None:
    async def write(transaction: Transaction) -> None:
        for number in range(170):
            transaction.set(b"%03d" % number, b"")

    await store.transact(write)
    cluster.faults.script("range", 1007)
    assert len(await read_all(store, *EVERYTHING)) == 170


async def test_attempts_are_bounded(cluster: FakeCluster, client: FakeFdb) -> None:
    cluster.faults.script("commit", *[1020] * 5)
    adding = Adding()
    async with fake_store(client, retries=RetryPolicy(attempts=5)) as store:
        with pytest.raises(StateUnavailable, match="1020"):
            await store.transact(adding)
    assert adding.runs == 5


# Errors that none heals


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("commit", 2101, limits.TransactionTooLarge),
        ("commit", 2102, limits.KeyTooLarge),
        ("commit", 2103, limits.ValueTooLarge),
        ("get", 2004, limits.KeyReserved),
        ("commit", 2017, limits.TransactionFinished),
        ("get", 1031, StateUnavailable),
        ("commit", 1031, StateUnavailable),
        ("commit", 1025, StateUnavailable),
        ("get", 1101, StateUnavailable),
        ("get", 1515, StateUnavailable),
        ("get", 2104, StateUnavailable),
        ("get", 4100, StateUnavailable),  # whatever it is, on_error says that it is not retryable
    ],
)
async def test_any_other_error_is_the_ports_and_runs_nothing_again(
    cluster: FakeCluster, store: FdbKeyValueStore, kind: str, code: int, error: type[Exception]
) -> None:
    cluster.faults.script(kind, code)
    adding = Adding()
    with pytest.raises(error, match=f"error {code}"):
        await store.transact(adding)
    assert adding.runs == 1
    assert await read_all(store, *EVERYTHING) == []


async def test_defects_are_internal_and_outages_are_unavailable(cluster: FakeCluster, store: FdbKeyValueStore) -> None:
    cluster.faults.script("commit", 2101)
    with pytest.raises(Internal):
        await store.transact(Adding())


async def test_an_export_that_outlives_its_version_is_too_old(
    cluster: FakeCluster, clock: Clock, store: FdbKeyValueStore
) -> None:
    await store.transact(write_250)
    batches = store.read_snapshot(*EVERYTHING)
    assert len(await anext(batches)) == 100
    clock.now += 6
    await store.transact(Adding())
    with pytest.raises(TransactionTooOld):
        await anext(batches)


# A cluster that cannot be reached


async def test_a_cluster_that_does_not_answer_is_unavailable_and_never_waited_for(
    cluster: FakeCluster, client: FakeFdb
) -> None:
    cluster.reachable = False
    async with fake_store(client, retries=RetryPolicy(deadline_seconds=0.05), probe_seconds=0.05) as store:
        with pytest.raises(StateUnavailable):
            await store.transact(Adding())
        with pytest.raises(StateUnavailable):
            await store.probe()
        with pytest.raises(StateUnavailable):
            await anext(store.read_snapshot(*EVERYTHING))


async def test_a_cluster_that_comes_back_goes_on(cluster: FakeCluster, client: FakeFdb) -> None:
    async with fake_store(client) as store:
        cluster.reachable = False
        adding = asyncio.create_task(store.transact(Adding()))
        await asyncio.sleep(0)
        assert not adding.done()
        cluster.reachable = True
        await adding
        await store.probe()
        assert await count(store) == b"1"


async def test_the_clients_own_timeout_ends_a_transaction(cluster: FakeCluster, client: FakeFdb) -> None:
    """Should the loop be late, error 1031 says the same as the deadline."""
    cluster.reachable = False
    opened = open_client(FdbOptions(), client.module)
    native = opened.transaction(timeout_seconds=0.02, max_retry_delay_seconds=0.1)
    with pytest.raises(client.module.FDBError) as raised:
        await outcome(native.get(b"a"))
    assert raised.value.code == 1031


async def test_commits_under_way_when_the_server_is_killed_count_once_after_its_restart(
    cluster: FakeCluster, client: FakeFdb
) -> None:
    async with fake_store(client) as store:
        adding = [asyncio.create_task(store.transact(Adding(b"event/%d" % number))) for number in range(50)]
        while cluster.commits_made < 5:
            await asyncio.sleep(0)
        cluster.kill()
        await asyncio.sleep(0)
        assert not all(each.done() for each in adding)
        cluster.restart()
        await asyncio.gather(*adding)
        assert await count(store) == b"50"


async def test_what_waits_for_a_killed_server_ends_by_its_deadline_and_the_next_needs_no_reopening(
    cluster: FakeCluster, client: FakeFdb
) -> None:
    async with fake_store(client, retries=RetryPolicy(deadline_seconds=0.2), probe_seconds=0.1) as store:
        cluster.kill()
        results = await asyncio.gather(*(store.transact(Adding()) for _ in range(10)), return_exceptions=True)
        assert {type(each) for each in results} == {StateUnavailable}
        with pytest.raises(StateUnavailable):
            await store.probe()
        cluster.restart()
        async with asyncio.timeout(30):
            await until_available(store.probe)
            await until_available(partial(store.transact, Adding()))
            assert await until_available(partial(count, store)) == b"1"


async def test_an_export_whose_cluster_goes_away_between_batches_is_unavailable(
    cluster: FakeCluster, client: FakeFdb
) -> None:
    async with fake_store(client, retries=RetryPolicy(deadline_seconds=0.2)) as store:
        async with fake_store(client) as patient:
            await patient.transact(write_250)
        batches = store.read_snapshot(*EVERYTHING)
        await anext(batches)
        cluster.kill()
        async with asyncio.timeout(30):
            with pytest.raises(StateUnavailable, match=r"0\.2 s"):
                await anext(batches)


@pytest.mark.parametrize("reachable", [True, False])
async def test_a_client_that_is_still_connecting_is_no_failure(
    cluster: FakeCluster, client: FakeFdb, reachable: bool
) -> None:
    async with fake_store(client) as store:
        cluster.reachable = reachable
        client.connecting = True
        adding = asyncio.create_task(store.transact(Adding()))
        probing = asyncio.create_task(store.probe())
        await asyncio.sleep(0)
        cluster.reachable = True
        await asyncio.gather(adding, probing)
        assert await count(store) == b"1"
        client.connecting = True
        assert len([batch async for batch in store.read_snapshot(*EVERYTHING)]) == 1


# Opening


async def test_a_missing_library_names_the_package_to_install() -> None:
    class WithoutLibrary:
        def api_version(self, _: int) -> None:
            raise Exception("Unable to locate the FoundationDB API shared library!")

    with pytest.raises(StateUnavailable, match="foundationdb-clients"):
        open_client(FdbOptions(), WithoutLibrary())


async def test_the_real_package_without_its_library_says_so() -> None:
    fdb: Any = importlib.import_module("fdb")
    with suppress(Exception):
        fdb.api_version(710)
        pytest.skip("fdb: libfdb_c is installed here")
    with pytest.raises(StateUnavailable, match="libfdb_c"):
        open_client(FdbOptions())


async def test_a_library_of_another_version_is_a_clear_error(client: FakeFdb) -> None:
    open_client(FdbOptions(api_version=710), client.module)
    with pytest.raises(StateUnavailable, match="API version 730"):
        open_client(FdbOptions(api_version=730), client.module)


def test_an_api_version_that_forgets_timeouts_is_refused() -> None:
    with pytest.raises(StateUnavailable, match="710 or later"):
        open_client(FdbOptions(api_version=600), object())


@pytest.mark.parametrize(("code", "reason"), [(1515, "no cluster file"), (2104, "cluster file is not valid")])
async def test_an_unusable_cluster_file_is_a_clear_error(client: FakeFdb, code: int, reason: str) -> None:
    client.open_error = code
    with pytest.raises(StateUnavailable, match=f"{reason}.*/nowhere/fdb.cluster"):
        open_client(FdbOptions(Path("/nowhere/fdb.cluster")), client.module)


async def test_a_database_opened_before_a_fork_is_refused(
    store: FdbKeyValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    with pytest.raises(StateUnavailable, match="fork"):
        await store.transact(Adding())


# Futures


async def test_a_future_is_awaited_whether_it_is_ready_or_will_be() -> None:
    ready, later = FakeFuture(), FakeValue()
    ready.resolve("at once")
    assert await outcome(ready) == "at once"
    waiting = asyncio.create_task(outcome(later))
    await asyncio.sleep(0)
    thread = threading.Thread(target=later.resolve, args=(None,))
    thread.start()
    value = await waiting
    thread.join()
    assert value is later
    assert not value.present()
    assert value.value is None


async def test_a_cancelled_wait_cancels_the_future() -> None:
    future = FakeFuture()
    waiting = asyncio.create_task(outcome(future))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert future.is_ready()


def test_a_future_that_becomes_ready_after_its_loop_was_closed_harms_nobody() -> None:
    future = FakeFuture()
    loop = asyncio.new_event_loop()
    waiting = outcome(future)

    async def ask() -> None:
        waiting.send(None)

    loop.run_until_complete(ask())
    loop.close()
    future.resolve("too late")
    waiting.close()


async def test_a_dropped_transaction_cancels_its_futures(client: FakeFdb, cluster: FakeCluster) -> None:
    """The simulation does what the client does, so that the engine is held to keeping it referenced."""
    cluster.reachable = False
    native = open_client(FdbOptions(), client.module).transaction(timeout_seconds=10, max_retry_delay_seconds=1)
    future = native.get(b"a")
    del native
    gc.collect()
    with pytest.raises(client.module.FDBError) as raised:
        await outcome(future)
    assert raised.value.code == 1025


async def test_cancellation_at_any_moment_leaves_nothing_behind(
    client: FakeFdb, cluster: FakeCluster, store: FdbKeyValueStore
) -> None:
    cluster.faults.rate = 0.1

    class Reading(Adding):
        async def __call__(self, transaction: Transaction) -> None:
            await transaction.get_range(*EVERYTHING, limit=1, snapshot=True)
            await super().__call__(transaction)

    for steps in range(80):
        task = asyncio.create_task(store.transact(Reading(b"%d" % steps)))
        for _ in range(steps % 40):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        del task
    cluster.faults.rate = 0
    async with asyncio.timeout(30):
        while len(client.transactions):  # the network thread may be about to drop one
            await asyncio.sleep(0)
            gc.collect()
    rows = dict(await read_all(store, *EVERYTHING))
    events = len(rows) - (b"count" in rows)
    assert int(rows.get(b"count", 0)) == events


@pytest.mark.parametrize("kind", ["get", "range", "commit", "version"])
async def test_a_cancellation_while_the_server_is_away_ends_at_once(
    client: FakeFdb, cluster: FakeCluster, store: FdbKeyValueStore, kind: str
) -> None:
    async def fn(transaction: Transaction) -> None:
        if kind == "get":
            await asyncio.gather(*(transaction.get(b"%d" % number) for number in range(20)))
        if kind == "range":
            await transaction.get_range(*EVERYTHING, limit=1)
        transaction.set(b"a", b"")

    cluster.kill()
    task: asyncio.Task[None] = asyncio.create_task(store.probe() if kind == "version" else store.transact(fn))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        while len(client.transactions):
            await asyncio.sleep(0)
            gc.collect()
    cluster.restart()
    await store.transact(Adding())


def test_a_loop_that_is_closed_while_its_requests_wait_leaves_a_client_for_the_next(cluster: FakeCluster) -> None:
    with fake_client(cluster, binding=True) as client:

        async def abandoned() -> None:
            async with fake_store(client) as store:
                cluster.kill()
                left.append(asyncio.create_task(store.transact(Adding())))
                await asyncio.sleep(0)

        async def again() -> None:
            async with fake_store(client) as store:
                await store.transact(Adding())

        left: list[asyncio.Task[None]] = []
        asyncio.run(abandoned())
        assert left[0].cancelled()
        cluster.restart()
        asyncio.run(again())


async def test_what_a_function_leaves_running_is_cancelled_with_its_transaction(
    client: FakeFdb, cluster: FakeCluster, store: FdbKeyValueStore
) -> None:
    left: list[asyncio.Task[bytes | None]] = []

    async def fn(transaction: Transaction) -> None:
        cluster.reachable = False
        left.append(asyncio.create_task(transaction.get(b"a")))
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        await store.transact(fn)
    with pytest.raises(StateUnavailable):
        await left[0]


async def test_no_thread_is_made_for_a_request(store: FdbKeyValueStore) -> None:
    before = threading.active_count()
    most = before

    async def fn(transaction: Transaction) -> None:
        nonlocal most
        await asyncio.gather(*(transaction.get(b"%d" % number) for number in range(50)))
        most = max(most, threading.active_count())

    await asyncio.gather(*(store.transact(fn) for _ in range(20)))
    assert most == before
