"""What is visible of the blobs of runs: through their records alone, never through the bucket.

The law: a blob under ``runs/`` is there while its record says verified and its run has no tombstone, both read in one
transaction; so a deletion holds for the next look on every replica.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any

from storage_proxy.common.events import RUNS_PREFIX, parse_run_key, run_key
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import BlobRecord, BlobState, Records
from storage_proxy.stores.port import BlobStat

_BATCH = 1000
"""Keys looked up in one transaction, which has 5 s."""
_PAGE = 250
"""Rows listed in one transaction: reading a thousand would keep the event loop from others for tens of milliseconds."""
_NO_RUN = ("", "")
"""The path of a key that can be no run's."""

Address = tuple[str, str]
"""A bucket and a key."""


class RunBlobs:
    """The blobs of runs. Every method raises `StateUnavailable` when the records cannot be read."""

    def __init__(self, store: KeyValueStore, records: Records) -> None:
        self._store = store
        self._records = records

    async def resolve(self, bucket: str, key: str) -> BlobStat | None:
        """The blob under ``key``, which begins with ``runs/``; None when it is not visible in ``bucket``."""
        return (await self.resolve_many([(bucket, key)]))[0]

    async def resolve_many(self, addresses: Sequence[Address]) -> list[BlobStat | None]:
        """The blob of each address, 1,000 of them at one moment."""
        found: list[BlobStat | None] = []
        for first in range(0, len(addresses), _BATCH):
            found += await self._store.transact(partial(self._resolve, addresses[first : first + _BATCH]))
        return found

    async def deleted(self, run_ids: Collection[str]) -> set[str]:
        """Those of the runs that have a tombstone."""
        ordered = sorted(run_ids)
        gone: set[str] = set()
        for first in range(0, len(ordered), _BATCH):
            gone |= await self._store.transact(partial(self._tombstones, ordered[first : first + _BATCH]))
        return gone

    async def bucket_of(self, run_id: str) -> str | None:
        """Where the run lives; None for one that never had a blob, and for a deleted one."""

        async def look(transaction: Transaction) -> str | None:
            run = await self._records.runs.get(transaction, run_id)
            gone = await self._records.tombstones.get(transaction, run_id)
            return None if run is None or gone is not None else run.bucket

        return await self._store.transact(look)

    async def listed(self, bucket: str, prefix: str) -> AsyncIterator[Sequence[BlobStat]]:
        """Pages of the visible blobs of ``bucket`` whose key begins with ``prefix``: run by run, each in byte order.

        A page is of one moment, the listing is not: a run deleted meanwhile is missing from the later pages.
        """
        run_id, slash, path = prefix[len(RUNS_PREFIX) :].partition("/")
        key, text = ((run_id,), path) if slash else ((), run_id)
        start_after = b""
        while True:
            rows, stats = await self._store.transact(partial(self._page, bucket, key, text, start_after))
            if stats:
                yield stats
            if len(rows) < _PAGE:
                return
            start_after = self._records.blobs.key(*rows[-1][0])

    async def _resolve(self, addresses: Sequence[Address], transaction: Transaction) -> list[BlobStat | None]:
        paths = [parse_run_key(key) or _NO_RUN for _, key in addresses]
        records = await self._records.blobs.find_many(transaction, set(paths) - {_NO_RUN})
        gone = await self._tombstones({run_id for run_id, _ in records}, transaction)
        return [
            None if path not in records or path[0] in gone else _visible(bucket, path, records[path])
            for (bucket, _), path in zip(addresses, paths, strict=True)
        ]

    async def _tombstones(self, run_ids: Collection[str], transaction: Transaction) -> set[str]:
        found = await self._records.tombstones.find_many(transaction, [(run_id,) for run_id in run_ids])
        return {run_id for (run_id,) in found}

    async def _page(
        self, bucket: str, key: tuple[str, ...], text: str, start_after: bytes, transaction: Transaction
    ) -> tuple[Sequence[tuple[tuple[Any, ...], BlobRecord]], list[BlobStat]]:
        rows = await self._records.blobs.page(transaction, *key, text=text, limit=_PAGE, start_after=start_after)
        gone = await self._tombstones({run_id for (run_id, _), _ in rows}, transaction)
        stats = [_visible(bucket, (run_id, path), record) for (run_id, path), record in rows if run_id not in gone]
        return rows, [stat for stat in stats if stat is not None]


def _visible(bucket: str, path: tuple[str, str], record: BlobRecord) -> BlobStat | None:
    """The blob that the record describes, if it is there, and in ``bucket``."""
    if record.state is not BlobState.VERIFIED or record.bucket != bucket or record.size is None:
        return None
    return BlobStat(
        key=run_key(*path),
        size=record.size,
        etag=record.etag,
        last_modified=record.last_modified,
        content_type=record.content_type,
        content_encoding=record.content_encoding,
        crc32=record.crc32,
    )
