"""Work with an end: the clean-up jobs, dead letters, the state as a file, a tombstone taken away."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from storage_proxy.bus import dead_letters
from storage_proxy.bus.port import EventBus, Message
from storage_proxy.common.errors import StorageError
from storage_proxy.ingest.reconciler import Found
from storage_proxy.lifecycle.cleanup_expired import CleanupExpired
from storage_proxy.lifecycle.cleanup_manifests import CleanupManifests
from storage_proxy.lifecycle.cleanup_orphans import CleanupOrphans, OrphanOptions
from storage_proxy.lifecycle.cleanup_tombstones import CleanupTombstones
from storage_proxy.lifecycle.jobs import Job, JobProgress, Report, run_job
from storage_proxy.lifecycle.runs import Runs
from storage_proxy.lifecycle.state_file import export_state, import_state
from storage_proxy.runtime.backends import open_bus, open_state
from storage_proxy.runtime.core import Core, open_core, process_name
from storage_proxy.runtime.workers import locks, reconciler
from storage_proxy.settings import ProxySettings

_RECONCILED_AT_ONCE = 200

MakeJob = Callable[[Core, EventBus], Job]


def _orphans(core: Core, bus: EventBus) -> Job:
    if (one := core.settings.one_place()) is not None:
        # A record names one bucket: under the other name its object would be an orphan.
        raise StorageError(f"The buckets {one[0]} and {one[1]} are one place: it cannot be told what no record knows")
    options = OrphanOptions(
        ingest_topic=core.settings.bus.ingest_topic,
        ingest_group=core.settings.ingest.group,
        orphan_seconds=core.settings.lifecycle.orphan_seconds,
    )
    return CleanupOrphans(core.store, core.records, core.buckets, bus, options)


def _tombstones(core: Core, bus: EventBus) -> Job:
    return CleanupTombstones(
        core.store,
        core.records,
        bus,
        ingest_topic=core.settings.bus.ingest_topic,
        ingest_group=core.settings.ingest.group,
        tombstone_seconds=core.settings.lifecycle.tombstone_seconds,
    )


def _manifests(core: Core, _: EventBus) -> Job:
    return CleanupManifests(
        core.store,
        core.buckets.get(core.settings.manifests_bucket),
        longest_token_seconds=core.settings.lifecycle.longest_token_seconds,
        resume_grace_seconds=core.settings.tokens.resume_grace_seconds,
    )


def _expired(core: Core, _: EventBus) -> Job:
    return CleanupExpired(
        core.store, core.records, core.buckets, resume_grace_seconds=core.settings.tokens.resume_grace_seconds
    )


CLEANUPS: dict[str, MakeJob] = {
    "cleanup-orphans": _orphans,
    "cleanup-tombstones": _tombstones,
    "cleanup-manifests": _manifests,
    "cleanup-expired": _expired,
}


async def clean_up(
    name: str, settings: ProxySettings, *, dry_run: bool, limit: int | None, report: Report
) -> JobProgress:
    """Run a job of `CLEANUPS`. Raises `LockHeld`, `LockLost`, and `ServiceError`s."""
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings))
        bus = await open_bus(settings, stack)
        job = CLEANUPS[name](core, bus)
        return await run_job(job, locks(core), process_name(), dry_run=dry_run, limit=limit, report=report)


async def reconcile_pending(
    settings: ProxySettings, *, dry_run: bool, limit: int | None
) -> AsyncIterator[Counter[Found]]:
    """Look at every pending blob that is due, at most ``limit``; what each batch came to."""
    async with open_core(settings) as core:
        pending = reconciler(core)
        left = limit
        while left is None or left > 0:
            size = _RECONCILED_AT_ONCE if left is None else min(left, _RECONCILED_AT_ONCE)
            counts = await pending.run_once(size, dry_run=dry_run)
            yield counts
            if counts.total() < size or dry_run:  # a dry run would see the same rows again
                return
            left = None if left is None else left - counts.total()


async def list_dead_letters(settings: ProxySettings) -> AsyncIterator[Sequence[Message]]:
    """The dead letters of both topics that have not been replayed."""
    async with AsyncExitStack() as stack:
        bus = await open_bus(settings, stack)
        for topic in (settings.bus.ingest_topic, settings.bus.control_topic):
            async for letters in dead_letters.pending_letters(bus, topic):
                yield letters


async def replay_dead_letters(settings: ProxySettings, *, limit: int | None) -> int:
    """Publish dead letters of both topics again, at most ``limit``; how many."""
    count = 0
    async with AsyncExitStack() as stack:
        bus = await open_bus(settings, stack)
        for topic in (settings.bus.ingest_topic, settings.bus.control_topic):
            left = None if limit is None else limit - count
            if left is None or left > 0:
                count += await dead_letters.replay(bus, topic, limit=left)
    return count


async def clear_tombstone(settings: ProxySettings, run_id: str, *, force: bool) -> bool:
    """Take a run's tombstone away, so that its id can be used again; whether there was one.

    Raises `RunStillDeleting` unless ``force``.
    """
    async with AsyncExitStack() as stack:
        store, records = await open_state(settings, stack)
        runs = Runs(store, records, second_pass_seconds=settings.lifecycle.second_pass_seconds)
        return await runs.clear_tombstone(run_id, force=force)


async def export_to(settings: ProxySettings, path: Path) -> int:
    """Write the state to a file; how many rows. Raises `StateFileError`, OSError and `ServiceError`s."""
    async with AsyncExitStack() as stack:
        store, records = await open_state(settings, stack)
        return await export_state(store, records, path)


async def import_from(settings: ProxySettings, path: Path) -> int:
    """Read a file into an empty state; how many rows. Raises as `export_to`."""
    async with AsyncExitStack() as stack:
        store, records = await open_state(settings, stack)
        return await import_state(store, records, path)
