import asyncio
import logging

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.metrics import RequestMetrics
from storage_proxy.common.service.middleware import require_bearer
from storage_proxy.common.service.request_log import log_requests


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def listener(start, registry: CollectorRegistry) -> Listener:
    return await start(
        RequestMetrics(registry).middleware("test"), log_requests("test", quiet_paths=frozenset({"/nothing"}))
    )


def counted(registry: CollectorRegistry, method: str, route: str, status: str) -> float | None:
    labels = {"listener": "test", "method": method, "route": route, "status": status}
    return registry.get_sample_value("http_requests_total", labels)


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/query?text=my-secret", "/query", "200"),
        ("HEAD", "/query?text=my-secret", "/query", "200"),
        ("GET", "/shelves/5", "/shelves/{shelf}", "200"),
        ("GET", "/shelves/my-secret", "/shelves/{shelf}", "400"),
        ("GET", "/missing", "/missing", "404"),
        ("GET", "/broken", "/broken", "500"),
        ("GET", "/my-secret", "unmatched", "404"),
        ("DELETE", "/query", "unmatched", "405"),
    ],
)
async def test_a_request_is_counted_and_logged_by_its_route_never_by_its_path(
    client: aiohttp.ClientSession,
    listener: Listener,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    route: str,
    status: str,
) -> None:
    caplog.set_level(logging.INFO)
    async with client.request(method, f"http://{listener.address}{path}", headers={"X-Request-Id": "r1"}) as answer:
        assert str(answer.status) == status
    assert counted(registry, method, route, status) == 1
    seconds = registry.get_sample_value(
        "http_request_seconds_count", {"listener": "test", "method": method, "route": route}
    )
    assert seconds == 1
    (line,) = [vars(record) for record in caplog.records if record.message == "request"]
    assert (line["method"], line["route"], str(line["status"]), line["request_id"]) == (method, route, status, "r1")
    assert line["seconds"] >= 0
    assert not any("my-secret" in str(value) for value in line.values())


async def test_a_method_that_no_endpoint_has_makes_no_label(
    client: aiohttp.ClientSession, listener: Listener, registry: CollectorRegistry
) -> None:
    async with client.request("PROPFIND", f"http://{listener.address}/query"):
        pass
    assert counted(registry, "other", "unmatched", "405") == 1


async def test_a_request_whose_client_left_is_counted_as_cancelled(
    listener: Listener, registry: CollectorRegistry, rooms
) -> None:
    async with aiohttp.ClientSession() as client:
        request = asyncio.create_task(client.get(f"http://{listener.address}/slow"))
        await rooms.reached.wait()
        request.cancel()
    await rooms.left.wait()
    while listener.in_flight:
        await asyncio.sleep(0)
    assert counted(registry, "GET", "/slow", "cancelled") == 1


async def test_what_is_asked_every_second_is_not_logged(
    client: aiohttp.ClientSession, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client.get(f"http://{listener.address}/nothing"):
        pass
    assert "request" not in [record.message for record in caplog.records]


async def test_a_line_names_the_caller_by_the_name_of_its_key(
    start, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    listener = await start(log_requests("test"), require_bearer({"importer": "my-secret"}))
    for secret in ("my-secret", "not-my-secret"):
        async with client.get(f"http://{listener.address}/nothing", headers={"Authorization": f"Bearer {secret}"}):
            pass
    lines = [vars(record) for record in caplog.records if record.message == "request"]
    assert [(line["status"], line["caller"]) for line in lines] == [(204, "importer"), (401, None)]
    assert "my-secret" not in str(lines)
