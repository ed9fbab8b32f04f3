"""Uploads of a run's blobs: prepared with a URL or for a token, received through the proxy, completed on request.

The law: a blob is announced before it can arrive, its event in the same transaction; it is visible once it is verified,
and what arrives for a run that was deleted meanwhile is removed again.
"""

import asyncio
import random
import re
import time
import uuid
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from pydantic import ValidationError

from storage_proxy.common.errors import (
    BlobExists,
    Busy,
    ChecksumMismatch,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    RunBucketMismatch,
    RunDeleted,
    ServiceError,
    SizeMismatch,
    StorageTimeout,
    UnsafeName,
    UploadIncomplete,
)
from storage_proxy.common.events import blob_ref, parse_run_key, unsafe_path_reason
from storage_proxy.common.names import unsafe_key_reason
from storage_proxy.common.problems import field_errors
from storage_proxy.common.steps import step
from storage_proxy.common.tokens import UploadClaims
from storage_proxy.common.values import moment
from storage_proxy.common.wire import RUN_ID_PATTERN, PreparedUpload, RunAccess, UploadOrder, UploadTarget, Via
from storage_proxy.ingest import transitions
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.ingest.verification import Contradiction, Seen, Verifier, contradiction
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Claim, OutboxRow, Records, UploadRecord
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import (
    DeletesBlobs,
    PresignsUploads,
    ReceivesUploads,
    UploadTerms,
)

INGEST_TOPIC = "ingest"
"""What the outbox calls the topic of announcements."""
_CLAIM_SECONDS = 60
_REMOVE_SECONDS = 30.0
"""So long an object may be removed by its claim; what is left of the claim covers a request under way."""
_CLAIM_PAUSE = 0.1
_MINUTE = 60
_UPLOAD_ID = re.compile(rf"({RUN_ID_PATTERN.strip('^$')})~([0-9a-f]{{32}})", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Announcement:
    """A blob that may arrive until ``deadline``; its URL or token ends at ``expires_at`` (epoch seconds)."""

    place: Place
    announced: Announced
    expires_at: int
    deadline: float
    event: tuple[int, str, str] | None = None
    """``at_ms, id, value`` of its outbox row, None where none is needed."""


class _Claimed(Exception):
    """The key's object is being deleted."""


class _Occupied(Exception):
    """An object that was rejected, or came too late, may be where a new one is to be."""


class Uploads:
    """``clock`` gives seconds since the epoch, ``source`` the names of claims."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        verifier: Verifier,
        *,
        options: IngestOptions,
        metrics: IngestMetrics,
        clock: Callable[[], float] = time.time,
        source: random.Random | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        # Asking a runtime protocol costs a tenth of a presign.
        self._presigning = {name: bucket for name, bucket in buckets if isinstance(bucket, PresignsUploads)}
        self._receiving = {name: bucket for name, bucket in buckets if isinstance(bucket, ReceivesUploads)}
        self._verifier = verifier
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._source = source or random.SystemRandom()

    # Prepare

    async def prepare(self, order: UploadOrder) -> PreparedUpload:
        """Announce an upload and say where to send it. For a path that is pending already: a new URL, the same id.

        Raises `UnsafeName`, `BucketNotFound`, `PayloadTooLarge`, `InvalidRequest` (``via: direct`` where the bucket
        cannot), `RunDeleted`, `RunBucketMismatch`, `BlobExists`, `Busy`, and as the state store does.
        """
        place = _safe_place(order)
        self._buckets.get(order.bucket)
        announced = Announced.by_upload(order)
        if order.size is not None and order.size > self._options.max_upload_bytes:
            raise PayloadTooLarge(errors=[{"loc": ["size"], "msg": f"is above {self._options.max_upload_bytes}"}])
        now = self._clock()
        expires_at = int(now) + order.expires_in
        url, headers = await self._target(place, announced, order)
        event_id = str(uuid.uuid4())
        # The record holds what was announced: an event that said it too could contradict a later announcement.
        event = blob_ref(
            place.run_id,
            {"bucket": place.bucket, "key": place.key, "path": place.path},
            event_id=event_id,
            now=int(now),
        )
        await self._announce(
            _Announcement(
                place,
                announced,
                expires_at,
                expires_at + self._options.upload_margin_seconds,
                (int(now * 1000), event_id, event),
            )
        )
        self._metrics.prepared.labels("proxy" if url is None else "direct").inc()
        return PreparedUpload(
            upload_id=upload_id(place),
            bucket=place.bucket,
            key=place.key,
            url=url,
            headers=headers,
            expires_at=moment(expires_at),
        )

    async def _target(
        self, place: Place, announced: Announced, order: UploadOrder
    ) -> tuple[str | None, dict[str, str]]:
        """Where to send the body, and with which headers; no URL when it goes through the proxy."""
        presigning = self._presigning.get(place.bucket)
        if order.via is not Via.PROXY and presigning is not None:
            terms = UploadTerms(announced.content_type, announced.size, announced.crc32)
            put = await presigning.presign_put(place.key, terms, expires_in=order.expires_in)
            return put.url, dict(put.headers)
        if order.via is Via.DIRECT:
            raise InvalidRequest(errors=[{"loc": ["via"], "msg": "the bucket has no URLs of its own"}])
        if place.bucket not in self._receiving:
            raise InvalidRequest(errors=[{"loc": ["via"], "msg": "the bucket takes no uploads through this service"}])
        headers = {}
        if announced.content_type is not None:
            headers["Content-Type"] = announced.content_type
        if announced.size is not None:
            headers["Content-Length"] = str(announced.size)
        return None, headers

    async def _announce(self, announcement: _Announcement) -> None:
        """Make the path pending. Raises `RunDeleted`, `RunBucketMismatch`, `BlobExists` and `Busy`."""
        own: Claim | None = None

        async def fn(transaction: Transaction) -> None:
            await self._put_pending(transaction, announcement, own)

        try:
            await self._unclaimed(fn)
        except _Occupied:
            own = await self._discard(announcement.place)
            try:
                await self._unclaimed(fn)
            except _Occupied:  # the claim lapsed while the object was being discarded, or somebody was faster
                raise Busy from None

    async def _put_pending(self, transaction: Transaction, what: _Announcement, own: Claim | None) -> None:
        place, now = what.place, self._clock()
        rows = await Rows.read(transaction, self._records, [place], now=now)
        rows.admit(place)
        claim = rows.claim(place)
        if claim is not None and claim != own:
            raise _Claimed
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
        self._records.uploads.set(transaction, UploadRecord(place.path), place.run_id, _digest(place.path))
        if what.event is not None:
            at_ms, event_id, value = what.event
            row = OutboxRow(INGEST_TOPIC, place.run_id, value)
            self._records.outbox.set(transaction, row, at_ms, event_id)

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
                raise _Claimed
            before = rows.blob(place)
            if before is None or before.state not in (BlobState.REJECTED, BlobState.EXPIRED):
                return False
            self._records.claims.set(transaction, claim, place.bucket, place.key)
            return True

        if not await self._unclaimed(take):
            return None
        await self._remove(place, within=claim.until - _CLAIM_SECONDS + _REMOVE_SECONDS - self._clock())
        return claim

    # Receive

    async def receive(
        self, claims: UploadClaims, body: AsyncIterable[bytes | memoryview], content_length: int
    ) -> BlobRecord:
        """Store ``body``, of ``content_length`` bytes, as the token says, and give its record.

        Nothing is read from ``body`` when it can be refused before. Raises `InvalidRequest`, `PayloadTooLarge`,
        `SizeMismatch`, `ChecksumMismatch`, `BucketNotFound`, `RunDeleted`, `RunBucketMismatch`, `BlobExists`,
        `UnsafeName`, `Busy`, and as the stores do; then there is no blob. Only after a `StateUnavailable` there may be
        one, pending: it is verified as soon as the state store is back.
        """
        with self._metrics.receiving.track_inprogress():
            try:
                blob = await self._receive(claims, body, content_length)
            except ServiceError as error:
                self._metrics.received.labels(error.code).inc()
                raise
            except BaseException:
                self._metrics.received.labels("cut").inc()
                raise
        self._metrics.received.labels("complete").inc()
        return blob

    async def _receive(
        self, claims: UploadClaims, body: AsyncIterable[bytes | memoryview], content_length: int
    ) -> BlobRecord:
        if claims.limited:
            raise InvalidRequest("The token carries a limit that this version does not enforce")
        place, announced = _granted(claims)
        self._buckets.get(place.bucket)
        bucket = self._receiving.get(place.bucket)
        if bucket is None:
            raise InvalidRequest("The bucket takes no uploads through this service")
        if content_length > self._options.max_upload_bytes:
            raise PayloadTooLarge
        if announced.size not in (None, content_length):
            raise SizeMismatch
        # Of two announcements, the token's and the record's, both have to be true.
        recorded = await self._admit(place, announced, claims.exp)
        if recorded.size not in (None, content_length):
            raise SizeMismatch
        if None not in (announced.crc32, recorded.crc32) and announced.crc32 != recorded.crc32:
            raise ChecksumMismatch
        announced = announced.over(recorded)
        terms = UploadTerms(announced.content_type, content_length, announced.crc32)
        stat = await bucket.receive(place.key, body, terms, max_bytes=self._options.max_upload_bytes)
        step("upload-received")
        try:
            record, why = await self._record_seen(place, Seen(stat, stat.crc32))
        except (RunDeleted, RunBucketMismatch, NotFound) as error:
            with suppress(ServiceError):  # what is left is the run's second pass's, or an orphan
                await self._remove(place, within=_REMOVE_SECONDS)
            if isinstance(error, NotFound):  # its rows went with its run, and the tombstone has been cleared since
                raise RunDeleted from error
            raise
        if why is not None:  # somebody has announced something else meanwhile
            raise why.kind
        return record

    async def _admit(self, place: Place, announced: Announced, expires_at: int) -> Announced:
        """What is announced of the upload, if it is wanted. One that nobody prepared here (another issuer's token, or
        a path that was rejected) is announced by this.
        """

        async def fn(transaction: Transaction) -> Announced | None:
            rows = await Rows.read(transaction, self._records, [place], now=self._clock())
            rows.admit(place)
            if rows.claim(place) is not None:
                raise _Claimed
            before = rows.blob(place)
            if before is not None and before.state is BlobState.VERIFIED:
                raise BlobExists
            return Announced.by_record(before) if before is not None and before.state is BlobState.PENDING else None

        recorded = await self._unclaimed(fn)
        if recorded is None:
            deadline = expires_at + self._options.upload_margin_seconds
            await self._announce(_Announcement(place, announced, expires_at, deadline))
        return recorded or announced

    # Complete

    async def complete(self, upload: str, access: RunAccess) -> tuple[str, str, BlobRecord]:
        """Verify an upload now: its run, its path and its record.

        Raises `NotFound`, `RunDeleted`, `UploadIncomplete` when nothing is there, `SizeMismatch` and
        `ChecksumMismatch` when it is not what was announced, `Busy`, and as the stores do.
        """
        place, before = await self._find(upload, access)
        if before.state is BlobState.VERIFIED:
            return place.run_id, place.path, before
        seen = await self._verifier.look(place, size=before.size)
        if seen is None:
            raise UploadIncomplete
        record, why = await self._record_seen(place, seen)
        if why is not None:
            raise why.kind
        return place.run_id, place.path, record

    async def _find(self, upload: str, access: RunAccess) -> tuple[Place, BlobRecord]:
        form = _UPLOAD_ID.fullmatch(upload)
        if form is None:
            raise _no_such_upload()
        run_id, digest = form.groups()

        async def fn(transaction: Transaction) -> tuple[Place, BlobRecord]:
            tombstone = await self._records.tombstones.get(transaction, run_id)
            if tombstone is not None:
                raise RunDeleted if access.allows(tombstone.bucket) else _no_such_upload()
            row = await self._records.uploads.get(transaction, run_id, digest)
            blob = None if row is None else await self._records.blobs.get(transaction, run_id, row.path)
            if row is None or blob is None or not access.allows(blob.bucket):
                raise _no_such_upload()
            return Place(blob.bucket, run_id, row.path), blob

        return await self._store.transact(fn)

    async def _record_seen(self, place: Place, seen: Seen) -> tuple[BlobRecord, Contradiction | None]:
        async def fn(transaction: Transaction) -> tuple[BlobRecord, Contradiction | None]:
            now = self._clock()
            rows = await Rows.read(transaction, self._records, [place], now=now)
            rows.admit(place)
            if rows.claim(place) is not None:
                raise _Claimed
            before = rows.blob(place)
            if before is None:
                raise _no_such_upload()
            if before.state is BlobState.VERIFIED:
                return before, None
            announced = Announced.by_record(before)
            why = contradiction(announced, seen)
            if why is None:
                blob = transitions.verified(place, before, announced, seen, order=before.order, now=now)
            else:
                blob = transitions.rejected(place, before, announced, why, order=before.order, now=now)
            rows.put(place, blob)
            rows.write()
            return blob, why

        return await self._unclaimed(fn)

    # Shared

    async def _unclaimed(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """What ``fn`` gives once the key is not being cleaned up. Raises `Busy` when that takes too long."""
        for _ in range(max(1, int(self._options.claim_wait_seconds / _CLAIM_PAUSE))):
            try:
                return await self._store.transact(fn)
            except _Claimed:
                await asyncio.sleep(_CLAIM_PAUSE * self._source.uniform(0.5, 1.5))
        raise Busy

    async def _remove(self, place: Place, *, within: float) -> None:
        """Remove the object, unless there are no seconds left for it. Raises `StorageTimeout`."""
        bucket = self._buckets.get(place.bucket)
        if isinstance(bucket, DeletesBlobs):
            if within <= 0:
                raise StorageTimeout
            try:
                async with asyncio.timeout(within):
                    await bucket.delete_many([place.key])
            except TimeoutError as error:
                raise StorageTimeout from error


def upload_id(place: Place) -> str:
    """The name of the upload of one path of a run: the same however often it is prepared."""
    return f"{place.run_id}~{_digest(place.path)}"


def _digest(path: str) -> str:
    return sha256(path.encode()).hexdigest()[:32]


def _safe_place(target: UploadTarget) -> Place:
    place = Place(target.bucket, target.run_id, target.path)
    reason = unsafe_path_reason(place.path) or unsafe_key_reason(place.key)
    if reason:
        raise UnsafeName(f"The path {reason}", errors=[{"loc": ["path"], "msg": reason}])
    return place


def _granted(claims: UploadClaims) -> tuple[Place, Announced]:
    """What a token is for. Its issuer may be another program: its claims are checked as an order's are."""
    try:
        target = UploadTarget(
            run_id=claims.run_id,
            path=claims.path,
            bucket=claims.bucket,
            content_type=claims.content_type,
            size=claims.size,
            crc32=claims.crc32,
        )
    except ValidationError as error:
        raise InvalidRequest("The token's claims are not valid", errors=field_errors(error)) from None
    if parse_run_key(claims.key) != (target.run_id, target.path) or unsafe_key_reason(claims.key):
        raise InvalidRequest("The token's key is not that of its run and path")
    return Place(target.bucket, target.run_id, target.path), Announced.by_upload(target)


def _no_such_upload() -> NotFound:
    return NotFound("There is no such upload")
