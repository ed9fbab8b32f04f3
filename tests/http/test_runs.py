"""Blobs and archives of runs over real sockets: a real directory and a real S3 server, a real SQLite state."""

import asyncio
import io
import os
import random
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage_proxy.common.tokens import ArchiveGrant, InlineFile
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.sources import Pin
from storage_proxy.state.records import BlobState, LearnedCrc
from tests.support.proxy import RPC_SECRET, blob_grant, running, settings_of
from tests.support.run_service import RunService, local_service, s3_service
from tests.support.s3 import S3Bucket

MIB = 1 << 20


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[RunService]:
    async with local_service(tmp_path) as opened:
        yield opened


@pytest.fixture
async def over_s3(tmp_path: Path, s3_bucket: S3Bucket) -> AsyncIterator[RunService]:
    """Objects have no CRC-32 that S3 could tell, and cannot be read at mint."""
    async with s3_service(tmp_path, s3_bucket) as opened:
        yield opened


@pytest.fixture(params=["local", "over_s3"])
def service(request: pytest.FixtureRequest) -> RunService:
    made: RunService = request.getfixturevalue(request.param)
    return made


async def code(service: RunService, url: str, method: str = "GET", **more: Any) -> tuple[int, str]:
    async with service.proxy.http.request(method, url, **more) as answer:
        if method == "HEAD":
            return answer.status, ""
        body = await answer.json(content_type=None)
        return answer.status, body["code"]


async def ask(service: RunService, path: str, method: str = "GET", **more: Any) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {RPC_SECRET}"}
    async with service.proxy.http.request(method, f"{service.proxy.rpc_url}{path}", headers=headers, **more) as answer:
        return answer.status, await answer.json(content_type=None)


async def fetched(service: RunService, url: str, **more: Any) -> tuple[int, bytes, Any]:
    async with service.proxy.http.get(url, **more) as answer:
        return answer.status, await answer.read(), answer.headers


def names(archive: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return opened.namelist()


# Visibility


async def test_a_runs_blob_is_served_once_its_record_says_verified_and_until_the_run_is_deleted(
    service: RunService,
) -> None:
    url = service.proxy.url(blob_grant("runs/r1/a.txt"))
    await service.put("runs/r1/a.txt", b"abc")
    assert await code(service, url) == (404, "blob-not-found")
    await service.runs.record_object(service.store, "r1", "a.txt", state=BlobState.PENDING)
    assert await code(service, url) == (404, "blob-not-found")
    await service.runs.record_object(service.store, "r1", "a.txt", content_type="text/markdown")
    status, body, headers = await fetched(service, url)
    assert (status, body, headers["Content-Type"]) == (200, b"abc", "text/markdown")
    status, described = await ask(service, "/rpc/v1/blobs?key=runs/r1/a.txt")
    assert (status, described["size"], described["content_type"]) == (200, 3, "text/markdown")
    await service.runs.delete("r1")
    assert await code(service, url) == (404, "blob-not-found")
    assert (await ask(service, "/rpc/v1/blobs?key=runs/r1/a.txt"))[0] == 404


async def test_an_archive_of_a_run_is_its_verified_blobs_by_their_paths(service: RunService) -> None:
    await service.add("r1", "a/1.bin", b"one", crc32=zlib.crc32(b"one"))
    await service.add("r1", "b.bin", b"two!", crc32=zlib.crc32(b"two!"))
    await service.add("r1", "late.bin", b"late", state=BlobState.PENDING)
    await service.put("runs/r1/orphan", b"no record")
    planned = await service.proxy.plan({"run_id": "r1"})
    assert (planned["entries"], planned["resumable"]) == (2, True)
    url = service.proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
    status, body, _ = await fetched(service, url)
    assert (status, len(body), names(body)) == (200, planned["size"], ["a/1.bin", "b.bin"])


async def test_an_archive_of_a_run_asks_its_bucket_for_nothing(service: RunService) -> None:
    await service.runs.record("r1", "never-there", size=9, crc32=1)
    assert (await service.proxy.plan({"run_id": "r1"}))["entries"] == 1


async def test_a_run_that_is_unknown_deleted_empty_or_of_a_forbidden_bucket_is_told_apart(local: RunService) -> None:
    async def refused(**selection: Any) -> tuple[int, str]:
        status, body = await ask(local, "/rpc/v1/archives", "POST", json=selection)
        return status, body["code"]

    assert await refused(run_id="r1") == (404, "run-not-found")
    await local.runs.record("r1", "p", state=BlobState.PENDING)
    assert await refused(run_id="r1") == (404, "blob-not-found")
    await local.add("r1", "p", b"abc")
    assert await refused(run_id="r1", buckets="other") == (404, "run-not-found")
    assert (await ask(local, "/rpc/v1/archives", "POST", json={"run_id": "r1", "buckets": "other,default"}))[0] == 200
    await local.runs.delete("r1")
    assert await refused(run_id="r1") == (404, "run-not-found")


async def test_a_run_brings_its_own_bucket(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    buckets = {name: {"kind": "local", "root": str(tmp_path / name)} for name in ("one", "two")}
    async with local_service(tmp_path) as service:
        settings = settings_of(buckets, state={"path": str(tmp_path / "state/state.db")})
        async with running(settings) as proxy:
            await service.runs.record("r2", "p", bucket="two")
            assert (await proxy.plan({"run_id": "r2", "bucket": "one"}))["entries"] == 1


async def test_a_prefix_that_reaches_runs_lists_what_their_records_say(service: RunService) -> None:
    await service.put("runs/r1/orphan", b"x")
    await service.put("other.txt", b"o")
    for run_id in ("r1", "r2"):
        await service.add(run_id, "d/p", b"p", crc32=zlib.crc32(b"p"))
    await service.runs.delete("r2")
    for prefix, wanted in {"": ["other.txt", "runs/r1/d/p"], "runs/": ["r1/d/p"], "runs/r1/": ["d/p"]}.items():
        body = (await fetched(service, await service.proxy.archive_url({"prefix": prefix})))[1]
        assert names(body) == wanted
    status, body = await ask(service, "/rpc/v1/archives", "POST", json={"prefix": "runs/r2/"})
    assert (status, body["code"]) == (404, "blob-not-found")


async def test_a_redirect_is_given_only_for_what_is_visible(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    async with s3_service(tmp_path, s3_bucket, delivery="redirect") as service:
        url = service.proxy.url(blob_grant("runs/r1/p"))
        await service.put("runs/r1/p", b"abc")
        assert await code(service, url, allow_redirects=False) == (404, "blob-not-found")
        await service.runs.record_object(service.store, "r1", "p")
        async with service.proxy.http.get(url, allow_redirects=False) as answer:
            assert answer.status == 302
        await service.runs.delete("r1")
        assert await code(service, url, allow_redirects=False) == (404, "blob-not-found")


# Deletion


async def test_an_archive_ends_with_a_run_in_it_whatever_is_asked_of_it(service: RunService) -> None:
    await service.put("own.txt", b"own")
    await service.add("r1", "p", b"abc", crc32=zlib.crc32(b"abc"))
    await service.add("r2", "q", b"def", crc32=zlib.crc32(b"def"))
    selection = {"entries": [{"key": "own.txt"}, {"key": "runs/r1/p"}, {"key": "runs/r2/q"}]}
    url = await service.proxy.archive_url(selection)
    status, _, headers = await fetched(service, url)
    assert status == 200
    await service.runs.delete("r2")  # its objects are still there
    assert await code(service, url) == (410, "blob-changed")
    assert await code(service, url, headers={"Range": "bytes=0-5"}) == (410, "blob-changed")
    assert await code(service, url, headers={"If-None-Match": headers["ETag"]}) == (410, "blob-changed")
    assert (await code(service, url, "HEAD"))[0] == 410


async def test_files_that_a_token_lists_itself_are_resolved_through_the_records(local: RunService) -> None:
    await local.add("r1", "p", b"abc")
    files = (InlineFile(key="runs/r1/p", name="p"),)
    url = local.proxy.url(ArchiveGrant(bucket="default", filename="a.zip", files=files))
    assert names((await fetched(local, url))[1]) == ["p"]
    await local.runs.delete("r1")
    assert await code(local, url) == (404, "blob-not-found")


@pytest.mark.parametrize("objects", ["stay", "are removed"])
async def test_deleting_a_run_during_its_archives_download_aborts_it_or_completes_it_whole(
    service: RunService, objects: str
) -> None:
    contents = {f"{index}.bin": random.Random(index).randbytes(24 * MIB) for index in range(3)}
    for path, content in contents.items():
        await service.add("r1", path, content, crc32=zlib.crc32(content))
    url = await service.proxy.archive_url({"run_id": "r1"})
    async with service.proxy.http.get(url) as answer:
        assert answer.status == 200
        received = bytearray(await answer.content.read(100))
        await service.runs.delete("r1")
        if objects == "are removed":
            for path in contents:
                await service.remove(f"runs/r1/{path}")
            with pytest.raises(aiohttp.ClientPayloadError):
                while chunk := await answer.content.readany():
                    received += chunk
            assert len(received) < int(answer.headers["Content-Length"])
        else:
            received += await answer.read()
            assert names(bytes(received)) == list(contents)
    assert await code(service, url) == (410, "blob-changed")


# Learned CRC-32s


async def test_an_archive_that_was_streamed_whole_answers_ranges_of_the_same_bytes(over_s3: RunService) -> None:
    contents = {f"d/{index}.bin": os.urandom(100_000 + index) for index in range(5)}
    for key, content in contents.items():
        await over_s3.put(key, content)
    planned = await over_s3.proxy.plan({"prefix": "d/"})
    assert planned["resumable"] is False
    url = over_s3.proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
    status, whole, headers = await fetched(over_s3, url, headers={"Range": "bytes=5-"})
    assert (status, headers["Accept-Ranges"], len(whole)) == (200, "none", planned["size"])
    async with over_s3.proxy.http.head(url) as answer:
        assert (answer.headers["Accept-Ranges"], answer.headers["ETag"]) == ("bytes", headers["ETag"])
    for start in (0, 1, 99_000, 100_040, 400_000, len(whole) - 300, len(whole) - 1):
        asked = {"Range": f"bytes={start}-", "If-Range": headers["ETag"]}
        status, part, _ = await fetched(over_s3, url, headers=asked)
        assert (status, part) == (206, whole[start:])
    assert names(whole) == [f"{index}.bin" for index in range(5)]
    again = await over_s3.proxy.plan({"prefix": "d/"})
    assert again["resumable"] is True
    assert again["size"] < planned["size"]  # no descriptors
    named = await over_s3.proxy.plan({"entries": [{"key": key} for key in contents]})
    assert named["resumable"] is True


async def test_what_one_replica_learned_another_answers_with(
    over_s3: RunService, tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    await over_s3.put("d/a.bin", os.urandom(100_000))
    planned = await over_s3.proxy.plan({"prefix": "d/"})
    grant = ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"])
    server = s3_bucket.server
    table = {
        "kind": "s3",
        "endpoint": server.endpoint,
        "bucket": s3_bucket.name,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing": "path",
    }
    async with running(settings_of({"default": table}, state={"path": str(tmp_path / "state/state.db")})) as replica:
        async with replica.http.head(replica.url(grant)) as answer:
            assert answer.headers["Accept-Ranges"] == "none"
        whole = (await fetched(over_s3, over_s3.proxy.url(grant)))[1]
        async with asyncio.timeout(20):
            while True:
                async with replica.http.get(replica.url(grant), headers={"Range": "bytes=1000-"}) as answer:
                    if answer.status == 206:
                        assert await answer.read() == whole[1000:]
                        break
                    await answer.read()
                await asyncio.sleep(0.05)


async def test_a_learned_crc_that_the_content_contradicts_aborts_once_and_is_forgotten(over_s3: RunService) -> None:
    await over_s3.put("d/a.bin", b"right" * 400_000)
    planned = await over_s3.proxy.plan({"prefix": "d/"})
    url = over_s3.proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
    stat = await over_s3.store.stat("d/a.bin")
    assert stat is not None

    async def lie(transaction: Any) -> None:
        crcs = over_s3.runs.records.crc32s
        crcs.set(transaction, LearnedCrc(7, 0), "default", b"d/a.bin", stat.etag, stat.size)

    await over_s3.runs.store.transact(lie)
    async with over_s3.proxy.http.get(url) as answer:
        assert answer.headers["Accept-Ranges"] == "bytes"
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    async with over_s3.proxy.http.get(url) as answer:
        assert answer.headers["Accept-Ranges"] == "none"
        assert len(await answer.read()) == planned["size"]


async def test_a_local_file_is_read_once_for_all_its_mints(local: RunService) -> None:
    await local.put("a.bin", b"content")
    assert (await local.proxy.plan({"prefix": ""}))["resumable"] is True
    async with asyncio.timeout(20):
        while not await local.proxy.metric("storage_proxy_learned_crcs_total"):
            await asyncio.sleep(0.02)
    learned = LearnedCrcs(local.runs.store, local.runs.records, None)  # type: ignore[arg-type]
    stat = await local.store.stat("a.bin")
    assert stat is not None
    assert await learned.known([Pin("default", "a.bin", stat.etag, stat.size)]) == [zlib.crc32(b"content")]
