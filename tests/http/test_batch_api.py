"""Blob batches over real sockets: a real directory, a real S3 server, a real SQLite state; read by two parsers."""

import asyncio
import email
import json
import logging
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from email import policy
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage_proxy.downloads.blob_uris import BlobUris
from tests.support.run_service import URI_KEY, RunService, local_service, s3_service
from tests.support.s3 import S3Bucket

# aiohttp's own reader of parts does so, depending on how the bytes happen to come.
pytestmark = pytest.mark.filterwarnings("ignore:unread_data:DeprecationWarning")

MIB = 1 << 20
JUNK = "blob:junk"


# aiohttp's own reader of multipart, where a boundary comes in two chunks.
pytestmark = [
    pytest.mark.both_loops,
    pytest.mark.filterwarnings(r"ignore:unread_data\(\) is deprecated:DeprecationWarning"),
]


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[RunService]:
    async with local_service(tmp_path) as opened:
        yield opened


@pytest.fixture
async def over_s3(tmp_path: Path, s3_bucket: S3Bucket) -> AsyncIterator[RunService]:
    async with s3_service(tmp_path, s3_bucket) as opened:
        yield opened


@pytest.fixture(params=["local", "over_s3"])
def service(request: pytest.FixtureRequest) -> RunService:
    made: RunService = request.getfixturevalue(request.param)
    return made


def post(service: RunService, uris: Sequence[str], **more: Any) -> Any:
    return service.proxy.http.post(f"{service.proxy.client_url}/blob-batch", json={"uris": uris}, **more)


async def parts_of(service: RunService, uris: Sequence[str]) -> list[tuple[str | None, Any, bytes]]:
    """Each part's name, headers and content, by aiohttp's reader."""
    async with post(service, uris) as answer:
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "private, no-store"
        reader = aiohttp.MultipartReader.from_response(answer)
        found = []
        while (part := await reader.next()) is not None:
            assert isinstance(part, aiohttp.BodyPartReader)
            found.append((part.name, part.headers, bytes(await part.read())))
        return found


def code_of(part: tuple[str | None, Any, bytes]) -> str:
    _, headers, content = part
    assert headers["Content-Type"] == "application/problem+json"
    body = json.loads(content)
    assert body["status"] >= 400
    return str(body["code"])


async def refusal(service: RunService, body: object) -> tuple[int, str]:
    async with service.proxy.http.post(f"{service.proxy.client_url}/blob-batch", json=body) as answer:
        return answer.status, (await answer.json(content_type=None))["code"]


async def test_blobs_come_in_the_order_of_their_uris_each_with_what_a_client_wants_to_know(
    service: RunService,
) -> None:
    contents = {"a/small.bin": b"small", "large.bin": os.urandom(3 * MIB), "nothing": b"", "größe.txt": b"\r\n--x\r\n"}
    for path, content in contents.items():
        await service.add("r1", path, content, crc32=zlib.crc32(content), content_type="text/x-log")
    paths = ["large.bin", "a/small.bin", "größe.txt", "nothing", "large.bin"]
    found = await parts_of(service, [await service.uri("r1", path) for path in paths])
    assert [name for name, _, _ in found] == ["0", "1", "2", "3", "4"]
    assert [content for _, _, content in found] == [contents[path] for path in paths]
    for path, (_, headers, content) in zip(paths, found, strict=True):
        stat = await service.runs.blobs.resolve("default", f"runs/r1/{path}")
        assert stat is not None
        assert headers["Content-Length"] == str(len(content))
        assert headers["Content-Type"] == "text/x-log"
        assert headers["ETag"] == stat.etag
        assert f'filename="{path.rpartition("/")[2]}"' in headers["Content-Disposition"]


async def test_the_standard_library_reads_the_same(local: RunService) -> None:
    contents = [os.urandom(100_000).replace(b"\r", b"_").replace(b"\n", b"_"), b"two", b"three"]
    for index, content in enumerate(contents):
        await local.add("r1", f"{index}", content)
    async with post(local, [await local.uri("r1", f"{index}") for index in range(3)]) as answer:
        head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + await answer.read(), policy=policy.HTTP)
    parts = list(message.iter_parts())  # type: ignore[attr-defined]
    assert [part.get_payload(decode=True) for part in parts] == contents
    assert [part.get_param("name", header="content-disposition") for part in parts] == ["0", "1", "2"]


async def test_what_cannot_be_served_is_a_problem_in_its_place(service: RunService) -> None:
    for path in ("good", "changed", "gone"):
        await service.add("r1", path, b"abc")
    await service.add("deleted", "p", b"abc")
    expired = BlobUris([URI_KEY], ttl_seconds=3600, clock=lambda: time.time() - 3700)
    uris = [
        JUNK,
        await service.uri("r1", "good"),
        expired.encrypt("default", "runs/r1/good", '"e"', "r1"),
        await service.uri("r1", "changed", etag='"another"'),
        await service.uri("deleted", "p"),
        await service.uri("r1", "gone"),
        await service.uri("r1", "never-announced"),
        service.uris.encrypt("default", "runs/r1/good", '"e"', "r2"),
        service.uris.encrypt("default", "own.txt", '"e"', "r1"),
        service.uris.encrypt("nowhere", "runs/r1/good", '"e"', "r1"),
        "https://example.org/x",
        await service.uri("r1", "good"),
    ]
    await service.runs.delete("deleted")
    await service.remove("runs/r1/gone")
    found = await parts_of(service, uris)
    assert [name for name, _, _ in found] == [str(index) for index in range(len(uris))]
    assert (found[1][2], found[-1][2]) == (b"abc", b"abc")
    assert [code_of(part) for part in found[:1] + found[2:-1]] == [
        "invalid-request",
        "token-expired",
        "blob-changed",
        "blob-not-found",
        "blob-not-found",
        "blob-not-found",
        "invalid-request",
        "invalid-request",
        "bucket-not-found",
        "invalid-request",
    ]


@pytest.mark.parametrize("size", [100, 3 * MIB])
async def test_content_that_contradicts_its_crc_is_never_a_whole_part(local: RunService, size: int) -> None:
    await local.add("r1", "first", b"abc")
    await local.add("r1", "wrong", os.urandom(size), crc32=7)
    uris = [await local.uri("r1", "first"), await local.uri("r1", "wrong")]
    if size == 100:  # read before its part begins
        assert [code_of(part) for part in (await parts_of(local, uris))[1:]] == ["storage-error"]
    else:
        with pytest.raises(aiohttp.ClientPayloadError):
            await parts_of(local, uris)


async def test_a_blob_that_vanishes_within_its_part_aborts_the_connection(local: RunService) -> None:
    await local.add("r1", "large", os.urandom(48 * MIB))
    async with post(local, [await local.uri("r1", "large")]) as answer:
        await answer.content.read(100)
        await local.put("runs/r1/large", b"x" * (48 * MIB))  # rewritten in place
        with pytest.raises(aiohttp.ClientPayloadError):
            while await answer.content.readany():
                pass
    assert await local.proxy.metric("storage_proxy_downloads_aborted_total") == 1


async def test_a_thousand_small_blobs_come_in_order(local: RunService) -> None:
    for index in range(50):
        await local.add("r1", f"{index}", f"content {index}".encode())
    uris = [await local.uri("r1", f"{index}") for index in range(50)] * 20
    found = await parts_of(local, uris)
    assert [content for _, _, content in found] == [f"content {index % 50}".encode() for index in range(1000)]


async def test_what_is_no_batch_is_refused(local: RunService) -> None:
    assert await refusal(local, {"uris": [JUNK] * 1001}) == (413, "selection-too-large")
    assert await refusal(local, {"uris": []}) == (400, "invalid-request")
    assert await refusal(local, {"uris": [JUNK], "more": 1}) == (400, "invalid-request")
    assert await refusal(local, {"uris": "blob:x"}) == (400, "invalid-request")
    assert await refusal(local, {"uris": ["blob:" + "x" * 5000]}) == (400, "invalid-request")
    assert await refusal(local, {}) == (400, "invalid-request")
    async with local.proxy.http.get(f"{local.proxy.client_url}/blob-batch") as answer:
        assert answer.status == 405


async def test_http_1_0_is_refused_since_a_cut_would_look_like_the_end(local: RunService) -> None:
    host, port = local.proxy.client_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"uris": [JUNK]}).encode()
    head = f"POST /blob-batch HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    assert (await reader.readline()).startswith(b"HTTP/1.0 505")
    writer.close()


async def test_each_use_is_logged_by_a_hash_and_never_by_the_uri(
    local: RunService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await local.add("r1", "secret-path", b"abc")
    uri = await local.uri("r1", "secret-path")
    await parts_of(local, [uri, JUNK])
    lines = [record for record in caplog.records if record.getMessage() == "blob uri"]
    assert [(line.outcome, line.run_id, len(line.uri_hash)) for line in lines] == [  # type: ignore[attr-defined]
        ("served", "r1", 16),
        ("invalid-request", None, 16),
    ]
    shown = " ".join(str(vars(record)) for record in caplog.records)
    assert uri not in shown
    assert "secret-path" not in shown


async def test_a_client_that_goes_away_releases_its_slot_and_its_reads(local: RunService) -> None:
    await local.add("r1", "large", os.urandom(48 * MIB))
    answer = await post(local, [await local.uri("r1", "large")] * 20)
    await answer.content.read(100)
    assert await local.proxy.metric("storage_proxy_downloads_active") == 1
    answer.close()
    async with asyncio.timeout(20):
        while await local.proxy.metric("storage_proxy_downloads_active"):
            await asyncio.sleep(0.02)
