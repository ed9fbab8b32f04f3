import json
import time
from datetime import datetime
from typing import Any

import pytest
from aiohttp import web

from storage_proxy.common.tokens import ArchiveClaims, BlobClaims, Hs256Key, TokenVerifier

TOKEN_SECRET = b"dev-only-token-secret-0123456789abcdef"
MEDIA_KEY = "dev-only-media-key-0123456789abcdef01"
MINT_BLOB = "/v1/tokens/blob"
MINT_ARCHIVE = "/v1/tokens/archive"


def verified(token: str) -> Any:
    keys = [Hs256Key("dev", TOKEN_SECRET)]
    return TokenVerifier(keys, issuer="manager-api", audience="storage-proxy").verify(token)


async def test_a_blob_is_described_as_the_proxy_says(caller, proxy) -> None:
    status, answer, _ = await caller.get("/v1/blobs", params={"bucket": "default", "key": "ä b/c+d.bin"})
    assert status == 200
    assert answer == {
        "bucket": "default",
        "key": "ä b/c+d.bin",
        "size": 5,
        "etag": '"e1"',
        "last_modified": "2024-02-29T11:05:07Z",
        "content_type": "text/plain",
        "crc32": "0123abcd",
    }
    assert proxy.asked[0].query == {"bucket": "default", "key": "ä b/c+d.bin"}


async def test_a_minted_blob_is_a_link_whose_token_says_what_was_asked(caller) -> None:
    before = int(time.time())
    body = {"key": "a/b.bin", "filename": "c.bin", "disposition": "inline", "expires_in": 60, "subject": "who"}
    status, answer, headers = await caller.post(MINT_BLOB, body)
    assert status == 201
    assert headers["Cache-Control"] == "no-store"
    assert answer.keys() == {
        *("token", "url", "jti", "expires_at", "bucket", "key", "filename", "size", "etag", "content_type")
    }
    assert answer["url"] == f"https://dl.example.org/download?token={answer['token']}"
    claims = verified(answer["token"])
    assert isinstance(claims, BlobClaims)
    assert (claims.bucket, claims.key, claims.filename, claims.disposition) == ("default", "a/b.bin", "c.bin", "inline")
    assert (claims.jti, claims.sub) == (answer["jti"], "who")
    assert before + 60 <= claims.exp <= time.time() + 60
    assert datetime.fromisoformat(answer["expires_at"]).timestamp() == claims.exp
    assert answer["expires_at"].endswith("Z")


async def test_a_minted_archive_is_a_link_that_names_the_manifest(caller, proxy) -> None:
    entries = [{"key": "a"}, {"key": "b", "name": "c", "bucket": "media"}]
    status, answer, headers = await caller.post(MINT_ARCHIVE, {"entries": entries, "on_missing": "skip"})
    assert status == 201
    assert headers["Cache-Control"] == "no-store"
    token, url = answer.pop("token"), answer.pop("url")
    assert url == f"https://dl.example.org/download-archive?token={token}"
    claims = verified(token)
    assert isinstance(claims, ArchiveClaims)
    assert (claims.manifest, claims.filename, claims.bucket) == ("sha256:" + "ab" * 32, "archive.zip", "default")
    assert claims.jti == answer.pop("jti")
    assert claims.exp == datetime.fromisoformat(answer.pop("expires_at")).timestamp()
    assert answer == {
        "filename": "archive.zip",
        "format": "zip",
        "entries": 2,
        "size": 1234,
        "etag": '"e2"',
        "resumable": True,
        "skipped": [{"key": "gone", "reason": "does not exist"}],
    }
    assert proxy.asked[0].body == {
        "bucket": "default",
        "entries": entries,
        "format": "zip",
        "compression": "store",
        "on_missing": "skip",
        "on_duplicate": "rename",
        "names": "portable",
    }


@pytest.mark.parametrize(
    ("asked", "filename"),
    [
        ({"format": "tar"}, "archive.tar"),
        ({"compression": "deflate"}, "archive.zip"),
        ({"format": "tar", "filename": "set.TAR"}, "set.TAR"),
        ({"format": "tar", "filename": "set.zip"}, "set.zip"),
    ],
)
async def test_the_format_is_asked_of_the_proxy_and_stands_in_the_token(
    caller, proxy, asked: dict[str, str], filename: str
) -> None:
    if "compression" in asked:
        planned = {"manifest": "sha256:" + "cd" * 32, "entries": 2, "skipped": []}
        unknown = {"size": None, "etag": 'W/"e3"', "resumable": False}
        proxy.script.append(web.json_response({**planned, **unknown}))
    status, answer, _ = await caller.post(MINT_ARCHIVE, {"prefix": "", **asked})
    assert status == 201
    told = asked.get("format", "zip"), asked.get("compression", "store")
    assert (proxy.asked[0].body["format"], proxy.asked[0].body["compression"]) == told
    claims = verified(answer["token"])
    assert isinstance(claims, ArchiveClaims)
    assert (claims.format, claims.compression, claims.filename) == (*told, filename)
    assert (answer["format"], answer["filename"]) == (told[0], filename)
    if "compression" in asked:
        assert (answer["size"], answer["etag"], answer["resumable"]) == (None, 'W/"e3"', False)


async def test_every_link_has_an_id_of_its_own(caller) -> None:
    ids = {(await caller.post(MINT_BLOB, {"key": "a"}))[1]["jti"] for _ in range(5)}
    assert len(ids) == 5


async def test_the_request_id_and_the_secret_go_to_the_proxy(caller, proxy) -> None:
    _, _, headers = await caller.post(MINT_BLOB, {"key": "a"}, headers={"X-Request-Id": "r-1"})
    assert headers["X-Request-Id"] == "r-1"
    assert proxy.asked[0].headers["X-Request-Id"] == "r-1"
    assert proxy.asked[0].headers["Authorization"] == "Bearer dev-only-rpc-secret-0123456789abcdef"


async def test_a_link_lives_for_the_default_when_nothing_is_said(caller) -> None:
    _, answer, _ = await caller.post(MINT_BLOB, {"key": "a"})
    claims = verified(answer["token"])
    assert claims.exp - claims.iat == 3600


@pytest.mark.parametrize("seconds", [1, 86400])
async def test_a_link_may_live_from_1_second_to_the_maximum(caller, seconds: int) -> None:
    status, _, _ = await caller.post(MINT_BLOB, {"key": "a", "expires_in": seconds})
    assert status == 201


@pytest.mark.parametrize(("key", "filename"), [("a/b/c.txt", "c.txt"), ("folder/", "folder"), ("C:x", "C_x")])
async def test_the_default_filename_is_the_keys_last_part(caller, key: str, filename: str) -> None:
    _, answer, _ = await caller.post(MINT_BLOB, {"key": key})
    assert answer["filename"] == filename


async def test_the_longest_names_still_make_a_link(caller) -> None:
    body = {"key": "日" * 341, "filename": "🎈" * 255, "subject": "é" * 255}
    status, answer, _ = await caller.post(MINT_BLOB, body)
    assert status == 201
    assert verified(answer["token"]).filename == "🎈" * 255


BLOB_REFUSALS: list[tuple[dict[str, Any], str, list[str | int]]] = [
    ({}, "invalid-request", ["key"]),
    ({"key": 5}, "invalid-request", ["key"]),
    ({"key": "a", "nope": 1}, "invalid-request", ["nope"]),
    ({"key": "a", "disposition": "both"}, "invalid-request", ["disposition"]),
    ({"key": "a", "expires_in": 0}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": -1}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": 86401}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": 10**400}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": "60"}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": 1.5}, "invalid-request", ["expires_in"]),
    ({"key": "a", "expires_in": True}, "invalid-request", ["expires_in"]),
    ({"key": "a", "max_downloads": 1}, "invalid-request", ["max_downloads"]),
    ({"key": "a", "allowed_networks": ["10.0.0.0/8"]}, "invalid-request", ["allowed_networks"]),
    ({"key": "a", "subject": "x" * 256}, "invalid-request", ["subject"]),
    ({"key": "a", "subject": ""}, "invalid-request", ["subject"]),
    ({"key": "a", "bucket": "x" * 65}, "invalid-request", ["bucket"]),
    ({"key": ""}, "unsafe-name", ["key"]),
    ({"key": "../a"}, "unsafe-name", ["key"]),
    ({"key": "/a"}, "unsafe-name", ["key"]),
    ({"key": "a\\b"}, "unsafe-name", ["key"]),
    ({"key": "a\x00"}, "unsafe-name", ["key"]),
    ({"key": "x" * 1025}, "unsafe-name", ["key"]),
    ({"key": "\ud800"}, "unsafe-name", ["key"]),
    ({"key": "a", "bucket": "\ud800"}, "unsafe-name", ["bucket"]),
    ({"key": "a", "subject": "\ud800"}, "unsafe-name", ["subject"]),
    ({"key": "a", "filename": ""}, "unsafe-name", ["filename"]),
    ({"key": "a", "filename": "x" * 256}, "unsafe-name", ["filename"]),
    ({"key": "a", "filename": "a/b"}, "unsafe-name", ["filename"]),
    ({"key": "a", "filename": "a\r\nb"}, "unsafe-name", ["filename"]),
    ({"key": "a", "filename": "\udfff"}, "unsafe-name", ["filename"]),
]


@pytest.mark.parametrize(("body", "code", "loc"), BLOB_REFUSALS)
async def test_a_blob_request_that_is_wrong_is_refused_before_the_proxy_is_asked(
    caller, proxy, body: dict[str, Any], code: str, loc: list[str | int]
) -> None:
    status, answer, headers = await caller.post(MINT_BLOB, body)
    assert (status, answer["code"], headers["Content-Type"]) == (400, code, "application/problem+json")
    assert answer["errors"][0]["loc"] == loc
    assert proxy.asked == []


ARCHIVE_REFUSALS: list[tuple[dict[str, Any], str, list[str | int]]] = [
    ({}, "invalid-request", []),
    ({"entries": []}, "invalid-request", ["entries"]),
    ({"entries": [{"key": "a"}], "prefix": "b/"}, "invalid-request", []),
    ({"prefix": "b"}, "invalid-request", ["prefix"]),
    ({"entries": ["a"]}, "invalid-request", ["entries", 0]),
    ({"entries": [{"key": "a", "nope": 1}]}, "invalid-request", ["entries", 0, "nope"]),
    ({"entries": [{"name": "a"}]}, "invalid-request", ["entries", 0, "key"]),
    ({"entries": {"key": "a"}}, "invalid-request", ["entries"]),
    ({"prefix": "", "nope": 1}, "invalid-request", ["nope"]),
    ({"prefix": "", "format": "rar"}, "invalid-request", ["format"]),
    ({"prefix": "", "format": "tar", "compression": "deflate"}, "invalid-request", ["compression"]),
    ({"run_id": "r/1"}, "invalid-request", ["run_id"]),
    ({"run_id": "r1\n"}, "invalid-request", ["run_id"]),
    ({"run_id": "r1", "prefix": ""}, "invalid-request", []),
    ({"run_id": "r1", "buckets": "media"}, "invalid-request", ["buckets"]),
    ({"prefix": "", "max_downloads": 3}, "invalid-request", ["max_downloads"]),
    ({"prefix": "", "allowed_networks": []}, "invalid-request", ["allowed_networks"]),
    ({"prefix": "", "expires_in": 0}, "invalid-request", ["expires_in"]),
    ({"prefix": "", "filename": "a/b.zip"}, "unsafe-name", ["filename"]),
    ({"prefix": "../"}, "unsafe-name", ["prefix"]),
    ({"entries": [{"key": "ok"}, {"key": "a/../b"}]}, "unsafe-name", ["entries", 1, "key"]),
    ({"entries": [{"key": "ok", "name": "C:/a"}]}, "unsafe-name", ["entries", 0, "name"]),
    ({"entries": [{"key": "ok", "name": "a/"}]}, "unsafe-name", ["entries", 0, "name"]),
    ({"entries": [{"key": "ok", "bucket": "\ud800"}]}, "unsafe-name", ["entries", 0, "bucket"]),
]


@pytest.mark.parametrize(("body", "code", "loc"), ARCHIVE_REFUSALS)
async def test_an_archive_request_that_is_wrong_is_refused_before_the_proxy_is_asked(
    caller, proxy, body: dict[str, Any], code: str, loc: list[str | int]
) -> None:
    status, answer, _ = await caller.post(MINT_ARCHIVE, body)
    assert (status, answer["code"]) == (400, code)
    assert answer["errors"][0]["loc"] == loc
    assert proxy.asked == []


async def test_a_limit_that_nothing_enforces_is_refused_with_the_reason(caller) -> None:
    _, answer, _ = await caller.post(MINT_BLOB, {"key": "a", "max_downloads": 1, "allowed_networks": ["10.0.0.0/8"]})
    assert [each["loc"] for each in answer["errors"]] == [["max_downloads"], ["allowed_networks"]]
    assert "not enforced by this version" in answer["errors"][0]["msg"]


async def test_a_body_of_50_mb_is_413(caller, proxy) -> None:
    status, answer, _ = await caller.post(MINT_ARCHIVE, {"entries": [{"key": "a" * 1000}] * 51_000})
    assert (status, answer["code"]) == (413, "payload-too-large")
    assert proxy.asked == []


async def test_a_hundred_thousand_entries_reach_the_proxy(caller, proxy) -> None:
    entries = [{"key": f"some/folder/{n}", "name": f"n/{n}"} for n in range(100_000)]
    status, _, _ = await caller.post(MINT_ARCHIVE, {"entries": entries})
    assert status == 201
    assert proxy.asked[0].body["entries"] == entries


async def test_a_reserved_key_does_not_exist(caller, proxy) -> None:
    for status, answer, _ in (
        await caller.get("/v1/blobs", params={"key": ".storage-proxy/manifests/x"}),
        await caller.post(MINT_BLOB, {"key": ".storage-proxy/manifests/x"}),
    ):
        assert (status, answer["code"]) == (404, "blob-not-found")
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("path", "body", "locs"),
    [
        (MINT_BLOB, {"key": "a"}, None),
        (MINT_BLOB, {"key": "a", "bucket": "other"}, None),
        (MINT_ARCHIVE, {"prefix": ""}, None),
        (MINT_ARCHIVE, {"entries": [{"key": "a"}]}, None),
        (
            MINT_ARCHIVE,
            {"bucket": "media", "entries": [{"key": "a"}, {"key": "a", "bucket": "default"}]},
            [["entries", 1, "bucket"]],
        ),
    ],
)
async def test_a_key_with_buckets_knows_of_no_other(
    caller, proxy, path: str, body: dict[str, Any], locs: list[Any] | None
) -> None:
    status, answer, _ = await caller.post(path, body, key=MEDIA_KEY)
    assert (status, answer["code"]) == (404, "bucket-not-found")
    assert locs is None or [each["loc"] for each in answer["errors"]] == locs
    assert proxy.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {"bucket": "media", "entries": [{"key": "a"}, {"key": "a", "bucket": "more"}]},
        {"entries": [{"key": "a", "bucket": "media"}]},
        {"bucket": "more", "prefix": ""},
    ],
)
async def test_a_key_with_buckets_uses_them_all(caller, body: dict[str, Any]) -> None:
    status, _, _ = await caller.post(MINT_ARCHIVE, body, key=MEDIA_KEY)
    assert status == 201


async def test_a_described_blob_of_another_bucket_is_404(caller, proxy) -> None:
    status, answer, _ = await caller.get("/v1/blobs", params={"key": "a"}, key=MEDIA_KEY)
    assert (status, answer["code"]) == (404, "bucket-not-found")
    assert proxy.asked == []


async def test_a_token_is_in_no_log_line(caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    _, answer, _ = await caller.post(MINT_BLOB, {"key": "my-private-key"})
    logged = json.dumps([vars(record) for record in caplog.records], default=str)
    assert answer["token"] not in logged
    assert "my-private-key" not in logged
    assert "dev-only-" not in logged
