"""Announcing uploads: making room for them, and waiting for keys that are being cleaned up.

The law: an object that stands in the way of a new one is removed under a claim, so that nobody verifies it meanwhile.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from storage_proxy.common.errors import Busy, StorageTimeout
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.pending import Announcement, Claimed, Occupied, PendingBlobs
from storage_proxy.ingest.places import Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobState, Claim, Records
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import DeletesBlobs

_CLAIM_SECONDS = 60
REMOVE_SECONDS = 30.0
"""So long an object may be removed by its claim; what is left of the claim covers a request under way."""
_CLAIM_PAUSE = 0.1
_T = TypeVar("_T")


class Announcements:
    """Announces uploads. ``clock`` gives seconds since the epoch, ``source`` the names of claims."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        *,
        options: IngestOptions,
        clock: Callable[[], float],
        source: random.Random,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        self._options = options
        self._clock = clock
        self._source = source
        self._pending = PendingBlobs(store, records, options=options, clock=clock)

    async def announce(self, announcement: Announcement) -> None:
        """Make the path pending. Raises `RunDeleted`, `RunBucketMismatch`, `BlobExists` and `Busy`."""
        try:
            await self._once_unclaimed(lambda: self._pending.add(announcement))
        except Occupied:
            announcement = replace(announcement, own=await self._discard(announcement.place))
            try:
                await self._once_unclaimed(lambda: self._pending.add(announcement))
            except Occupied:  # the claim lapsed while the object was being discarded, or somebody was faster
                raise Busy from None

    async def _discard(self, place: Place) -> Claim | None:
        """Remove the object of a record that was rejected or has expired: a new body is refused while it is there.

        Under a claim, so that nobody verifies it in the meantime; whoever was paused for long since removes nothing.
        The claim, for the transaction that ends it; None when there is nothing to discard any more. When removing
        fails, the claim stands until it lapses: a request that was sent may still be answered.
        """
        claim = Claim(self._source.getrandbits(62), int(self._clock()) + _CLAIM_SECONDS)

        async def take(transaction: Transaction) -> bool:
            rows = await Rows.read(transaction, self._records, [place], now=self._clock())
            rows.admit(place)
            held = rows.claim(place)
            if held is not None and held != claim:
                raise Claimed
            before = rows.blob(place)
            if before is None or before.state not in (BlobState.REJECTED, BlobState.EXPIRED):
                return False
            self._records.claims.set(transaction, claim, place.bucket, place.key)
            return True

        if not await self.unclaimed(take):
            return None
        await self.remove(place, within=claim.until - _CLAIM_SECONDS + REMOVE_SECONDS - self._clock())
        return claim

    async def unclaimed(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """What ``fn`` gives once it does not raise `Claimed`. Raises `Busy` when that takes too long."""
        return await self._once_unclaimed(lambda: self._store.transact(fn))

    async def _once_unclaimed(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(max(1, int(self._options.claim_wait_seconds / _CLAIM_PAUSE))):
            try:
                return await attempt()
            except Claimed:
                await asyncio.sleep(_CLAIM_PAUSE * self._source.uniform(0.5, 1.5))
        raise Busy

    async def remove(self, place: Place, *, within: float) -> None:
        """Remove the object, where the bucket can and there are seconds left for it. Raises `StorageTimeout`."""
        bucket = self._buckets.get(place.bucket)
        if isinstance(bucket, DeletesBlobs):
            if within <= 0:
                raise StorageTimeout
            try:
                async with asyncio.timeout(within):
                    await bucket.delete_many([place.key])
            except TimeoutError as error:
                raise StorageTimeout from error
