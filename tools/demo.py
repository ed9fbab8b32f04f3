"""`make run`: both programs on their development configuration, sample blobs, and two links that work.

The law: stdout has the four lines and nothing else, and only once the links answer; whatever ends this process
ends both programs.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PROXY_CONFIG = ROOT / "configs" / "storage_proxy.dev.toml"
MANAGER_CONFIG = ROOT / "configs" / "manager_api.dev.toml"

START_SECONDS = 60.0
"""The first start compiles every dependency to bytecode."""
STOP_SECONDS = 20.0
MINT_SECONDS = 60.0
"""A mint of the whole bucket reads every local blob once, for its CRC-32."""
RESERVED_FOLDER = ".storage-proxy"
"""What the service keeps in a bucket for itself; a bucket with nothing else is empty."""
LARGE_SAMPLE = "random 20 MB.bin"

# No proxy of the environment stands between this process and loopback.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """It cannot go on; the message is the one line that says why."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""


@dataclass(frozen=True)
class Settings:
    """A program's configuration: a TOML file, and the environment on top of it."""

    prefix: str
    values: Mapping[str, Any]
    environment: Mapping[str, str]

    def variable(self, *path: str) -> str:
        return "__".join((self.prefix, *path)).upper()

    def get(self, *path: str) -> Any:
        variable = self.variable(*path)
        if variable in self.environment:
            return self.environment[variable]
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Listener:
    """An address that one of the programs will listen on, and the variable that moves it."""

    name: str
    variable: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """How this machine reaches it: a listener on all addresses is reached on loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def is_taken(self, port: int | None = None) -> bool:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            # As servers do: connections of an earlier run that wait for their end do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port if port is None else port))
            except OSError:
                return True
        return False

    def free_neighbour(self) -> str:
        port = next(p for p in range(min(self.port + 1000, 60000), 65536) if not self.is_taken(p))
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass
class Program:
    """One of the two programs, running."""

    name: str
    process: subprocess.Popen[bytes]

    def check(self) -> None:
        status = self.process.poll()
        if status is not None:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
            raise DemoError(f"the {self.name} {how}; its log above says why")


class Demo:
    """Starts the programs, makes the links, waits, and stops what it started."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._proxy = Settings("STORAGE_PROXY", tomllib.loads(PROXY_CONFIG.read_text("utf-8")), environment)
        self._manager = Settings("MANAGER_API", tomllib.loads(MANAGER_CONFIG.read_text("utf-8")), environment)
        self._programs: list[Program] = []
        self._signals = 0

    def run(self) -> int:
        """The exit code: 0 when a signal ended it, 1 when something else did."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._count_signal)
        try:
            self._serve()
        except Interrupted:
            return 0
        except DemoError as error:
            say(f"make run: {error}")
        finally:
            self._stop()
        return 1

    def _serve(self) -> NoReturn:
        manager = listener("manager API", self._manager, "listen")
        client = listener("client listener of the storage proxy", self._proxy, "client", "listen")
        rpc = listener("RPC listener of the storage proxy", self._proxy, "rpc", "listen")
        operations = listener("operations listener of the storage proxy", self._proxy, "operations", "listen")
        refuse_taken([manager, client, rpc, operations])
        sample = write_samples(self._bucket_root())
        self._link(client, rpc)
        self._start("storage proxy", "storage_proxy", "all", PROXY_CONFIG)
        self._start("manager API", "manager_api", "serve", MANAGER_CONFIG)
        self._wait_until_ready("storage proxy", operations)
        self._wait_until_ready("manager API", manager)
        key = self._api_key()
        blob = self._mint(manager, key, "blob", {"bucket": "default", "key": sample})
        archive = self._mint(manager, key, "archive", {"bucket": "default", "prefix": "", "filename": "samples.zip"})
        print(
            f"manager api:   {manager.url}\napi key:       {key}\nblob link:     {blob}\narchive link:  {archive}",
            flush=True,
        )
        say("make run: Ctrl-C ends it")
        while True:
            self._pause()

    def _bucket_root(self) -> Path:
        if self._proxy.get("buckets", "default", "kind") != "local":
            raise DemoError(f"the bucket named default must be a local one in {PROXY_CONFIG.name}")
        return ROOT / str(self._proxy.get("buckets", "default", "root"))

    def _link(self, client: Listener, rpc: Listener) -> None:
        """Tell both programs where a moved listener is, unless someone told them already."""
        for moved, program, path in (
            (client, self._proxy, ("client", "public_url")),
            (client, self._manager, ("proxy", "client_url")),
            (rpc, self._manager, ("proxy", "rpc_url")),
        ):
            if moved.variable in self._environment:
                self._environment.setdefault(program.variable(*path), moved.url)

    def _start(self, name: str, module: str, command: str, config: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", module, command, "--config", str(config)],
            cwd=ROOT,  # a local bucket's root is relative to it
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        self._programs.append(Program(name, process))

    def _wait_until_ready(self, name: str, where: Listener) -> None:
        deadline = time.monotonic() + START_SECONDS
        answer = "no answer"
        while time.monotonic() < deadline:
            self._pause()
            try:
                with _http.open(f"{where.url}/health/ready", timeout=2):
                    return
            except urllib.error.HTTPError as error:
                answer = f"{error.code} {error.read(500).decode(errors='replace')}"
            except OSError as error:
                answer = str(error)
        raise DemoError(f"the {name} is not ready after {START_SECONDS:.0f} s: {answer}")

    def _api_key(self) -> str:
        keys = self._manager.get("api_keys")
        keys = json.loads(keys) if isinstance(keys, str) else keys
        return str(keys[0].get("secret") or Path(keys[0]["secret_file"]).read_text("utf-8").strip())

    def _mint(self, manager: Listener, key: str, kind: str, wanted: dict[str, str]) -> str:
        """A link, tried with HEAD before anyone sees it."""
        mint = urllib.request.Request(
            f"{manager.url}/v1/tokens/{kind}",
            data=json.dumps(wanted).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        link = str(json.loads(self._ask(mint, f"minting the {kind} link"))["url"])
        self._ask(urllib.request.Request(link, method="HEAD"), f"the {kind} link")
        return link

    def _ask(self, request: urllib.request.Request, what: str) -> bytes:
        try:
            with _http.open(request, timeout=MINT_SECONDS) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            said = error.read(1000).decode(errors="replace")
            raise DemoError(f"{what} was answered with {error.code}: {said}") from error
        except OSError as error:
            self._pause()  # the reason may be an end that someone wanted, or a program's own
            raise DemoError(f"{what} was not answered: {error}") from error

    def _pause(self) -> None:
        time.sleep(0.1)
        # In this order: a terminal's Ctrl-C reaches the programs too, and their end is then no surprise.
        if self._signals:
            raise Interrupted
        for program in self._programs:
            program.check()

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _stop(self) -> None:
        """Ask both programs to end, wait, then kill; a second Ctrl-C does not wait."""
        seen = self._signals
        for program in self._programs:
            if program.process.poll() is None:
                program.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while any(program.process.poll() is None for program in self._programs):
            if time.monotonic() > deadline or self._signals > seen:
                for program in self._programs:
                    program.process.kill()
            time.sleep(0.05)


def listener(name: str, settings: Settings, *path: str) -> Listener:
    value = str(settings.get(*path))
    variable = settings.variable(*path)
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise DemoError(f"{variable} must be host:port with a port from 1 to 65535, not {value!r}")
    return Listener(name, variable, host.removeprefix("[").removesuffix("]"), int(port))


def refuse_taken(listeners: list[Listener]) -> None:
    taken = [each for each in listeners if each.is_taken()]
    if taken:
        which = ", ".join(f"{each.port} ({each.name})" for each in taken)
        elsewhere = " ".join(f"{each.variable}={each.free_neighbour()}" for each in taken)
        be = "is" if len(taken) == 1 else "are"
        raise DemoError(f"port {which} {be} taken: end what uses it, or choose another: {elsewhere} make run")


def write_samples(root: Path) -> str:
    """Fill the bucket if it holds no blob; the key that the blob link will be for."""
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] != RESERVED_FOLDER
    )
    if names:
        return LARGE_SAMPLE if LARGE_SAMPLE in names else names[0]
    (root / "an empty folder").mkdir(parents=True, exist_ok=True)
    (root / "notes").mkdir(exist_ok=True)
    (root / "read me.txt").write_text("Sample blobs. Put your own files beside them.\n", "utf-8")
    (root / "notes" / "Grüße aus Ålesund, 日本.txt").write_text("A name is any text.\n", "utf-8")
    # The same bytes on every machine, and large enough to interrupt and resume.
    (root / LARGE_SAMPLE).write_bytes(random.Random(20).randbytes(20_000_000))
    return LARGE_SAMPLE


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(Demo(os.environ).run())
    except (OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"make run: {error}")
