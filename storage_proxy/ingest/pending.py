"""Blobs become pending before they arrive; those of requests that come together, in one transaction.

The law: a blob's record, its due row, its upload id and its event are one transaction; what refuses one request
refuses no other. Of a transaction's cost most is the same for one blob and for a hundred.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from storage_proxy.common.errors import BlobExists, ServiceError
from storage_proxy.ingest import transitions
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobState, Claim, OutboxRow, Records, UploadRecord

INGEST_TOPIC = "ingest"
"""What the outbox calls the topic of announcements."""
_TOGETHER = 100
"""So many rows, with the longest of paths, are far below what a transaction takes."""
_UNTIL_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Announcement:
    """A blob that may arrive until ``deadline``; its URL or token ends at ``expires_at`` (epoch seconds).

    ``event`` is ``at_ms, id, value`` of its outbox row, None where none is needed; ``own`` the claim that the caller
    has on the key, which ends with this.
    """

    place: Place
    announced: Announced
    expires_at: int
    deadline: float
    event: tuple[int, str, str] | None = None
    own: Claim | None = None


class Claimed(Exception):
    """The key's object is being deleted."""


class Occupied(Exception):
    """An object that was rejected, or came too late, may be where a new one is to be."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    announcement: Announcement
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PendingBlobs:
    """Makes blobs pending. ``clock`` gives seconds since the epoch."""

    def __init__(
        self, store: KeyValueStore, records: Records, *, options: IngestOptions, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._records = records
        self._options = options
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._work: asyncio.Task[None] | None = None

    async def add(self, announcement: Announcement) -> None:
        """Make the path pending. A caller that is cancelled may have announced nevertheless.

        Raises `RunDeleted`, `RunBucketMismatch`, `BlobExists`, `Claimed` and `Occupied`, and as the state store does.
        """
        waiting = _Waiting(announcement)
        self._queue.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write_all(), name="announcing")
        await waiting.done

    async def _write_all(self) -> None:
        """Until nobody waits. While one transaction commits, those who come gather for the next."""
        while self._queue:
            taken = [self._queue.popleft() for _ in range(min(_TOGETHER, len(self._queue)))]
            wanted = [each for each in taken if not each.done.done()]  # else its caller was cancelled
            if not wanted:
                continue
            try:
                outcomes = await self._write([each.announcement for each in wanted])
            except Exception as error:  # noqa: BLE001 it is each caller's
                outcomes = [error] * len(wanted)
            except BaseException:
                for each in wanted:
                    each.done.cancel()
                raise
            for each, outcome in zip(wanted, outcomes, strict=True):
                if each.done.done():
                    continue
                if outcome is None:
                    each.done.set_result(None)
                else:
                    each.done.set_exception(outcome)

    async def _write(self, announcements: Sequence[Announcement]) -> "Sequence[Exception | None]":
        """For each None, or why it is refused."""

        async def fn(transaction: Transaction) -> "Sequence[Exception | None]":
            places = [each.place for each in announcements]
            rows = await Rows.read(transaction, self._records, places, now=self._clock())
            outcomes = [self._put(transaction, rows, each) for each in announcements]
            rows.write()
            return outcomes

        return await self._store.transact(fn)

    def _put(self, transaction: Transaction, rows: Rows, what: Announcement) -> Exception | None:
        try:
            self._put_pending(transaction, rows, what)
        except (ServiceError, Claimed, Occupied) as refusal:
            return refusal
        return None

    def _put_pending(self, transaction: Transaction, rows: Rows, what: Announcement) -> None:
        place = what.place
        rows.admit(place)
        claim = rows.claim(place)
        if claim is not None and claim != what.own:
            raise Claimed
        before = rows.blob(place)
        deadline = what.deadline
        if before is not None:
            if before.state is BlobState.VERIFIED:
                raise BlobExists
            if before.state is not BlobState.PENDING and claim is None:
                raise Occupied
            deadline = max(deadline, before.deadline or 0)
        order = before.order if before is not None else None
        blob = transitions.pending(
            place, before, what.announced, order=order, now=self._clock(), deadline=deadline, options=self._options
        )
        until = -(-what.expires_at // _UNTIL_SECONDS) * _UNTIL_SECONDS  # so most presigns need not write the run
        rows.put(place, blob, upload_until=until)
        if claim is not None:
            self._records.claims.clear(transaction, place.bucket, place.key)
        self._records.uploads.set(transaction, UploadRecord(place.path), place.run_id, path_digest(place.path))
        if what.event is not None:
            at_ms, event_id, value = what.event
            row = OutboxRow(INGEST_TOPIC, place.run_id, value)
            self._records.outbox.set(transaction, row, at_ms, event_id)


def upload_id(place: Place) -> str:
    """The name of the upload of one path of a run: the same however often it is prepared."""
    return f"{place.run_id}~{path_digest(place.path)}"


def path_digest(path: str) -> str:
    """What stands for a path in upload ids and their rows."""
    return sha256(path.encode()).hexdigest()[:32]
