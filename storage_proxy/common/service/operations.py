"""Health and metrics: what an operator and a balancer ask of every process.

The law: live means the event loop turns; ready turns false only while starting or draining, and where nothing can be
done without a dependency that is away. Any other one is named under ``degraded``: taking every replica out of the
balancer would help nobody.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.endpoints import endpoint

_log = logging.getLogger(__name__)
Probe = Callable[[], Awaitable[None]]

PROBE_TIMEOUT_SECONDS = 2.0
PROBE_TTL_SECONDS = 1.0


class Liveness(BaseModel):
    """The process answers."""

    live: bool = True


class Readiness(BaseModel):
    """Whether to send work here, and what does not work."""

    ready: bool
    degraded: list[str] = Field(description="Dependencies that are away, each with its reason.")


class Health:
    """The state of one process: starting, ready or draining, and its dependencies (name -> probe).

    Without a ``vital`` one the process can do nothing, so it is not ready.
    """

    def __init__(self, probes: Mapping[str, Probe] | None = None, *, vital: Collection[str] = ()) -> None:
        self._probes = dict(probes or {})
        self._vital = frozenset(vital)
        self._vital_away = False
        self._serving = False
        self._degraded: list[str] = []
        self._probed_at = float("-inf")
        self._probing = asyncio.Lock()

    def started(self) -> None:
        self._serving = True

    def draining(self) -> None:
        self._serving = False

    async def readiness(self) -> Readiness:
        """The state now; dependencies are asked at most once a second, each for at most two."""
        async with self._probing:
            if time.monotonic() - self._probed_at > PROBE_TTL_SECONDS:
                reasons = await asyncio.gather(*(_ask(*each) for each in self._probes.items()))
                away = {name: reason for name, reason in zip(self._probes, reasons, strict=True) if reason}
                self._degraded = list(away.values())
                self._vital_away = not self._vital.isdisjoint(away)
                self._probed_at = time.monotonic()
        return Readiness(ready=self._serving and not self._vital_away, degraded=self._degraded)


async def _ask(name: str, probe: Probe) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await probe()
    except TimeoutError:
        return f"{name}: no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    except ServiceError as error:
        return f"{name}: {error.detail}"
    except Exception:  # noqa: BLE001 a probe that fails in a way of its own is no reason to call the process unready
        _log.exception("a probe failed", extra={"dependency": name})
        return f"{name}: the probe failed"
    return None


class HasReadiness(Protocol):
    """What can be asked whether it is ready: one process, or several as one."""

    async def readiness(self) -> Readiness:
        """The state now."""
        ...


class HealthHandlers:
    """The health endpoints."""

    def __init__(self, health: HasReadiness) -> None:
        self._health = health

    @endpoint("GET", "/health/live")
    async def live(self) -> Liveness:
        """Whether the process answers."""
        return Liveness()

    @endpoint("GET", "/health/ready")
    async def ready(self) -> web.Response:
        """Whether to send work here: 200, or 503 while starting and draining."""
        readiness = await self._health.readiness()
        return web.Response(
            status=200 if readiness.ready else 503,
            body=readiness.model_dump_json().encode(),
            content_type="application/json",
        )


class MetricsHandlers:
    """The metrics endpoint."""

    def __init__(self, source: CollectorRegistry | Callable[[], Awaitable[Collector]]) -> None:
        self._source = source

    @endpoint("GET", "/metrics")
    async def metrics(self) -> web.Response:
        """Every metric of this process, or of several as one, for Prometheus."""
        body = generate_latest(await self._source() if callable(self._source) else self._source)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


HEALTH_PATHS = frozenset({"/health/live", "/health/ready"})
