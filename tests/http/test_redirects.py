"""Single blobs by redirect, over a real S3 server: what goes to a presigned URL, and what never does."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from storage_proxy.common.tokens import ArchiveGrant, Disposition
from tests.support.proxy import blob_grant, running, settings_of
from tests.support.run_service import RunService, s3_service
from tests.support.s3 import S3Bucket

CONTENT = bytes(range(256)) * 400


@pytest.fixture
async def redirecting(tmp_path: Path, s3_bucket: S3Bucket) -> AsyncIterator[RunService]:
    await s3_bucket.client.put_object(
        Bucket=s3_bucket.name, Key="film.bin", Body=CONTENT, ContentType="video/mp4", ChecksumAlgorithm="CRC32"
    )
    async with s3_service(tmp_path / "service", s3_bucket, delivery="redirect") as service:
        yield service


async def location_of(service: RunService, url: str, **headers: str) -> str:
    async with service.proxy.http.get(url, headers=headers, allow_redirects=False) as answer:
        assert answer.status == 302
        assert await answer.read() == b""
        return answer.headers["Location"]


async def test_an_attachment_goes_to_a_url_that_lives_60_seconds(redirecting: RunService, s3_bucket: S3Bucket) -> None:
    url = redirecting.proxy.url(blob_grant("film.bin", filename="größe.mp4"))
    async with redirecting.proxy.http.get(url, allow_redirects=False) as answer:
        assert answer.status == 302
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        location = answer.headers["Location"]
    assert location.startswith(f"{s3_bucket.server.endpoint}/")
    query = parse_qs(urlsplit(location).query)
    assert query["X-Amz-Expires"] == ["60"]
    signed_at = time.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ")
    assert abs(time.mktime(signed_at) - time.mktime(time.gmtime())) < 30
    async with aiohttp.ClientSession() as http, http.get(url) as followed:
        assert await followed.read() == CONTENT
        assert followed.content_type == "video/mp4"
        assert followed.headers["Content-Disposition"] == (
            "attachment; filename=\"gro_e.mp4\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.mp4"
        )


async def test_a_range_is_answered_where_the_redirect_leads(redirecting: RunService) -> None:
    url = redirecting.proxy.url(blob_grant("film.bin"))
    await location_of(redirecting, url, Range="bytes=5-9")
    async with redirecting.proxy.http.get(url, headers={"Range": "bytes=5-9"}) as answer:
        assert (answer.status, await answer.read()) == (206, CONTENT[5:10])
        assert answer.headers["Content-Range"] == f"bytes 5-9/{len(CONTENT)}"


async def test_inline_delivery_and_head_are_answered_by_the_proxy(redirecting: RunService) -> None:
    inline = redirecting.proxy.url(blob_grant("film.bin", disposition=Disposition.INLINE))
    async with redirecting.proxy.http.get(inline, allow_redirects=False) as answer:
        assert (answer.status, await answer.read()) == (200, CONTENT)
        assert answer.headers["Content-Security-Policy"].startswith("sandbox")
    attachment = redirecting.proxy.url(blob_grant("film.bin"))
    async with redirecting.proxy.http.head(attachment, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(CONTENT)))
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("more", [{}, {"format": "tar"}, {"compression": "deflate"}], ids=["zip", "tar", "deflate"])
async def test_archives_are_answered_by_the_proxy(redirecting: RunService, more: dict[str, str]) -> None:
    planned = await redirecting.proxy.plan({"prefix": "", **more})
    grant = ArchiveGrant(bucket="default", filename="a", manifest=planned["manifest"], **more)
    async with redirecting.proxy.http.get(redirecting.proxy.url(grant), allow_redirects=False) as answer:
        assert answer.status == 200
        assert await answer.read()


async def test_a_limited_token_is_never_redirected(redirecting: RunService) -> None:
    """Where it went, nothing could count it, or look at the address it comes from."""
    for limit in ({"max_downloads": 1}, {"allowed_networks": ("127.0.0.0/8",)}):
        url = redirecting.proxy.url(blob_grant("film.bin", **limit))
        async with redirecting.proxy.http.get(url, allow_redirects=False) as answer:
            assert answer.status != 302
            assert "Location" not in answer.headers


async def test_conditions_are_answered_before_a_redirect(redirecting: RunService) -> None:
    url = redirecting.proxy.url(blob_grant("film.bin"))
    async with redirecting.proxy.http.head(url) as answer:
        etag = answer.headers["ETag"]
    for headers, status in (({"If-None-Match": etag}, 304), ({"If-Match": '"other"'}, 412)):
        async with redirecting.proxy.http.get(url, headers=headers, allow_redirects=False) as answer:
            assert answer.status == status
    await location_of(redirecting, url, **{"If-Match": etag})


async def test_a_runs_blob_is_redirected_until_the_run_is_deleted(redirecting: RunService) -> None:
    await redirecting.add("r1", "out/a.bin", b"of a run")
    url = redirecting.proxy.url(blob_grant("runs/r1/out/a.bin"))
    async with redirecting.proxy.http.get(url) as answer:
        assert await answer.read() == b"of a run"
    await location_of(redirecting, url)
    await redirecting.runs.delete("r1")  # what it holds is still in the bucket
    async with redirecting.proxy.http.get(url, allow_redirects=False) as answer:
        assert answer.status == 404
        assert "Location" not in answer.headers


async def test_what_is_not_there_is_told_and_not_redirected(redirecting: RunService) -> None:
    for key in ("nope", "runs/r1/unknown.bin", ".storage-proxy/manifests/x"):
        url = redirecting.proxy.url(blob_grant(key))
        async with redirecting.proxy.http.get(url, allow_redirects=False) as answer:
            assert answer.status == 404


async def test_the_url_is_one_of_the_public_endpoint(s3_bucket: S3Bucket) -> None:
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="a", Body=b"a")
    server = s3_bucket.server
    table = {
        "kind": "s3",
        "endpoint": server.endpoint,
        "public_endpoint": "https://s3.example.org",
        "bucket": s3_bucket.name,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "addressing": "path",
        "delivery": "redirect",
    }
    async with (
        running(settings_of({"default": table})) as proxy,
        proxy.http.get(proxy.url(blob_grant("a")), allow_redirects=False) as answer,
    ):
        assert answer.status == 302
        assert answer.headers["Location"].startswith(f"https://s3.example.org/{s3_bucket.name}/a?")
