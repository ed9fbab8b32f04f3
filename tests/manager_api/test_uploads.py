"""Starting and completing uploads. Fake is what the proxy decides (see conftest); real is everything of the manager."""

import json
import time
from datetime import datetime
from typing import Any

import pytest
from aiohttp import web

from storage_proxy.common.tokens import Hs256Key, TokenVerifier, UploadClaims

from .conftest import DIGEST, MEDIA_KEY, RECORD, TOKEN_SECRET, cut, prepared, problem

UPLOADS = "/v1/uploads"
COMPLETE = f"/v1/uploads/r1~{DIGEST}/complete"
ORDER = {"run_id": "r1", "path": "out/a.csv"}
PRESIGNED = "https://s3.example.org/media/runs/r1/out/a.csv?X-Amz-Signature=0a1b2c3d4e"


def claims_of(token: str) -> UploadClaims:
    keys = [Hs256Key("dev", TOKEN_SECRET.encode())]
    claims = TokenVerifier(keys, issuer="manager-api", audience="storage-proxy").verify(token)
    assert isinstance(claims, UploadClaims)
    return claims


async def test_an_upload_through_the_proxy_is_a_url_whose_token_says_what_was_asked(caller, proxy) -> None:
    before = int(time.time())
    order = ORDER | {"content_type": "text/csv", "size": 5, "crc32": "0123abcd", "expires_in": 60, "via": "proxy"}
    status, answer, headers = await caller.post(UPLOADS, order)
    assert (status, headers["Cache-Control"]) == (201, "no-store")
    url, token = answer["url"].split("?token=")
    assert url == "https://dl.example.org/upload"
    claims = claims_of(token)
    assert claims.model_dump(include={"bucket", "key", "run_id", "path", "content_type", "size", "crc32"}) == {
        "bucket": "default",
        "key": "runs/r1/out/a.csv",
        "run_id": "r1",
        "path": "out/a.csv",
        "content_type": "text/csv",
        "size": 5,
        "crc32": "0123abcd",
    }
    assert before + 60 <= claims.exp <= time.time() + 60
    assert datetime.fromisoformat(answer.pop("expires_at")).timestamp() == claims.exp
    answer.pop("url")
    assert answer == {
        "upload_id": f"r1~{DIGEST}",
        "method": "PUT",
        "headers": {"Content-Type": "text/csv"},
        "key": "runs/r1/out/a.csv",
    }


async def test_an_upload_to_the_store_is_the_proxys_url_as_it_is(caller, proxy) -> None:
    proxy.script = [web.json_response(prepared(ORDER | {"bucket": "media"}, url=PRESIGNED))]
    status, answer, _ = await caller.post(UPLOADS, ORDER | {"bucket": "media", "via": "direct"})
    assert (status, answer["url"], answer["method"]) == (201, PRESIGNED, "PUT")
    assert answer["expires_at"] == "2024-02-29T11:05:07Z"


async def test_the_proxy_is_told_what_is_known_of_the_upload_and_nothing_else(caller, proxy) -> None:
    await caller.post(UPLOADS, ORDER)
    await caller.post(UPLOADS, ORDER | {"bucket": "media", "size": 0, "expires_in": 1, "via": "direct"})
    assert [(each.method, each.path, each.query) for each in proxy.asked] == [("POST", "/rpc/v1/uploads", {})] * 2
    assert [each.body for each in proxy.asked] == [
        ORDER | {"bucket": "default", "expires_in": 3600},
        ORDER | {"bucket": "media", "size": 0, "expires_in": 1, "via": "direct"},
    ]


@pytest.mark.parametrize("seconds", [1, 86400])
async def test_a_url_may_live_from_1_second_to_the_maximum(caller, seconds: int) -> None:
    status, _, _ = await caller.post(UPLOADS, ORDER | {"expires_in": seconds})
    assert status == 201


@pytest.mark.parametrize("path", ["a", "ä b/日本.bin", "x" * 255, "a;b?c#d%2F", "p/" * 507 + "p", "C"])
async def test_every_safe_path_can_be_uploaded(caller, path: str) -> None:
    status, answer, _ = await caller.post(UPLOADS, {"run_id": "r1", "path": path})
    assert (status, answer["key"]) == (201, f"runs/r1/{path}")
    assert claims_of(answer["url"].partition("?token=")[2]).path == path


UPLOAD_REFUSALS: list[tuple[dict[str, Any], str, list[str | int]]] = [
    ({"path": "a"}, "invalid-request", ["run_id"]),
    ({"run_id": "r1"}, "invalid-request", ["path"]),
    (ORDER | {"nope": 1}, "invalid-request", ["nope"]),
    (ORDER | {"key": "runs/r1/out/a.csv"}, "invalid-request", ["key"]),
    (ORDER | {"max_downloads": 1}, "invalid-request", ["max_downloads"]),
    (ORDER | {"run_id": 5}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": ""}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": ".r"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": ".."}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "a/b"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "r1\n"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "r1~"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "ä"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "r\u0661"}, "invalid-request", ["run_id"]),
    (ORDER | {"run_id": "x" * 129}, "invalid-request", ["run_id"]),
    (ORDER | {"bucket": "x" * 65}, "invalid-request", ["bucket"]),
    (ORDER | {"content_type": ""}, "invalid-request", ["content_type"]),
    (ORDER | {"content_type": "text/csv\r\nX-Evil: 1"}, "invalid-request", ["content_type"]),
    (ORDER | {"content_type": "text/ä"}, "invalid-request", ["content_type"]),
    (ORDER | {"content_type": "x" * 256}, "invalid-request", ["content_type"]),
    (ORDER | {"size": -1}, "invalid-request", ["size"]),
    (ORDER | {"size": "5"}, "invalid-request", ["size"]),
    (ORDER | {"size": 1.5}, "invalid-request", ["size"]),
    (ORDER | {"size": True}, "invalid-request", ["size"]),
    (ORDER | {"size": 2**63}, "invalid-request", ["size"]),
    (ORDER | {"size": 10**400}, "invalid-request", ["size"]),
    (ORDER | {"crc32": "0123ABCD"}, "invalid-request", ["crc32"]),
    (ORDER | {"crc32": "123"}, "invalid-request", ["crc32"]),
    (ORDER | {"crc32": "0123abcd\n"}, "invalid-request", ["crc32"]),
    (ORDER | {"crc32": 19114957}, "invalid-request", ["crc32"]),
    (ORDER | {"via": "s3"}, "invalid-request", ["via"]),
    (ORDER | {"expires_in": 0}, "invalid-request", ["expires_in"]),
    (ORDER | {"expires_in": -1}, "invalid-request", ["expires_in"]),
    (ORDER | {"expires_in": 86401}, "invalid-request", ["expires_in"]),
    (ORDER | {"expires_in": "60"}, "invalid-request", ["expires_in"]),
    (ORDER | {"expires_in": True}, "invalid-request", ["expires_in"]),
    (ORDER | {"path": ""}, "unsafe-name", ["path"]),
    (ORDER | {"path": "/a"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a/"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a//b"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "../r2/a"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a/./b"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "C:/a"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a\\b"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a\x00"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "a\n"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "\ud800"}, "unsafe-name", ["path"]),
    (ORDER | {"run_id": "\ud800"}, "unsafe-name", ["run_id"]),
    (ORDER | {"content_type": "\ud800"}, "unsafe-name", ["content_type"]),
    (ORDER | {"path": "x" * 256}, "unsafe-name", ["path"]),
    (ORDER | {"path": "p/" * 508 + "p"}, "unsafe-name", ["path"]),
    (ORDER | {"path": "p/" * 2_000_000 + "p"}, "unsafe-name", ["path"]),
]


@pytest.mark.parametrize(("body", "code", "loc"), UPLOAD_REFUSALS)
async def test_an_upload_that_is_wrong_is_refused_before_the_proxy_is_asked(
    caller, proxy, body: dict[str, Any], code: str, loc: list[str | int]
) -> None:
    status, answer, headers = await caller.post(UPLOADS, body)
    assert (status, answer["code"], headers["Content-Type"]) == (400, code, "application/problem+json")
    assert answer["errors"][0]["loc"] == loc
    assert proxy.asked == []


@pytest.mark.parametrize("body", [[], "r1", None, 5, [ORDER]])
async def test_a_body_that_is_no_object_is_an_invalid_request(caller, proxy, body: Any) -> None:
    status, answer, _ = await caller.post(UPLOADS, body)
    assert (status, answer["code"], proxy.asked) == (400, "invalid-request", [])


async def test_a_token_that_would_be_too_long_is_400_and_names_the_path(caller) -> None:
    path = "/".join(['"' * 200] * 5)  # JSON writes each as two characters, base64 as nearly three
    status, answer, _ = await caller.post(UPLOADS, {"run_id": "r", "path": path, "content_type": '"' * 255})
    assert (status, answer["code"]) == (400, "invalid-request")
    assert answer["errors"] == [{"loc": ["path"], "msg": "makes the token too long"}]


async def test_a_key_with_buckets_uploads_to_them_alone(caller, proxy) -> None:
    for body in (ORDER, ORDER | {"bucket": "default"}, ORDER | {"bucket": "\u00e4"}):
        status, answer, _ = await caller.post(UPLOADS, body, key=MEDIA_KEY)
        assert (status, answer["code"]) == (404, "bucket-not-found")
    assert proxy.asked == []
    status, _, _ = await caller.post(UPLOADS, ORDER | {"bucket": "more"}, key=MEDIA_KEY)
    assert status == 201


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "unsafe-name"),
        (404, "bucket-not-found"),
        (409, "blob-exists"),
        (409, "run-bucket-mismatch"),
        (409, "run-deleted"),
        (413, "payload-too-large"),
        (502, "storage-error"),
        (503, "busy"),
        (503, "state-unavailable"),
        (503, "storage-unavailable"),
    ],
)
async def test_what_the_proxy_says_of_a_started_upload_arrives(caller, proxy, status: int, code: str) -> None:
    proxy.script = [problem(status, code, detail="so it is")]
    got, answer, headers = await caller.post(UPLOADS, ORDER)
    assert (got, answer["code"], answer["detail"]) == (status, code, "so it is")
    assert ("Retry-After" in headers) == (status == 503)
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("body", [b"", b"{}", None])
async def test_a_completed_upload_is_its_blobs_record(caller, proxy, body: bytes | None) -> None:
    headers = {} if body is None else {"Content-Type": "application/json"}
    authorized = headers | {"Authorization": "Bearer dev-only-api-key-0123456789abcdef0123"}
    async with caller.session.post(caller.url + COMPLETE, data=body, headers=authorized) as answer:
        assert (answer.status, await answer.json()) == (200, RECORD)
    (asked,) = proxy.asked
    assert (asked.method, asked.path, asked.query) == ("POST", f"/rpc/v1/uploads/r1~{DIGEST}/complete", {})
    assert asked.body is None


async def test_an_upload_id_that_is_escaped_is_the_same(caller, proxy) -> None:
    status, _, _ = await caller.post(COMPLETE.replace("~", "%7E"), {})
    assert status == 200
    assert proxy.asked[0].path == f"/rpc/v1/uploads/r1~{DIGEST}/complete"


async def test_a_key_with_buckets_completes_with_them(caller, proxy) -> None:
    await caller.post(COMPLETE, {}, key=MEDIA_KEY)
    assert proxy.asked[0].query == {"buckets": "media,more"}


@pytest.mark.parametrize(
    "upload_id",
    [
        *("r1", "~", f"~{DIGEST}", f"r1~{DIGEST}0", f"r1~{DIGEST[1:]}", f"r1~{DIGEST.upper()}", f"r1~r1~{DIGEST}"),
        *(f"r1%0A~{DIGEST}", f"r1~{DIGEST}%0A", f"a%2Fb~{DIGEST}", f"%2E%2E%2Fr1~{DIGEST}", f"r1%252F~{DIGEST}"),
        *(f"%C3%A4~{DIGEST}", f"%FF~{DIGEST}", f"%ED%A0%80~{DIGEST}", f"r1%00~{DIGEST}", "x" * 8000, "%", "%zz", "%20"),
    ],
)
async def test_an_upload_id_of_another_form_is_refused_before_the_proxy_is_asked(caller, proxy, upload_id: str) -> None:
    status, answer, _ = await caller.post(f"/v1/uploads/{upload_id}/complete", {})
    assert (status, answer["code"]) in [(400, "invalid-request"), (400, "unsafe-name"), (404, "not-found")]
    assert proxy.asked == []


@pytest.mark.parametrize("body", [{"size": 5}, [], None, "x"])
async def test_a_completion_says_nothing(caller, proxy, body: Any) -> None:
    status, answer, _ = await caller.post(COMPLETE, body)
    assert (status, answer["code"], proxy.asked) == (400, "invalid-request", [])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "size-mismatch"),
        (400, "checksum-mismatch"),
        (404, "not-found"),
        (404, "run-not-found"),
        (409, "upload-incomplete"),
        (409, "run-deleted"),
        (409, "run-bucket-mismatch"),
        (503, "busy"),
        (503, "state-unavailable"),
        (504, "storage-timeout"),
    ],
)
async def test_what_the_proxy_says_of_a_completed_upload_arrives(caller, proxy, status: int, code: str) -> None:
    proxy.script = [problem(status, code, detail="so it is")]
    got, answer, _ = await caller.post(COMPLETE, {})
    assert (got, answer["code"], answer["detail"]) == (status, code, "so it is")
    assert len(proxy.asked) == 1


async def test_a_proxy_that_knows_no_uploads_is_a_failure_of_ours(caller, proxy) -> None:
    proxy.script = [problem(404, "not-found")]
    status, answer, _ = await caller.post(UPLOADS, ORDER)
    assert (status, answer["code"]) == (500, "internal")


@pytest.mark.parametrize(("path", "body", "status"), [(UPLOADS, ORDER, 201), (COMPLETE, {}, 200)])
async def test_a_call_about_an_upload_that_got_no_answer_is_sent_again_as_it_was(
    caller, proxy, path: str, body: dict[str, Any], status: int
) -> None:
    proxy.script = [cut, problem(503, "shutting-down")]
    got, _, _ = await caller.post(path, body)
    assert got == status
    assert len(proxy.asked) == 3
    assert len({(each.path, json.dumps(each.body), each.headers["X-Request-Id"]) for each in proxy.asked}) == 1


@pytest.mark.parametrize("members", [{"url": 5}, {"headers": None}, {"headers": {"A": 1}}, {"upload_id": None}])
async def test_an_upload_that_the_proxy_describes_wrongly_is_a_storage_error(
    caller, proxy, members: dict[str, Any]
) -> None:
    proxy.script = [web.json_response(prepared(ORDER | {"bucket": "default"}) | members)]
    status, answer, _ = await caller.post(UPLOADS, ORDER)
    assert (status, answer["code"]) == (502, "storage-error")


async def test_no_url_path_or_id_of_an_upload_is_in_a_log_line(caller, proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    order = {"run_id": "private-run", "path": "private/path"}
    _, through_proxy, _ = await caller.post(UPLOADS, order)
    proxy.script = [web.json_response(prepared(order | {"bucket": "default"}, url=PRESIGNED))]
    await caller.post(UPLOADS, order)
    proxy.script = [problem(409, "upload-incomplete")]
    await caller.post(f"/v1/uploads/private-run~{DIGEST}/complete", {})
    logged = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "/v1/uploads" in logged
    for hidden in (through_proxy["url"].partition("=")[2], "X-Amz-Signature", "private", DIGEST, "dev-only-"):
        assert hidden not in logged
