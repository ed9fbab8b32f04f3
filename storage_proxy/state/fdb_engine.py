"""The KeyValueStore on a FoundationDB cluster.

The law: conflicts, retries and back-off are the client's (`on_error`); this engine bounds them, awaits them, and adds
nothing that the cluster would not do. Every transaction has a timeout, as without one an unreachable cluster is waited
for for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state import attempts, limits
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.fdb_bridge import NativeFuture, outcome
from storage_proxy.state.fdb_client import FdbClient, FdbOptions, open_client
from storage_proxy.state.fdb_errors import FdbAttemptFailed, FdbTooOld, during_attempt, final
from storage_proxy.state.keys import after
from storage_proxy.state.limits import FIRST_KEY
from storage_proxy.state.port import AttemptFailed, Row, Transaction, TransactionTooOld
from storage_proxy.state.ranges import Range
from storage_proxy.state.transaction import BoundedTransaction, RangeRead

_T = TypeVar("_T")

# The loop's deadline comes first and says why; the client's own is for a loop that is late.
_LATE_SECONDS = 1.0
# Of an export: each of its batches has a deadline, and the cluster forgets its version long before.
_EXPORT_SECONDS = 3_600.0


@asynccontextmanager
async def open_foundationdb(options: FdbOptions, *, module: Any | None = None) -> AsyncIterator["FdbKeyValueStore"]:
    """The store, closed on leaving. Call it in the process that uses it, not before a fork.

    Raises `StateUnavailable` when the library or the cluster file is missing or unusable. A cluster that cannot be
    reached is no reason not to start: `probe` tells.
    """
    store = FdbKeyValueStore(open_client(options, module), options)
    try:
        yield store
    finally:
        await store.aclose()


class FdbKeyValueStore:
    """The `KeyValueStore` over one database. The client's network thread lives as long as the process."""

    def __init__(self, client: FdbClient, options: FdbOptions) -> None:
        self._client = client
        self._options = options
        self._closed = False

    async def transact(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        return await self._transact(fn, self._options.retries)

    async def _transact(self, fn: Callable[[Transaction], Awaitable[_T]], policy: RetryPolicy) -> _T:
        native = self._native(policy.deadline_seconds + _LATE_SECONDS)

        async def recover(failure: AttemptFailed, _: int) -> None:
            assert isinstance(failure, FdbAttemptFailed)
            with self._translated(final):
                await outcome(native.on_error(failure.code))

        return await attempts.run(
            fn, begin=lambda: FdbTransaction(native, self._client.module), recover=recover, policy=policy
        )

    async def read_snapshot(self, begin: bytes, end: bytes) -> AsyncIterator[Sequence[Row]]:
        limits.check_bounds(begin, end)
        await self._reach(self._options.retries)
        seconds = self._options.retries.deadline_seconds
        transaction = FdbTransaction(self._native(_EXPORT_SECONDS), self._client.module, mode="serial")
        batches = transaction.get_batches(begin, end, snapshot=True)
        try:
            while True:
                async with asyncio.timeout(seconds):
                    rows = await anext(batches, None)
                if rows is None:
                    return
                yield rows
        except TimeoutError as error:
            raise StateUnavailable(f"FoundationDB did not answer in {seconds:g} s") from error
        except FdbTooOld as error:
            raise TransactionTooOld("The range is too large to be read as of one moment") from error
        except FdbAttemptFailed as error:
            raise final(error.code) from error
        finally:
            transaction.end()

    async def probe(self) -> None:
        await self._reach(replace(self._options.retries, deadline_seconds=self._options.probe_seconds))

    async def _reach(self, policy: RetryPolicy) -> None:
        """Read a key, whichever: a client that is still connecting fails its first requests (error 1039)."""

        async def fn(transaction: Transaction) -> None:
            await transaction.get(FIRST_KEY, snapshot=True)

        await self._transact(fn, policy)

    async def aclose(self) -> None:
        self._closed = True

    def _native(self, timeout_seconds: float) -> Any:
        if self._closed:
            raise StateUnavailable("The state store is closed")
        with self._translated(final):
            return self._client.transaction(
                timeout_seconds=timeout_seconds,
                max_retry_delay_seconds=self._options.max_retry_delay_seconds,
            )

    @contextmanager
    def _translated(self, translate: Callable[[int], Exception]) -> Iterator[None]:
        try:
            yield
        except self._client.module.FDBError as error:
            raise translate(error.code) from error


class FdbTransaction(BoundedTransaction):
    """One attempt on a native transaction, which it keeps referenced; read-your-writes is the client's."""

    def __init__(self, native: Any, module: Any, *, mode: str = "want_all") -> None:
        super().__init__()
        self._native = native
        self._module = module
        self._mode = getattr(module.StreamingMode, mode)
        self._pending: dict[int, NativeFuture] = {}  # by id: a value's own hash waits for it, blocking

    async def _get(self, key: bytes, snapshot: bool) -> bytes | None:
        value = await self._await(self._view(snapshot).get, key)
        found: bytes | None = value.value  # never None itself, whether the key is there or not
        return found

    async def _get_many(self, keys: Sequence[bytes], snapshot: bool) -> Sequence[bytes | None]:
        found: list[bytes | None] = []
        with self._translated():
            view = self._view(snapshot)
            futures = [view.get(key) for key in keys]  # all are on their way before the first is waited for
            self._pending.update((id(future), future) for future in futures)  # after a failure cancelled at the end
            for future in futures:
                value = await outcome(future)
                del self._pending[id(future)]
                found.append(value.value)
        return found

    async def _batch(self, read: RangeRead) -> tuple[Sequence[Row], Range | None]:
        at = self._module.KeySelector.first_greater_or_equal
        ask = partial(self._view(read.snapshot)._get_range, at(read.begin), at(read.end))  # noqa: SLF001 see below
        # The public FDBRange blocks while it is iterated; what it calls for each batch is the same in 7.1 to 8.0.
        pairs, count, more = await self._await(ask, read.limit or 0, self._mode, read.iteration, read.reverse)
        rows = [(pair.key, pair.value) for pair in pairs]
        if not count or not more:
            return rows, None
        rest = (read.begin, rows[-1][0]) if read.reverse else (after(rows[-1][0]), read.end)
        return rows, rest if rest[0] < rest[1] else None

    def _add_read_conflict(self, begin: bytes, end: bytes) -> None:
        with self._translated():
            self._native.add_read_conflict_range(begin, end)

    def _set(self, key: bytes, value: bytes) -> None:
        with self._translated():
            self._native.set(key, value)

    def _clear(self, key: bytes) -> None:
        with self._translated():
            self._native.clear(key)

    def _clear_range(self, begin: bytes, end: bytes) -> None:
        with self._translated():
            self._native.clear_range(begin, end)

    async def _commit(self) -> None:
        await self._await(self._native.commit)

    def _release(self) -> None:
        for future in tuple(self._pending.values()):  # of tasks that the function left behind
            future.cancel()

    def _view(self, snapshot: bool) -> Any:
        return self._native.snapshot if snapshot else self._native

    async def _await(self, ask: Callable[..., NativeFuture], *arguments: object) -> Any:
        with self._translated():
            future = ask(*arguments)
            self._pending[id(future)] = future
            try:
                return await outcome(future)
            finally:
                del self._pending[id(future)]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._module.FDBError as error:
            raise during_attempt(error.code) from error
