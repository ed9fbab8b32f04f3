"""cleanup-expired: forgets links that have ended, and CRC-32s of objects that are gone.

The law: a link is forgotten when no download of it can be resumed any more; a CRC-32 only when its bucket has answered
that there is no such version.
"""

import time
from collections.abc import Callable, Sequence

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import BucketNotFound
from storage_proxy.common.tokens import jti_hash
from storage_proxy.lifecycle.jobs import Tally
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.state.keys import after
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import LearnedCrc, Mark, Records
from storage_proxy.stores.buckets import Buckets

_ROWS = 500
_PARALLEL_STATS = 16
_MARGIN_SECONDS = 86_400.0

_Version = tuple[str, bytes, str, int]  # bucket, key, ETag, size


class CleanupExpired:
    """The job. A link may be forgotten ``resume_grace_seconds`` and a day after its end."""

    name = "cleanup-expired"

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        buckets: Buckets,
        *,
        resume_grace_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._records = records
        self._buckets = buckets
        self._seconds = resume_grace_seconds + _MARGIN_SECONDS
        self._clock = clock

    async def run(self, lock: HeldLock, tally: Tally) -> None:
        for page in (self._links, self._crc32s):
            position: bytes | None = b""
            while position is not None and not tally.is_full:
                position = await page(lock, tally, position)

    async def _links(self, lock: HeldLock, tally: Tally, position: bytes) -> bytes | None:
        """Returns where to go on, None at the end."""
        now = int(self._clock() - self._seconds)
        links, ends = self._records.links, self._records.link_ends

        async def fn(transaction: Transaction) -> tuple[int, list[str], bytes | None]:
            await lock.check(transaction)
            begin, end = ends.until(now)
            begin = max(begin, after(position)) if position else begin
            rows = await transaction.get_range(begin, end, limit=_ROWS) if begin < end else ()
            marks = [ends.elements(key) for key, _ in rows]
            found = await links.get_many(transaction, [(jti,) for _, jti in marks])
            gone = []
            for (at, jti), link in list(zip(marks, found, strict=True))[: tally.room]:
                gone.append(f"link {jti_hash(jti)}")
                if tally.dry_run:
                    continue
                ends.clear(transaction, at, jti)
                if link is None or link.expires_at <= now:
                    links.clear(transaction, jti)
                else:  # it was given a later end
                    ends.set(transaction, Mark(), link.expires_at, jti)
            return len(rows), gone, rows[-1][0] if len(rows) == _ROWS else None

        looked_at, gone, position_after = await self._store.transact(fn)
        _count(tally, looked_at, gone, 0 if tally.dry_run else len(gone))
        return position_after

    async def _crc32s(self, lock: HeldLock, tally: Tally, position: bytes) -> bytes | None:
        async def rows_after(transaction: Transaction) -> Sequence[tuple[tuple[str, bytes, str, int], LearnedCrc]]:
            return await self._records.crc32s.page(transaction, limit=_ROWS, start_after=position)

        rows = await self._store.transact(rows_after)
        gone_now = await map_bounded(_PARALLEL_STATS, self._is_gone, [version for version, _ in rows])
        gone = [row for row, is_gone in zip(rows, gone_now, strict=True) if is_gone][: tally.room]

        async def clear(transaction: Transaction) -> None:
            await lock.check(transaction)
            found = await self._records.crc32s.get_many(transaction, [version for version, _ in gone])
            for (version, learned), now in zip(gone, found, strict=True):
                if now == learned:
                    self._records.crc32s.clear(transaction, *version)

        if gone and not tally.dry_run:
            await self._store.transact(clear)
        names = [f"crc32 {version[0]}/{version[1].decode('utf-8', 'replace')}" for version, _ in gone]
        _count(tally, len(rows), names, 0 if tally.dry_run else len(gone))
        return self._records.crc32s.key(*rows[-1][0]) if len(rows) == _ROWS else None

    async def _is_gone(self, version: _Version) -> bool:
        """False, too, for one of a bucket that is not configured here: it may be elsewhere."""
        bucket, key, etag, size = version
        try:
            store = self._buckets.get(bucket)
        except BucketNotFound:
            return False
        stat = await store.stat(key.decode("utf-8", "surrogateescape"))
        return stat is None or (stat.etag, stat.size) != (etag, size)


def _count(tally: Tally, looked_at: int, gone: Sequence[str], removed: int) -> None:
    tally.look_at(looked_at)
    tally.find(gone)
    tally.remove(removed)
    tally.tell()
