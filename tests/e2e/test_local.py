"""Both programs as processes over a local bucket, asked by the clients that people have."""

import asyncio
import hashlib
import os
import random
import resource
import signal
import socket
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from multidict import CIMultiDictProxy

from tests.support.programs import Service, get_json, refuses_connections, run, service

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    blobs = tmp_path / "blobs"
    (blobs / "docs/empty").mkdir(parents=True)
    (blobs / "docs/read me.txt").write_text("hello\n")
    (blobs / "docs/größe & 名前.txt").write_text("names\n")
    (blobs / "docs/data.bin").write_bytes(random.Random(1).randbytes(5 * MIB))
    return blobs


@pytest.fixture
async def two(tmp_path: Path, root: Path) -> AsyncIterator[Service]:
    """Two proxies over the same directory, with time for every CRC-32 on any machine: 70,000 files take a while."""
    buckets = {"default": {"kind": "local", "root": str(root)}}
    async with service(tmp_path / "programs", buckets, proxies=2, more="[mint]\ncrc32_seconds = 300") as running:
        yield running


async def fetch(url: str, **more: object) -> tuple[int, bytes, CIMultiDictProxy[str]]:
    async with aiohttp.ClientSession() as http, http.get(url, **more) as answer:
        return answer.status, await answer.read(), answer.headers


async def test_curl_resumes_an_archive_that_was_cut_at_any_byte(two: Service, tmp_path: Path) -> None:
    minted = await two.mint("archive", {"prefix": ""})
    assert minted["resumable"] is True
    whole, part = tmp_path / "whole.zip", tmp_path / "part.zip"
    assert (await run("curl", "-sSf", "-o", str(whole), minted["url"]))[0] == 0
    content = whole.read_bytes()
    assert len(content) == minted["size"]
    for cut in (1, 29, 30, 31, MIB, len(content) - 23, len(content) - 1):
        part.write_bytes(content[:cut])
        code, printed = await run("curl", "-sSf", "-C", "-", "-o", str(part), minted["url"])
        assert code == 0, printed
        assert part.read_bytes() == content
    assert (await run("unzip", "-t", str(part)))[0] == 0


async def test_replicas_give_the_same_bytes_also_after_a_restart(two: Service) -> None:
    minted = await two.mint("archive", {"prefix": "docs/"})
    _, whole, headers = await fetch(minted["url"])
    assert headers["ETag"] == minted["etag"]
    assert len(whole) == minted["size"]
    half = len(whole) // 2
    _, first, _ = await fetch(minted["url"], headers={"Range": f"bytes=0-{half - 1}"})
    for proxy in two.proxies:
        assert await proxy.stop() == 0
        await proxy.start()
    condition = {"Range": f"bytes={half}-", "If-Range": minted["etag"]}
    status, second, _ = await fetch(two.at(minted["url"], 1), headers=condition)
    assert status == 206
    assert first + second == whole
    _, again, headers = await fetch(two.at(minted["url"], 1))
    assert (again, headers["ETag"]) == (whole, minted["etag"])


async def test_the_same_selection_minted_twice_is_the_same_archive(two: Service) -> None:
    one, other = await two.mint("archive", {"prefix": ""}), await two.mint("archive", {"prefix": ""})
    assert (one["etag"], one["size"]) == (other["etag"], other["size"])
    assert one["jti"] != other["jti"]


async def test_a_link_of_a_blob_saves_under_its_name(two: Service, tmp_path: Path) -> None:
    minted = await two.mint("blob", {"key": "docs/größe & 名前.txt"})
    assert minted["filename"] == "größe & 名前.txt"
    code, printed = await run("curl", "-sSfOJ", minted["url"], cwd=tmp_path)
    assert code == 0, printed
    assert (tmp_path / "gro_e & __.txt").read_text() == "names\n"


async def test_sigterm_lets_a_download_finish_and_turns_readiness_false(two: Service, root: Path) -> None:
    (root / "large.bin").write_bytes(os.urandom(64 * MIB))
    minted = await two.mint("blob", {"key": "large.bin"})
    digest, received = hashlib.sha256(), 0
    proxy = two.proxies[0]
    assert proxy.process is not None
    async with aiohttp.ClientSession() as http, http.get(minted["url"]) as answer:
        received += len(first := await answer.content.read(1000))
        digest.update(first)
        proxy.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while True:
                status, readiness = await get_json(f"{proxy.health_url}/health/ready")
                if status == 503:
                    break
        assert readiness["ready"] is False
        await refuses_connections(two.client_urls[0])
        while chunk := await answer.content.readany():
            digest.update(chunk)
            received += len(chunk)
    assert received == 64 * MIB
    assert digest.digest() == hashlib.sha256((root / "large.bin").read_bytes()).digest()
    assert await proxy.ended() == 0


async def test_a_download_that_outlives_the_drain_is_cut_and_seen_as_cut(tmp_path: Path, root: Path) -> None:
    (root / "large.bin").write_bytes(os.urandom(64 * MIB))
    buckets = {"default": {"kind": "local", "root": str(root)}}
    more = "[shutdown]\ndrain_seconds = 0.3"
    async with service(tmp_path / "programs", buckets, more=more) as running:
        minted = await running.mint("blob", {"key": "large.bin"})
        async with aiohttp.ClientSession() as http, http.get(minted["url"]) as answer:
            await answer.content.read(1000)
            assert await running.proxies[0].stop() == 0
            with pytest.raises(aiohttp.ClientPayloadError):
                while await answer.content.readany():
                    pass


async def test_an_archive_of_70_000_entries_is_opened_and_costs_little_memory(
    two: Service, root: Path, tmp_path: Path
) -> None:
    for folder in range(70):
        (root / f"many/{folder:02}").mkdir(parents=True)
        for file in range(1000):
            (root / f"many/{folder:02}/{file:03}.txt").write_bytes(b"%d %d" % (folder, file))
    proxy, path = two.proxies[0], tmp_path / "many.zip"
    before = proxy.memory()
    minted = await two.mint("archive", {"prefix": "many/"})
    assert minted["entries"] == 70_000
    assert minted["resumable"] is True
    code, printed = await run("curl", "-sSf", "-o", str(path), minted["url"])
    assert code == 0, printed
    assert path.stat().st_size == minted["size"]
    assert proxy.memory() - before < 64 * MIB
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert len(opened.namelist()) == 70_000
        assert opened.read("69/999.txt") == b"69 999"
    code, printed = await run("unzip", "-tqq", str(path))
    assert code == 0, printed
    code, printed = await run("7z", "t", str(path))
    assert code == 0, printed


async def test_an_archive_with_an_entry_over_4_gib_is_opened_and_costs_little_memory(
    two: Service, root: Path, tmp_path: Path
) -> None:
    (root / "huge").mkdir()
    with (root / "huge/sparse.bin").open("wb") as sparse:
        sparse.truncate((4 << 30) + 5)
        sparse.write(b"begin")
    (root / "huge/z.txt").write_text("after it\n")
    proxy, path = two.proxies[0], tmp_path / "huge.zip"
    before = proxy.memory()
    minted = await two.mint("archive", {"prefix": "huge/"})
    code, printed = await run("curl", "-sSf", "-o", str(path), minted["url"])
    assert code == 0, printed
    assert path.stat().st_size == minted["size"]
    assert proxy.memory() - before < 64 * MIB
    with zipfile.ZipFile(path) as opened:
        assert opened.getinfo("sparse.bin").file_size == (4 << 30) + 5
        assert opened.read("z.txt") == b"after it\n"
    code, printed = await run("unzip", "-tqq", str(path))
    assert code == 0, printed


async def test_no_secret_and_no_token_is_in_any_log(two: Service) -> None:
    minted = await two.mint("archive", {"prefix": ""})
    urls = [minted["url"], minted["url"] + "x", two.client_urls[0] + "/" + "a" * 20_000, minted["url"] + "&token=2"]
    for url in urls:
        await run("curl", "-s", "-o", "/dev/null", url)
    await get_json(f"{two.manager_url}/v1/blobs?key=x", key="wrong-" + "k" * 40)
    logs = "".join(program.log.read_text() for program in two.programs)
    assert "download" in logs
    for secret in (minted["token"], minted["token"][:40], "e2e-token", "e2e-rpc", "e2e-api", "wrong-k", "a" * 100):
        assert secret not in logs


async def test_an_unready_process_still_accepts_while_balancers_learn_of_it(tmp_path: Path, root: Path) -> None:
    buckets = {"default": {"kind": "local", "root": str(root)}}
    async with service(tmp_path / "programs", buckets, more="[shutdown]\nunready_seconds = 5") as running:
        minted = await running.mint("blob", {"key": "docs/data.bin"})
        proxy = running.proxies[0]
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await get_json(f"{running.client_urls[0]}/health/ready"))[0] != 503:
                pass
        status, body, _ = await fetch(minted["url"])
        assert (status, len(body)) == (200, 5 * MIB)
        assert await proxy.stop() == 0  # a second signal ends the wait


async def test_what_a_slow_client_has_not_taken_yet_outlives_the_drain(two: Service, root: Path) -> None:
    (root / "three.bin").write_bytes(os.urandom(3 * MIB))
    minted = await two.mint("blob", {"key": "three.bin"})
    proxy, loop = two.proxies[0], asyncio.get_running_loop()
    host, port = two.client_urls[0].removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        path = minted["url"].removeprefix(two.client_urls[0])
        await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = await loop.sock_recv(client, 1000)
        stopping = asyncio.create_task(proxy.stop())
        while chunk := await loop.sock_recv(client, 64 << 10):
            received += chunk
            await asyncio.sleep(0.002)
    assert await stopping == 0
    assert received.partition(b"\r\n\r\n")[2] == (root / "three.bin").read_bytes()


async def test_a_program_allows_itself_as_many_open_files_as_the_system_does(tmp_path: Path, root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    buckets = {"default": {"kind": "local", "root": str(root)}}
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # the programs inherit it
    try:
        async with service(tmp_path / "programs", buckets) as running:
            for program in running.programs:
                assert program.process is not None
                assert resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
