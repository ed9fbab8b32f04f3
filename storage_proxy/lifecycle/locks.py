"""Locks: what only one process may do at a time, and how the others know that they may not.

The law: the clock decides when somebody may try, the fence decides who may write. Each change of the holder raises the
lock's fence, and a holder checks its own in every transaction that must be its alone (`HeldLock.check`). Transactions
are serialisable, so whatever the clocks of two machines say, and however long a holder was paused, its write comes
before the takeover or fails with `LockLost`. A wrong clock makes a takeover early or late, never unsafe.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

from storage_proxy.common.concurrency import cancel_and_wait
from storage_proxy.common.errors import ServiceError
from storage_proxy.common.values import rfc3339
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Lock, Records

_log = logging.getLogger(__name__)


class LockHeld(Exception):
    """Somebody else holds the lock: ``owner``, until ``until`` (epoch seconds) unless it is renewed."""

    def __init__(self, name: str, owner: str, until: float) -> None:
        super().__init__(f"{name} is held by {owner} until {rfc3339(int(until))}, or longer")
        self.name = name
        self.owner = owner
        self.until = until


class LockLost(Exception):
    """The lock has another holder by now, or could not be renewed in time."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: the lock was lost")
        self.name = name


class HeldLock:
    """A lock that this process got. ``fence`` is greater than that of every holder before."""

    def __init__(self, records: Records, name: str, owner: str, fence: int) -> None:
        self.name = name
        self.owner = owner
        self.fence = fence
        self._records = records

    async def check(self, transaction: Transaction) -> None:
        """Raise `LockLost` unless ``transaction`` is committed before anybody else gets the lock."""
        if not await self.is_current(transaction):
            raise LockLost(self.name)

    async def is_current(self, transaction: Transaction) -> bool:
        row = await self._records.locks.get(transaction, self.name)
        return row is not None and row.fence == self.fence


class Locks:
    """The locks in a store; one that is not renewed for ``lock_seconds`` may be taken over."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        *,
        lock_seconds: float,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
        jitter: random.Random | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._lock_seconds = lock_seconds
        self._clock = clock
        self._new_id = new_id
        self._jitter = jitter or random.SystemRandom()

    @asynccontextmanager
    async def hold(self, name: str, owner: str) -> AsyncIterator[HeldLock]:
        """Hold the lock ``name`` while entered, renewed in the background. Raises `LockHeld`.

        ``owner`` is for people: host and process. When the lock is lost, what runs inside is cancelled, and
        `LockLost` is raised.
        """
        held, until = await self._acquire(name, f"{owner}#{self._new_id()}")
        try:
            async with asyncio.timeout(None) as cut:
                renewal = asyncio.create_task(self._renew(held, until))
                renewal.add_done_callback(partial(_cut_unless_cancelled, cut))
                try:
                    yield held
                finally:
                    await cancel_and_wait(renewal)
        except TimeoutError:
            if not cut.expired():
                raise
            raise LockLost(name) from renewal.exception()
        finally:
            await self._release(held)

    async def stand_by(self, name: str, owner: str, work: Callable[[HeldLock], Awaitable[None]]) -> NoReturn:
        """Do ``work`` whenever the lock ``name`` can be had, until cancelled.

        What ``work`` raises of `ServiceError` and `LockLost` ends one holding, not the wait for the next.
        """
        while True:
            try:
                async with self.hold(name, owner) as lock:
                    await work(lock)
            except LockHeld:
                pass
            except (LockLost, ServiceError) as error:
                _log.warning("%s: %s", name, error)
            await asyncio.sleep(min(1.0, self._lock_seconds / 3) * self._jitter.uniform(0.5, 1))

    async def _acquire(self, name: str, owner: str) -> tuple[HeldLock, float]:
        """``owner`` is this acquisition's alone: so an attempt whose commit was of unknown result finds itself."""

        async def fn(transaction: Transaction) -> Lock:
            row = await self._records.locks.get(transaction, name)
            if row is not None and row.owner == owner:
                return row
            now = self._clock()
            if row is not None and row.expires_at > now:
                raise LockHeld(name, row.owner, row.expires_at)
            lock = Lock(owner, (row.fence if row is not None else 0) + 1, now + self._lock_seconds)
            self._records.locks.set(transaction, lock, name)
            return lock

        lock = await self._store.transact(fn)
        return HeldLock(self._records, name, owner, lock.fence), lock.expires_at

    async def _renew(self, held: HeldLock, until: float) -> None:
        """Keep the lock; return when it has been taken over, or cannot be kept until it may be."""

        async def fn(transaction: Transaction) -> float:
            await held.check(transaction)
            expires_at = self._clock() + self._lock_seconds
            self._records.locks.set(transaction, Lock(held.owner, held.fence, expires_at), held.name)
            return expires_at

        pause = self._lock_seconds / 3
        while True:
            await asyncio.sleep(pause)
            try:
                until = await self._store.transact(fn)
                pause = self._lock_seconds / 3
            except LockLost:
                return
            except ServiceError as error:
                if self._clock() >= until:
                    return
                _log.warning("%s: the lock cannot be renewed: %s", held.name, error)
                pause = self._lock_seconds / 10

    async def _release(self, held: HeldLock) -> None:
        """Let others have it at once. The row stays, and with it the fence."""

        async def fn(transaction: Transaction) -> None:
            if await held.is_current(transaction):
                self._records.locks.set(transaction, Lock(held.owner, held.fence, 0.0), held.name)

        try:
            await self._store.transact(fn)
        except ServiceError as error:
            _log.warning("%s: the lock cannot be released, it ends by itself: %s", held.name, error)


def _cut_unless_cancelled(cut: asyncio.Timeout, renewal: "asyncio.Task[None]") -> None:
    """End what holds the lock when it is not renewed any more."""
    if not renewal.cancelled():
        cut.reschedule(renewal.get_loop().time())
