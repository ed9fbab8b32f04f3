"""Server processes on loopback: started, waited for, and ended with the block that needed them."""

import asyncio
import importlib
import importlib.util
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

START_SECONDS = 60.0
STOP_SECONDS = 10.0


class BenchmarkError(Exception):
    """The comparison cannot be made; the message says why in one line."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(main: Coroutine[object, object, None]) -> None:
    """`asyncio.run` on uvloop, where that is installed: what stands around a measured server must not be slow."""
    factory = importlib.import_module("uvloop").new_event_loop if importlib.util.find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


@asynccontextmanager
async def running(
    command: Sequence[str], *, ready_url: str, log: Path, cwd: Path, environment: Mapping[str, str]
) -> AsyncIterator[int]:
    """The process id of ``command``, once ``ready_url`` is answered with less than 500; it ends with the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        await _until_ready(process, ready_url, log)
        yield process.pid
    finally:
        await _end(process)


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while not await _answers(session, url):
                if process.returncode is not None:
                    raise BenchmarkError(f"a server ended with exit code {process.returncode} at start: see {log}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise BenchmarkError(f"a server is not ready after {START_SECONDS:.0f} s: see {log}") from None


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status < 500
    except aiohttp.ClientError:
        return False


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
