"""`serve --processes 2` as an operator runs it: a real supervisor with real children over a local bucket."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.programs import Program, Service, get_json, service

MIB = 1 << 20
LARGE = 64 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "small").write_bytes(b"small")
    (blobs / "large").write_bytes(os.urandom(LARGE))
    return blobs


@pytest.fixture
async def served(tmp_path: Path, root: Path) -> AsyncIterator[Service]:
    async with service(
        tmp_path / "programs", {"default": {"kind": "local", "root": str(root)}}, options=("--processes", "2")
    ) as running:
        await until(lambda: both_run(running.proxies[0]))
        yield running


async def until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


def children(supervisor: Program) -> dict[int, int]:
    """The numbers of a supervisor's children, with their processes' numbers."""
    assert supervisor.process is not None
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            command = (directory / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == supervisor.process.pid and "serve-child" in command:
            found[int(command[command.index("--number") + 1])] = int(directory.name)
    return found


async def both_run(supervisor: Program) -> bool:
    return await get_json(f"{supervisor.health_url}/health/ready") == (200, {"ready": True, "degraded": []})


async def metrics(supervisor: Program) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{supervisor.health_url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def requests(supervisor: Program) -> float:
    told = await metrics(supervisor)
    return sum(value for name, value in told.items() if name.startswith("http_requests_total") and "client" in name)


@asynccontextmanager
async def downloads_in_both(running: Service) -> AsyncIterator[dict[int, list[aiohttp.ClientResponse]]]:
    """Downloads of ``large`` that have begun and are far from their ends, by the process that serves them; each process
    has some.
    """
    minted = await running.mint("blob", {"key": "large"})
    by_process: dict[int, list[aiohttp.ClientResponse]] = {}
    owners = {pid: number for number, pid in children(running.proxies[0]).items()}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        while len(by_process) < 2:
            answer = await http.get(minted["url"])
            stack.callback(answer.close)
            assert answer.status == 200
            assert answer.connection is not None
            assert answer.connection.transport is not None
            ends = [answer.connection.transport.get_extra_info(name)[1] for name in ("peername", "sockname")]
            by_process.setdefault(owners[owner_of(ends, list(owners))], []).append(answer)
        yield by_process


def owner_of(ends: list[int], pids: list[int]) -> int:
    """Which process holds the server's end of the connection between two ports, the server's and the client's."""
    printed = Path("/proc/net/tcp").read_text()
    inode = next(
        fields[9]
        for fields in (line.split() for line in printed.splitlines()[1:])
        if [int(field.split(":")[1], 16) for field in fields[1:3]] == ends
    )
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return pid
            except FileNotFoundError:
                continue
    raise AssertionError("nobody holds the connection")


async def rest_of(answer: aiohttp.ClientResponse) -> int:
    received = 0
    while chunk := await answer.content.readany():
        received += len(chunk)
    return received


async def test_both_processes_serve_and_their_metrics_add_up(served: Service) -> None:
    minted = await served.mint("blob", {"key": "small"})
    supervisor = served.proxies[0]
    before = await requests(supervisor)
    for _ in range(64):  # that one process gets none of them has a chance of 1 in 2**63
        async with aiohttp.ClientSession() as http, http.get(minted["url"]) as answer:
            assert await answer.read() == b"small"
    assert await requests(supervisor) - before == 64
    told = await metrics(supervisor)
    assert told["storage_proxy_processes"] == 2
    assert told['storage_proxy_download_bytes_total{op="blob"}'] == 64 * 5
    lines = supervisor.log.read_text()
    downloads = [line for line in lines.splitlines() if ": download" in line]
    assert {number: any(f"child={number}" in line for line in downloads) for number in (1, 2)} == {1: True, 2: True}


async def test_a_killed_process_is_replaced_and_the_other_ones_downloads_go_on(served: Service) -> None:
    supervisor = served.proxies[0]
    async with downloads_in_both(served) as running:
        told = await metrics(supervisor)
        killed = children(supervisor)[1]
        os.kill(killed, signal.SIGKILL)
        for answer in running[1]:
            with pytest.raises(aiohttp.ClientError):
                await rest_of(answer)
        for answer in running[2]:
            assert await rest_of(answer) == LARGE
        await until(lambda: both_run(supervisor))
        assert children(supervisor)[1] != killed
        after = await metrics(supervisor)
        assert after["storage_proxy_process_restarts_total"] == 1
        counters = {name for name in told if "_total" in name or "_count" in name or "_bucket" in name}
        assert counters
        assert {name for name in counters if after[name] < told[name]} == set()
    async with downloads_in_both(served):
        assert len(children(supervisor)) == 2


async def test_sigterm_drains_the_downloads_of_both(served: Service) -> None:
    supervisor = served.proxies[0]
    async with downloads_in_both(served) as running:
        supervisor.send(signal.SIGTERM)
        await until(lambda: is_not_ready(supervisor))
        for answer in [*running[1], *running[2]]:
            assert await rest_of(answer) == LARGE
    assert await supervisor.ended() == 0


async def is_not_ready(supervisor: Program) -> bool:
    return (await get_json(f"{supervisor.health_url}/health/ready"))[0] == 503


async def test_a_signal_to_every_process_of_the_group_is_one_drain(served: Service) -> None:
    supervisor = served.proxies[0]
    async with downloads_in_both(served) as running:
        for pid in children(supervisor).values():
            os.kill(pid, signal.SIGTERM)
        supervisor.send(signal.SIGTERM)
        for answer in [*running[1], *running[2]]:
            assert await rest_of(answer) == LARGE
    assert await supervisor.ended() == 0


async def test_a_second_signal_ends_both_at_once(served: Service) -> None:
    supervisor = served.proxies[0]
    async with downloads_in_both(served) as running:
        supervisor.send(signal.SIGTERM)
        await until(lambda: is_not_ready(supervisor))
        supervisor.send(signal.SIGTERM)
        assert await supervisor.ended() == 0
        for answer in [*running[1], *running[2]]:
            with pytest.raises(aiohttp.ClientError):
                await rest_of(answer)


async def test_a_killed_supervisor_leaves_no_process_behind(served: Service) -> None:
    supervisor = served.proxies[0]
    left = children(supervisor)
    assert len(left) == 2
    await supervisor.stop(signal.SIGKILL)
    await until(lambda: all_gone(left.values()))


async def all_gone(pids: object) -> bool:
    return not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return "serve-child" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("listener", ["client", "rpc", "operations"])
async def test_an_address_that_is_taken_ends_all_with_the_code_of_one_process(
    served: Service, tmp_path: Path, listener: str
) -> None:
    """Also an address that another service's processes share: it is not theirs alone by accident."""
    theirs = served.proxies[0].config.read_text()
    urls = {"client": served.client_urls[0], "operations": served.proxies[0].health_url}
    taken = urlsplit(urls.get(listener, "")).port or port_of(theirs, "rpc")
    config = tmp_path / "other.toml"
    lines, table = [], ""
    for line in theirs.splitlines():
        table = line.strip("[]") if line.startswith("[") else table
        if line.startswith("listen = "):
            line = f'listen = "127.0.0.1:{taken if table == listener else 0}"'
        lines.append(line)
    config.write_text("\n".join(lines))
    codes = []
    for options in ((), ("--processes", "2")):
        other = Program("storage_proxy", config, "", tmp_path / "other.log", ("serve", *options))
        await other.spawn()
        codes.append(await other.ended())
        assert f"cannot listen: {listener}: " in other.log.read_text()
    assert codes == [1, 1]


def port_of(config: str, table: str) -> int:
    return int(config.split(f"[{table}]\nlisten = ")[1].split('"')[1].rpartition(":")[2])


async def test_what_can_never_start_ends_all_with_its_exit_code(tmp_path: Path, root: Path) -> None:
    buckets = {"default": {"kind": "local", "root": str(root)}}
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    more = f'[state]\npath = "{tmp_path / "state.db"}"'
    for options in ((), ("--processes", "2")):
        directory = tmp_path / f"programs{len(options)}"
        with pytest.raises(AssertionError, match="cannot start"):
            async with service(directory, buckets, more=more, options=options):
                pass
        other = Program("storage_proxy", directory / "proxy0.toml", "", tmp_path / "log", ("serve", *options))
        await other.spawn()
        assert await other.ended() == 1
