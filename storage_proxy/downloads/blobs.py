"""The one door to what a caller may see of the buckets.

The law: keys under ``runs/`` are asked of the records, the service's own do not exist, all others are asked of their
bucket; whoever serves a blob comes through here first.
"""

from collections.abc import AsyncIterator, Sequence

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import BlobNotFound
from storage_proxy.common.events import RUNS_PREFIX
from storage_proxy.common.names import RESERVED_PREFIX, require_safe_key
from storage_proxy.downloads.run_blobs import Address, RunBlobs
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobStat, BlobStore

_BEYOND_RUNS = f"{RUNS_PREFIX}~"
"""Sorts after every key of a run: a run id has no ``~`` and nothing beyond it."""


class Blobs:
    """The visible blobs. Every method raises `BucketNotFound`, as the stores do, and `StateUnavailable` for runs."""

    def __init__(self, buckets: Buckets, runs: RunBlobs) -> None:
        self.buckets = buckets
        self.runs = runs

    async def stat(self, bucket: str, key: str) -> BlobStat | None:
        """The blob as it is now, None where there is none."""
        store = self.buckets.get(bucket)
        if key.startswith(RUNS_PREFIX):
            return await self.runs.resolve(bucket, key)
        return None if key.startswith(RESERVED_PREFIX) else await store.stat(key)

    async def require(self, bucket: str, key: str) -> BlobStat:
        """The blob that a caller names. Raises `UnsafeName` before asking anyone, `BlobNotFound` after it."""
        require_safe_key(key)
        stat = await self.stat(bucket, key)
        if stat is None:
            raise BlobNotFound(errors=[{"loc": ["key"], "msg": "does not exist", "key": key}])
        return stat

    async def stat_many(self, addresses: Sequence[Address], *, parallel: int) -> list[BlobStat | None]:
        """The blob of each address; at most ``parallel`` requests are under way."""
        of_runs = [address for address in addresses if address[1].startswith(RUNS_PREFIX)]
        others = [address for address in addresses if not address[1].startswith(RUNS_PREFIX)]
        for bucket in {bucket for bucket, _ in of_runs}:
            self.buckets.get(bucket)
        found = dict(zip(of_runs, await self.runs.resolve_many(of_runs), strict=True)) if of_runs else {}
        stats = await map_bounded(parallel, lambda address: self.stat(*address), others)
        found |= zip(others, stats, strict=True)
        return [found[address] for address in addresses]

    async def list(self, bucket: str, prefix: str) -> AsyncIterator[Sequence[BlobStat]]:
        """Pages of the blobs whose key begins with ``prefix``: the bucket's own in their order, then those of runs."""
        store = self.buckets.get(bucket)
        if not prefix.startswith(RUNS_PREFIX):
            reaches_runs = RUNS_PREFIX.startswith(prefix)
            own = _around_runs(store, prefix) if reaches_runs else store.list(prefix)
            async for page in own:
                visible = [stat for stat in page if not stat.key.startswith(RESERVED_PREFIX)]
                if visible:
                    yield visible
            if not reaches_runs:
                return
        async for page in self.runs.listed(bucket, prefix):
            yield page


async def _around_runs(store: BlobStore, prefix: str) -> AsyncIterator[Sequence[BlobStat]]:
    """The bucket's listing without ``runs/``, of which at most a page is fetched: there may be a million objects."""
    runs = RUNS_PREFIX.encode()
    async for page in store.list(prefix):
        yield [stat for stat in page if _order(stat.key) < runs]
        if _order(page[-1].key) >= runs:
            break
    else:
        return
    async for page in store.list(prefix, start_after=_BEYOND_RUNS):
        yield [stat for stat in page if not stat.key.startswith(RUNS_PREFIX)]


def _order(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
