"""Which objects no record knows, and the claims under which they are removed.

The law: a key is claimed in a transaction that sees no record of it and the job's own fence. Whoever wants to write a
record of a claimed key waits. A claim ends by itself, `CLAIM_SECONDS` after it was made, and its holder acts on it
only for `ACT_SECONDS`: so one of a killed job holds nobody up for long, and a paused job never removes what came after.
That is why a claim that has not lapsed outlives its holder, even when another job has claimed the key since.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.events import parse_run_key
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import Claim, Records, RunEnd, Tombstone

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
        """Claim those of ``keys``, at most 500, that no record knows.

        Raises `LockLost`, and `StateUnavailable` while a state file is being read in: then nobody knows what is known.
        """
        earlier: dict[str, Claim] = {}

        async def fn(transaction: Transaction) -> Claimed:
            now = self._clock()
            await self._lock.check(transaction)
            if await self._records.imports.get(transaction) is not None:
                raise StateUnavailable("A state file is being read in: until it is, no object is an orphan")
            orphans = await self._orphans(transaction, bucket, keys)
            found = await self._records.claims.get_many(transaction, [(bucket, key) for key in orphans])
            for key, claim in zip(orphans, found, strict=True):
                if claim is not None and claim.fence != self._lock.fence and claim.until > now:
                    earlier[key] = claim
                self._records.claims.set(transaction, Claim(self._lock.fence, int(now) + CLAIM_SECONDS), bucket, key)
            return Claimed(bucket, orphans, now, earlier)

        return await self._store.transact(fn)

    async def clear(self, claimed: Claimed) -> None:
        """Give the keys free, their objects are gone; but leave an earlier job's claim to its end."""

        async def fn(transaction: Transaction) -> None:
            places = [(claimed.bucket, key) for key in claimed.keys]
            found = await self._records.claims.get_many(transaction, places)
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
        """Those that no record knows, and that the sweeper does not remove anyway. No record can be of a key that is
        none of a run's."""
        places = {key: place for key in keys if (place := parse_run_key(key)) is not None}
        runs = list(dict.fromkeys((run_id,) for run_id, _ in places.values()))
        tombstones = await self._records.tombstones.get_many(transaction, runs)
        swept_later = {run_id for (run_id,), found in zip(runs, tombstones, strict=True) if _sweeps(found, bucket)}
        blobs = await self._records.blobs.get_many(transaction, list(places.values()))
        known = {key for key, blob in zip(places, blobs, strict=True) if blob is not None and blob.bucket == bucket}
        return [key for key in keys if key not in known and not (key in places and places[key][0] in swept_later)]


def _sweeps(tombstone: Tombstone | None, bucket: str) -> bool:
    """Whether what is left of the run in ``bucket`` is for the control worker or the sweeper to remove."""
    if tombstone is None or tombstone.state is RunEnd.SWEPT:
        return False
    return tombstone.bucket is None or tombstone.bucket == bucket
