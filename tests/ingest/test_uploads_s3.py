"""Uploads to a real S3 server: curl by presigned URL, and through the proxy. State is a real SQLite file."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage_proxy.common.errors import BlobExists, ChecksumMismatch, RunDeleted, UploadIncomplete
from storage_proxy.common.wire import PreparedUpload, RunAccess, UploadOrder, Via
from storage_proxy.ingest.reconciler import Found
from storage_proxy.state.records import BlobState, RunTotals
from tests.ingest.test_uploads import claims
from tests.support.ingest import WritePath, chunks
from tests.support.s3 import S3Bucket, open_store
from tests.support.state import sqlite_store

CONTENT = b"content" * 3_000


@pytest.fixture
async def path(tmp_path: Path, s3_bucket: S3Bucket) -> AsyncIterator[WritePath]:
    async with (
        sqlite_store(tmp_path / "state.db") as state,
        open_store(s3_bucket.options()) as bucket,
    ):
        yield WritePath(state, buckets={"media": bucket})


def order(name: str = "ü/a b.bin", **more: object) -> UploadOrder:
    return UploadOrder.model_validate({"run_id": "r1", "bucket": "media", "path": name, "expires_in": 600, **more})


async def curl(prepared: PreparedUpload, file: Path) -> int:
    """PUT as the answer says, by the real curl; the status."""
    assert prepared.url is not None
    headers = [part for name, value in prepared.headers.items() for part in ("-H", f"{name}: {value}")]
    what = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-T", str(file), *headers, prepared.url]
    process = await asyncio.create_subprocess_exec(*what, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return int(out)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "body").write_bytes(CONTENT)
    return tmp_path / "body"


async def test_a_prepared_upload_is_put_by_curl_announced_and_verified(path: WritePath, file: Path) -> None:
    said = {"size": len(CONTENT), "crc32": f"{zlib.crc32(CONTENT):08x}", "content_type": "application/x-thing"}
    prepared = await path.uploads.prepare(order(**said))
    with pytest.raises(UploadIncomplete):
        await path.uploads.complete(prepared.upload_id, RunAccess())
    assert await curl(prepared, file) == 200
    assert await curl(prepared, file) == 412  # not for a second body
    await path.relay()
    await path.deliver()
    blob = await path.blob("r1", "ü/a b.bin")
    assert blob is not None
    assert (blob.state, blob.size, blob.crc32) == (BlobState.VERIFIED, len(CONTENT), zlib.crc32(CONTENT))
    assert blob.content_type == "application/x-thing"
    assert path.bus.dead() == []
    with pytest.raises(BlobExists):
        await path.uploads.prepare(order())


async def test_a_body_that_contradicts_what_was_signed_never_becomes_visible(path: WritePath, file: Path) -> None:
    prepared = await path.uploads.prepare(order(crc32="00000001"))
    assert await curl(prepared, file) == 400
    with pytest.raises(UploadIncomplete):
        await path.uploads.complete(prepared.upload_id, RunAccess())


async def test_an_object_put_past_the_signature_is_rejected_and_makes_room_again(
    path: WritePath, s3_bucket: S3Bucket, file: Path
) -> None:
    prepared = await path.uploads.prepare(order("a", crc32="00000001"))
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=prepared.key, Body=CONTENT)
    with pytest.raises(ChecksumMismatch):
        await path.uploads.complete(prepared.upload_id, RunAccess())
    again = await path.uploads.prepare(order("a", size=len(CONTENT)))
    assert await curl(again, file) == 200
    _, _, blob = await path.uploads.complete(again.upload_id, RunAccess())
    assert blob.state is BlobState.VERIFIED
    assert blob.crc32 == zlib.crc32(CONTENT)


async def test_a_late_upload_is_found_by_the_reconciler(path: WritePath, file: Path) -> None:
    prepared = await path.uploads.prepare(order("a"))
    await path.relay()
    await path.deliver()
    assert await curl(prepared, file) == 200
    path.clock.now += 10
    assert await path.reconciler.run_once(10) == {Found.VERIFIED: 1}
    assert await path.totals("r1") == RunTotals(1, len(CONTENT))


async def test_an_upload_through_the_proxy_is_verified_with_its_crc32(path: WritePath, s3_bucket: S3Bucket) -> None:
    prepared = await path.uploads.prepare(order("a", via=Via.PROXY))
    assert prepared.url is None
    blob = await path.uploads.receive(claims("a"), chunks(CONTENT, 4096), len(CONTENT))
    assert (blob.state, blob.crc32) == (BlobState.VERIFIED, zlib.crc32(CONTENT))
    found = await s3_bucket.client.get_object(Bucket=s3_bucket.name, Key="runs/r1/a")
    assert await found["Body"].read() == CONTENT


async def test_a_run_deleted_during_an_upload_through_the_proxy_keeps_no_object(
    path: WritePath, s3_bucket: S3Bucket
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield CONTENT[:100]
        await path.delete_run("r1")
        yield CONTENT[100:]

    with pytest.raises(RunDeleted):
        await path.uploads.receive(claims("a"), body(), len(CONTENT))
    assert (await s3_bucket.client.list_objects_v2(Bucket=s3_bucket.name))["KeyCount"] == 0
