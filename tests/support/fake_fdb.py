"""The package `fdb` as far as the engine uses it, in front of a `FakeCluster`: it behaves as the real client did.

A value is lazy and never None; a dropped transaction cancels its futures (1025), a dropped future's callback never
fires; a commit that was cancelled may have been made.
"""

import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.support.fake_fdb_cluster import COMMIT_UNKNOWN, ClusterError, FakeCluster, Mutation, Range
from tests.support.fake_fdb_network import FakeFuture, FakeValue, FDBError, Network

RETRYABLE = {1007, 1009, 1020, COMMIT_UNKNOWN, 1037, 1039, 1213}
MODES = {"want_all": -2, "iterator": -1, "exact": 0, "small": 1, "medium": 2, "large": 3, "serial": 4}


Page = tuple[list[SimpleNamespace], int, bool]
"""What a range read gives: pairs, how many, and whether there is more."""


class KeySelector:
    def __init__(self, key: bytes) -> None:
        self.key = key

    @classmethod
    def first_greater_or_equal(cls, key: bytes) -> "KeySelector":
        return cls(key)

    @classmethod
    def first_greater_than(cls, key: bytes) -> "KeySelector":
        return cls(key + b"\x00")


class FakeFdb:
    """Stands in for the module. One client process; several may share a cluster.

    While it is ``connecting``, it does not know the cluster's protocol: what is written is lost, and every request of
    such a transaction fails with 1039 once the cluster has answered.
    """

    FDBError = FDBError
    KeySelector = KeySelector
    StreamingMode = SimpleNamespace(**MODES)

    def __init__(self, cluster: FakeCluster, *, seed: int = 0) -> None:
        self.cluster = cluster
        self.network = Network(cluster, seed)
        self.version: int | None = None
        self.open_error: int | None = None
        self.transactions: weakref.WeakSet[Any] = weakref.WeakSet()
        self.connecting = False
        self.module: Any = self  # or the real binding on this client: see `fake_fdb_library`

    def api_version(self, version: int) -> None:
        if self.version not in {None, version}:
            raise RuntimeError(f"FDB API already loaded at version {self.version}")
        self.version = version

    def open(self, cluster_file: str | None = None) -> "FakeDatabase":
        if self.open_error is not None:
            raise FDBError(self.open_error)
        return FakeDatabase(self)


class FakeDatabase:
    def __init__(self, client: FakeFdb) -> None:
        self._client = client

    def create_transaction(self) -> "FakeTransaction":
        transaction = FakeTransaction(self._client)
        self._client.transactions.add(transaction)
        return transaction


class _Attempt:
    """What a reset throws away. The network thread holds it, never the transaction."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.mutations: list[Mutation] = []
        self.reads: list[Range] = []
        self.committing = False
        self.pending: list[weakref.ref[FakeFuture]] = []

    def expect(self, future: FakeFuture) -> None:
        self.pending = [each for each in self.pending if (known := each()) is not None and not known.is_ready()]
        self.pending.append(weakref.ref(future))

    def fail(self, code: int) -> None:
        for reference in self.pending:
            future = reference()
            if future is not None:
                future.resolve(error=code)


class FakeTransaction:
    """Read-your-writes, conflict ranges and life time as the real client has them."""

    def __init__(self, client: FakeFdb) -> None:
        self._client = client
        self._attempt = _Attempt()
        self._timed_out = threading.Event()
        self._connected = not client.connecting
        self.options = SimpleNamespace(set_timeout=self._set_timeout, set_max_retry_delay=lambda _: None)

    @property
    def snapshot(self) -> "_Snapshot":
        return _Snapshot(self)

    def __del__(self) -> None:
        self._attempt.fail(1025)

    def _set_timeout(self, milliseconds: int) -> None:
        reference = weakref.ref(self)

        def expire() -> None:
            transaction = reference()
            if transaction is not None:
                transaction._timed_out.set()
                transaction._attempt.fail(1031)

        self._client.network.later(milliseconds / 1000, expire)

    # Reads

    def get_read_version(self) -> FakeFuture:
        return self._ask(FakeFuture(), "version", _read_version)

    def get(self, key: bytes, snapshot: bool = False) -> FakeValue:
        for begin, end, value in reversed(self._attempt.mutations):
            if begin <= key < end:
                future = FakeValue()
                future.resolve(value)
                return future
        if not snapshot:
            self._attempt.reads.append((key, key + b"\x00"))
        return self._ask(FakeValue(), "get", lambda cluster, attempt: cluster.get(key, _read_version(cluster, attempt)))

    def _get_range(
        self,
        begin: KeySelector,
        end: KeySelector,
        limit: int,
        mode: int,
        iteration: int,
        reverse: bool,
        snapshot: bool = False,
    ) -> FakeFuture:
        own = tuple(self._attempt.mutations)
        most = _batch_rows(limit, mode, iteration)
        if not _minus(begin.key, end.key, own):
            known: dict[bytes, bytes] = {}
            _overwrite(known, own, begin.key, end.key)
            future = FakeFuture()
            future.resolve(_page(known, most, limit, reverse))
            return future

        def read(cluster: FakeCluster, attempt: _Attempt) -> Page:
            found = cluster.rows(begin.key, end.key, _read_version(cluster, attempt))
            _overwrite(found, own, begin.key, end.key)
            page = _page(found, most, limit, reverse)
            pairs, _, more = page
            if not snapshot:
                low, high = begin.key, end.key
                if more:
                    low, high = (pairs[-1].key, high) if reverse else (low, pairs[-1].key + b"\x00")
                attempt.reads += _minus(low, high, own)
            return page

        return self._ask(FakeFuture(), "range", read)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._attempt.reads.append((begin, end))

    # Writes

    def set(self, key: bytes, value: bytes) -> None:
        self._write((key, key + b"\x00", value))

    def clear(self, key: bytes) -> None:
        self._write((key, key + b"\x00", None))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        if begin > end:
            raise FDBError(2005)
        self._write((begin, end, None))

    def _write(self, mutation: Mutation) -> None:
        if self._connected:
            self._attempt.mutations.append(mutation)

    def commit(self) -> FakeFuture:
        future = self._ask(FakeFuture(), "commit", _commit)
        self._attempt.committing = True
        return future

    def on_error(self, code: int) -> FakeFuture:
        future = FakeFuture()
        if code not in RETRYABLE or self._timed_out.is_set():
            future.resolve(error=1031 if self._timed_out.is_set() else code)
            return future
        self.reset()
        self._connected = not self._client.connecting
        self._attempt.expect(future)
        self._client.network.later(0.0005, future.resolve)
        return future

    def reset(self) -> None:
        self._attempt.fail(1025)
        self._attempt = _Attempt()

    def _ask(self, future: Any, kind: str, work: Callable[[FakeCluster, _Attempt], Any]) -> Any:
        attempt = self._attempt
        if self._timed_out.is_set() or attempt.committing:
            future.resolve(error=1031 if self._timed_out.is_set() else 2017)
            return future
        attempt.expect(future)
        reference = weakref.ref(future)
        cluster = self._client.cluster
        client = self._client
        life = cluster.lives
        connected = self._connected

        def answer() -> None:
            waiting = reference()
            client.connecting = False
            if not connected:
                if waiting is not None:
                    waiting.resolve(error=1039)
                return
            if kind != "commit" and (waiting is None or waiting.is_ready()):
                return
            result, error = _answered(cluster, attempt, kind, work, lost=cluster.lives != life)
            if waiting is not None:
                waiting.resolve(result, error)

        self._client.network.request(answer)
        return future


class _Snapshot:
    def __init__(self, transaction: FakeTransaction) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> FakeValue:
        return self._transaction.get(key, snapshot=True)

    def _get_range(self, *arguments: Any) -> FakeFuture:
        return self._transaction._get_range(*arguments, snapshot=True)


def _answered(
    cluster: FakeCluster, attempt: _Attempt, kind: str, work: Callable[[FakeCluster, _Attempt], Any], *, lost: bool
) -> tuple[Any, int | None]:
    """``lost`` is a request that a killed server had been sent: reads are sent again, of a commit nobody knows."""
    fault = cluster.faults.unknown() if lost and kind == "commit" else cluster.faults.next(kind)
    try:
        if fault is None:
            return work(cluster, attempt), None
        if fault.committed:
            work(cluster, attempt)
    except ClusterError as error:
        return None, error.code
    return None, fault.code


def _read_version(cluster: FakeCluster, attempt: _Attempt) -> int:
    if attempt.version is None:
        attempt.version = cluster.read_version()
    return attempt.version


def _commit(cluster: FakeCluster, attempt: _Attempt) -> None:
    code = _refusal(attempt.mutations)
    if code is not None:
        raise ClusterError(code)
    if attempt.mutations:
        writes = [(begin, end) for begin, end, _ in attempt.mutations]
        cluster.commit(_read_version(cluster, attempt), attempt.reads, writes, attempt.mutations)


def _refusal(mutations: list[Mutation]) -> int | None:
    for begin, _, value in mutations:
        if value is not None and len(begin) > 10_000:
            return 2102
        if value is not None and len(value) > 100_000:
            return 2103
        if begin >= b"\xff":
            return 2004
    size = sum(2 * (len(begin) + len(end)) + len(value or b"") for begin, end, value in mutations)
    return 2101 if size > 10_000_000 else None


def _batch_rows(limit: int, mode: int, iteration: int) -> int:
    rows = {MODES["want_all"]: 50, MODES["iterator"]: 5 * 2**iteration, MODES["serial"]: 100}.get(mode, 10**9)
    return min(rows, limit) if limit else rows


def _overwrite(found: dict[bytes, bytes], own: tuple[Mutation, ...], begin: bytes, end: bytes) -> None:
    for b, e, value in own:
        if value is not None:
            if begin <= b < end:
                found[b] = value
        else:
            for key in [key for key in found if b <= key < e]:
                del found[key]


def _page(found: dict[bytes, bytes], most: int, limit: int, reverse: bool) -> Page:
    keys = sorted(found, reverse=reverse)
    more = len(keys) > most or 0 < limit <= len(keys)
    return [SimpleNamespace(key=key, value=found[key]) for key in keys[:most]], min(most, len(keys)), more


def _minus(begin: bytes, end: bytes, own: tuple[Mutation, ...]) -> list[Range]:
    """What of a range was not decided by the transaction's own writes."""
    left = [(begin, end)]
    for b, e, _ in own:
        left = [
            piece for low, high in left for piece in ((low, min(high, b)), (max(low, e), high)) if piece[0] < piece[1]
        ]
    return left
