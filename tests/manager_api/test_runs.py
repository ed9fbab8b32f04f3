"""Runs: described, listed, deleted, archived. Fake is what the proxy decides (see conftest); real is the manager."""

import json
from typing import Any

import pytest
from aiohttp import web

from .conftest import DIGEST, MEDIA_KEY, PLANNED, RECORD, Running, cut, described, problem, silence

RUN = "/v1/runs/r1"
BLOBS = "/v1/runs/r1/blobs"
ARCHIVE = "/v1/tokens/archive"

HOSTILE_RUN_IDS = [
    *("r1%0A", "r1%0D%0AX-Evil:1", "%0A", "a%2Fb", "%2e%2e", "..%2Fr1", "r1%2Fblobs", "r1%252F", "r1%00", "-r", "_r"),
    *("%C3%A4", "r%D9%A1", "%FF", "%ED%A0%80", "r~1", "x" * 129, "x" * 8000, "%", "%zz", "%20", "r1;v=1", "r1?x"),
]


async def test_a_run_is_described_as_the_proxy_says(caller, proxy) -> None:
    status, answer, _ = await caller.get(RUN)
    assert (status, answer) == (200, described("r1"))
    (asked,) = proxy.asked
    assert (asked.method, asked.path, asked.query) == ("GET", "/rpc/v1/runs/r1", {})


async def test_a_run_that_never_had_a_blob_has_no_bucket(caller, proxy) -> None:
    gone = {"run_id": "r1", "bucket": None, "state": "deleted", "blobs": 0, "bytes": 0}
    proxy.script = [web.json_response(gone)]
    assert (await caller.get(RUN))[1] == gone


async def test_a_runs_blobs_come_without_uri_unless_there_is_one(caller, proxy) -> None:
    status, answer, _ = await caller.get(BLOBS)
    assert (status, answer) == (200, {"blobs": [RECORD], "next_cursor": "c2"})
    with_uri = {"blobs": [RECORD | {"uri": "blob:gAAAA"}], "next_cursor": None}
    proxy.script = [web.json_response(with_uri)]
    assert (await caller.get(BLOBS, params={"uris": "true"}))[1] == with_uri


async def test_a_blob_that_is_not_there_yet_has_null_where_only_it_can_tell(caller, proxy) -> None:
    pending = RECORD | {"size": None, "etag": None, "crc32": None, "content_type": None, "state": "pending"}
    proxy.script = [web.json_response({"blobs": [pending], "next_cursor": None})]
    assert (await caller.get(BLOBS))[1]["blobs"] == [pending]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"state": "verified", "limit": "1000", "uris": "false"}),
        (
            {"state": "all", "limit": "1", "cursor": "a+b/c==&d", "uris": "true"},
            {"state": "all", "limit": "1", "cursor": "a+b/c==&d", "uris": "true"},
        ),
        ({"state": "pending", "uris": "false"}, {"state": "pending", "limit": "1000", "uris": "false"}),
        ({"state": "rejected", "limit": "1000"}, {"state": "rejected", "limit": "1000", "uris": "false"}),
        ({"state": "expired", "uris": "1"}, {"state": "expired", "limit": "1000", "uris": "true"}),
    ],
)
async def test_the_proxy_is_asked_for_the_page_that_was_asked_for(
    caller, proxy, given: dict[str, str], told: dict[str, str]
) -> None:
    status, _, _ = await caller.get(BLOBS, params=given)
    assert status == 200
    (asked,) = proxy.asked
    assert (asked.path, asked.query) == ("/rpc/v1/runs/r1/blobs", told)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("limit=1.5", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=", "limit"),
        ("state=gone", "state"),
        ("state=", "state"),
        ("state=VERIFIED", "state"),
        ("uris=perhaps", "uris"),
        ("uris=", "uris"),
        ("cursor=", "cursor"),
        ("cursor=" + "x" * 4097, "cursor"),
        ("cursor=%0A", "cursor"),
        ("cursor=%C3%A4", "cursor"),
        ("cursor=%00", "cursor"),
        ("buckets=default", "buckets"),
        ("nope=1", "nope"),
        ("run_id=r2", "run_id"),
        ("limit=1&limit=2", None),
        ("cursor=%FF", "cursor"),
        ("cursor=%ED%A0%80", "cursor"),
    ],
)
async def test_a_page_that_cannot_be_is_refused_before_the_proxy_is_asked(
    caller, proxy, query: str, name: str | None
) -> None:
    status, answer, _ = await caller.get(f"{BLOBS}?{query}")
    assert status == 400
    assert answer["code"] in ("invalid-request", "unsafe-name")
    assert name is None or answer["errors"][0]["loc"] == [name]
    assert proxy.asked == []


@pytest.mark.parametrize("character", ["~", "%22", "%7E", "%25", "%26", "%2B", "'", "(", "%3C"])
async def test_the_longest_cursor_of_any_characters_reaches_the_proxy(caller, proxy, character: str) -> None:
    status, _, _ = await caller.get(f"{BLOBS}?cursor={character * 4096}")
    assert status == 200
    assert len(proxy.asked[0].query["cursor"]) == 4096


async def test_a_deleted_run_is_202_with_its_description(caller, proxy) -> None:
    status, answer, _ = await caller.delete(RUN)
    assert (status, answer) == (202, described("r1") | {"state": "deleting"})
    (asked,) = proxy.asked
    assert (asked.method, asked.path, asked.query) == ("DELETE", "/rpc/v1/runs/r1", {})


@pytest.mark.parametrize("method", ["get", "delete"])
async def test_a_run_takes_no_parameters(caller, proxy, method: str) -> None:
    status, answer, _ = await getattr(caller, method)(f"{RUN}?buckets=default")
    assert (status, answer["code"], answer["errors"][0]["loc"]) == (400, "invalid-request", ["buckets"])
    assert proxy.asked == []


@pytest.mark.parametrize("run_id", ["r", "R.1_2-3", "x" * 128, "0", "%72%31", "a..b"])
async def test_every_run_id_reaches_the_proxy_as_it_is(caller, proxy, run_id: str) -> None:
    plain = run_id.replace("%72%31", "r1")
    for status, _, _ in (
        await caller.get(f"/v1/runs/{run_id}"),
        await caller.get(f"/v1/runs/{run_id}/blobs"),
        await caller.delete(f"/v1/runs/{run_id}"),
    ):
        assert status < 300
    assert [each.path.split("/")[4] for each in proxy.asked] == [plain] * 3


@pytest.mark.parametrize("run_id", HOSTILE_RUN_IDS)
async def test_a_run_id_of_another_form_is_refused_before_the_proxy_is_asked(caller, proxy, run_id: str) -> None:
    for status, answer, _ in (
        await caller.get(f"/v1/runs/{run_id}"),
        await caller.get(f"/v1/runs/{run_id}/blobs"),
        await caller.delete(f"/v1/runs/{run_id}"),
    ):
        assert (status, answer["code"]) in [(400, "invalid-request"), (400, "unsafe-name"), (404, "not-found")]
    assert proxy.asked == []


@pytest.mark.parametrize("method", ["get", "delete"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "run-not-found"), (503, "state-unavailable"), (503, "storage-unavailable"), (504, "storage-timeout")],
)
async def test_what_the_proxy_says_of_a_run_arrives(caller, proxy, method: str, status: int, code: str) -> None:
    proxy.script = [problem(status, code, detail="so it is")]
    got, answer, headers = await getattr(caller, method)(RUN)
    assert (got, answer["code"], answer["detail"]) == (status, code, "so it is")
    assert ("Retry-After" in headers) == (status > 500)


async def test_a_cursor_that_the_proxy_does_not_know_is_an_invalid_request(caller, proxy) -> None:
    proxy.script = [problem(400, "invalid-request", errors=[{"loc": ["cursor"], "msg": "is not a cursor"}])]
    status, answer, _ = await caller.get(BLOBS, params={"cursor": "junk"})
    assert (status, answer["errors"][0]["loc"]) == (400, ["cursor"])


async def test_a_key_with_buckets_is_told_apart_by_the_proxy(caller, proxy) -> None:
    await caller.get(RUN, key=MEDIA_KEY)
    await caller.get(BLOBS, key=MEDIA_KEY)
    await caller.delete(RUN, key=MEDIA_KEY)
    assert [each.query.get("buckets") for each in proxy.asked] == ["media,more"] * 3


@pytest.mark.parametrize("ask", ["describe", "list", "delete"])
async def test_a_call_about_a_run_that_got_no_answer_is_sent_again(caller, proxy, ask: str) -> None:
    proxy.script = [problem(503, "shutting-down"), web.Response(status=503, text="no upstream")]
    calls = {"describe": (caller.get, RUN), "list": (caller.get, BLOBS), "delete": (caller.delete, RUN)}
    method, path = calls[ask]
    status, _, _ = await method(path)
    assert status < 300
    assert len(proxy.asked) == 3


async def test_a_delete_whose_connection_is_lost_is_sent_again(caller, proxy) -> None:
    proxy.script = [cut]
    status, _, _ = await caller.delete(RUN)
    assert status == 202
    assert {each.method for each in proxy.asked} == {"DELETE"}


@pytest.mark.parametrize(
    ("setting", "method", "path"),
    [
        ("rpc_timeout_seconds", "GET", RUN),
        ("rpc_timeout_seconds", "GET", BLOBS),
        ("rpc_timeout_seconds", "DELETE", RUN),
        ("rpc_timeout_seconds", "POST", "/v1/uploads"),
        ("rpc_complete_timeout_seconds", "POST", f"/v1/uploads/r1~{DIGEST}/complete"),
    ],
)
async def test_a_silent_proxy_is_504_after_the_configured_time(
    running: Running, proxy, setting: str, method: str, path: str
) -> None:
    caller = await running(**{setting: 0.1})
    proxy.script = [silence]
    if method == "POST":
        body = {"run_id": "r1", "path": "a"} if path == "/v1/uploads" else {}
        status, answer, _ = await caller.post(path, body)
    else:
        status, answer, _ = await (caller.get(path) if method == "GET" else caller.delete(path))
    assert (status, answer["code"]) == (504, "storage-timeout")


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH"])
async def test_a_run_has_no_other_method(caller, proxy, method: str) -> None:
    headers = {"Authorization": "Bearer dev-only-api-key-0123456789abcdef0123"}
    async with caller.session.request(method, caller.url + RUN, headers=headers) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD")
    assert proxy.asked == []


async def test_a_run_is_archived_and_its_keys_bounds_go_with_it(caller, proxy) -> None:
    for key, bounds in ((None, {}), (MEDIA_KEY, {"buckets": "media,more"})):
        status, answer, _ = await caller.post(ARCHIVE, {"run_id": "r1"}, **({"key": key} if key else {}))
        assert (status, answer["size"], answer["etag"]) == (201, PLANNED["size"], PLANNED["etag"])
        body = proxy.asked.pop().body
        assert body == {
            "bucket": "default",
            "run_id": "r1",
            "format": "zip",
            "compression": "store",
            "on_missing": "fail",
            "on_duplicate": "rename",
            "names": "portable",
            **bounds,
        }


async def test_an_archive_of_anything_else_says_nothing_of_the_key(caller, proxy) -> None:
    await caller.post(ARCHIVE, {"bucket": "media", "prefix": ""}, key=MEDIA_KEY)
    assert "buckets" not in proxy.asked[0].body


@pytest.mark.parametrize(("status", "code"), [(404, "run-not-found"), (404, "blob-not-found"), (409, "run-deleted")])
async def test_what_the_proxy_says_of_a_runs_archive_arrives(caller, proxy, status: int, code: str) -> None:
    proxy.script = [problem(status, code)]
    got, answer, _ = await caller.post(ARCHIVE, {"run_id": "r1"}, key=MEDIA_KEY)
    assert (got, answer["code"]) == (status, code)


async def test_calls_are_counted_by_operation_and_route_without_the_run(caller, proxy) -> None:
    proxy.script = [problem(404, "run-not-found")]
    await caller.get("/v1/runs/private-run")
    await caller.delete("/v1/runs/private-run")
    async with caller.session.get(f"{caller.url}/metrics") as answer:
        text = await answer.text()
    assert 'manager_api_proxy_call_errors_total{code="run-not-found",operation="describe_run"} 1.0' in text
    assert 'manager_api_proxy_call_seconds_count{operation="delete_run"} 1.0' in text
    assert 'route="/v1/runs/{run_id}"' in text
    assert "private-run" not in text


async def test_no_cursor_run_or_uri_is_in_a_log_line(caller, proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    proxy.script = [web.json_response({"blobs": [RECORD | {"uri": "blob:private-uri"}], "next_cursor": "private-next"})]
    await caller.get("/v1/runs/private-run/blobs", params={"uris": "true", "cursor": "private-cursor"})
    await caller.delete("/v1/runs/private-run")
    logged = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "/v1/runs/{run_id}" in logged
    assert "private" not in logged


def operation_of(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"][path][method]
    return operation


async def test_the_document_describes_every_field_of_runs_and_uploads(caller) -> None:
    _, document, _ = await caller.get("/openapi.json", key=None)
    ours = [
        (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation["tags"] == ["Runs and uploads"]
    ]
    assert len(ours) == 5
    for method, path in ours:
        assert all(each["description"] for each in operation_of(document, method, path)["parameters"]), path
    schemas = document["components"]["schemas"]
    assert all(field.get("description") for field in schemas["StartUpload"]["properties"].values())
    assert schemas["RunBlob"]["properties"].keys() == {*RECORD, "uri"}
    assert "uri" not in schemas["RunBlob"]["required"]
    complete = operation_of(document, "post", "/v1/uploads/{upload_id}/complete")
    assert complete["requestBody"]["required"] is False
