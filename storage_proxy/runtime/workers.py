"""The workers, wired: who consumes which topic, and the loops beside them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from enum import StrEnum

from storage_proxy.bus.metrics import BusMetrics
from storage_proxy.bus.port import EventBus
from storage_proxy.common.service.background import Loop, in_background
from storage_proxy.ingest.reconciler import Reconciler
from storage_proxy.ingest.recording import Recorder
from storage_proxy.ingest.worker import IngestWorker
from storage_proxy.lifecycle.control_worker import ControlWorker
from storage_proxy.lifecycle.eraser import RunEraser
from storage_proxy.lifecycle.locks import Locks
from storage_proxy.lifecycle.metrics import LifecycleMetrics
from storage_proxy.lifecycle.relay import Relay
from storage_proxy.lifecycle.sweeper import Sweeper
from storage_proxy.runtime.core import Core, process_name

_POSITIONS_SECONDS = 10.0


class Role(StrEnum):
    """What a worker does."""

    INGEST = "ingest"  # verifies and records what the ingest topic announces
    CONTROL = "control"  # publishes the outbox, removes what deleted runs leave


Work = AbstractAsyncContextManager[None]


def workers(core: Core, bus: EventBus, metrics: BusMetrics, roles: Collection[Role]) -> list[Work]:
    """What to enter, and leave at the end, for these ``roles``."""
    work: list[Work] = []
    if Role.INGEST in roles:
        work += _ingest(core, bus, metrics)
    if Role.CONTROL in roles:
        work += _control(core, bus, metrics)
    return work


def reconciler(core: Core) -> Reconciler:
    """The reconciler, for the worker and for the job."""
    return Reconciler(core.store, core.records, core.verifier, options=core.ingest_options, metrics=core.ingest_metrics)


def locks(core: Core) -> Locks:
    """The locks that all processes share."""
    return Locks(core.store, core.records, lock_seconds=core.settings.lifecycle.lock_seconds)


def _ingest(core: Core, bus: EventBus, metrics: BusMetrics) -> list[Work]:
    topic, group = core.settings.bus.ingest_topic, core.settings.ingest.group
    recorder = Recorder(core.store, core.records, options=core.ingest_options)
    worker = IngestWorker(
        bus, core.verifier, recorder, core.buckets, options=core.ingest_options, metrics=core.ingest_metrics
    )
    pending = reconciler(core)
    loops: dict[str, Loop] = {
        "reconciler": pending.run,
        "ingest positions": _watch(bus, metrics, topic, group),
    }
    return [in_background(loops), bus.consume(topic, group, worker.handle)]


def _control(core: Core, bus: EventBus, metrics: BusMetrics) -> list[Work]:
    lifecycle, names = core.settings.lifecycle, core.settings.bus
    counted = LifecycleMetrics(core.registry)
    eraser = RunEraser(core.store, core.records, core.buckets, counted)
    worker = ControlWorker(eraser, bus, counted)
    topics = {"ingest": names.ingest_topic, "control": names.control_topic}
    relay = Relay(
        core.store,
        core.records,
        bus,
        topics,
        locks(core),
        counted,
        owner=process_name(),
        poll_seconds=lifecycle.relay_seconds,
    )
    sweeper = Sweeper(core.store, core.records, eraser, locks(core), counted, owner=process_name())
    loops: dict[str, Loop] = {
        "relay": relay.run,
        "sweeper": sweeper.run,
        "control positions": _watch(bus, metrics, names.control_topic, lifecycle.group),
    }
    return [in_background(loops), bus.consume(names.control_topic, lifecycle.group, worker.handle)]


def _watch(bus: EventBus, metrics: BusMetrics, topic: str, group: str) -> Callable[[], Awaitable[None]]:
    async def watch() -> None:
        while True:
            metrics.show_positions(topic, group, await bus.positions(topic, group))
            await asyncio.sleep(_POSITIONS_SECONDS)

    return watch
