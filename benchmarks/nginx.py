"""nginx as Debian packages it: found on this machine, or unpacked into .services, and configured to proxy to S3."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.kernel import family
from benchmarks.processes import BenchmarkError, free_port, running
from benchmarks.storage import WORKSPACE

PACKAGE = "nginx"
_UNPACKED = WORKSPACE.parent / "nginx"
_PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", str(_UNPACKED / "usr" / "sbin" / "nginx"))
_START_SECONDS = 10.0

DEFAULT_BUFFERS = ""
"""Whatever nginx does when it is told nothing: 8 buffers of a page, and beyond them a temporary file of up to 1 GiB,
which a download of this size does not do without."""
NO_FILES = """
            proxy_max_temp_file_size 0;"""
LARGE_BUFFERS = """
            proxy_max_temp_file_size 0;
            proxy_buffers 16 256k;
            proxy_buffer_size 256k;
            proxy_busy_buffers_size 512k;"""


class Unavailable(BenchmarkError):
    """There is no nginx here, and none could be had."""


def installed() -> str:
    """The path of an nginx that runs here. It blocks; raises `Unavailable`."""
    found = _found()
    if found is None:
        _unpack()
        found = _PLACES[-1]
    try:
        subprocess.run([found, "-v"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{found} does not run: {error}") from None
    return found


def version() -> str:
    """The version of the nginx that is here; empty when there is none. It blocks."""
    found = _found()
    if found is None:
        return ""
    told = subprocess.run([found, "-v"], capture_output=True, text=True, check=False).stderr
    return told.strip().rpartition("/")[2]


def _found() -> str | None:
    return shutil.which("nginx") or next(filter(os.path.exists, _PLACES), None)


def _unpack() -> None:
    """Debian's package, without installing it: nothing on the machine changes, no service starts, no root needed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("there is no nginx, and no apt-get to fetch Debian's with")
    print(f"fetching Debian's {PACKAGE} ...", file=sys.stderr)
    _UNPACKED.mkdir(parents=True, exist_ok=True)
    if not _fetch() and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        _fetch()
    package = next(_UNPACKED.glob("*.deb"), None)
    if package is None:
        raise Unavailable(f"there is no nginx, and `apt-get download {PACKAGE}` does not give it")
    subprocess.run(["dpkg-deb", "-x", str(package), str(_UNPACKED)], check=True)


def _fetch() -> bool:
    return subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=_UNPACKED, check=False).returncode == 0


@asynccontextmanager
async def proxying(endpoint: str, *, name: str, buffers: str) -> AsyncIterator[tuple[int, str]]:
    """A single worker in front of ``endpoint`` (http://HOST:PORT): its process id, and its own URL.

    Raises `Unavailable`.
    """
    program = await asyncio.to_thread(installed)
    port = free_port()
    home = WORKSPACE / name
    (home / "temporary").mkdir(parents=True, exist_ok=True)
    config = home / "nginx.conf"
    config.write_text(_config(endpoint.removeprefix("http://"), port, buffers), "utf-8")
    command = [program, "-e", "error.log", "-p", str(home), "-c", str(config)]
    url = f"http://127.0.0.1:{port}"
    log = WORKSPACE / f"{name}.log"
    async with running(command, ready_url=url, log=log, cwd=home, environment=os.environ) as master:
        yield await _worker(master), url


def _config(origin: str, port: int, buffers: str) -> str:
    """The Host is the S3 server's, as it was signed. As root, the worker stays root: others may not read here."""
    user = "user root;" if os.geteuid() == 0 else ""
    temporary: Sequence[str] = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"    {each}_temp_path temporary/{each};" for each in temporary)
    return f"""{user}
worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{paths}
    upstream s3 {{
        server {origin};
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://s3;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {origin};{buffers}
        }}
    }}
}}
"""


async def _worker(master: int) -> int:
    async with asyncio.timeout(_START_SECONDS):
        while len(found := family(master)) < 2:
            await asyncio.sleep(0.05)
    return found[1]
