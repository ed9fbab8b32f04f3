"""Uploads of a run's blobs: prepared with a URL or for a token, received through the proxy, completed on request.

The law: a blob is announced before it can arrive, its event in the same transaction; it is visible once it is verified,
and what arrives for a run that was deleted meanwhile is removed again.
"""

import random
import re
import time
import uuid
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from dataclasses import replace

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
from storage_proxy.ingest.announcing import REMOVE_SECONDS, Announcements
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.pending import Announcement, Claimed, upload_id
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.ingest.verification import Contradiction, Seen, Verifier, contradiction
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Records
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import (
    PresignsUploads,
    ReceivesUploads,
    UploadTerms,
)

_COMPLETE_LOOKS = 3
_UPLOAD_ID = re.compile(rf"({RUN_ID_PATTERN.strip('^$')})~([0-9a-f]{{32}})", re.ASCII)


class _AnnouncedAnew(Exception):
    """While the blob was looked at, something else was announced of it."""


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
        self._announcements = Announcements(
            store, records, buckets, options=options, clock=clock, source=source or random.SystemRandom()
        )

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
        await self._announcements.announce(
            Announcement(
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
        claims.refuse_limits()
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
                await self._announcements.remove(place, within=REMOVE_SECONDS)
            if isinstance(error, NotFound):  # its rows went with its run, and the tombstone has been cleared since
                raise RunDeleted from error
            raise
        if why is not None:  # somebody has announced something else meanwhile
            raise why.kind
        return record

    async def _admit(self, place: Place, announced: Announced, expires_at: int) -> Announced:
        """What is announced of the upload, if it is wanted. One that nobody prepared here (another issuer's token, or
        a path that was rejected) is announced by this: not with the size and the CRC, which the body is held to
        anyway, so that a token with wrong ones does not stand in the way of the next.
        """

        async def fn(transaction: Transaction) -> Announced | None:
            rows = await Rows.read(transaction, self._records, [place], now=self._clock())
            rows.admit(place)
            if rows.claim(place) is not None:
                raise Claimed
            before = rows.blob(place)
            if before is not None and before.state is BlobState.VERIFIED:
                raise BlobExists
            return Announced.by_record(before) if before is not None and before.state is BlobState.PENDING else None

        recorded = await self._announcements.unclaimed(fn)
        if recorded is None:
            deadline = expires_at + self._options.upload_margin_seconds
            bare = replace(announced, size=None, crc32=None)
            await self._announcements.announce(Announcement(place, bare, expires_at, deadline))
        return recorded or announced

    # Complete

    async def complete(self, upload: str, access: RunAccess) -> tuple[str, str, BlobRecord]:
        """Verify an upload now: its run, its path and its record.

        Raises `NotFound`, `RunDeleted`, `UploadIncomplete` when nothing is there, `SizeMismatch` and
        `ChecksumMismatch` when it is not what was announced, `Busy`, and as the stores do.
        """
        for _ in range(_COMPLETE_LOOKS):
            place, before = await self._find(upload, access)
            if before.state is BlobState.VERIFIED:
                return place.run_id, place.path, before
            announced = Announced.by_record(before)
            seen = await self._verifier.look(place, size=announced.size)
            if seen is None:
                raise UploadIncomplete
            try:
                record, why = await self._record_seen(place, seen, looked_for=announced)
            except _AnnouncedAnew:
                continue
            if why is not None:
                raise why.kind
            return place.run_id, place.path, record
        raise Busy

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

    async def _record_seen(
        self, place: Place, seen: Seen, *, looked_for: Announced | None = None
    ) -> tuple[BlobRecord, Contradiction | None]:
        """Hold what is there against what is announced by now. Raises `_AnnouncedAnew` when that is not what the look
        was for: what is worth reading depends on it.
        """

        async def fn(transaction: Transaction) -> tuple[BlobRecord, Contradiction | None]:
            now = self._clock()
            rows = await Rows.read(transaction, self._records, [place], now=now)
            rows.admit(place)
            if rows.claim(place) is not None:
                raise Claimed
            before = rows.blob(place)
            if before is None:
                raise _no_such_upload()
            if before.state is BlobState.VERIFIED:
                return before, None
            announced = Announced.by_record(before)
            if looked_for not in (None, announced):
                raise _AnnouncedAnew
            why = contradiction(announced, seen)
            if why is None:
                blob = transitions.verified(place, before, announced, seen, order=before.order, now=now)
            else:
                blob = transitions.rejected(place, before, announced, why, order=before.order, now=now)
            rows.put(place, blob)
            rows.write()
            return blob, why

        return await self._announcements.unclaimed(fn)


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
