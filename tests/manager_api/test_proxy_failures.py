import asyncio
import logging
import socket

import pytest
from aiohttp import web

from .conftest import Running, cut, problem, silence


def stat(caller):
    return caller.get("/v1/blobs", params={"key": "a"})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid-request"),
        (400, "unsafe-name"),
        (404, "blob-not-found"),
        (404, "bucket-not-found"),
        (409, "duplicate-name"),
        (410, "blob-changed"),
        (413, "selection-too-large"),
        (413, "payload-too-large"),
        (429, "too-many-downloads"),
        (502, "storage-error"),
        (503, "storage-unavailable"),
        (503, "busy"),
        (504, "storage-timeout"),
    ],
)
async def test_a_problem_of_the_proxy_arrives_with_code_detail_and_fields(
    caller, proxy, status: int, code: str
) -> None:
    errors = [{"loc": ["entries", 3, "key"], "msg": "does not exist", "key": "a/b"}]
    proxy.script = [problem(status, code, detail="so it is", errors=errors, request_id="of-the-proxy")]
    got, answer, headers = await caller.post("/v1/tokens/archive", {"prefix": ""})
    assert (got, answer["code"], answer["detail"], answer["errors"]) == (status, code, "so it is", errors)
    assert answer["request_id"] == headers["X-Request-Id"] != "of-the-proxy"
    assert len(proxy.asked) == 1


async def test_the_proxys_retry_after_is_kept(caller, proxy) -> None:
    proxy.script = [problem(503, "storage-unavailable", headers={"Retry-After": "17"})]
    _, _, headers = await stat(caller)
    assert headers["Retry-After"] == "17"


@pytest.mark.parametrize("value", ["soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_retry_after_that_is_no_number_of_seconds_is_replaced(caller, proxy, value: str) -> None:
    proxy.script = [problem(503, "storage-unavailable", headers={"Retry-After": value})]
    _, _, headers = await stat(caller)
    assert headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "unauthorized"),
        (404, "not-found"),
        (405, "method-not-allowed"),
        (415, "unsupported-media-type"),
        (431, "headers-too-large"),
        (500, "internal"),
    ],
)
async def test_what_is_wrong_between_the_programs_is_internal_and_logged(
    caller, proxy, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    proxy.script = [problem(status, code, detail="a-private-detail")]
    got, answer, headers = await stat(caller)
    assert (got, answer["code"]) == (500, "internal")
    assert "a-private-detail" not in str(answer)
    assert "WWW-Authenticate" not in headers
    assert any(vars(record).get("code") == code for record in caplog.records if record.levelno == logging.ERROR)


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=200, text="<html>a-private-page</html>", content_type="text/html"),
        web.Response(status=200, text="{}", content_type="application/json"),
        web.Response(status=200, text='{"bucket": 1}', content_type="application/json"),
        web.Response(status=302, headers={"Location": "http://example.org/"}),
        web.Response(status=400, text="a-private-page"),
        web.Response(status=401, text="a-private-page"),
        web.Response(status=404, text="a-private-page"),
        web.Response(status=502, text="a-private-page"),
        web.Response(status=400, text="{", content_type="application/problem+json"),
        web.Response(status=400, text='{"code": "x"}', content_type="application/problem+json"),
        problem(418, "no-such-code", detail="a-private-page"),
    ],
    ids=lambda answer: f"{answer.status}-{answer.content_type}",
)
async def test_an_answer_that_is_not_understood_is_a_storage_error(caller, proxy, answer: web.Response) -> None:
    proxy.script = [answer]
    status, shown, _ = await stat(caller)
    assert (status, shown["code"]) == (502, "storage-error")
    assert "a-private-page" not in str(shown)
    assert len(proxy.asked) == 1


def unavailable() -> web.Response:
    return web.Response(status=503, text="no upstream")


@pytest.mark.parametrize("path", ["stat", "plan"])
async def test_a_call_without_an_answer_is_tried_again(caller, proxy, path: str) -> None:
    proxy.script = [cut, unavailable()]
    if path == "stat":
        status, _, _ = await stat(caller)
        assert status == 200
    else:
        status, _, _ = await caller.post("/v1/tokens/archive", {"prefix": ""})
        assert status == 201
    assert len(proxy.asked) == 3


async def test_a_replica_that_shuts_down_sends_the_call_to_another(caller, proxy) -> None:
    proxy.script = [problem(503, "shutting-down")]
    status, _, _ = await stat(caller)
    assert status == 200


@pytest.mark.parametrize("failure", [cut, unavailable(), problem(503, "shutting-down")])
async def test_a_call_is_tried_three_times_and_not_more(caller, proxy, failure) -> None:
    body = failure.body if isinstance(failure, web.Response) else None

    async def again(request: web.Request) -> web.StreamResponse:
        if body is None:
            return await failure(request)
        return web.Response(status=failure.status, body=body, content_type=failure.content_type)

    proxy.script = [again] * 9
    # A POST: aiohttp itself repeats a GET on a connection that was closed, once for each of ours.
    status, answer, headers = await caller.post("/v1/tokens/archive", {"prefix": ""})
    assert (status, answer["code"], headers["Retry-After"]) == (503, "storage-unavailable", "5")
    assert len(proxy.asked) == 3


async def test_a_cut_body_is_no_answer(caller, proxy) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"bucket": ')
        return await cut(request)

    proxy.script = [half]
    status, _, _ = await stat(caller)
    assert status == 200
    assert len(proxy.asked) == 2


async def test_an_unreachable_proxy_is_503_with_retry_after(running: Running) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        caller = await running(rpc_url=f"http://127.0.0.1:{free.getsockname()[1]}")
        status, answer, headers = await stat(caller)
    assert (status, answer["code"], headers["Retry-After"]) == (503, "storage-unavailable", "5")


async def test_a_server_that_speaks_no_http_is_a_storage_error(running: Running) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-private\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        caller = await running(rpc_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        status, answer, _ = await stat(caller)
    assert (status, answer["code"]) == (502, "storage-error")


@pytest.mark.parametrize("setting", ["rpc_timeout_seconds", "rpc_plan_timeout_seconds"])
async def test_a_silent_proxy_is_504_after_the_configured_time(running: Running, proxy, setting: str) -> None:
    caller = await running(**{setting: 0.1})
    proxy.script = [silence]
    if setting == "rpc_timeout_seconds":
        status, answer, headers = await stat(caller)
    else:
        status, answer, headers = await caller.post("/v1/tokens/archive", {"prefix": ""})
    assert (status, answer["code"], headers["Retry-After"]) == (504, "storage-timeout", "5")
    assert len(proxy.asked) == 1


async def test_readiness_names_a_proxy_that_is_away(running: Running) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        caller = await running(rpc_url=f"http://127.0.0.1:{free.getsockname()[1]}")
        status, answer, _ = await caller.get("/health/ready", key=None)
    assert (status, answer) == (200, {"ready": True, "degraded": ["proxy: cannot be reached"]})


async def test_readiness_names_a_wrong_secret(running: Running) -> None:
    caller = await running(rpc_secret="another-secret")
    _, answer, _ = await caller.get("/health/ready", key=None)
    assert answer["degraded"] == ["proxy: refuses the RPC secret"]


async def test_failed_calls_are_counted_by_operation_and_code(caller, proxy) -> None:
    proxy.script = [problem(404, "blob-not-found"), unavailable()]
    await stat(caller)
    await stat(caller)
    async with caller.session.get(f"{caller.url}/metrics") as answer:
        text = await answer.text()
    assert 'manager_api_proxy_call_errors_total{code="blob-not-found",operation="stat_blob"} 1.0' in text
    assert 'manager_api_proxy_call_retries_total{operation="stat_blob"} 1.0' in text
    assert 'http_requests_total{listener="manager",method="GET",route="/v1/blobs",status="404"} 1.0' in text
