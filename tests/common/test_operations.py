import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.common.service import operations
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health, HealthHandlers, MetricsHandlers


async def well() -> None:
    return None


async def away() -> None:
    raise StorageUnavailable("cannot be reached")


async def hanging() -> None:
    await asyncio.Event().wait()


async def test_a_dependency_that_is_away_is_degraded_and_the_process_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "PROBE_TIMEOUT_SECONDS", 0.01)
    health = Health({"one": well, "two": away, "three": hanging})
    health.started()
    readiness = await health.readiness()
    assert readiness.ready
    assert readiness.degraded == ["two: cannot be reached", "three: no answer within 0.01 s"]


async def test_a_process_that_can_do_nothing_without_a_dependency_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "PROBE_TTL_SECONDS", -1.0)
    states = iter([away, well])

    async def probe() -> None:
        await next(states)()

    health = Health({"state": probe, "bus": away}, vital={"state"})
    health.started()
    assert not (await health.readiness()).ready
    readiness = await health.readiness()
    assert readiness.ready
    assert readiness.degraded == ["bus: cannot be reached"]


async def test_dependencies_are_not_asked_at_every_question() -> None:
    asked = []

    async def probe() -> None:
        asked.append(1)

    health = Health({"one": probe})
    await asyncio.gather(*(health.readiness() for _ in range(20)))
    assert len(asked) == 1


async def test_health_and_metrics_are_answered(client: aiohttp.ClientSession) -> None:
    registry = CollectorRegistry()
    Gauge("answers", "of everything", registry=registry).set(42)
    health = Health()
    listener = Listener("operations", "127.0.0.1:0")
    add_endpoints(listener.app, [*endpoints_of(HealthHandlers(health)), *endpoints_of(MetricsHandlers(registry))])
    await listener.start()
    url = f"http://{listener.address}"
    try:
        async with client.get(f"{url}/health/live") as answer:
            assert (answer.status, await answer.json()) == (200, {"live": True})
        async with client.get(f"{url}/health/ready") as answer:
            assert (answer.status, await answer.json()) == (503, {"ready": False, "degraded": []})
        health.started()
        async with client.get(f"{url}/health/ready") as answer:
            assert answer.status == 200
        async with client.get(f"{url}/metrics") as answer:
            assert answer.content_type == "text/plain"
            assert "answers 42.0" in await answer.text()
    finally:
        await listener.aclose()
