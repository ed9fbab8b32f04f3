"""How many downloads may run: in the process, and of one token."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from storage_proxy.common.errors import Busy, TooManyDownloads


class DownloadSlots:
    """Counts running downloads against two bounds."""

    def __init__(self, *, max_downloads: int, max_per_token: int) -> None:
        self._max_downloads = max_downloads
        self._max_per_token = max_per_token
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._running.total()

    @contextmanager
    def taken(self, jti: str) -> Iterator[None]:
        """Hold a slot. Raises `Busy` and `TooManyDownloads` when there is none."""
        if len(self) >= self._max_downloads:
            raise Busy
        if self._running[jti] >= self._max_per_token:
            raise TooManyDownloads
        self._running[jti] += 1
        try:
            yield
        finally:
            self._running[jti] -= 1
            if not self._running[jti]:
                del self._running[jti]
