"""The demo as a newcomer meets it: what `make run` starts, its four lines, what curl and zip programs make of them."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import zip_readers
from tests.support.programs import ROOT, free_ports, get_json, run
from tests.support.zip_readers import LIST, READ, Digests, Sizes

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = ("manager api:   ", "api key:       ", "blob link:     ", "archive link:  ")
LISTENERS = ("MANAGER_API__LISTEN", "STORAGE_PROXY__CLIENT__LISTEN", "STORAGE_PROXY__RPC__LISTEN")
LISTENERS += ("STORAGE_PROXY__OPERATIONS__LISTEN",)


@dataclass
class Demo:
    """`tools/demo.py`, running with ports and blobs of its own."""

    process: asyncio.subprocess.Process
    blobs: Path
    log: Path
    ports: list[int]
    printed: list[str]

    @property
    def manager_api(self) -> str:
        return self.printed[0]

    @property
    def api_key(self) -> str:
        return self.printed[1]

    @property
    def blob_link(self) -> str:
        return self.printed[2]

    @property
    def archive_link(self) -> str:
        return self.printed[3]

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def expected(self) -> Digests:
        """What the archive should hold: the bucket's files, and its empty folders."""
        empty = {
            f"{path.relative_to(self.blobs).as_posix()}/"
            for path in self.blobs.rglob("*")
            if path.is_dir() and not any(path.iterdir())
        }
        found = zip_readers.digests_beneath(self.blobs, empty)
        return {name: digest for name, digest in found.items() if not name.startswith(".storage-proxy/")}

    def expected_sizes(self) -> Sizes:
        return {name: (self.blobs / name).stat().st_size * (name[-1] != "/") for name in self.expected()}


async def spawn(directory: Path, ports: list[int]) -> Demo:
    directory.mkdir(parents=True, exist_ok=True)
    moved = {variable: f"127.0.0.1:{port}" for variable, port in zip(LISTENERS, ports, strict=True)}
    blobs = directory / "blobs"
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "tools/demo.py",
            cwd=ROOT,
            env={**os.environ, **moved, "STORAGE_PROXY__BUCKETS__DEFAULT__ROOT": str(blobs)},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # its own group, as a shell gives it: Ctrl-C goes to all of it
        )
    return Demo(process, blobs, directory / "log", ports, [])


@asynccontextmanager
async def running_demo(directory: Path) -> AsyncIterator[Demo]:
    """The demo, once it has printed its lines."""
    demo = await spawn(directory, free_ports(4))
    assert demo.process.stdout is not None
    try:
        async with asyncio.timeout(120):
            for start in LINES:
                line = (await demo.process.stdout.readline()).decode()
                assert line.startswith(start), f"{line!r}\n{demo.log.read_text()}"
                demo.printed.append(line.removeprefix(start).removesuffix("\n"))
        yield demo
    finally:
        if demo.process.returncode is None:
            demo.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await demo.process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    async with running_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def archive(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The printed archive, fetched by curl."""
    path = tmp_path_factory.mktemp("archive") / "samples.zip"
    code, printed = await run("curl", "-sSf", "-o", str(path), demo.archive_link)
    assert code == 0, printed
    return path


async def headers_of(url: str, tmp_path: Path, *more: str) -> tuple[dict[str, str], Path]:
    """GET by curl: the headers, names in lower case, and the file with the body."""
    head, body = tmp_path / "head", tmp_path / "body"
    code, printed = await run("curl", "-sSf", *more, "-D", str(head), "-o", str(body), url)
    assert code == 0, printed
    lines = head.read_text().splitlines()[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}, body


async def mint(demo: Demo, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{demo.manager_api}/v1/tokens/{kind}"
    status, answer = await get_json(url, body=json.dumps(body).encode(), key=demo.api_key)
    assert status == 201, answer
    return answer


async def test_the_four_lines_name_what_the_environment_chose(demo: Demo) -> None:
    manager, client, _, operations = demo.ports
    assert demo.manager_api == f"http://127.0.0.1:{manager}"
    assert demo.blob_link.startswith(f"http://127.0.0.1:{client}/download?token=")
    assert demo.archive_link.startswith(f"http://127.0.0.1:{client}/download-archive?token=")
    assert re.fullmatch(r"\S{32,}", demo.api_key)
    for port in (manager, client, operations):
        assert await get_json(f"http://127.0.0.1:{port}/health/ready") == (200, {"ready": True, "degraded": []})


async def test_the_samples_are_text_a_difficult_name_an_empty_folder_and_20_mb(demo: Demo) -> None:
    sizes = demo.expected_sizes()
    assert any(name.endswith(".txt") and (demo.blobs / name).read_text("utf-8").strip() for name in sizes)
    assert any(" " in name and not name.isascii() and name[-1] != "/" for name in sizes)
    assert any(name[-1] == "/" for name in sizes)
    assert 20_000_000 in sizes.values()


async def test_curl_saves_the_blob_under_its_name(demo: Demo, tmp_path: Path) -> None:
    code, printed = await run("curl", "-sSfOJ", demo.blob_link, cwd=tmp_path)
    assert code == 0, printed
    (saved,) = tmp_path.iterdir()
    key = saved.name
    assert saved.read_bytes() == (demo.blobs / key).read_bytes()
    minted = await mint(demo, "blob", {"key": key})
    headers, body = await headers_of(demo.blob_link, tmp_path)
    assert int(headers["content-length"]) == minted["size"] == body.stat().st_size == saved.stat().st_size
    assert headers["etag"] == minted["etag"]


async def test_the_length_is_what_came_and_what_a_mint_says(demo: Demo, tmp_path: Path) -> None:
    minted = await mint(demo, "archive", {"prefix": "", "filename": "samples.zip"})
    assert minted["entries"] == len(demo.expected())
    assert minted["resumable"] is True
    bodies = set()
    for url in (demo.archive_link, minted["url"]):
        headers, body = await headers_of(url, tmp_path)
        assert int(headers["content-length"]) == body.stat().st_size == minted["size"]
        assert headers["etag"] == minted["etag"]
        assert headers["accept-ranges"] == "bytes"
        bodies.add(body.read_bytes())
    assert len(bodies) == 1


async def test_the_archive_resumes_after_a_cut(demo: Demo, archive: Path, tmp_path: Path) -> None:
    whole, part = archive.read_bytes(), tmp_path / "part.zip"
    for cut in (1, len(whole) // 3, len(whole) - 1):
        part.write_bytes(whole[:cut])
        code, printed = await run("curl", "-sSf", "-C", "-", "-o", str(part), demo.archive_link)
        assert code == 0, printed
        assert part.read_bytes() == whole


async def test_unzip_7z_and_bsdtar_find_no_error(archive: Path) -> None:
    for command in (["unzip", "-t"], ["7z", "t"], ["bsdtar", "-tf"]):
        zip_readers.program(command[0])
        code, printed = await run(*command, str(archive))
        assert code == 0, printed


@pytest.mark.parametrize("reader", list(READ))
async def test_every_reader_sees_the_names_sizes_and_bytes_of_the_bucket(
    reader: str, demo: Demo, archive: Path, tmp_path: Path
) -> None:
    if reader != "python":
        zip_readers.program(reader)
    assert await asyncio.to_thread(READ[reader], archive, tmp_path) == demo.expected()
    assert await asyncio.to_thread(LIST[reader], archive, tmp_path) == demo.expected_sizes()


async def test_javas_zip_input_stream_sees_them_too(demo: Demo, archive: Path, tmp_path: Path) -> None:
    zip_readers.program("java")
    sizes, read = await asyncio.to_thread(zip_readers.java, "stream", archive, tmp_path)
    assert (sizes, read) == (demo.expected_sizes(), demo.expected())


@pytest.mark.parametrize("to_group", [True, False], ids=["ctrl-c in a terminal", "a signal to make run"])
async def test_an_interrupt_ends_both_programs_and_exits_with_0(tmp_path: Path, to_group: bool) -> None:
    async with running_demo(tmp_path) as demo:
        children = demo.children()
        assert len(children) == 2
        if to_group:
            os.killpg(demo.process.pid, signal.SIGINT)
        else:
            demo.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await demo.process.wait() == 0, demo.log.read_text()
        assert demo.process.stdout is not None
        assert await demo.process.stdout.read() == b""
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        log = demo.log.read_text()
        assert log.count("stopped") == 2, log
        assert "Traceback" not in log
        for port in demo.ports:
            socket.create_server(("127.0.0.1", port)).close()


async def test_a_sigterm_ends_both_programs_too(tmp_path: Path) -> None:
    async with running_demo(tmp_path) as demo:
        children = demo.children()
        demo.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await demo.process.wait() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.parametrize("taken", range(4), ids=LISTENERS)
async def test_a_taken_port_is_one_clear_line_and_exit_1(taken: int, tmp_path: Path) -> None:
    ports = free_ports(4)
    with socket.create_server(("127.0.0.1", ports[taken])):
        demo = await spawn(tmp_path, ports)
        async with asyncio.timeout(60):
            printed, _ = await demo.process.communicate()
    assert demo.process.returncode == 1
    assert printed == b""
    (line,) = demo.log.read_text().splitlines()
    assert f"port {ports[taken]} " in line
    assert "is taken" in line
    assert LISTENERS[taken] in line, "it says how to choose another"
    assert not demo.blobs.exists(), "nothing was written"
