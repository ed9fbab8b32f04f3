"""The two programs as their users run them: processes with configuration files, on free ports."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
_START_SECONDS = 120.0
"""A machine that does other things, too, takes its time: this only ends what would never begin."""
TOKEN_SECRET = "e2e-token-secret-0123456789abcdef0123456789"
RPC_SECRET = "e2e-rpc-secret-0123456789abcdef0123456789"
API_KEY = "e2e-api-key-0123456789abcdef0123456789"
_KEYS = f'keys = [{{ kid = "e2e", alg = "HS256", secret = "{TOKEN_SECRET}" }}]'


_GIVEN: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that are free, below those that a system gives to connections that go out, and given to nobody else in this
    run of the tests: a program that was killed and is begun anew finds its port free.
    """
    ports: list[int] = []
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while len(ports) < count:
        port = 10_000 + worker * 5_500 + random.SystemRandom().randrange(5_500)
        if port in _GIVEN:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _GIVEN.add(port)
            ports.append(port)
    return ports


def memory_figure(name: str, process: int | str) -> int:
    """Bytes, by a line of /proc/PID/status; ``process`` may be ``self``."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


@dataclass
class Program:
    """One process. Its log is kept for assertions and for whoever reads a failure."""

    module: str
    config: Path
    health_url: str
    log: Path
    command: Sequence[str] = ("serve",)
    process: asyncio.subprocess.Process | None = None

    async def start(self, **environment: str) -> None:
        """Start, and wait until it is ready. ``environment`` is added to this process's own."""
        await self.spawn(**environment)
        async with asyncio.timeout(_START_SECONDS):
            while not await self.ready():
                assert self.process is not None
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)

    async def spawn(self, **environment: str) -> None:
        """Start, and wait for nothing: it may be meant to die before it is ready."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                *self.command,
                "--config",
                str(self.config),
                cwd=ROOT,
                stderr=log,
                stdout=log,
                env=os.environ | environment,
            )

    async def ready(self) -> bool:
        try:
            return (await get_json(f"{self.health_url}/health/ready"))[0] == 200
        except OSError:
            return False

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send ``how`` and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(how)
        return await self.ended()

    def send(self, how: signal.Signals) -> None:
        """Send ``how``, and wait for nothing."""
        assert self.process is not None
        self.process.send_signal(how)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        assert self.process is not None
        async with asyncio.timeout(60):
            return await self.process.wait()

    def memory(self) -> int:
        """Bytes of memory that are the process's own: resident, less file pages shared with others."""
        assert self.process is not None
        return memory_figure("RssAnon", self.process.pid)

    def peak_memory(self) -> int:
        """Bytes: the largest resident size so far (VmHWM)."""
        assert self.process is not None
        return memory_figure("VmHWM", self.process.pid)


@dataclass
class Service:
    """A manager, one or more proxies over the same buckets, and workers."""

    manager_url: str
    client_urls: list[str]
    manager: Program
    proxies: list[Program]
    workers: list[Program]

    @property
    def programs(self) -> list[Program]:
        return [*self.proxies, *self.workers, self.manager]

    async def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        return await get_json(f"{self.manager_url}{path}", body=json.dumps(body).encode())

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return await get_json(f"{self.manager_url}{path}")

    async def delete(self, path: str) -> tuple[int, dict[str, Any]]:
        return await get_json(f"{self.manager_url}{path}", method="DELETE")

    async def mint(self, kind: str, body: object) -> dict[str, Any]:
        """Mint a token; the answer."""
        status, answer = await self.post(f"/v1/tokens/{kind}", body)
        assert status == 201, answer
        return answer

    def at(self, url: str, proxy: int) -> str:
        """The same link on another proxy."""
        return url.replace(self.client_urls[0], self.client_urls[proxy])


async def get_json(
    url: str, *, body: bytes | None = None, key: str = API_KEY, method: str | None = None
) -> tuple[int, dict[str, Any]]:
    """GET, POST of JSON, or another method: status and parsed answer."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask() -> tuple[int, dict[str, Any]]:
        try:
            with urlopen(Request(url, data=body, headers=headers, method=method), timeout=150) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(ask)


async def refuses_connections(url: str) -> None:
    """Wait until nobody listens there: a program that drains says so just before it closes its sockets."""
    parts = urlsplit(url)
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def service(
    directory: Path,
    buckets: Mapping[str, Mapping[str, object]],
    *,
    proxies: int = 1,
    workers: Sequence[str] = (),
    more: str = "",
    serving: str = "serve",
    options: Sequence[str] = (),
    client: str = "",
    **environment: str,
) -> AsyncIterator[Service]:
    """The programs over ``buckets``, with a worker for each role in ``workers``.

    ``serving`` is the command of the proxies: ``all`` makes workers of them, too; ``options`` are what it is given.
    ``client`` is TOML for the proxies' client listener; ``environment`` is added to that of each program.

    ``more`` is TOML for the proxies and workers; without tables of its own their state and bus are embedded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    manager_port, *ports = free_ports(1 + 3 * proxies + len(workers))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    tables = [_table(f"buckets.{name}", bucket) for name, bucket in buckets.items()]
    tables += [
        _table(kind, {"path": str(directory / f"{kind}.db")}) for kind in ("state", "bus") if f"[{kind}]" not in more
    ]
    common = "\n".join([f"[tokens]\n{_KEYS}", *tables, more])
    made = []
    for index in range(proxies):
        client_port, rpc, operations = ports[3 * index : 3 * index + 3]
        config = directory / f"proxy{index}.toml"
        config.write_text(
            f'[client]\nlisten = "127.0.0.1:{client_port}"\n{client}\n'
            f'[rpc]\nlisten = "127.0.0.1:{rpc}"\nsecrets = ["{RPC_SECRET}"]\n'
            f'[operations]\nlisten = "127.0.0.1:{operations}"\n{common}\n'
        )
        made.append(
            Program("storage_proxy", config, urls[3 * index + 2], directory / f"proxy{index}.log", (serving, *options))
        )
    working = []
    for index, role in enumerate(workers):
        port = ports[3 * proxies + index]
        config = directory / f"worker{index}.toml"
        config.write_text(f'[operations]\nlisten = "127.0.0.1:{port}"\n{common}\n')
        log = directory / f"worker{index}.log"
        working.append(Program("storage_proxy", config, f"http://127.0.0.1:{port}", log, ("worker", role)))
    config = directory / "manager.toml"
    config.write_text(
        f'listen = "127.0.0.1:{manager_port}"\napi_keys = [{{ name = "e2e", secret = "{API_KEY}" }}]\n'
        f'[proxy]\nrpc_url = "{urls[1]}"\nrpc_secret = "{RPC_SECRET}"\nclient_url = "{urls[0]}"\n'
        f'[tokens]\nsigning_kid = "e2e"\n{_KEYS}\n'
    )
    manager_url = f"http://127.0.0.1:{manager_port}"
    manager = Program("manager_api", config, manager_url, directory / "manager.log")
    running = Service(manager_url, urls[0 : 3 * proxies : 3], manager, made, working)
    try:
        for program in running.programs:
            await program.start(**environment)
        yield running
    finally:
        for program in running.programs:
            if program.process is not None and program.process.returncode is None:
                await program.stop(signal.SIGKILL)


def _table(name: str, values: Mapping[str, object]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])


async def run(*command: str, **more: Any) -> tuple[int, str]:
    """Run a command: its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        **more,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode(errors="replace")
