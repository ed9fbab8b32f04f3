"""A supervisor over real child processes that do little: small scripts at the other end of a real socket."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from storage_proxy.common.service.children import ChildCommand
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.supervisor import CannotStart, Supervisor

SERVES = """
said.write('{"kind": "started"}\\n')
said.flush()
for order in said:
    if order in ("drain\\n", "end\\n"):
        sys.exit(0)
    if order == "readiness\\n":
        said.write('{"kind": "readiness", "readiness": {"ready": true, "degraded": ["bucket b: away"]}}\\n')
        said.flush()
    if order == "metrics\\n":
        said.write('{"kind": "metrics", "metrics": []}\\n')
        said.flush()
"""
HEARS_NOTHING = """
said.write('{"kind": "started"}\\n')
said.flush()
while True:
    time.sleep(60)
"""
_HEAD = """
import os, socket, sys, time
said = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
"""


def script(text: str, *arguments: object) -> ChildCommand:
    def command(number: int, descriptor: int) -> Sequence[str]:
        return [sys.executable, "-c", _HEAD + text, str(descriptor), str(number), *map(str, arguments)]

    return command


def supervisor(command: ChildCommand, count: int = 2) -> Supervisor:
    return Supervisor(command, count, drain_seconds=0.1, grace_seconds=0.5)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def sample(supervisor: Supervisor, name: str) -> float:
    lines = generate_latest(await supervisor.metrics()).decode().splitlines()
    return next(float(line.split(" ")[1]) for line in lines if line.startswith(f"{name} "))


async def test_what_ends_before_it_has_started_ends_all_with_its_code() -> None:
    with pytest.raises(CannotStart) as error:
        await supervisor(script("sys.exit(3)")).run(Listener("operations", "127.0.0.1:0"))
    assert error.value.exit_code == 3


async def test_one_that_cannot_start_beside_one_that_serves_is_tried_again(tmp_path: Path) -> None:
    others_fail = "if sys.argv[2] == '2' and not os.path.exists(sys.argv[3]):\n"
    second_serves = others_fail + "    time.sleep(1)\n    open(sys.argv[3], 'w')\n    sys.exit(1)\n" + SERVES
    several = supervisor(script(second_serves, tmp_path / "tried"))
    running = asyncio.create_task(several.run(Listener("operations", "127.0.0.1:0")))

    async def all_are_ready() -> bool:
        assert not running.done()
        readiness = await several.readiness()
        return readiness.ready and readiness.degraded == ["bucket b: away"]

    await until(all_are_ready)
    assert (tmp_path / "tried").exists()
    several.life.stop("test")
    assert await running == 0


async def test_what_dies_is_begun_again_and_named_meanwhile() -> None:
    dies_by_itself = (
        "if sys.argv[2] == '1':\n    said.write('{\"kind\": \"started\"}\\n')\n    said.flush()\n    os.abort()\n"
        + SERVES
    )
    several = supervisor(script(dies_by_itself))
    running = asyncio.create_task(several.run(Listener("operations", "127.0.0.1:0")))

    async def twice() -> bool:
        return await sample(several, "storage_proxy_process_restarts_total") >= 2

    async def named() -> bool:
        return "process 1: does not run" in (await several.readiness()).degraded

    await until(twice)
    await until(named)
    assert (await several.readiness()).ready
    several.life.stop("test")
    assert await running == 0


async def test_a_signal_without_a_name_is_a_death_like_others(caplog: pytest.LogCaptureFixture) -> None:
    dies_oddly = 'said.write(\'{"kind": "started"}\\n\')\nsaid.flush()\nos.kill(os.getpid(), 40)\n'
    several = supervisor(script(dies_oddly), 1)
    running = asyncio.create_task(several.run(Listener("operations", "127.0.0.1:0")))

    async def died() -> bool:
        return any(getattr(record, "reason", "") == "signal 40" for record in caplog.records)

    await until(died)
    several.life.stop("test")
    assert await running == 0


async def test_what_does_not_end_is_killed_and_that_is_told() -> None:
    several = supervisor(script(HEARS_NOTHING))
    running = asyncio.create_task(several.run(Listener("operations", "127.0.0.1:0")))

    async def both_started() -> bool:
        return all("no answer" in line for line in (await several.readiness()).degraded)

    await until(both_started)
    assert not (await several.readiness()).ready
    several.life.stop("test")
    assert await running == 1


async def test_a_stop_before_anything_has_started_is_a_clean_end() -> None:
    several = supervisor(script(SERVES))
    several.life.stop("test")
    assert await several.run(Listener("operations", "127.0.0.1:0")) == 0
