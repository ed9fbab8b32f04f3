"""Both programs on each event loop, over a real S3 server: what depends on transports, signals and sockets."""

import asyncio
import hashlib
import random
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.faulty_proxy import FaultyProxy
from tests.support.programs import Service, get_json, run, service
from tests.support.s3 import S3Bucket

MIB = 1 << 20
BODY = random.Random(5).randbytes(24 * MIB)
DIGEST = hashlib.sha256(BODY).digest()


@pytest.fixture(params=["asyncio", "uvloop"])
async def served(
    request: pytest.FixtureRequest, tmp_path: Path, s3_bucket: S3Bucket, faulty: FaultyProxy
) -> AsyncIterator[Service]:
    """Over a bucket whose connections are counted; ``set/large`` and ``set/small`` are in it."""
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="set/large", Body=BODY)
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="set/small", Body=b"small")
    server = s3_bucket.server
    table = {
        "kind": "s3",
        "endpoint": faulty.endpoint,
        "bucket": s3_bucket.name,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing": "path",
    }
    loops = {"STORAGE_PROXY__LOOP": request.param, "MANAGER_API__LOOP": request.param}
    async with service(tmp_path / "programs", {"media": table}, client="stall_seconds = 1.0", **loops) as running:
        for program in running.programs:
            assert f"loop={request.param}" in program.log.read_text()
        yield running


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with small buffers that has asked for ``url`` and read nothing."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 14)
    writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    return reader, writer


async def test_readers_of_any_pace_get_every_byte(served: Service, tmp_path: Path) -> None:
    minted = await served.mint("blob", {"bucket": "media", "key": "set/large"})

    async def read(step: int) -> bytes:
        digest = hashlib.sha256()
        async with aiohttp.ClientSession() as http, http.get(minted["url"]) as answer:
            while chunk := await answer.content.read(step):
                digest.update(chunk)
                if step < MIB:
                    await asyncio.sleep(0.002)
        return digest.digest()

    assert await asyncio.gather(read(MIB), read(100_000), read(300_000)) == [DIGEST] * 3
    archive = await served.mint("archive", {"bucket": "media", "prefix": "set/"})
    path = tmp_path / "a.zip"
    assert (await run("curl", "-sSf", "--limit-rate", "20M", "-o", str(path), archive["url"]))[0] == 0
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert opened.read("large") == BODY


async def test_a_client_that_leaves_and_one_that_takes_nothing_release_their_reads(
    served: Service, faulty: FaultyProxy
) -> None:
    minted = await served.mint("blob", {"bucket": "media", "key": "set/large"})
    reader, leaving = await raw(minted["url"])
    await reader.readexactly(1000)
    stalled, writer = await raw(minted["url"])
    await stalled.readexactly(1000)
    leaving.transport.abort()
    log = served.proxies[0].log
    async with asyncio.timeout(60):
        while not all(f"outcome={each}" in log.read_text() for each in ("client-gone", "client-stalled")):
            await asyncio.sleep(0.02)
    await faulty.until(lambda: faulty.open_connections <= 1)
    writer.transport.abort()


async def test_an_upload_by_the_proxy_arrives_whole(served: Service, tmp_path: Path, s3_bucket: S3Bucket) -> None:
    body = tmp_path / "body"
    body.write_bytes(BODY)
    order = {"run_id": "run", "path": "a.bin", "bucket": "media", "size": len(BODY), "via": "proxy"}
    status, prepared = await served.post("/v1/uploads", order)
    assert status == 201, prepared
    headers = [option for name, value in prepared["headers"].items() for option in ("-H", f"{name}: {value}")]
    code, printed = await run("curl", "-sSf", "-T", str(body), *headers, prepared["url"])
    assert code == 0, printed
    stored = await s3_bucket.client.get_object(Bucket=s3_bucket.name, Key="runs/run/a.bin")
    assert hashlib.sha256(await stored["Body"].read()).digest() == DIGEST


async def test_sigterm_lets_a_download_finish(served: Service) -> None:
    minted = await served.mint("blob", {"bucket": "media", "key": "set/large"})
    proxy = served.proxies[0]
    digest = hashlib.sha256()
    async with aiohttp.ClientSession() as http, http.get(minted["url"]) as answer:
        digest.update(await answer.content.read(1000))
        stopping = asyncio.create_task(proxy.stop())
        while (await get_json(f"{proxy.health_url}/health/ready"))[0] == 200:
            pass
        while chunk := await answer.content.readany():
            digest.update(chunk)
    assert digest.digest() == DIGEST
    assert await stopping == 0
    assert await served.manager.stop() == 0
