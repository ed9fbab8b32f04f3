"""Making a path pending, and waiting for keys that are being cleaned up.

The law: the pending record, its due row, the upload's id, the run's and the event that tells of it are one transaction;
an object that stands in the way is removed under a claim, so that nobody verifies it meanwhile.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from storage_proxy.common.errors import BlobExists, Busy, StorageTimeout
from storage_proxy.ingest import transitions
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobState, Claim, OutboxRow, Records, UploadRecord
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import DeletesBlobs

INGEST_TOPIC = "ingest"
"""What the outbox calls the topic of announcements."""
_CLAIM_SECONDS = 60
_CLAIM_PAUSE = 0.1
_MINUTE = 60
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A blob that may arrive until ``deadline``; its URL or token ends at ``expires_at`` (epoch seconds)."""

    place: Place
    announced: Announced
    expires_at: int
    deadline: float
    event: tuple[int, str, str] | None = None
    """``at_ms, id, value`` of its outbox row, None where none is needed."""


class Claimed(Exception):
    """The key's object is being deleted."""


class _Occupied(Exception):
    """An object that was rejected, or came too late, may be where a new one is to be."""


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

    async def announce(self, announcement: Announcement) -> None:
        """Make the path pending. Raises `RunDeleted`, `RunBucketMismatch`, `BlobExists` and `Busy`."""
        own: Claim | None = None

        async def fn(transaction: Transaction) -> None:
            await self._put_pending(transaction, announcement, own)

        try:
            await self.unclaimed(fn)
        except _Occupied:
            own = await self._discard(announcement.place)
            try:
                await self.unclaimed(fn)
            except _Occupied:  # the claim lapsed while the object was being discarded, or somebody was faster
                raise Busy from None

    async def _put_pending(self, transaction: Transaction, what: Announcement, own: Claim | None) -> None:
        place, now = what.place, self._clock()
        rows = await Rows.read(transaction, self._records, [place], now=now)
        rows.admit(place)
        claim = rows.claim(place)
        if claim is not None and claim != own:
            raise Claimed
        before = rows.blob(place)
        deadline = what.deadline
        if before is not None:
            if before.state is BlobState.VERIFIED:
                raise BlobExists
            if before.state is not BlobState.PENDING and claim is None:
                raise _Occupied
            deadline = max(deadline, before.deadline or 0)
        order = before.order if before is not None else None
        blob = transitions.pending(
            place, before, what.announced, order=order, now=now, deadline=deadline, options=self._options
        )
        until = -(-what.expires_at // _MINUTE) * _MINUTE  # full minutes: so most presigns need not write the run
        rows.put(place, blob, upload_until=until)
        rows.write()
        if claim is not None:
            self._records.claims.clear(transaction, place.bucket, place.key)
        self._records.uploads.set(transaction, UploadRecord(place.path), place.run_id, path_digest(place.path))
        if what.event is not None:
            at_ms, event_id, value = what.event
            row = OutboxRow(INGEST_TOPIC, place.run_id, value)
            self._records.outbox.set(transaction, row, at_ms, event_id)

    async def _discard(self, place: Place) -> Claim | None:
        """Remove the object of a record that was rejected or has expired: a new body is refused while it is there.

        Under a claim, so that nobody verifies it in the meantime. The claim, for the transaction that ends it; None
        when there is nothing to discard any more. When removing fails, the claim stands until it lapses: a request
        that was sent may still be answered.
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
        await self.remove(place)
        return claim

    async def unclaimed(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """What ``fn`` gives once it does not raise `Claimed`. Raises `Busy` when that takes too long."""
        for _ in range(max(1, int(self._options.claim_wait_seconds / _CLAIM_PAUSE))):
            try:
                return await self._store.transact(fn)
            except Claimed:
                await asyncio.sleep(_CLAIM_PAUSE * self._source.uniform(0.5, 1.5))
        raise Busy

    async def remove(self, place: Place) -> None:
        """Remove the object, where the bucket can. Raises as its store does."""
        bucket = self._buckets.get(place.bucket)
        if isinstance(bucket, DeletesBlobs):
            try:
                async with asyncio.timeout(_CLAIM_SECONDS / 2):
                    await bucket.delete_many([place.key])
            except TimeoutError as error:
                raise StorageTimeout from error


def upload_id(place: Place) -> str:
    """The name of the upload of one path of a run: the same however often it is prepared."""
    return f"{place.run_id}~{path_digest(place.path)}"


def path_digest(path: str) -> str:
    """What stands for a path in upload ids and their rows."""
    return sha256(path.encode()).hexdigest()[:32]
