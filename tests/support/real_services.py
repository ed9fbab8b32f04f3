"""Real services for tests: what becomes of a test whose service is not there, and services of a test's own."""

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import pytest

from tests.support.programs import free_ports
from tools import services


def required(service: str) -> bool:
    return service in os.environ.get("REQUIRE_SERVICES", "").split(",")


def unavailable(service: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where the service is required."""
    if required(service):
        pytest.fail(f"{service} is required: {reason}", pytrace=False)
    pytest.skip(f"{service}: {reason}")


@contextmanager
def shared(service: services.Service, *, before_start: Callable[[services.Run], None] | None = None) -> Iterator[int]:
    """The port of the ``service`` in .services. Started where it does not run; then the last of all the processes of
    tests that use it stops it.
    """
    run = services.running(service)
    run.directory.mkdir(parents=True, exist_ok=True)
    ours = run.directory / "started-by-tests"
    with (run.directory / "users").open("a") as users:
        with _gate(run):
            if run.port() is None:
                ours.touch()
                if before_start is not None:
                    before_start(run)
            try:
                port = run.start()
            except services.NotInstalled as failure:
                unavailable(service.name, str(failure))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield port
        finally:
            with _gate(run):
                if _only_user(users) and ours.exists():
                    ours.unlink()
                    run.stop()


@contextmanager
def _gate(run: services.Run) -> Iterator[None]:
    """One process at a time starts or stops it."""
    with (run.directory / "gate").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def _only_user(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class PrivateService:
    """``service`` on a port of its own, keeping everything beneath ``directory``: it can be killed, paused, and started
    again with what it kept. Not started yet.
    """

    def __init__(self, service: services.Service, directory: Path) -> None:
        self._run = services.Run(service, directory)
        self._port = free_ports(1)[0]

    async def start(self) -> None:
        """Start it, or start it again on the same port."""
        try:
            await asyncio.to_thread(self._run.start, self._port)
        except services.NotInstalled as failure:
            unavailable(self._run.service.name, str(failure))

    async def kill(self) -> None:
        """End it without a chance to say good-bye."""
        await asyncio.to_thread(self._run.stop, signal.SIGKILL)

    def pause(self) -> None:
        """Let it keep its connections and answer nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        pid = self._run.pid()
        assert pid is not None, f"{self._run.service.name} does not run"
        os.kill(pid, signum)
