"""The two programs of this repository as they are run: configuration files on free ports, and their processes."""

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import free_port, running
from benchmarks.storage import BUCKET, ROOT, WORKSPACE, Storage


@dataclass(frozen=True, slots=True)
class Programs:
    """One configuration of both, and where they answer. Each method gives the process id while it is entered."""

    manager_url: str
    rpc_url: str
    api_key: str
    rpc_secret: str
    proxy_config: Path
    manager_config: Path
    operations_url: str

    def proxy(self, *command: str) -> AbstractAsyncContextManager[int]:
        """The storage proxy with ``command``: `serve`, `worker ingest`, ...; one at a time."""
        return self.python("-m", "storage_proxy", *command, "--config", str(self.proxy_config))

    def python(self, *arguments: str) -> AbstractAsyncContextManager[int]:
        """Another program of the proxy's configuration, with its health at the same place."""
        return program("storage_proxy", [sys.executable, *arguments], f"{self.operations_url}/health/ready")

    def manager(self) -> AbstractAsyncContextManager[int]:
        command = [sys.executable, "-m", "manager_api", "serve", "--config", str(self.manager_config)]
        return program("manager_api", command, f"{self.manager_url}/health/ready")


def configured(
    storage: Storage,
    state: Path,
    *,
    bus: Mapping[str, str] | None = None,
    group: str = "storage-proxy",
    local_root: Path | None = None,
    settings: Mapping[str, Mapping[str, str | float]] | None = None,
) -> Programs:
    """Both programs over the benchmarks' bucket, or over the directory ``local_root`` by that name.

    ``settings`` are sections of the proxy's configuration besides.
    """
    manager, client, rpc, operations = (f"127.0.0.1:{free_port()}" for _ in range(4))
    api_key, rpc_secret, token_secret = (secrets.token_hex(32) for _ in range(3))
    tokens = f"""
[tokens]
issuer = "manager-api"
audience = "storage-proxy"
keys = [{{ kid = "bench", alg = "HS256", secret = "{token_secret}" }}]
"""
    proxy_config = _write(
        "storage_proxy",
        f"""
[client]
listen = "{client}"
public_url = "http://{client}"
[rpc]
listen = "{rpc}"
secrets = ["{rpc_secret}"]
[operations]
listen = "{operations}"
{tokens}
[buckets.{BUCKET}]
{_s3_bucket(storage) if local_root is None else _keys({"kind": "local", "root": str(local_root)})}
[state]
path = "{state}"
[bus]
{_keys(bus or {"path": str(WORKSPACE / "bus.db")})}
[ingest]
group = "{group}"
{_sections(settings or {})}
""",
    )
    manager_config = _write(
        "manager_api",
        f"""
listen = "{manager}"
api_keys = [{{ name = "bench", secret = "{api_key}" }}]
[proxy]
rpc_url = "http://{rpc}"
rpc_secret = "{rpc_secret}"
client_url = "http://{client}"
{tokens}
signing_kid = "bench"
""",
    )
    return Programs(
        f"http://{manager}",
        f"http://{rpc}",
        api_key,
        rpc_secret,
        proxy_config,
        manager_config,
        f"http://{operations}",
    )


def program(name: str, command: Sequence[str], ready_url: str) -> AbstractAsyncContextManager[int]:
    """A process with a log of its ``name``, in this environment but for our programs' settings."""
    ours = ("STORAGE_PROXY__", "MANAGER_API__")
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(ours)}
    return running(command, ready_url=ready_url, log=WORKSPACE / f"{name}.log", cwd=ROOT, environment=environment)


def _s3_bucket(storage: Storage) -> str:
    return _keys(
        {
            "kind": "s3",
            "endpoint": storage.endpoint,
            "bucket": BUCKET,
            "region": storage.region,
            "access_key": storage.access_key,
            "secret_key": storage.secret_key,
        }
    )


def _sections(settings: Mapping[str, Mapping[str, str | float]]) -> str:
    return "\n".join(f"[{name}]\n{_keys(values)}" for name, values in settings.items())


def _keys(values: Mapping[str, str | float]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def _write(name: str, text: str) -> Path:
    path = WORKSPACE / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path
