"""Which buckets a caller may know of.

The law: a bucket that is not for this caller is as absent as one that does not exist, before the proxy is asked. Which
bucket a run lives in the proxy alone knows: it is told the caller's buckets.
"""

from collections.abc import Iterable, Mapping

from storage_proxy.common.errors import BucketNotFound, FieldError
from storage_proxy.common.problems import MAX_FIELD_ERRORS
from storage_proxy.common.wire import ArchiveSelection, RunAccess


class BucketAccess:
    """The buckets by the name of the API key; None: every bucket."""

    def __init__(self, buckets: Mapping[str, Iterable[str] | None]) -> None:
        self._buckets = {name: None if allowed is None else frozenset(allowed) for name, allowed in buckets.items()}

    def require(self, caller: str, bucket: str) -> None:
        """Raises `BucketNotFound` when ``bucket`` is not for ``caller``."""
        if not self._allows(caller, bucket):
            raise BucketNotFound

    def require_all(self, caller: str, selection: ArchiveSelection) -> None:
        """Raises `BucketNotFound` when the selection, or an entry of it, names a bucket that is not for ``caller``.

        The selection's own bucket counts only where something would be read from it; a run is in its own.
        """
        if self._buckets[caller] is None or selection.run_id is not None:
            return
        entries = selection.entries
        if entries is None or any(entry.bucket is None for entry in entries):
            self.require(caller, selection.bucket)
        errors: list[FieldError] = [
            {"loc": ["entries", index, "bucket"], "msg": BucketNotFound.public_message}
            for index, entry in enumerate(entries or ())
            if entry.bucket is not None and not self._allows(caller, entry.bucket)
        ]
        if errors:
            raise BucketNotFound(errors=errors[:MAX_FIELD_ERRORS])

    def to_runs(self, caller: str) -> RunAccess:
        """What the proxy is told of ``caller`` where it decides by a run's bucket."""
        allowed = self._buckets[caller]
        return RunAccess(buckets=None if allowed is None else ",".join(sorted(allowed)))

    def _allows(self, caller: str, bucket: str) -> bool:
        allowed = self._buckets[caller]
        return allowed is None or bucket in allowed
