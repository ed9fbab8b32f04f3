"""CRC-32s that reading a blob whole, or asking its storage, has shown, remembered for every replica.

The law: it is an optimisation. Nothing waits for it to be written, nothing fails because it cannot be read, and what
it says is checked against the content like any other CRC-32.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice

from storage_proxy.common.concurrency import cancel_and_wait
from storage_proxy.common.errors import StateUnavailable
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import Pin
from storage_proxy.state.port import KeyValueStore, Transaction
from storage_proxy.state.records import LearnedCrc, Records, version_key

_READ_BATCH = 250  # a thousand would keep the event loop from others for tens of milliseconds
_WRITE_BATCH = 500
_log = logging.getLogger(__name__)
_Row = tuple[str, bytes, str, int]


class LearnedCrcs:
    """Learned CRC-32s by bucket, key, ETag and size. ``clock`` gives seconds since the epoch.

    At most ``max_waiting`` wait to be written; one more is dropped. A look-up takes ``lookup_seconds`` at most. What
    comes within ``gather_seconds`` is written together; after a failure it is tried again ``retry_seconds`` later.
    """

    def __init__(
        self,
        store: KeyValueStore,
        records: Records,
        metrics: DownloadMetrics,
        *,
        clock: Callable[[], float] = time.time,
        max_waiting: int = 10_000,
        lookup_seconds: float = 2.0,
        gather_seconds: float = 0.1,
        retry_seconds: float = 5.0,
    ) -> None:
        self._store = store
        self._records = records
        self._metrics = metrics
        self._clock = clock
        self._max_waiting = max_waiting
        self._lookup_seconds = lookup_seconds
        self._gather_seconds = gather_seconds
        self._retry_seconds = retry_seconds
        self._waiting: dict[_Row, int | None] = {}  # None: to be forgotten
        self._noted = asyncio.Event()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """While entered, what is noted is written in the background; what waits at the end is written then."""
        writer = asyncio.create_task(self._write())
        try:
            yield
        finally:
            await cancel_and_wait(writer)
            with suppress(StateUnavailable, TimeoutError):
                async with asyncio.timeout(self._lookup_seconds):
                    await self.flush()
            self._metrics.learned_crcs.labels("dropped").inc(len(self._waiting))

    def note(self, pin: Pin, crc: int) -> None:
        """Remember the CRC-32 of a version. A version without an ETag is none that could be found again."""
        self._change(pin, crc)

    def forget(self, pin: Pin) -> None:
        """What was learned of the version is contradicted by its content: the next mint looks at it anew."""
        self._change(pin, None)

    def _change(self, pin: Pin, crc: int | None) -> None:
        if not pin.etag:
            return
        row = _row(pin)
        if row not in self._waiting and len(self._waiting) >= self._max_waiting:
            self._metrics.learned_crcs.labels("dropped").inc()
            if crc is not None:
                return
            del self._waiting[next(iter(self._waiting))]  # that a CRC-32 is wrong matters more than any that is right
        self._waiting[row] = crc
        self._noted.set()

    async def known(self, pins: Sequence[Pin]) -> list[int | None]:
        """The CRC-32 of each version; None where it is not known, or cannot be told now."""
        rows = [_row(pin) for pin in pins]
        known: dict[_Row, int | None] = {row: self._waiting[row] for row in rows if row in self._waiting}
        missing = [row for row in rows if row not in known]
        try:
            async with asyncio.timeout(self._lookup_seconds):
                for first in range(0, len(missing), _READ_BATCH):
                    batch = missing[first : first + _READ_BATCH]
                    known |= await self._store.transact(partial(self._read, batch))
        except (StateUnavailable, TimeoutError) as error:
            _log.warning("learned CRC-32s could not be read", extra={"reason": str(error) or "timeout"})
        return [known.get(row) for row in rows]

    async def flush(self) -> None:
        """Write what waits. Raises `StateUnavailable`; what was not written waits on."""
        while batch := dict(islice(self._waiting.items(), _WRITE_BATCH)):
            await self._store.transact(partial(self._set, batch))
            self._metrics.learned_crcs.labels("recorded").inc(sum(crc is not None for crc in batch.values()))
            for row, crc in batch.items():
                if self._waiting.get(row) == crc:  # else it changed meanwhile
                    self._waiting.pop(row, None)

    async def _write(self) -> None:
        while True:
            await self._noted.wait()
            await asyncio.sleep(self._gather_seconds)
            self._noted.clear()
            try:
                await self.flush()
                continue
            except StateUnavailable as error:
                _log.warning("learned CRC-32s could not be written", extra={"reason": str(error)})
            except Exception:  # noqa: BLE001 a defect: logged, and tried again for ever
                _log.exception("learned CRC-32s could not be written")
            self._noted.set()
            await asyncio.sleep(self._retry_seconds)

    async def _read(self, rows: Sequence[_Row], transaction: Transaction) -> dict[_Row, int]:
        found = await self._records.crc32s.find_many(transaction, rows)
        return {row: learned.crc32 for row, learned in found.items()}

    async def _set(self, batch: dict[_Row, int | None], transaction: Transaction) -> None:
        now = int(self._clock())
        for row, crc in batch.items():
            if crc is None:
                self._records.crc32s.clear(transaction, *row)
            else:
                self._records.crc32s.set(transaction, LearnedCrc(crc, now), *row)


def _row(pin: Pin) -> _Row:
    return version_key(pin.bucket, pin.key, pin.etag, pin.size)
