"""Archives of many small blobs over real HTTP, from a real S3 server that answers late."""

import io
import zipfile
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.proxy import RunningProxy, running, settings_of
from tests.support.s3 import S3Bucket

BLOBS = {f"set/{index:03}.bin": bytes([index]) * 10_240 for index in range(150)}


@pytest.fixture
async def behind(s3_bucket: S3Bucket, faulty: FaultyProxy) -> AsyncIterator[RunningProxy]:
    """A proxy whose bucket is behind ``faulty``."""
    for key, content in BLOBS.items():
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=content, ChecksumAlgorithm="CRC32")
    bucket = {
        "kind": "s3",
        "endpoint": faulty.endpoint,
        "bucket": s3_bucket.name,
        "access_key": s3_bucket.server.access_key,
        "secret_key": s3_bucket.server.secret_key,
        "addressing": "path",
    }
    async with running(settings_of({"default": bucket})) as proxy:
        yield proxy


async def test_small_blobs_are_asked_for_together_and_come_in_their_order(
    behind: RunningProxy, faulty: FaultyProxy
) -> None:
    url = await behind.archive_url({"prefix": "set/"})
    faulty.fault(Fault(contains="/set/", latency=0.05))
    faulty.most_in_flight = 0
    async with behind.http.get(url) as answer:
        content = await answer.read()
    assert 32 <= faulty.most_in_flight <= 48
    assert faulty.count("GET", "/set/") == len(BLOBS)
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert {f"set/{name}": opened.read(name) for name in opened.namelist()} == BLOBS


async def test_what_fails_ahead_of_its_turn_breaks_off_where_it_is_due(
    behind: RunningProxy, faulty: FaultyProxy
) -> None:
    url = await behind.archive_url({"prefix": "set/"})
    faulty.fault(Fault(contains="/set/000", latency=0.2))
    faulty.fault(Fault(contains="/set/003", status=412, code="PreconditionFailed"))
    received = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with behind.http.get(url) as answer:
            assert answer.status == 200
            async for chunk in answer.content.iter_any():
                received += chunk
    assert BLOBS["set/000.bin"] in received
    assert await behind.metric("storage_proxy_downloads_active") == 0
