"""What becomes of a blob's record, from what was announced and what was seen. Pure functions.

The law: a record is verified with the object's own figures, or not at all; what is not verified keeps what was
announced, so that it can be judged again.
"""

from dataclasses import replace

from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.verification import Contradiction, Seen
from storage_proxy.state.records import BlobRecord, BlobState, Order
from storage_proxy.stores.port import BlobStat


def pending(
    place: Place,
    before: BlobRecord | None,
    announced: Announced,
    *,
    order: Order | None,
    now: float,
    deadline: float,
    options: IngestOptions,
) -> BlobRecord:
    """Announced, and not there yet: to be looked at soon, or when it was to be looked at anyway."""
    waiting = before if before is not None and before.state is BlobState.PENDING else None
    return BlobRecord(
        bucket=place.bucket,
        state=BlobState.PENDING,
        created_at=_created(before, now),
        content_type=announced.content_type,
        size=announced.size,
        crc32=announced.crc32,
        attributes=_attributes(before, announced),
        order=order,
        due_ms=int((now + options.first_look_seconds) * 1000) if waiting is None else waiting.due_ms,
        deadline=int(deadline),
        looks=0 if waiting is None else waiting.looks,
    )


def verified(
    place: Place, before: BlobRecord | None, announced: Announced, seen: Seen, *, order: Order | None, now: float
) -> BlobRecord:
    """There, and as announced."""
    stat = seen.stat
    known = seen.crc32
    if known is None and before is not None and before.state is BlobState.VERIFIED and before.etag == stat.etag:
        known = before.crc32  # another look at the same version forgets nothing
    return BlobRecord(
        bucket=place.bucket,
        state=BlobState.VERIFIED,
        created_at=_created(before, now),
        content_type=_content_type(before, announced, stat),
        size=stat.size,
        crc32=known,
        attributes=_attributes(before, announced),
        order=order,
        etag=stat.etag,
        last_modified=stat.last_modified,
        content_encoding=stat.content_encoding,
    )


def rejected(
    place: Place,
    before: BlobRecord | None,
    announced: Announced,
    why: Contradiction,
    *,
    order: Order | None,
    now: float,
) -> BlobRecord:
    """There, and not as announced."""
    return BlobRecord(
        bucket=place.bucket,
        state=BlobState.REJECTED,
        created_at=_created(before, now),
        content_type=announced.content_type,
        size=announced.size,
        crc32=announced.crc32,
        attributes=_attributes(before, announced),
        order=order,
        reason=why.reason,
    )


def expired(before: BlobRecord) -> BlobRecord:
    """Not there when its time was over."""
    return replace(before, state=BlobState.EXPIRED, due_ms=None, deadline=None, looks=0, reason="it did not arrive")


def looked_at(before: BlobRecord, *, due_ms: int) -> BlobRecord:
    """Not there yet: to be looked at again at ``due_ms``."""
    return replace(before, due_ms=due_ms, looks=before.looks + 1)


def _content_type(before: BlobRecord | None, announced: Announced, stat: BlobStat) -> str | None:
    """What the store keeps with the blob; where it only guesses, rather what somebody has said."""
    if stat.content_type is not None and not stat.type_is_guessed:
        return stat.content_type
    known = before.content_type if before is not None and before.etag == stat.etag else None
    return announced.content_type or known or stat.content_type


def _created(before: BlobRecord | None, now: float) -> int:
    return int(now) if before is None else before.created_at


def _attributes(before: BlobRecord | None, announced: Announced) -> dict[str, object]:
    if announced.attributes is not None:
        return dict(announced.attributes)
    return {} if before is None else dict(before.attributes)
