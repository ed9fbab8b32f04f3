"""Tar and deflated archives by the programs as they are deployed: two proxies, a real S3 server, curl."""

import asyncio
import random
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.support.deployment import bucket_table
from tests.support.programs import Service, run, service
from tests.support.s3 import PrivateS3

MIB = 1 << 20
CONTENTS = {f"set/{index:02}.dat": random.Random(index).randbytes(3 * MIB) for index in range(6)}
CONTENTS["set/größe & 名前.txt"] = b"text\n" * 100_000


@pytest.fixture
async def two(tmp_path: Path, private_s3: PrivateS3) -> AsyncIterator[Service]:
    """Two proxies over a bucket whose CRC-32s nobody knows."""
    async with private_s3.server.client() as client:
        await client.create_bucket(Bucket="media")
        for key, content in CONTENTS.items():
            await client.put_object(Bucket="media", Key=key, Body=content, ChecksumAlgorithm="SHA256")
    buckets = {"media": bucket_table(private_s3, "media")}
    async with service(tmp_path / "programs", buckets, proxies=2, more="[heal]\nattempts = 2") as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_tar_is_resumed_by_curl_at_another_proxy(two: Service, tmp_path: Path) -> None:
    minted = await two.mint("archive", {"bucket": "media", "prefix": "set/", "format": "tar"})
    assert minted["resumable"] is True
    assert minted["filename"] == "archive.tar"
    path = tmp_path / "a.tar"
    assert await run("curl", "-sSf", "-o", str(path), minted["url"]) == (0, "")
    content = path.read_bytes()
    assert len(content) == minted["size"]
    with tarfile.open(path) as opened:
        for member in opened.getmembers():
            file = opened.extractfile(member)
            assert file is not None
            assert file.read() == CONTENTS[f"set/{member.name}"]
    for cut in (1, 512, 4 * MIB + 1, len(content) - 1024, len(content) - 1):
        path.write_bytes(content[:cut])
        assert await run("curl", "-sSf", "-C", "-", "-o", str(path), two.at(minted["url"], 1)) == (0, "")
        assert path.read_bytes() == content
    subprocess.run(["tar", "-tf", path], check=True, capture_output=True)


async def test_a_deflated_archive_arrives_whole_and_cannot_be_resumed(two: Service, tmp_path: Path) -> None:
    asked = {"bucket": "media", "prefix": "set/", "compression": "deflate"}
    minted = await two.mint("archive", asked)
    assert (minted["size"], minted["resumable"], minted["format"]) == (None, False, "zip")
    path = tmp_path / "a.zip"
    assert await run("curl", "-sSf", "-o", str(path), minted["url"]) == (0, "")
    with zipfile.ZipFile(path) as opened:
        assert {f"set/{name}": opened.read(name) for name in opened.namelist()} == CONTENTS
    path.write_bytes(path.read_bytes()[:MIB])
    code, printed = await run("curl", "-sSf", "-C", "-", "-o", str(path), two.at(minted["url"], 1))
    assert code == 33, printed  # CURLE_RANGE_ERROR: the answer is the whole, and curl will not append it
    assert path.stat().st_size == MIB
    code, printed = await run("curl", "-sSf", "--http1.0", "-o", str(path), minted["url"])
    assert code == 22, printed
    assert "505" in printed


async def test_a_deflate_that_fails_is_an_error_that_curl_sees(
    two: Service, private_s3: PrivateS3, tmp_path: Path
) -> None:
    minted = await two.mint("archive", {"bucket": "media", "prefix": "set/", "compression": "deflate"})
    path = tmp_path / "a.zip"
    curl = asyncio.create_task(run("curl", "-sSf", "--limit-rate", "9M", "-o", str(path), minted["url"]))
    await until(lambda: path.exists() and path.stat().st_size > MIB)
    await private_s3.kill()
    code, printed = await curl
    assert code in (18, 56), printed
    assert not zipfile.is_zipfile(path)


async def test_slow_readers_of_a_deflate_hold_little_memory(two: Service, private_s3: PrivateS3) -> None:
    async with private_s3.server.client() as client:
        body = random.Random(9).randbytes(MIB) * 64
        await client.put_object(Bucket="media", Key="large/a", Body=body, ChecksumAlgorithm="SHA256")
    minted = await two.mint("archive", {"bucket": "media", "prefix": "large/", "compression": "deflate"})
    async with aiohttp.ClientSession() as http:
        first = await http.get(minted["url"])  # what compressing takes once
        await first.content.read(MIB)
        first.close()
        before = two.proxies[0].memory()
        answers = [await http.get(minted["url"]) for _ in range(8)]
        for answer in answers:
            await answer.content.read(1000)
        await asyncio.sleep(0.5)  # long enough for everything that would be read ahead
        assert two.proxies[0].memory() - before < 8 * 4 * MIB
        for answer in answers:
            answer.close()
