"""The transaction that records what a batch of messages came to.

The law: a message's effect and its order are one transaction, so it has its effect once. What is visible stays right:
a record that was verified is replaced only by a look that began after that record had been read.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from storage_proxy.common.errors import RunBucketMismatch, RunDeleted
from storage_proxy.ingest import transitions
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.rows import Rows
from storage_proxy.ingest.verification import Seen, contradiction
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Order, Records

MAX_MESSAGES = 500
MAX_BYTES = 4_000_000
"""What one transaction takes: well below its 10,000,000 bytes and 5 s."""
_ROW_BYTES = 2_000
"""Keys, conflict ranges and fixed fields of one message's rows, beyond its key (several times) and its attributes."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message, and what was seen of its blob after it was heard (None: nothing is there).

    ``replaces`` is the ETag of the verified record that had been read before that look. ``nbytes`` is the message's.
    """

    place: Place
    announced: Announced
    order: Order
    seen: Seen | None
    replaces: str | None = None
    nbytes: int = 0


class Verdict(StrEnum):
    """What becomes of a message."""

    VERIFIED = "verified"
    PENDING = "pending"
    REJECTED = "rejected"  # contradicts its object: a dead letter
    FOREIGN = "foreign"  # the run lives in another bucket: a dead letter
    DROPPED = "dropped"  # the run is deleted
    STALE = "stale"  # it, or a newer one, was heard before
    UNSURE = "unsure"  # what was seen is not what is recorded, and may be older: look again


DEAD = frozenset({Verdict.REJECTED, Verdict.FOREIGN})


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` is a dead letter's; ``recorded_etag`` is what a look that is UNSURE has to be newer than."""

    verdict: Verdict
    reason: str = ""
    recorded_etag: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """The decisions on the messages before the first whose key is claimed, and whether they are written."""

    decisions: Sequence[Decision]
    written: bool


def portions(batch: Sequence[Heard]) -> Iterator[Sequence[Heard]]:
    """``batch`` in its order, cut to what one transaction takes."""
    first, size = 0, 0
    for index, each in enumerate(batch):
        own = _ROW_BYTES + 8 * len(each.place.path) + 2 * each.nbytes
        if index > first and (index - first >= MAX_MESSAGES or size + own > MAX_BYTES):
            yield batch[first:index]
            first, size = index, 0
        size += own
    if first < len(batch):
        yield batch[first:]


class Recorder:
    """Records portions of a batch. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        *,
        options: IngestOptions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._options = options
        self._clock = clock

    async def record(self, portion: Sequence[Heard], *, told: Collection[int] = ()) -> Recording:
        """Decide on each message in turn and write it all, or nothing.

        Nothing is written while a message is UNSURE, or is dead and its index is not among ``told``, those whose dead
        letters are published: after a crash it is decided again, and no dead letter is missing.
        """

        async def fn(transaction: Transaction) -> Recording:
            now = self._clock()
            rows = await Rows.read(transaction, self._records, (each.place for each in portion), now=now)
            decisions: list[Decision] = []
            for each in portion:
                if rows.claim(each.place) is not None:
                    break
                decisions.append(self._decide(rows, each, now))
            written = all(
                each.verdict is not Verdict.UNSURE and (each.verdict not in DEAD or index in told)
                for index, each in enumerate(decisions)
            )
            if written:
                rows.write()
            return Recording(decisions, written)

        return await self._store.transact(fn)

    def _decide(self, rows: Rows, heard: Heard, now: float) -> Decision:
        try:
            rows.admit(heard.place)
        except RunDeleted:
            return Decision(Verdict.DROPPED)
        except RunBucketMismatch:
            return Decision(Verdict.FOREIGN, "the run lives in another bucket")
        before = rows.blob(heard.place)
        if before is not None and not _is_newer(heard.order, before):
            return Decision(Verdict.STALE)
        if before is None or before.state is not BlobState.VERIFIED:
            return self._settle(rows, heard, before, now)
        etag = heard.seen.stat.etag if heard.seen is not None else None
        if etag != before.etag and heard.replaces != before.etag:
            return Decision(Verdict.UNSURE, recorded_etag=before.etag)
        return self._settle(rows, heard, before, now)

    def _settle(self, rows: Rows, heard: Heard, before: BlobRecord | None, now: float) -> Decision:
        place, seen, order = heard.place, heard.seen, heard.order
        announced = heard.announced
        was_verified = before is not None and before.state is BlobState.VERIFIED
        if before is not None and not was_verified:
            announced = announced.over(Announced.by_record(before))
        if seen is None:
            deadline = self._deadline(before, now)
            rows.put(
                place,
                transitions.pending(
                    place, before, announced, order=order, now=now, deadline=deadline, options=self._options
                ),
            )
            return Decision(Verdict.PENDING)
        why = contradiction(announced, seen)
        if why is None:
            rows.put(place, transitions.verified(place, before, announced, seen, order=order, now=now))
            return Decision(Verdict.VERIFIED)
        if not (was_verified and before is not None and before.etag == seen.stat.etag):
            rows.put(place, transitions.rejected(place, before, announced, why, order=order, now=now))
        # else the object is the one that was verified: what is wrong is the message, and it leaves no trace.
        return Decision(Verdict.REJECTED, why.reason)

    def _deadline(self, before: BlobRecord | None, now: float) -> float:
        """Until when an announced blob may arrive. The announcement of a prepared upload does not extend its time."""
        if before is None or before.state is not BlobState.PENDING or before.deadline is None:
            return now + self._options.pending_seconds
        if before.order is None:
            return before.deadline
        return max(before.deadline, now + self._options.pending_seconds)


def _is_newer(order: Order, before: BlobRecord) -> bool:
    """Whether a message has not had its effect. One that was rejected comes again when its dead letter is replayed."""
    if before.order is None or before.order.partition != order.partition:
        return True
    if order.at_ms > before.order.at_ms > 0:
        return True  # even with a lower offset: then the topic was made anew, and its offsets have begun anew
    if order.offset == before.order.offset:
        return before.state is BlobState.REJECTED
    return order.offset > before.order.offset
