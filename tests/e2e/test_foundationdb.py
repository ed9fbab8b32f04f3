"""A process whose state is configured to be in FoundationDB, on a machine where that cannot be: it says so and ends."""

import asyncio
import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.programs import ROOT, TOKEN_SECRET, free_ports

COMMAND = (sys.executable, "-m", "storage_proxy", "serve", "--config")


def configuration(directory: Path, *, state: str) -> Path:
    ports = free_ports(3)
    (directory / "blobs").mkdir()
    path = directory / "proxy.toml"
    path.write_text(
        f'[client]\nlisten = "127.0.0.1:{ports[0]}"\n'
        f'[operations]\nlisten = "127.0.0.1:{ports[1]}"\n'
        f'[rpc]\nlisten = "127.0.0.1:{ports[2]}"\nsecrets = ["e2e-rpc-secret-0123456789abcdef0123456789"]\n'
        f'[tokens]\nkeys = [{{ kid = "e2e", alg = "HS256", secret = "{TOKEN_SECRET}" }}]\n'
        f'[buckets.default]\nkind = "local"\nroot = "{directory / "blobs"}"\n'
        f'[state]\nkind = "fdb"\n{state}\n'
    )
    return path


async def serve(config: Path) -> tuple[int | None, list[str]]:
    """The exit code, and the lines on standard error."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, str(config), cwd=ROOT, env=os.environ, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, printed = await process.communicate()
    return process.returncode, printed.decode().splitlines()


def library_is_installed() -> bool:
    fdb = importlib.import_module("fdb")
    with suppress(Exception):
        fdb.api_version(710)
        return True
    return False


async def test_without_the_client_library_the_process_names_what_to_install(tmp_path: Path) -> None:
    if library_is_installed():
        pytest.skip("fdb: libfdb_c is installed here")
    code, lines = await serve(configuration(tmp_path, state=""))
    assert code == 1
    assert [line for line in lines if line.startswith("cannot start: ")] == lines[-1:]
    assert "libfdb_c" in lines[-1]
    assert "foundationdb-clients" in lines[-1]
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize(("content", "error"), [(None, 1515), ("no cluster here", 2104)])
async def test_a_cluster_file_that_is_missing_or_garbage_is_named(
    tmp_path: Path, content: str | None, error: int
) -> None:
    if not library_is_installed():
        pytest.skip("fdb: libfdb_c is not installed here")
    path = tmp_path / "fdb.cluster"
    if content is not None:
        path.write_text(content)
    code, lines = await serve(configuration(tmp_path, state=f'cluster_file = "{path}"'))
    assert code == 1
    assert lines[-1].startswith("cannot start: ")
    assert str(path) in lines[-1]
    assert f"error {error}" in lines[-1]
