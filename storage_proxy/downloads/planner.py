"""From a selection to a manifest: what is there, under which names, with which CRC-32s.

The law: everything that can be refused is refused here, before any byte is promised; memory is by blocks, not by
entries, and the event loop is others' after every few milliseconds.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from isal import isal_zlib

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import BlobNotFound, FieldError, RunNotFound, SelectionTooLarge, StorageError
from storage_proxy.common.events import RUNS_PREFIX, run_prefix
from storage_proxy.common.names import portable, sanitized
from storage_proxy.common.selection import check_selection
from storage_proxy.common.tokens import ArchiveFormat, Compression, OnMissing
from storage_proxy.common.wire import ArchiveSelection, Names, OnDuplicate, RunAccess, SelectedBlob, SkippedBlob
from storage_proxy.downloads.archive_names import ArchiveNames
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.crc_budget import CrcBudget
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifest import OWN_TEXT_BUCKET, Manifest, ManifestBuilder
from storage_proxy.downloads.sources import Pin
from storage_proxy.formats.entries import Entry, EntryBlock, EntryBlockBuilder
from storage_proxy.stores.port import BlobStat, ReadsCrc32

MISSING_NAME = "MISSING.txt"
_DOES_NOT_EXIST = "does not exist"
MAX_RUNS = 50_000
"""Runs of one archive: each request for it looks for all their tombstones."""
_EARLIEST = 315_532_800  # 1980-01-01, the beginning of a zip's time
_BATCH = 1000
_CRC_BATCH = 64
_TURN = 128


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """Bounds of one plan: entries, requests under way, and what may be read to learn CRC-32s."""

    max_entries: int = 100_000
    parallel_requests: int = 32
    crc32_read_bytes: int = 1 << 30
    crc32_seconds: float = 20.0


class Plan(NamedTuple):
    """A manifest, and what was asked for and is not in it."""

    manifest: Manifest
    skipped: list[SkippedBlob]


class ArchivePlanner:
    """Resolves selections against what is visible of the buckets."""

    def __init__(self, blobs: Blobs, learned: LearnedCrcs, limits: PlanLimits) -> None:
        self._blobs = blobs
        self._learned = learned
        self._limits = limits

    async def plan(
        self,
        selection: ArchiveSelection,
        *,
        access: RunAccess = RunAccess(),  # noqa: B008 it is frozen
        crc32_read_bytes: int | None = None,
    ) -> Plan:
        """The archive of ``selection`` as it is now; ``crc32_read_bytes`` lowers the limit of that name.

        A run selected by its id brings its own bucket, which ``access`` must allow. Raises `InvalidRequest`,
        `UnsafeName`, `SelectionTooLarge`, `BucketNotFound`, `RunNotFound`, `BlobNotFound` (with every missing key),
        `DuplicateName`, as the stores do, and `StateUnavailable` where a run is asked for.
        """
        if len(selection.entries or ()) > self._limits.max_entries:
            raise _too_large(self._limits.max_entries, "entries")
        await asyncio.to_thread(check_selection, selection)
        limits = self._limits
        if not _needs_crc32s(selection):
            limits = replace(limits, crc32_read_bytes=0, crc32_seconds=0.0)
        if crc32_read_bytes is not None:
            limits = replace(limits, crc32_read_bytes=min(crc32_read_bytes, limits.crc32_read_bytes))
        if selection.run_id is not None:
            selection = await self._with_bucket(selection, selection.run_id, access)
        plan = await _Planning(self._blobs, self._learned, limits, selection).run()
        if selection.run_id is not None and await self._blobs.runs.deleted([selection.run_id]):
            raise RunNotFound  # meanwhile, so perhaps not all of it was seen
        return plan

    async def _with_bucket(self, selection: ArchiveSelection, run_id: str, access: RunAccess) -> ArchiveSelection:
        bucket = await self._blobs.runs.bucket_of(run_id)
        if bucket is None or not access.allows(bucket):
            raise RunNotFound
        return selection.model_copy(update={"bucket": bucket})


class _Planning:
    """One run of the planner: first what is there, then names and CRC-32s, block by block."""

    def __init__(self, blobs: Blobs, learned: LearnedCrcs, limits: PlanLimits, selection: ArchiveSelection) -> None:
        self._blobs = blobs
        self._learned = learned
        self._limits = limits
        self._selection = selection
        self._names = ArchiveNames(rename=selection.on_duplicate is OnDuplicate.RENAME)
        self._missing: list[tuple[list[str | int], str]] = []
        self._latest = _EARLIEST
        self._runs: set[str] = set()

    async def run(self) -> Plan:
        wanted = await self._wanted_blocks()
        await self._refuse_missing()
        if not wanted and not self._missing:
            raise BlobNotFound("Nothing is selected")
        builder = EntryBlockBuilder()
        manifest = ManifestBuilder(self._selection.format)
        budget = CrcBudget(max_bytes=self._limits.crc32_read_bytes, seconds=self._limits.crc32_seconds)
        while wanted:
            for row, entry in enumerate(await self._with_crcs(wanted.popleft().unpacked(), budget)):
                if not row % _TURN:
                    await asyncio.sleep(0)  # a block takes tens of milliseconds: let others have their turn
                await _add(manifest, builder.add(entry._replace(name=self._names.assign(entry.name))))
                self._latest = max(self._latest, entry.last_modified)
                self._note_run(entry.key)
        await self._refuse_missing()
        text = await asyncio.to_thread(self._missing_text)
        if text:
            await _add(manifest, builder.add(self._missing_entry(text)))
        await _add(manifest, builder.finish())
        return await asyncio.to_thread(self._finished, manifest, text)

    async def _wanted_blocks(self) -> "deque[_WaitingBlock]":
        """What is there, under its wanted name; folders are noted, missing keys collected."""
        builder = EntryBlockBuilder()
        blocks: deque[_WaitingBlock] = deque()
        found = self._listed() if self._selection.entries is None else self._named(self._selection.entries)
        count = 0
        async for entry in found:
            count += 1
            if not count % _TURN:
                await asyncio.sleep(0)
            self._names.note_folders(entry.name)
            if (full := builder.add(entry)) is not None:
                blocks.append(_WaitingBlock.of(full))
        if (last := builder.finish()) is not None:
            blocks.append(_WaitingBlock.of(last))
        return blocks

    async def _listed(self) -> AsyncIterator[Entry]:
        run_id, bucket = self._selection.run_id, self._selection.bucket
        prefix = self._selection.prefix or "" if run_id is None else run_prefix(run_id)
        count = 0
        async for page in self._blobs.list(bucket, prefix):
            for stat in page:
                if stat.key == prefix:
                    continue
                count += 1
                if count > self._limits.max_entries:
                    raise _too_large(self._limits.max_entries, self._selector)
                yield self._entry(stat, bucket, sanitized(stat.key[len(prefix) :]))

    async def _named(self, selected: Sequence[SelectedBlob]) -> AsyncIterator[Entry]:
        seen: set[tuple[str, str, str]] = set()
        for first in range(0, len(selected), _BATCH):
            batch = selected[first : first + _BATCH]
            addresses = [(each.bucket or self._selection.bucket, each.key) for each in batch]
            stats = await self._blobs.stat_many(addresses, parallel=self._limits.parallel_requests)
            for index, (each, stat) in enumerate(zip(batch, stats, strict=True), first):
                bucket, name = each.bucket or self._selection.bucket, each.name or each.key
                if (bucket, each.key, name) in seen:
                    continue
                seen.add((bucket, each.key, name))
                if stat is None:
                    self._missing.append((["entries", index, "key"], each.key))
                else:
                    yield self._entry(stat, bucket, name)

    def _entry(self, stat: BlobStat, bucket: str, name: str) -> Entry:
        if not stat.etag:
            raise StorageError("The storage gives a blob no ETag: its versions cannot be told from each other")
        is_folder = stat.key.endswith("/") and stat.size == 0
        name = name.removesuffix("/") + ("/" if is_folder else "")
        if self._selection.names is Names.PORTABLE:
            name = portable(name)
        return Entry(name, bucket, stat.key, stat.size, stat.etag, stat.last_modified, stat.crc32)

    async def _with_crcs(self, block: EntryBlock, budget: CrcBudget) -> list[Entry]:
        """The block's entries, with the CRC-32s that can be had within the budget; those that vanished left out."""
        entries = list(block)
        await asyncio.sleep(0)
        unknown = await self._learned_before(entries, [row for row, known in enumerate(block.crc_known) if not known])
        if not unknown:
            return entries
        buckets = self._blobs.buckets
        reading = {name for name in {entry.bucket for entry in entries} if isinstance(buckets.get(name), ReadsCrc32)}
        readable = [row for row in unknown if entries[row].bucket in reading]
        batches = [readable[first : first + _CRC_BATCH] for first in range(0, len(readable), _CRC_BATCH)]

        async def read(rows: list[int]) -> None:
            by_bucket: dict[str, list[int]] = {}
            for row in rows:
                if budget.take(entries[row].size):
                    by_bucket.setdefault(entries[row].bucket, []).append(row)
            for bucket, chosen in by_bucket.items():
                store = buckets.get(bucket)
                assert isinstance(store, ReadsCrc32)
                versions = [(entries[row].key, entries[row].etag) for row in chosen]
                sums = await store.read_crc32s(versions, timeout=budget.seconds_left)
                for row, crc in zip(chosen, sums, strict=True):
                    entries[row] = entries[row]._replace(crc32=crc)
                    if crc is not None:
                        self._learned.note(Pin.of(entries[row]), crc)

        await map_bounded(self._limits.parallel_requests, read, batches)
        if self._selection.entries is not None:
            return entries  # named ones have been asked for already
        others = sorted(row for row in set(unknown) - set(readable) if not entries[row].key.startswith(RUNS_PREFIX))
        return await self._asked_again(entries, others, budget)

    async def _learned_before(self, entries: list[Entry], unknown: Sequence[int]) -> list[int]:
        """Fill in what reading has shown before; the rows that are still unknown."""
        crcs = await self._learned.known([Pin.of(entries[row]) for row in unknown]) if unknown else []
        for row, crc in zip(unknown, crcs, strict=True):
            if crc is not None:
                entries[row] = entries[row]._replace(crc32=crc)
        return [row for row, crc in zip(unknown, crcs, strict=True) if crc is None]

    async def _asked_again(self, entries: list[Entry], rows: Sequence[int], budget: CrcBudget) -> list[Entry]:
        """A listing knows no checksums: each of ``rows`` is asked for by itself, until the time for it is over.

        What is told is remembered, so that the next mint asks only for what is new.
        """

        async def ask(row: int) -> None:
            entry = entries[row]
            stat = await self._blobs.stat(entry.bucket, entry.key)
            current = found[row] = None if stat is None else self._entry(stat, entry.bucket, entry.name)
            if current is not None and current.crc32 is not None:
                self._learned.note(Pin.of(current), current.crc32)

        found: dict[int, Entry | None] = {}
        if rows and budget.seconds_left:
            try:
                async with asyncio.timeout(budget.seconds_left) as deadline:
                    await map_bounded(self._limits.parallel_requests, ask, rows)
            except TimeoutError:
                if not deadline.expired():
                    raise
        self._missing += [([self._selector], entries[row].key) for row in rows if found.get(row, entries[row]) is None]
        current = (found.get(row, entry) for row, entry in enumerate(entries))
        return [entry for entry in current if entry is not None]

    @property
    def _selector(self) -> str:
        return "prefix" if self._selection.run_id is None else "run_id"

    def _note_run(self, key: str) -> None:
        if not key.startswith(RUNS_PREFIX):
            return
        self._runs.add(key.split("/", 2)[1])
        if len(self._runs) > MAX_RUNS:
            reason = f"selects blobs of more than {MAX_RUNS} runs"
            raise SelectionTooLarge(f"The selection {reason}", errors=[{"loc": [self._selector], "msg": reason}])

    def _finished(self, manifest: ManifestBuilder, text: bytes) -> Plan:
        skipped = [SkippedBlob(key=key, reason=_DOES_NOT_EXIST) for _, key in self._missing]
        return Plan(manifest.finish(text, runs=self._runs), skipped)

    async def _refuse_missing(self) -> None:
        if self._missing and self._selection.on_missing is OnMissing.FAIL:
            errors = await asyncio.to_thread(self._missing_errors)
            raise BlobNotFound(f"{len(errors)} of the selected blobs do not exist", errors=errors)

    def _missing_errors(self) -> list[FieldError]:
        return [{"loc": loc, "msg": _DOES_NOT_EXIST, "key": key} for loc, key in self._missing]

    def _missing_text(self) -> bytes:
        return "".join(f"{key}\t{_DOES_NOT_EXIST}\n" for _, key in self._missing).encode()

    def _missing_entry(self, text: bytes) -> Entry:
        name = self._names.assign(MISSING_NAME, rename=True)
        return Entry(name, OWN_TEXT_BUCKET, "", len(text), "", self._latest, isal_zlib.crc32(text))


class _WaitingBlock(NamedTuple):
    """A block that waits for the whole listing to be known, packed: about 50 bytes an entry, however long its key."""

    packed: bytes

    @classmethod
    def of(cls, block: EntryBlock) -> Self:
        return cls(isal_zlib.compress(block.encode(), 1))

    def unpacked(self) -> EntryBlock:
        return EntryBlock.decode(isal_zlib.decompress(self.packed))


async def _add(manifest: ManifestBuilder, block: EntryBlock | None) -> None:
    if block is not None:
        await asyncio.to_thread(manifest.add, block)  # compressing and digests let go of the interpreter


def _too_large(limit: int, selector: str) -> SelectionTooLarge:
    reason = f"selects more than {limit} entries"
    return SelectionTooLarge(f"{selector} {reason}", errors=[{"loc": [selector], "msg": reason}])


def _needs_crc32s(selection: ArchiveSelection) -> bool:
    """Whether a Range will need them: nothing is read or asked for them otherwise, and those known are compared."""
    return selection.format is ArchiveFormat.ZIP and selection.compression is Compression.STORE
