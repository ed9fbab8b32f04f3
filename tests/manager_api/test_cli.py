"""The program as it is run: a real process, its signals, its exit codes."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.programs import free_ports, refuses_connections

from .conftest import API_KEY, FakeProxy

ROOT = Path(__file__).parents[2]

CONFIG = """
listen = "{listen}"
api_keys = [{{ name = "dev", secret = "dev-only-api-key-0123456789abcdef0123" }}]
[proxy]
rpc_url = "{rpc_url}"
rpc_secret = "dev-only-rpc-secret-0123456789abcdef"
[tokens]
signing_kid = "dev"
keys = [{{ kid = "dev", alg = "HS256", secret = "dev-only-token-secret-0123456789abcdef" }}]
[shutdown]
drain_seconds = {drain}
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "manager_api", *arguments]


async def ran(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Service:
    """The running program; ``log`` is what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.log = ""

    async def said(self, text: str) -> None:
        """Wait until the log has ``text``."""
        assert self.process.stderr is not None
        while text not in self.log:
            line = await self.process.stderr.readline()
            assert line, f"ended before it said {text!r}: {self.log}"
            self.log += line.decode()

    async def ended(self) -> int:
        _, rest = await self.process.communicate()
        self.log += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def serving(tmp_path: Path, rpc_url: str, drain: float = 30) -> AsyncIterator[Service]:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    config = tmp_path / "manager_api.toml"
    config.write_text(CONFIG.format(listen=listen, rpc_url=rpc_url, drain=drain), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *command("serve", "--config", str(config)), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    service = Service(process, f"http://{listen}")
    try:
        async with asyncio.timeout(60):
            await service.said("listening")
        yield service
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Held:
    """An answer of the proxy that waits until it may go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def by(self, proxy: FakeProxy) -> "Held":
        async def answer(request):
            self.reached.set()
            await self.go_on.wait()
            return await proxy.answer(request)

        proxy.script = [answer]
        return self


async def described(url: str) -> int:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/blobs?key=a", headers=headers) as answer:
        await answer.read()
        return answer.status


async def test_sigterm_lets_the_running_request_finish_and_exits_0(tmp_path: Path, proxy: FakeProxy) -> None:
    held = Held().by(proxy)
    async with serving(tmp_path, proxy.url) as service, aiohttp.ClientSession() as early:
        async with early.get(f"{service.url}/health/ready") as answer:
            assert answer.status == 200
        request = asyncio.create_task(described(service.url))
        await held.reached.wait()
        service.process.send_signal(signal.SIGTERM)
        await service.said("draining")
        async with early.get(f"{service.url}/health/ready") as answer:
            assert answer.status == 503
            assert (await answer.json())["ready"] is False
        await refuses_connections(service.url)
        assert not request.done()
        held.go_on.set()
        assert await request == 200
        assert await service.ended() == 0
        assert "stopped" in service.log


async def test_a_request_that_outlasts_the_drain_is_cut_and_the_exit_is_0(tmp_path: Path, proxy: FakeProxy) -> None:
    held = Held().by(proxy)
    async with serving(tmp_path, proxy.url, drain=0.1) as service:
        request = asyncio.create_task(described(service.url))
        await held.reached.wait()
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientError):
            await request
        assert await service.ended() == 0
        assert "Traceback" not in service.log


async def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path, proxy: FakeProxy) -> None:
    held = Held().by(proxy)
    async with serving(tmp_path, proxy.url, drain=3600) as service:
        request = asyncio.create_task(described(service.url))
        await held.reached.wait()
        service.process.send_signal(signal.SIGINT)
        await service.said("draining")
        service.process.send_signal(signal.SIGINT)
        with pytest.raises(aiohttp.ClientError):
            await request
        assert await service.ended() == 0


async def test_a_taken_port_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tmp_path / "manager_api.toml"
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(CONFIG.format(listen=listen, rpc_url="http://127.0.0.1:1", drain=1), encoding="utf-8")
        code, _, err = await ran("serve", "--config", str(config))
    assert code == 1
    assert err.splitlines()[-1].startswith("cannot listen: manager: ")
    assert "Traceback" not in err


async def test_a_good_configuration_is_valid() -> None:
    code, out, err = await ran("check-config", "--config", "configs/manager_api.dev.toml")
    assert (code, out, err) == (0, "the configuration is valid\n", "")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("listen =", "nope = 1\nlisten ="), "nope: Extra inputs are not permitted"),
        (('signing_kid = "dev"', 'signing_kid = "other"'), "tokens.signing_kid: is not the kid of any of tokens.keys"),
        (
            ('signing_kid = "dev"', 'signing_kid = "dev"\nmax_ttl_seconds = 60'),
            "tokens.default_ttl_seconds: is greater than tokens.max_ttl_seconds",
        ),
        (("[{ name", '[{ name = "dev", secret = "x" }, { name'), "api_keys.1.name: another key has this name"),
        (
            ("[{ name", '[{ name = "b", secret = "dev-only-api-key-0123456789abcdef0123" }, { name'),
            "api_keys.1.secret: another key has this secret",
        ),
        (("[{ name", '[{ buckets = ["A-b"], name'), "api_keys.0.buckets.0: String should match pattern '^[a-z0-9_]+$'"),
        (
            ("[{ name", "[{ buckets = [], name"),
            "api_keys.0.buckets: List should have at least 1 item after validation, not 0",
        ),
        (
            ('rpc_secret = "dev', 'rpc_secret = "a b dev'),
            "proxy.rpc_secret: may only have printable ASCII characters without spaces: it is sent in a header",
        ),
        (("[shutdown]", "[shutdown]\nnope = 1"), "shutdown.nope: Extra inputs are not permitted"),
        (("rpc_url =", "rpc_urls ="), "proxy.rpc_urls: Extra inputs are not permitted"),
    ],
)
async def test_a_bad_configuration_is_one_line_and_exit_2(tmp_path: Path, change: tuple[str, str], line: str) -> None:
    text = CONFIG.format(listen="127.0.0.1:1", rpc_url="http://127.0.0.1:1", drain=1)
    assert change[0] in text
    (tmp_path / "bad.toml").write_text(text.replace(*change), encoding="utf-8")
    code, out, err = await ran("check-config", "--config", str(tmp_path / "bad.toml"))
    assert (code, out, err.splitlines()) == (2, "", [line])


async def test_production_names_every_development_secret(tmp_path: Path) -> None:
    code, _, err = await ran(
        "check-config", "--config", "configs/manager_api.dev.toml", MANAGER_API__ENVIRONMENT="production"
    )
    assert code == 2
    assert err.splitlines() == [
        "api_keys.0.secret: is a development secret",
        "proxy.rpc_secret: is a development secret",
        "tokens.keys.0.secret: is a development secret",
    ]


async def test_an_unknown_variable_is_exit_2() -> None:
    code, _, err = await ran("check-config", "--config", "configs/manager_api.dev.toml", MANAGER_API__NOPE="1")
    assert (code, err) == (2, "MANAGER_API__NOPE: is not a setting\n")
