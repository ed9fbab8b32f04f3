"""Both programs as processes over a real S3 server: resume, heal, abort, and what an outage looks like."""

import asyncio
import random
import time
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.programs import Service, get_json, run, service
from tests.support.s3 import PrivateS3, S3Bucket

MIB = 1 << 20
# More than what a proxy fetches ahead and kernels hold on both sides: a server that is killed is still needed.
CONTENTS = {f"set/{index:02}.bin": random.Random(index).randbytes(8 * MIB) for index in range(6)}
MORE = "[heal]\nattempts = 40\nseconds = 20"


def bucket_table(server: object, name: str, **more: object) -> dict[str, object]:
    return {
        "kind": "s3",
        "endpoint": server.endpoint,
        "bucket": name,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing": "path",
        "connect_timeout_seconds": 1.0,
        "read_timeout_seconds": 5.0,
        "request_timeout_seconds": 5.0,
        **more,
    }


async def fill(client: object, bucket: str) -> None:
    for key, content in CONTENTS.items():
        await client.put_object(
            Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="CRC32", ContentType="video/mp4"
        )


@pytest.fixture
async def over_s3(tmp_path: Path, s3_bucket: S3Bucket) -> AsyncIterator[Service]:
    """Two proxies over a bucket with CRC-32s; the second behind nothing but itself."""
    await fill(s3_bucket.client, s3_bucket.name)
    buckets = {"media": bucket_table(s3_bucket.server, s3_bucket.name)}
    async with service(tmp_path / "programs", buckets, proxies=2) as running:
        yield running


async def test_an_archive_from_s3_is_resumable_without_reading_a_blob_at_mint(over_s3: Service, tmp_path: Path) -> None:
    minted = await over_s3.mint("archive", {"bucket": "media", "prefix": "set/"})
    assert minted["resumable"] is True
    assert minted["entries"] == 6
    path = tmp_path / "a.zip"
    assert (await run("curl", "-sSf", "-o", str(path), minted["url"]))[0] == 0
    content = path.read_bytes()
    assert len(content) == minted["size"]
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert {f"set/{info.filename}": info.CRC for info in opened.infolist()} == {
            key: zlib.crc32(content) for key, content in CONTENTS.items()
        }
    for cut in (100, 5 * MIB, len(content) - 30):
        path.write_bytes(content[:cut])
        assert (await run("curl", "-sSf", "-C", "-", "-o", str(path), over_s3.at(minted["url"], 1)))[0] == 0
        assert path.read_bytes() == content


async def test_a_blob_from_s3_keeps_its_type_and_etag(over_s3: Service, s3_bucket: S3Bucket) -> None:
    minted = await over_s3.mint("blob", {"bucket": "media", "key": "set/00.bin"})
    head = await s3_bucket.client.head_object(Bucket=s3_bucket.name, Key="set/00.bin")
    async with aiohttp.ClientSession() as http, http.get(minted["url"], headers={"Range": "bytes=5-9"}) as answer:
        assert answer.headers["ETag"] == head["ETag"] == minted["etag"]
        assert answer.content_type == "video/mp4"
        assert await answer.read() == CONTENTS["set/00.bin"][5:10]


async def test_a_blob_may_go_by_a_presigned_url(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    await fill(s3_bucket.client, s3_bucket.name)
    buckets = {"media": bucket_table(s3_bucket.server, s3_bucket.name, delivery="redirect")}
    async with service(tmp_path / "programs", buckets) as running, aiohttp.ClientSession() as http:
        minted = await running.mint("blob", {"bucket": "media", "key": "set/00.bin", "filename": "é.mp4"})
        async with http.get(minted["url"], allow_redirects=False) as answer:
            assert answer.status == 302
            location = answer.headers["Location"]
            assert answer.headers["Cache-Control"] == "private, no-store"
        assert location.startswith(s3_bucket.server.endpoint)
        async with http.get(minted["url"]) as followed:
            assert await followed.read() == CONTENTS["set/00.bin"]
            assert followed.headers["Content-Disposition"].endswith("filename*=UTF-8''%C3%A9.mp4")
            assert followed.content_type == "video/mp4"
        inline = await running.mint("blob", {"bucket": "media", "key": "set/00.bin", "disposition": "inline"})
        for url, method in ((inline["url"], "GET"), (minted["url"], "HEAD")):
            async with http.request(method, url, allow_redirects=False) as answer:
                assert answer.status == 200
        gone = await running.mint("blob", {"bucket": "media", "key": "set/01.bin"})
        await s3_bucket.client.delete_object(Bucket=s3_bucket.name, Key="set/01.bin")
        async with http.get(gone["url"], allow_redirects=False) as answer:
            assert answer.status == 404


async def test_a_server_killed_mid_archive_and_back_in_time_is_not_noticed(
    tmp_path: Path, private_s3: PrivateS3
) -> None:
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="media")
        await fill(client, "media")
    buckets = {"media": bucket_table(private_s3.server, "media")}
    async with service(tmp_path / "programs", buckets, more=MORE) as running:
        minted = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
        path = tmp_path / "a.zip"
        curl = asyncio.create_task(run("curl", "-sSf", "--limit-rate", "24M", "-o", str(path), minted["url"]))
        await until(lambda: path.exists() and path.stat().st_size > MIB)
        await private_s3.kill()
        assert not curl.done()
        await private_s3.start()
        code, printed = await curl
        assert code == 0, printed
        with zipfile.ZipFile(path) as opened:
            assert opened.testzip() is None
        assert path.stat().st_size == minted["size"]


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
async def test_a_server_that_stays_away_ends_in_an_error_that_curl_sees(
    tmp_path: Path, private_s3: PrivateS3, version: str
) -> None:
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="media")
        await fill(client, "media")
    buckets = {"media": bucket_table(private_s3.server, "media")}
    async with service(tmp_path / "programs", buckets, more="[heal]\nattempts = 2") as running:
        minted = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
        path = tmp_path / "a.zip"
        curl = asyncio.create_task(run("curl", "-sSf", version, "--limit-rate", "24M", "-o", str(path), minted["url"]))
        await until(lambda: path.exists() and path.stat().st_size > MIB)
        await private_s3.kill()
        code, printed = await curl
        assert code in (18, 56), printed
        assert path.stat().st_size < minted["size"]


async def test_an_outage_is_told_at_once_and_named_by_readiness(tmp_path: Path, private_s3: PrivateS3) -> None:
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="media")
        await fill(client, "media")
    buckets = {"media": bucket_table(private_s3.server, "media")}
    async with service(tmp_path / "programs", buckets) as running, aiohttp.ClientSession() as http:
        archive = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
        blob = await running.mint("blob", {"bucket": "media", "key": "set/00.bin"})
        assert (await get_json(f"{running.client_urls[0]}/health/ready"))[1] == {"ready": True, "degraded": []}
        await private_s3.kill()
        began = time.monotonic()
        for url in (archive["url"], blob["url"]):
            async with http.get(url) as answer:
                assert answer.status == 503
                assert (await answer.json(content_type=None))["code"] == "storage-unavailable"
                assert int(answer.headers["Retry-After"]) > 0
        status, refused = await running.post("/v1/tokens/blob", {"bucket": "media", "key": "set/00.bin"})
        assert (status, refused["code"]) == (503, "storage-unavailable")
        assert time.monotonic() - began < 30
        await asyncio.sleep(1.1)  # readiness asks its dependencies at most once a second
        status, readiness = await get_json(f"{running.proxies[0].health_url}/health/ready")
        assert status == 200
        assert any("bucket media" in line for line in readiness["degraded"])
        await private_s3.start()
        async with http.get(blob["url"]) as answer:
            assert await answer.read() == CONTENTS["set/00.bin"]


@pytest.mark.parametrize(
    "fault", [{"cut_after": 100_000}, {"stall_after": 100_000}, {"status": 503, "code": "SlowDown"}]
)
async def test_a_faulty_server_is_healed_unseen(
    tmp_path: Path, s3_bucket: S3Bucket, faulty: FaultyProxy, fault: dict[str, object]
) -> None:
    await fill(s3_bucket.client, s3_bucket.name)
    table = bucket_table(s3_bucket.server, s3_bucket.name) | {"endpoint": faulty.endpoint, "read_timeout_seconds": 0.5}
    async with service(tmp_path / "programs", {"media": table}, more=MORE) as running:
        minted = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
        faulty.fault(Fault(contains="set/03.bin", times=3, **fault))
        path = tmp_path / "a.zip"
        code, printed = await run("curl", "-sSf", "-o", str(path), minted["url"])
        assert code == 0, printed
        with zipfile.ZipFile(path) as opened:
            assert opened.testzip() is None


async def test_a_client_that_goes_away_closes_the_read_of_s3(
    tmp_path: Path, s3_bucket: S3Bucket, faulty: FaultyProxy
) -> None:
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="large", Body=bytes(64 * MIB))
    table = bucket_table(s3_bucket.server, s3_bucket.name) | {"endpoint": faulty.endpoint}
    async with service(tmp_path / "programs", {"media": table}) as running, aiohttp.ClientSession() as http:
        minted = await running.mint("blob", {"bucket": "media", "key": "large"})
        idle = faulty.open_connections
        answer = await http.get(minted["url"])
        await answer.content.read(1000)
        assert faulty.open_connections >= idle
        answer.close()
        await until(lambda: faulty.open_connections <= max(idle, 1))


async def test_a_slow_reader_holds_little_memory(over_s3: Service, s3_bucket: S3Bucket) -> None:
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="large", Body=bytes(128 * MIB))
    minted = await over_s3.mint("blob", {"bucket": "media", "key": "large"})
    proxy = over_s3.proxies[0]
    before = proxy.memory()
    async with aiohttp.ClientSession() as http:
        answers = [await http.get(minted["url"]) for _ in range(8)]
        for answer in answers:
            await answer.content.read(1000)
        await asyncio.sleep(0.5)  # long enough for everything that would be read ahead
        assert proxy.memory() - before < 8 * 6 * MIB  # a few MiB each, as long as they are few
        for answer in answers:
            answer.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
