"""Tar and deflated archives over real sockets and a real local bucket: the same door as zips, and what differs."""

import asyncio
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage_proxy.common.tokens import ArchiveFormat, ArchiveGrant, Compression, InlineFile
from tests.support.proxy import RPC_SECRET, RunningProxy, local_settings, running

BIG = bytes(range(256)) * 5000
MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    blobs = tmp_path / "blobs"
    (blobs / "a/empty").mkdir(parents=True)
    (blobs / "a/big.bin").write_bytes(BIG)
    (blobs / "a/größe.txt").write_bytes(b"text")
    (blobs / "a/nothing").write_bytes(b"")
    for path in blobs.rglob("*"):
        os.utime(path, (1_700_000_001.5, 1_700_000_001.5))
    return blobs


@pytest.fixture
async def proxy(root: Path) -> AsyncIterator[RunningProxy]:
    async with running(local_settings(root)) as started:
        yield started


async def minted(proxy: RunningProxy, selection: Mapping[str, object]) -> tuple[dict[str, Any], str]:
    """What planning answers, and a link."""
    planned = await proxy.plan(selection)
    grant = ArchiveGrant(
        bucket="default",
        filename="archive",
        format=selection.get("format", "zip"),
        compression=selection.get("compression", "store"),
        manifest=planned["manifest"],
    )
    return planned, proxy.url(grant)


async def code(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json(content_type=None))["code"]


TAR = {"prefix": "a/", "format": "tar"}
DEFLATED = {"prefix": "a/", "compression": "deflate"}


async def test_a_tar_is_what_was_selected_at_the_size_that_was_told(proxy: RunningProxy) -> None:
    planned, url = await minted(proxy, TAR)
    assert planned["resumable"] is True
    async with proxy.http.get(url) as answer:
        body = await answer.read()
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/x-tar"
        assert answer.headers["ETag"] == planned["etag"]
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert int(answer.headers["Content-Length"]) == len(body) == planned["size"]
    with tarfile.open(fileobj=io.BytesIO(body)) as opened:
        members = opened.getmembers()
        assert [member.name for member in members] == ["big.bin", "empty", "größe.txt", "nothing"]
        assert {member.mtime for member in members} == {1_700_000_001}
        contents = [opened.extractfile(member) for member in members]
        assert [file.read() if file else None for file in contents] == [BIG, None, b"text", b""]


async def test_a_range_of_a_tar_is_that_part_of_the_whole_though_no_crc_is_known(root: Path) -> None:
    async with running(local_settings(root, mint={"crc32_read_bytes": 0})) as proxy:
        planned, url = await minted(proxy, TAR)
        assert planned["resumable"] is True
        async with proxy.http.get(url) as answer:
            whole, etag = await answer.read(), answer.headers["ETag"]
        for start, stop in ((0, 1), (511, 513), (700_000, len(whole)), (len(whole) - 1025, len(whole) - 1023)):
            asked = {"Range": f"bytes={start}-{stop - 1}", "If-Range": etag}
            async with proxy.http.get(url, headers=asked) as answer:
                assert answer.status == 206
                assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
                assert await answer.read() == whole[start:stop]
        async with proxy.http.get(url, headers={"Range": "bytes=5-9", "If-Range": '"other"'}) as answer:
            assert (answer.status, await answer.read()) == (200, whole)
        async with proxy.http.get(url, headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304


async def test_head_of_a_tar_answers_as_get_does(proxy: RunningProxy) -> None:
    planned, url = await minted(proxy, TAR)
    async with proxy.http.head(url) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(planned["size"]))
        assert answer.headers["Accept-Ranges"] == "bytes"


async def test_a_deflated_archive_has_no_length_and_no_range(proxy: RunningProxy) -> None:
    planned, url = await minted(proxy, DEFLATED)
    assert (planned["size"], planned["resumable"], planned["entries"]) == (None, False, 4)
    for asked in ({}, {"Range": "bytes=5-9"}, {"Range": "bytes=5-9", "If-Range": planned["etag"]}):
        async with proxy.http.get(url, headers=asked) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/zip"
            assert "Content-Length" not in answer.headers
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert answer.headers["Accept-Ranges"] == "none"
            assert answer.headers["ETag"] == planned["etag"]
            body = await answer.read()
        assert len(body) < len(BIG) // 10
        with zipfile.ZipFile(io.BytesIO(body)) as opened:
            assert opened.namelist() == ["big.bin", "empty/", "größe.txt", "nothing"]
            assert [opened.read(name) for name in opened.namelist()] == [BIG, b"", b"text", b""]


async def test_the_etag_of_a_deflated_archive_is_weak(proxy: RunningProxy) -> None:
    planned, url = await minted(proxy, DEFLATED)
    assert planned["etag"].startswith('W/"')
    async with proxy.http.get(url, headers={"If-None-Match": planned["etag"]}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
    async with proxy.http.get(url, headers={"If-Match": planned["etag"]}) as answer:
        assert await code(answer) == (412, "precondition-failed")


async def test_head_of_a_deflated_archive_has_no_length(proxy: RunningProxy) -> None:
    _, url = await minted(proxy, DEFLATED)
    async with proxy.http.head(url) as answer:
        assert answer.status == 200
        assert "Content-Length" not in answer.headers
        assert answer.headers["Accept-Ranges"] == "none"
        assert answer.headers["Content-Type"] == "application/zip"
    async with proxy.http.head(url) as again:  # the connection is not out of step
        assert again.status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_body_of_unknown_length_is_refused_to_http_1_0(proxy: RunningProxy, method: str) -> None:
    _, url = await minted(proxy, DEFLATED)
    host, port = proxy.client_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {url.removeprefix(proxy.client_url)} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.0 505")
    assert (b"http-version-not-supported" in answer) == (method == "GET")
    writer.close()


@pytest.mark.parametrize("change", ["replaced", "removed"])
async def test_a_blob_that_changes_mid_deflate_aborts_with_the_framing_unfinished(
    proxy: RunningProxy, root: Path, change: str
) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(24 * MIB))
    entries = {"entries": [{"key": "a/first.bin"}, {"key": "a/big.bin"}], "compression": "deflate"}
    _, url = await minted(proxy, entries)
    received = bytearray()
    async with proxy.http.get(url) as answer:
        assert answer.status == 200
        received += await answer.content.read(100)
        if change == "removed":
            (root / "a/big.bin").unlink()
        else:
            (root / "a/big.bin").write_bytes(b"x" * len(BIG))
        with pytest.raises(aiohttp.ClientPayloadError):
            while chunk := await answer.content.readany():
                received += chunk
    assert not zipfile.is_zipfile(io.BytesIO(received))
    assert await proxy.metric("storage_proxy_downloads_aborted_total") == 1


async def test_the_first_blob_of_a_deflated_archive_is_opened_before_the_headers(
    proxy: RunningProxy, root: Path
) -> None:
    _, url = await minted(proxy, DEFLATED)
    (root / "a/big.bin").write_bytes(b"other")
    async with proxy.http.get(url) as answer:
        assert await code(answer) == (410, "blob-changed")


async def test_a_client_of_a_deflate_that_goes_away_releases_its_slot(proxy: RunningProxy, root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(24 * MIB))
    _, url = await minted(proxy, {"entries": [{"key": "a/first.bin"}], "compression": "deflate"})
    answer = await proxy.http.get(url)
    await answer.content.read(100)
    assert await proxy.metric("storage_proxy_downloads_active") == 1
    answer.close()
    async with asyncio.timeout(20):
        while await proxy.metric("storage_proxy_downloads_active"):
            await asyncio.sleep(0.01)


async def test_a_deflate_teaches_crc32s_and_then_the_stored_zip_can_be_resumed(root: Path) -> None:
    async with running(local_settings(root, mint={"crc32_read_bytes": 0})) as proxy:
        assert (await proxy.plan({"prefix": "a/"}))["resumable"] is False
        _, url = await minted(proxy, DEFLATED)
        async with proxy.http.get(url) as answer:
            await answer.read()
        async with asyncio.timeout(20):
            while not (await proxy.plan({"prefix": "a/"}))["resumable"]:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("more", [{"format": "tar"}, {"compression": "deflate"}], ids=["tar", "deflate"])
async def test_a_token_may_list_its_files_itself_in_every_format(proxy: RunningProxy, more: dict[str, str]) -> None:
    files = (InlineFile(key="a/größe.txt", name="t.txt"), InlineFile(key="gone", name="g"))
    grant = ArchiveGrant(bucket="default", filename="a", files=files, on_missing="skip", **more)
    async with proxy.http.get(proxy.url(grant)) as answer:
        assert answer.status == 200
        body = io.BytesIO(await answer.read())
    if "format" in more:
        with tarfile.open(fileobj=body) as tar:
            assert tar.getnames() == ["t.txt", "MISSING.txt"]
            missing = tar.extractfile("MISSING.txt")
            assert missing is not None
            assert missing.read() == b"gone\tdoes not exist\n"
    else:
        with zipfile.ZipFile(body) as opened:
            assert opened.namelist() == ["t.txt", "MISSING.txt"]
            assert opened.read("MISSING.txt") == b"gone\tdoes not exist\n"


async def test_a_token_whose_format_is_not_its_manifests_is_refused(proxy: RunningProxy) -> None:
    zipped, tarred = await proxy.plan({"prefix": "a/"}), await proxy.plan(TAR)
    assert zipped["manifest"] != tarred["manifest"]
    for manifest, told in ((zipped["manifest"], "tar"), (tarred["manifest"], "zip")):
        grant = ArchiveGrant(bucket="default", filename="a", manifest=manifest, format=told)
        async with proxy.http.get(proxy.url(grant)) as answer:
            assert await code(answer) == (400, "invalid-request")


async def test_tar_with_deflate_is_refused_by_planning_and_by_download(proxy: RunningProxy) -> None:
    asked = {"prefix": "", "format": "tar", "compression": "deflate"}
    rpc = {"Authorization": f"Bearer {RPC_SECRET}"}
    async with proxy.http.post(f"{proxy.rpc_url}/rpc/v1/archives", json=asked, headers=rpc) as answer:
        assert await code(answer) == (400, "invalid-request")
    claims = ArchiveGrant.model_construct(
        op="archive",
        bucket="default",
        filename="a",
        manifest="sha256:" + "0" * 64,
        format=ArchiveFormat.TAR,
        compression=Compression.DEFLATE,
    )
    async with proxy.http.get(proxy.url(claims)) as answer:
        assert await code(answer) == (400, "invalid-request")


@asynccontextmanager
async def slow(proxy: RunningProxy, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    async with proxy.http.get(url) as answer:
        await answer.content.read(100)
        yield answer


async def test_downloads_that_are_not_taken_do_not_hold_up_another_deflate(root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(24 * MIB))
    async with running(local_settings(root, limits={"deflate_threads": 1})) as proxy:
        _, url = await minted(proxy, {"entries": [{"key": "a/first.bin"}], "compression": "deflate"})
        _, other = await minted(proxy, DEFLATED)
        async with slow(proxy, url), slow(proxy, url), slow(proxy, url), proxy.http.get(other) as answer:
            with zipfile.ZipFile(io.BytesIO(await answer.read())) as opened:
                assert zlib.crc32(opened.read("big.bin")) == zlib.crc32(BIG)
