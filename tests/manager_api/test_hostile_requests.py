"""Whatever is sent to the routes of runs and uploads is answered by the contract's codes, never by a 5xx. Fake is what
the proxy decides (see conftest); real is the manager, and its sockets.
"""

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.raw_http import Answer, exchange, request

from .conftest import API_KEY, DIGEST

AUTHORIZED = f"Authorization: Bearer {API_KEY}"
AS_JSON = "Content-Type: application/json"
COMPLETE = f"/v1/uploads/r1~{DIGEST}/complete"
fuzz = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def ask(caller: Any, message: bytes) -> Answer:
    answer = await exchange(caller.url, message)
    assert answer is not None
    if answer.status >= 400:
        answer.problem()
    return answer


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/runs/", "/v1/runs/r1/", "/v1/runs//blobs", "//v1/runs/r1", "/v1/runs/%2e%2e/blobs", "/v1/runs/{run_id}"),
        *("/v1/runs/ä", "/v1/runs/\udcff", "/v1/runs/r1%00", "/v1/runs/r1\x01", "/v1/runs/r1\t", "/v1/runs/r 1", "*"),
        *("/v1/runs/[::1]", "//evil@host/v1/runs/r1", "/v1/runs/r1;v=1", "/v1/runs/r%", "/v1/runs/%252e", "r1"),
        *("/v1/runs/r1/blobs?cursor=ä", "/v1/runs/r1/blobs?cursor=\udcff", "/v1/runs/r1/blobs?limit=1;state=all"),
        "/v1/runs/r1/blobs?" + "&".join(f"a{number}=1" for number in range(2000)),
        "/v1/runs/" + "x" * 20_000,
        "/v1/runs/r1/blobs?cursor=" + "x" * 20_000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_target_that_is_no_run_is_refused_before_the_proxy_is_asked(
    caller, proxy, method: str, target: str
) -> None:
    answer = await ask(caller, request(method, target, AUTHORIZED))
    assert 400 <= answer.status < 500
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ((), b"", 200),
        (("Content-Length: 0",), b"", 200),
        ((AS_JSON, "Content-Length: 2", "Expect: 100-continue"), b"{}", 200),
        ((AS_JSON, "Transfer-Encoding: chunked"), b"2\r\n{}\r\n0\r\n\r\n", 200),
        ((AS_JSON, "Transfer-Encoding: chunked"), b"0\r\n\r\n", 400),
        (("Transfer-Encoding: chunked",), b"2\r\n{}\r\n0\r\n\r\n", 415),
        ((AS_JSON, "Content-Length: 2", "Transfer-Encoding: chunked"), b"0\r\n\r\n", 400),
        ((AS_JSON, "Content-Length: 2", "Content-Length: 3"), b"{}", 400),
        ((AS_JSON, "Content-Length: 99999999999"), b"", 413),
        ((AS_JSON, "Content-Encoding: gzip", "Content-Length: 2"), b"{}", 415),
    ],
)
async def test_a_completions_body_is_empty_however_it_is_framed(
    caller, proxy, headers: tuple[str, ...], body: bytes, status: int
) -> None:
    answer = await ask(caller, request("POST", COMPLETE, AUTHORIZED, *headers) + body)
    assert answer.status == status
    assert len(proxy.asked) == (status == 200)


@pytest.mark.parametrize("headers", [("Content-Length: 7",), ("Content-Length: 99999999999",)])
async def test_the_body_of_a_deletion_is_not_waited_for(caller, headers: tuple[str, ...]) -> None:
    answer = await ask(caller, request("DELETE", "/v1/runs/r1", AUTHORIZED, *headers))
    assert answer.status == 202


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xef\xbb\xbf{}", b'{"run_id":"r1","path":"a"}x', b'{"run_id":"r1","path":"\xff"}'),
        *(b'{"run_id":"r1","path":"\xc0\xaf"}', b'{"run_id":"r1","path":"a","size":NaN}'),
        *(b'{"run_id":"r1","path":"a","size":1e3}', b'{"run_id":"r1","path":"\\udf88\\ud83c"}'),
        b'{"path":' + b"[" * 100_000,
    ],
)
async def test_a_body_that_is_no_upload_is_refused_before_the_proxy_is_asked(caller, proxy, body: bytes) -> None:
    message = request("POST", "/v1/uploads", AUTHORIZED, AS_JSON, f"Content-Length: {len(body)}") + body
    assert (await ask(caller, message)).status == 400
    assert proxy.asked == []


@pytest.mark.parametrize("path", ["/v1/uploads?via=proxy", "/v1/tokens/blob?key=a", "/v1/tokens/archive?run_id=r1"])
async def test_a_parameter_beside_a_body_is_refused_not_ignored(caller, proxy, path: str) -> None:
    body = {"run_id": "r1", "path": "a"} if "uploads" in path else {"key": "a"}
    status, answer, _ = await caller.post(path, body)
    assert (status, answer["code"], proxy.asked) == (400, "invalid-request", [])


TEXT = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["r1", "a/b", "default", "proxy", "direct", "text/csv", "0123abcd", "", "../x", "a/", "\ud800", "x" * 1100]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
UPLOAD = st.fixed_dictionaries(
    {"run_id": st.just("r1") | JSON, "path": TEXT},
    optional=dict.fromkeys(("bucket", "content_type", "size", "crc32", "via", "expires_in", "x"), JSON),
)


@fuzz
@given(body=UPLOAD | JSON)
async def test_any_json_sent_as_an_upload_is_answered(caller, body: object) -> None:
    raw = json.dumps(body).encode()
    message = request("POST", "/v1/uploads", AUTHORIZED, AS_JSON, f"Content-Length: {len(raw)}") + raw
    assert (await ask(caller, message)).status < 500


SEGMENT = st.binary(max_size=40).map(lambda raw: quote(raw, safe="")) | st.text(
    "abz019._-~%2F0A;:@!$&'()*+,=[]{}|^\"<>", min_size=1, max_size=40
)
ROUTES = [("GET", "/v1/runs/{}"), ("DELETE", "/v1/runs/{}"), ("GET", "/v1/runs/{}/blobs")]


@fuzz
@given(
    route=st.sampled_from([*ROUTES, ("POST", "/v1/uploads/{}/complete"), ("GET", "/v1/runs/r1/blobs?cursor={}")]),
    segment=SEGMENT,
)
async def test_any_run_upload_id_or_cursor_is_answered(caller, route: tuple[str, str], segment: str) -> None:
    method, path = route
    assert (await ask(caller, request(method, path.replace("{}", segment), AUTHORIZED))).status < 500
