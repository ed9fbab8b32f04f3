"""cleanup-manifests: removes manifests that no link can name any more.

The law: a manifest is written again at each mint, so its age is that of its youngest link; it is looked at once more
right before it is removed.
"""

import logging
import time
from collections.abc import Callable, Sequence

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.names import MANIFESTS_PREFIX
from storage_proxy.lifecycle.jobs import Tally, check_fence, portions
from storage_proxy.lifecycle.locks import HeldLock
from storage_proxy.state.port import KeyValueStore
from storage_proxy.stores.port import BlobStat, BlobStore, DeletesBlobs

LONGEST_TOKEN_SECONDS = 604_800.0

_log = logging.getLogger(__name__)
_MARGIN_SECONDS = 86_400.0
_AT_ONCE = 50  # few: what lies between the last look and the removal is short
_PARALLEL_STATS = 16


class CleanupManifests:
    """The job, on the bucket ``blobs`` of the manifests.

    A manifest may go when it is older than the longest token, the grace in which its download may be resumed, and a
    day. Times are in seconds.
    """

    name = "cleanup-manifests"

    def __init__(
        self,
        store: KeyValueStore,
        blobs: BlobStore,
        *,
        resume_grace_seconds: float,
        longest_token_seconds: float = LONGEST_TOKEN_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._seconds = longest_token_seconds + resume_grace_seconds + _MARGIN_SECONDS
        self._clock = clock

    async def run(self, lock: HeldLock, tally: Tally) -> None:
        blobs = self._blobs
        if not isinstance(blobs, DeletesBlobs):
            _log.warning("The manifests' bucket cannot delete: they stay")
            return
        async for page in self._blobs.list(MANIFESTS_PREFIX):
            if tally.is_full:
                return
            tally.look_at(len(page))
            old = [stat.key for stat in page if self._is_old(stat)][: tally.room]
            tally.find(old)
            if not tally.dry_run:
                for keys in portions(old, _AT_ONCE):
                    tally.remove(await self._remove(lock, blobs, keys))
            tally.tell()

    async def _remove(self, lock: HeldLock, blobs: DeletesBlobs, keys: Sequence[str]) -> int:
        await check_fence(self._store, lock)
        stats = await map_bounded(_PARALLEL_STATS, self._blobs.stat, keys)
        old = [stat.key for stat in stats if stat is not None and self._is_old(stat)]
        if old:
            await blobs.delete_many(old)
        return len(old)

    def _is_old(self, stat: BlobStat) -> bool:
        return not stat.key.endswith("/") and stat.last_modified < self._clock() - self._seconds
