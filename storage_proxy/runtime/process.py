"""A whole process: the listeners and workers of its roles, started, drained, ended."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from storage_proxy.bus.metrics import BusMetrics
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health, HealthHandlers, MetricsHandlers, Probe
from storage_proxy.common.service.process import serve_until_signal
from storage_proxy.runtime.backends import open_bus
from storage_proxy.runtime.core import open_core
from storage_proxy.runtime.listeners import open_listeners
from storage_proxy.runtime.workers import Role, Work, workers
from storage_proxy.settings import ProxySettings

ALL_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Process:
    """A wired process: nothing of it is started yet."""

    listeners: Sequence[Listener]
    operations: Listener
    health: Health
    registry: CollectorRegistry
    work: Sequence[Work]


async def run(settings: ProxySettings, *, serving: bool, roles: Collection[Role] = ()) -> None:
    """Run a process until a signal. Raises `AddressTaken`, and `ServiceError` when it can never work."""
    async with open_process(settings, serving=serving, roles=roles) as process:
        await serve_until_signal(
            process.listeners,
            health=process.health,
            drain_seconds=settings.shutdown.drain_seconds,
            unready_seconds=settings.shutdown.unready_seconds,
            operations=process.operations,
            work=process.work,
        )


@asynccontextmanager
async def open_process(
    settings: ProxySettings, *, serving: bool = True, roles: Collection[Role] = ()
) -> AsyncIterator[Process]:
    """Wire a process that serves, works in ``roles``, or both; its clients are closed on leaving."""
    only_reads = not roles and settings.rpc is None
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, only_reads=only_reads))
        probes: dict[str, Probe] = {"state": core.store.probe}
        probes |= {f"bucket {name}": store.probe for name, store in core.buckets}
        work: list[Work] = []
        if roles:
            metrics = BusMetrics(core.registry)
            bus = await open_bus(settings, stack, observer=metrics)
            probes["bus"] = bus.probe
            work = workers(core, bus, metrics, roles)
        health = Health(probes, vital={"state"})
        listeners = await open_listeners(core, health, stack) if serving else []
        operations = Listener("operations", settings.operations.listen)
        add_endpoints(operations.app, endpoints_of(HealthHandlers(health)))
        add_endpoints(operations.app, endpoints_of(MetricsHandlers(core.registry)))
        yield Process(listeners, operations, health, core.registry, work)
