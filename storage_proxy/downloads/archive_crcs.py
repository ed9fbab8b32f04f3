"""Whether all CRC-32s that an archive's manifest does not know have been learned since.

The law: the archive's bytes do not depend on it, only whether a Range of them can be answered; so a look is bounded
in time and rate, and what it found is never looked up again.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifests import OpenedArchive
from storage_proxy.downloads.sources import Pin


@dataclass(slots=True)
class _Found:
    """How far an archive's CRC-32s are known: those of all blocks before ``next_block``, by the entries' index."""

    crcs: "array[int]"
    next_block: int = 0
    look_again_at: float = 0.0

    @property
    def nbytes(self) -> int:
        return 200 + 4 * len(self.crcs)


class ArchiveCrcs:
    """What has been learned, by archive. ``clock`` gives monotonic seconds.

    One request looks for ``look_seconds`` at most; after a look that did not find all of them, the archive is not
    looked at for ``again_seconds`` unless this process learned something of it.
    """

    def __init__(
        self,
        learned: LearnedCrcs,
        *,
        max_bytes: int = 16 << 20,
        look_seconds: float = 1.0,
        again_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._learned = learned
        self._look_seconds = look_seconds
        self._again_seconds = again_seconds
        self._clock = clock
        self._found: BytesBoundedCache[_Found] = BytesBoundedCache(max_bytes)

    async def of(self, archive: OpenedArchive) -> Sequence[int] | None:
        """By an entry's index, the CRC-32s that the manifest lacks; None as long as one of them is missing.

        Raises as `OpenedArchive.block`.
        """
        found = self._found.get(archive.head.digest)
        if found is None:
            found = _Found(array("I", bytes(4 * archive.head.plan.entries)))
            self._found.put(archive.head.digest, found)
        if found.next_block < archive.head.blocks and self._clock() >= found.look_again_at:
            await self._look(archive, found)
        return found.crcs if found.next_block == archive.head.blocks else None

    def note(self, archive: OpenedArchive, pin: Pin, crc: int) -> None:
        """An entry of the archive was streamed whole, and its CRC-32 was not known."""
        self._learned.note(pin, crc)
        if (found := self._found.get(archive.head.digest)) is not None:
            found.look_again_at = 0.0

    def contradicted(self, pin: Pin) -> None:
        """The content of a version is not of the CRC-32 that was believed of it: it and all that may rest on it is
        forgotten, and looked for again."""
        self._learned.forget(pin)
        self._found.clear()

    async def _look(self, archive: OpenedArchive, found: _Found) -> None:
        deadline = self._clock() + self._look_seconds
        for index in range(found.next_block, archive.head.blocks):
            block = (await archive.block(index)).block
            rows = [row for row, known in enumerate(block.crc_known) if not known]
            crcs = await self._learned.known([Pin.of(block[row]) for row in rows])
            first = archive.head.plan.first_entry(index)
            for row, crc in zip(rows, crcs, strict=True):
                if crc is None:
                    found.look_again_at = self._clock() + self._again_seconds
                    return
                found.crcs[first + row] = crc
            found.next_block = max(found.next_block, index + 1)
            if self._clock() >= deadline:
                return
