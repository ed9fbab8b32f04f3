"""The client listener over real sockets and a real local bucket."""

import asyncio
import io
import logging
import os
import time
import zipfile
import zlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import jwt
import pytest

from storage_proxy.common.tokens import ArchiveGrant, Disposition, InlineFile, UploadGrant
from tests.support.proxy import KEY, RunningProxy, blob_grant, local_settings, running, token

pytestmark = pytest.mark.both_loops

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    blobs = tmp_path / "blobs"
    (blobs / "a/empty").mkdir(parents=True)
    (blobs / "a/big.bin").write_bytes(CONTENT)
    (blobs / "a/text ü.txt").write_bytes(b"text")
    (blobs / "a/nothing").write_bytes(b"")
    return blobs


@pytest.fixture
async def proxy(root: Path) -> AsyncIterator[RunningProxy]:
    async with running(local_settings(root)) as started:
        yield started


async def problem(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json"
    body = await answer.json(content_type=None)
    assert body["status"] == answer.status
    assert body["request_id"] == answer.headers["X-Request-Id"]
    return answer.status, body["code"]


async def get_problem(proxy: RunningProxy, url: str, **more: object) -> tuple[int, str]:
    async with proxy.http.get(url, **more) as answer:
        return await problem(answer)


async def test_a_blob_comes_whole_with_everything_a_client_wants_to_know(proxy: RunningProxy) -> None:
    async with proxy.http.get(proxy.url(blob_grant("a/big.bin", filename="größe.bin"))) as answer:
        assert answer.status == 200
        assert await answer.read() == CONTENT
        headers = answer.headers
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["ETag"].startswith('"')
    assert headers["Last-Modified"].endswith("GMT")
    assert headers["Content-Disposition"] == "attachment; filename=\"gro_e.bin\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.bin"
    assert headers["Cache-Control"] == "private, no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "aiohttp" not in headers["Server"]


async def test_head_answers_as_get_does_without_the_bytes(proxy: RunningProxy) -> None:
    for url in (proxy.url(blob_grant("a/big.bin")), await proxy.archive_url({"prefix": "a/"})):
        async with proxy.http.get(url) as got, proxy.http.head(url) as asked:
            assert asked.status == 200
            assert await asked.read() == b""
            same = ["Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type", "Content-Disposition"]
            assert [asked.headers[name] for name in same] == [got.headers[name] for name in same]


async def test_an_archive_is_what_was_selected_at_the_size_that_was_told(proxy: RunningProxy) -> None:
    planned = await proxy.plan({"prefix": "a/"})
    url = proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
    async with proxy.http.get(url) as answer:
        body = await answer.read()
        assert answer.headers["ETag"] == planned["etag"]
        assert answer.headers["Content-Type"] == "application/zip"
        assert int(answer.headers["Content-Length"]) == len(body) == planned["size"]
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["big.bin", "empty/", "nothing", "text ü.txt"]
        assert opened.read("big.bin") == CONTENT


@pytest.mark.parametrize("kind", ["blob", "archive"])
async def test_a_range_is_that_part_of_the_whole(proxy: RunningProxy, kind: str) -> None:
    url = proxy.url(blob_grant("a/big.bin")) if kind == "blob" else await proxy.archive_url({"prefix": "a/"})
    async with proxy.http.get(url) as answer:
        whole, etag = await answer.read(), answer.headers["ETag"]
    for start, stop in ((0, 1), (1, 100), (700_000, len(whole)), (len(whole) - 1, len(whole))):
        asked = {"Range": f"bytes={start}-{stop - 1}", "If-Range": etag}
        async with proxy.http.get(url, headers=asked) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
            assert await answer.read() == whole[start:stop]


async def test_conditions_are_answered(proxy: RunningProxy) -> None:
    url = proxy.url(blob_grant("a/big.bin"))
    async with proxy.http.head(url) as answer:
        etag = answer.headers["ETag"]
    async with proxy.http.get(url, headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", etag)
    assert await get_problem(proxy, url, headers={"If-Match": '"other"'}) == (412, "precondition-failed")
    async with proxy.http.get(url, headers={"Range": f"bytes={len(CONTENT)}-"}) as answer:
        assert await problem(answer) == (416, "range-not-satisfiable")
        assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    async with proxy.http.get(url, headers={"Range": "bytes=0-1,5-6"}) as answer:
        assert (answer.status, len(await answer.read())) == (200, len(CONTENT))


async def test_an_empty_blob_is_an_empty_answer(proxy: RunningProxy) -> None:
    async with proxy.http.get(proxy.url(blob_grant("a/nothing"))) as answer:
        assert (answer.status, await answer.read(), answer.headers["Content-Length"]) == (200, b"", "0")


async def test_inline_delivery_is_sandboxed(proxy: RunningProxy) -> None:
    async with proxy.http.get(proxy.url(blob_grant("a/text ü.txt", disposition=Disposition.INLINE))) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("sandbox")
        assert answer.headers["Content-Disposition"].startswith("inline;")
        assert answer.headers["Content-Type"] == "text/plain"


async def test_an_archive_with_unknown_crcs_has_its_exact_length_and_no_range(root: Path) -> None:
    async with running(local_settings(root, mint={"crc32_read_bytes": 0})) as proxy:
        planned = await proxy.plan({"prefix": "a/"})
        assert planned["resumable"] is False
        url = proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
        async with proxy.http.get(url, headers={"Range": "bytes=5-"}) as answer:
            body = await answer.read()
            assert (answer.status, answer.headers["Accept-Ranges"]) == (200, "none")
            assert len(body) == planned["size"] == int(answer.headers["Content-Length"])
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
        assert opened.testzip() is None


async def test_a_token_may_list_its_files_itself(proxy: RunningProxy) -> None:
    files = (
        InlineFile(key="a/text ü.txt", name="t.txt"),
        InlineFile(key="a/nothing", name="a/nothing"),
        InlineFile(key="gone", name="g"),
    )
    grant = ArchiveGrant(bucket="default", filename="a.zip", files=files, on_missing="skip")
    async with proxy.http.get(proxy.url(grant)) as answer:
        with zipfile.ZipFile(io.BytesIO(await answer.read())) as opened:
            assert opened.namelist() == ["t.txt", "a/nothing", "MISSING.txt"]
            assert opened.read("MISSING.txt") == b"gone\tdoes not exist\n"
        etag = answer.headers["ETag"]
    async with proxy.http.get(proxy.url(grant), headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
    failing = ArchiveGrant(bucket="default", filename="a.zip", files=files)
    assert await get_problem(proxy, proxy.url(failing)) == (404, "blob-not-found")


async def test_what_does_not_exist_is_not_found(proxy: RunningProxy) -> None:
    assert await get_problem(proxy, proxy.url(blob_grant("nope"))) == (404, "blob-not-found")
    assert await get_problem(proxy, proxy.url(blob_grant("k", bucket="nowhere"))) == (404, "bucket-not-found")
    assert await get_problem(proxy, proxy.url(blob_grant(".storage-proxy/manifests/x"))) == (404, "blob-not-found")
    gone = ArchiveGrant(bucket="default", filename="a.zip", manifest="sha256:" + "0" * 64)
    assert await get_problem(proxy, proxy.url(gone)) == (404, "blob-not-found")
    assert await get_problem(proxy, f"{proxy.client_url}/elsewhere") == (404, "not-found")
    async with proxy.http.post(f"{proxy.client_url}/download") as answer:
        assert await problem(answer) == (405, "method-not-allowed")
        assert answer.headers["Allow"] == "GET, HEAD"


async def test_the_services_own_keys_stay_hidden_however_they_are_written(proxy: RunningProxy) -> None:
    planned = await proxy.plan({"prefix": "a/"})
    name = planned["manifest"].removeprefix("sha256:")
    for key in (
        f".storage-proxy/manifests/{name}",
        f"./.storage-proxy/manifests/{name}",
        f"a/../.storage-proxy/{name}",
    ):
        status, _ = await get_problem(proxy, proxy.url(blob_grant(key)))
        assert status in (400, 404)


async def test_a_token_for_another_operation_is_refused(proxy: RunningProxy) -> None:
    blob, archive = (
        token(blob_grant("a/big.bin")),
        token(ArchiveGrant(bucket="default", filename="a", manifest="sha256:" + "0" * 64)),
    )
    upload = token(UploadGrant(bucket="default", key="runs/r/p", run_id="r", path="p"))
    for route, wrong in (("download-archive", blob), ("download", archive), ("download", upload)):
        answer = await get_problem(proxy, f"{proxy.client_url}/{route}?token={wrong}")
        assert answer == (403, "token-wrong-operation")


async def test_a_token_is_needed_once_and_the_header_wins(proxy: RunningProxy) -> None:
    url, good = f"{proxy.client_url}/download", token(blob_grant("a/text ü.txt"))
    async with proxy.http.get(url) as answer:
        assert await problem(answer) == (401, "token-missing")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await get_problem(proxy, f"{url}?token={good}&token={good}") == (400, "invalid-request")
    assert await get_problem(proxy, f"{url}?token={good}x") == (401, "token-invalid")
    async with proxy.http.get(f"{url}?token=junk", headers={"Authorization": f"Bearer {good}"}) as answer:
        assert await answer.read() == b"text"
    expired = token(blob_grant("a/text ü.txt"), clock=lambda: time.time() - 3600)
    assert await get_problem(proxy, f"{url}?token={expired}") == (401, "token-expired")
    future = token(blob_grant("a/text ü.txt"), clock=lambda: time.time() + 3600)
    assert await get_problem(proxy, f"{url}?token={future}") == (401, "token-invalid")


async def test_a_limit_that_nothing_enforces_is_refused_at_the_door(proxy: RunningProxy) -> None:
    for limit in ({"max_downloads": 1}, {"allowed_networks": ("127.0.0.0/8",)}):
        answer = await get_problem(proxy, proxy.url(blob_grant("a/big.bin", **limit)))
        assert answer == (400, "invalid-request")


async def test_claims_that_no_shape_has_are_a_bad_request(proxy: RunningProxy) -> None:
    now = int(time.time())
    registered = {"iss": "manager-api", "aud": "storage-proxy", "iat": now, "nbf": now, "exp": now + 60, "jti": "j"}
    blob = {"op": "blob", "bucket": "default", "key": "a/big.bin", "filename": "x"}
    shapes = [
        {**blob, "surprise": 1},
        {**blob, "op": "other"},
        {**blob, "op": ["blob"]},
        {**blob, "key": ""},
        {**blob, "key": "../x"},
        {**blob, "key": 7},
        {**blob, "filename": "a/b"},
        {**blob, "filename": "a\r\nSet-Cookie: x"},
        {"op": "archive", "bucket": "default", "filename": "x"},
        {"op": "archive", "bucket": "default", "filename": "x", "manifest": "sha256:../../x"},
        {"op": "archive", "bucket": "default", "filename": "x", "files": [{"key": "k"}] * 51},
        {"op": "archive", "bucket": "default", "filename": "x", "files": [{"key": "a/../b"}]},
        {},
    ]
    for shape in shapes:
        made = jwt.encode({**registered, **shape}, KEY.signing_key, headers={"kid": "test", "typ": "dl+jwt"})
        for route in ("download", "download-archive"):
            status, _ = await get_problem(proxy, f"{proxy.client_url}/{route}?token={made}")
            assert status in (400, 403), shape


async def test_an_entry_that_changed_ends_the_link_before_the_first_byte(proxy: RunningProxy, root: Path) -> None:
    url = await proxy.archive_url({"entries": [{"key": "a/text ü.txt"}, {"key": "a/big.bin"}]})
    (root / "a/text ü.txt").write_bytes(b"other")
    assert await get_problem(proxy, url) == (410, "blob-changed")
    (root / "a/text ü.txt").unlink()
    assert await get_problem(proxy, url) == (410, "blob-changed")


@pytest.mark.parametrize("change", ["replaced", "removed"])
async def test_a_blob_replaced_mid_archive_aborts_the_connection(proxy: RunningProxy, root: Path, change: str) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(40 << 20))
    url = await proxy.archive_url({"entries": [{"key": "a/first.bin"}, {"key": "a/big.bin"}]})
    async with proxy.http.get(url) as answer:
        assert answer.status == 200
        await answer.content.read(100)
        if change == "removed":
            (root / "a/big.bin").unlink()
        else:
            (root / "a/big.bin").write_bytes(b"x" * len(CONTENT))
        with pytest.raises(aiohttp.ClientPayloadError):
            while await answer.content.readany():
                pass
    assert await proxy.metric("storage_proxy_downloads_aborted_total") == 1


async def test_a_blob_rewritten_in_place_while_it_is_sent_aborts_the_connection(
    proxy: RunningProxy, root: Path
) -> None:
    path = root / "a/first.bin"
    path.write_bytes(os.urandom(40 << 20))
    async with proxy.http.get(proxy.url(blob_grant("a/first.bin"))) as answer:
        await answer.content.read(100)
        path.write_bytes(os.urandom(40 << 20))
        with pytest.raises(aiohttp.ClientPayloadError):
            while await answer.content.readany():
                pass


async def test_http_1_0_sees_an_abort_as_a_short_body(proxy: RunningProxy, root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(40 << 20))
    url = await proxy.archive_url({"entries": [{"key": "a/first.bin"}, {"key": "a/big.bin"}]})
    host, port = proxy.client_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
    writer.write(f"GET {url.removeprefix(proxy.client_url)} HTTP/1.0\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.0 200")
    length = int(head.lower().split("content-length: ")[1].split("\r")[0])
    (root / "a/big.bin").unlink()
    received = 0
    try:
        while chunk := await reader.read(1 << 20):
            received += len(chunk)
    except ConnectionResetError:
        pass
    assert received < length
    writer.close()


async def test_a_client_that_goes_away_releases_its_slot(proxy: RunningProxy, root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(40 << 20))
    answer = await proxy.http.get(proxy.url(blob_grant("a/first.bin")))
    await answer.content.read(100)
    assert await proxy.metric("storage_proxy_downloads_active") == 1
    answer.close()
    async with asyncio.timeout(10):
        while await proxy.metric("storage_proxy_downloads_active"):
            await asyncio.sleep(0.01)


async def test_a_client_that_takes_nothing_is_cut(root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(40 << 20))
    settings = local_settings(root, client={"listen": "127.0.0.1:0", "stall_seconds": 0.2})
    async with running(settings) as proxy, proxy.http.get(proxy.url(blob_grant("a/first.bin"))) as answer:
        async with asyncio.timeout(10):
            while not await proxy.metric("storage_proxy_downloads_aborted_total"):
                await asyncio.sleep(0.01)
        with pytest.raises(aiohttp.ClientPayloadError):
            while await answer.content.readany():
                pass


async def test_too_many_downloads_are_told_when_to_come_back(root: Path) -> None:
    (root / "a/first.bin").write_bytes(os.urandom(40 << 20))
    limits = {"max_concurrent_downloads": 2, "max_concurrent_downloads_per_token": 1}
    async with running(local_settings(root, limits=limits)) as proxy:
        url = proxy.url(blob_grant("a/first.bin"))
        async with proxy.http.get(url), proxy.http.get(proxy.url(blob_grant("a/first.bin"))):
            assert await get_problem(proxy, proxy.url(blob_grant("a/big.bin"))) == (503, "busy")
        async with asyncio.timeout(10):
            while await proxy.metric("storage_proxy_downloads_active"):
                await asyncio.sleep(0.01)
        async with proxy.http.get(url), proxy.http.get(url) as second:
            assert await problem(second) == (429, "too-many-downloads")
            assert int(second.headers["Retry-After"]) > 0


async def test_request_ids_are_kept_when_valid_and_made_otherwise(proxy: RunningProxy) -> None:
    for given, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 200, False)):
        async with proxy.http.get(proxy.url(blob_grant("nope")), headers={"X-Request-Id": given}) as answer:
            assert (answer.headers["X-Request-Id"] == given) is kept


async def test_every_download_leaves_one_line_and_no_token(
    proxy: RunningProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    urls = [
        proxy.url(blob_grant("a/big.bin")),
        proxy.url(blob_grant("nope")),
        f"{proxy.client_url}/download?token=e.y.J",
    ]
    for url in urls:
        async with proxy.http.get(url) as answer:
            await answer.read()
    (line,) = [record for record in caplog.records if record.getMessage() == "download"]
    assert (line.bytes, line.status, line.entries, line.op, line.outcome) == (len(CONTENT), 200, 1, "blob", "complete")
    assert len(line.jti_hash) == 16
    ours = [record for record in caplog.records if not record.name.startswith("asyncio")]
    everything = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert not [url for url in urls if url.partition("token=")[2] in everything]


async def test_the_crc_of_a_stored_blob_is_told_by_rpc_only_when_known(proxy: RunningProxy) -> None:
    planned = await proxy.plan({"entries": [{"key": "a/big.bin"}]})
    url = proxy.url(ArchiveGrant(bucket="default", filename="a.zip", manifest=planned["manifest"]))
    async with proxy.http.get(url) as answer:
        with zipfile.ZipFile(io.BytesIO(await answer.read())) as opened:
            assert zlib.crc32(CONTENT) == opened.getinfo("a/big.bin").CRC


async def test_metrics_count_what_went_out(proxy: RunningProxy) -> None:
    async with proxy.http.get(proxy.url(blob_grant("a/big.bin"))) as answer:
        await answer.read()
    assert await proxy.metric("storage_proxy_download_bytes_total") == len(CONTENT)
    assert await proxy.metric("storage_proxy_downloads_total") == 1
    assert await proxy.metric("storage_proxy_download_seconds_count") == 1


async def test_much_framing_before_the_first_blob_hides_no_change(proxy: RunningProxy, root: Path) -> None:
    for index in range(1500):
        (root / f"deep/a{index:04}").mkdir(parents=True)
    (root / "deep/z.bin").write_bytes(b"as it was")
    url = await proxy.archive_url({"prefix": "deep/"})
    async with proxy.http.get(url) as answer:
        assert answer.status == 200
        assert len(await answer.read()) > 128 << 10
    (root / "deep/z.bin").write_bytes(b"changed")
    assert await get_problem(proxy, url) == (410, "blob-changed")


async def test_files_that_a_token_lists_are_the_same_archive_at_every_request(proxy: RunningProxy) -> None:
    grant = ArchiveGrant(bucket="default", filename="a.zip", files=(InlineFile(key="a/big.bin", name="b"),))
    answers = await asyncio.gather(*(proxy.http.head(proxy.url(grant)) for _ in range(8)))
    seen = {(answer.headers["ETag"], answer.headers["Content-Length"]) for answer in answers}
    assert len(seen) == 1


async def test_a_time_in_the_future_is_not_told_as_such(proxy: RunningProxy, root: Path) -> None:
    os.utime(root / "a/big.bin", (time.time() + 10**6,) * 2)
    async with proxy.http.get(proxy.url(blob_grant("a/big.bin"))) as answer:
        assert answer.status == 200
        modified = parsedate_to_datetime(answer.headers["Last-Modified"])
        assert modified <= parsedate_to_datetime(answer.headers["Date"])
