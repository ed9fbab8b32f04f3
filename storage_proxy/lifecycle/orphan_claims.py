"""Which objects no record knows, and the claims under which they are removed.

The law: a key is claimed in a transaction that sees no record of it and the job's own fence. Whoever wants to write a
record of a claimed key waits. A claim ends by itself, `CLAIM_SECONDS` after it was made, and its holder acts on it
only for `ACT_SECONDS`: so one of a killed job holds nobody up for long, and a paused job never removes what came after.
That is why a claim that has not lapsed outlives its holder, even when another job has claimed the key since.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from storage_proxy.common.events import parse_run_key
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Claim, Records, RunEnd

CLAIM_SECONDS = 120
"""How long a claim keeps others from its key, unless it is cleared before."""
ACT_SECONDS = 60.0
"""So long after its claim an object may be removed. What is left of the claim covers a request under way."""

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Claimed:
    """Keys of ``bucket`` that were claimed ``at`` (epoch seconds), and the claims of earlier jobs that stood then."""

    bucket: str
    keys: Sequence[str]
    at: float
    earlier: Mapping[str, Claim]


class OrphanClaims:
    """The claims of one job, the holder of ``lock``."""

    def __init__(
        self, store: KeyValueStore, records: Records, lock: HeldLock, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._records = records
        self._lock = lock
        self._clock = clock

    async def orphans(self, bucket: str, keys: Sequence[str]) -> Sequence[str]:
        """Those of ``keys``, at most 1,000, that no record knows. Claims nothing."""

        async def fn(transaction: Transaction) -> Sequence[str]:
            return await self._orphans(transaction, bucket, keys)

        return await self._store.transact(fn)

    async def claim(self, bucket: str, keys: Sequence[str]) -> Claimed:
        """Claim those of ``keys``, at most 500, that no record knows. Raises `LockLost`."""
        earlier: dict[str, Claim] = {}

        async def fn(transaction: Transaction) -> Claimed:
            now = self._clock()
            await self._lock.check(transaction)
            orphans = await self._orphans(transaction, bucket, keys)
            found = await asyncio.gather(*(self._records.claims.get(transaction, bucket, key) for key in orphans))
            for key, claim in zip(orphans, found, strict=True):
                if claim is not None and claim.fence != self._lock.fence and claim.until > now:
                    earlier[key] = claim
                self._records.claims.set(transaction, Claim(self._lock.fence, int(now) + CLAIM_SECONDS), bucket, key)
            return Claimed(bucket, orphans, now, earlier)

        return await self._store.transact(fn)

    async def clear(self, claimed: Claimed) -> None:
        """Give the keys free, their objects are gone; but leave an earlier job's claim to its end."""

        async def fn(transaction: Transaction) -> None:
            found = await asyncio.gather(
                *(self._records.claims.get(transaction, claimed.bucket, key) for key in claimed.keys)
            )
            for key, claim in zip(claimed.keys, found, strict=True):
                if claim is None or claim.fence != self._lock.fence:
                    continue
                if key in claimed.earlier:
                    self._records.claims.set(transaction, claimed.earlier[key], claimed.bucket, key)
                else:
                    self._records.claims.clear(transaction, claimed.bucket, key)

        await self._store.transact(fn)

    async def clear_lapsed(self) -> None:
        """Clear what killed jobs have left and nobody acts on any more. Raises `LockLost`."""
        position = b""
        while True:
            position = await self._clear_some_lapsed(position)
            if not position:
                return

    async def _clear_some_lapsed(self, position: bytes) -> bytes:
        """Returns where to go on, empty at the end."""

        async def fn(transaction: Transaction) -> bytes:
            await self._lock.check(transaction)
            rows = await self._records.claims.page(transaction, limit=_PAGE, start_after=position)
            for key, claim in rows:
                if claim.until <= self._clock():
                    self._records.claims.clear(transaction, *key)
            return self._records.claims.key(*rows[-1][0]) if len(rows) == _PAGE else b""

        return await self._store.transact(fn)

    async def _orphans(self, transaction: Transaction, bucket: str, keys: Sequence[str]) -> Sequence[str]:
        parsed = {key: parse_run_key(key) for key in keys}
        runs = {at[0] for at in parsed.values() if at is not None}
        swept_later = dict(
            zip(
                runs,
                await asyncio.gather(*(self._is_swept_later(transaction, bucket, run) for run in runs)),
                strict=True,
            )
        )

        async def is_orphan(key: str) -> bool:
            at = parsed[key]
            if at is None:
                return True  # no record can ever be of it
            if swept_later[at[0]]:
                return False
            record = await self._records.blobs.get(transaction, *at)
            return record is None or record.bucket != bucket

        outcomes = await asyncio.gather(*(is_orphan(key) for key in keys))
        return [key for key, orphan in zip(keys, outcomes, strict=True) if orphan]

    async def _is_swept_later(self, transaction: Transaction, bucket: str, run_id: str) -> bool:
        """Whether the run's objects in ``bucket`` are the control worker's and the sweeper's to remove."""
        tombstone = await self._records.tombstones.get(transaction, run_id)
        if tombstone is None or tombstone.state is RunEnd.SWEPT:
            return False
        return tombstone.bucket is None or tombstone.bucket == bucket
