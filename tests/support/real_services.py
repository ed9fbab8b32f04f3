"""Real services for tests: what becomes of a test whose service is not there, and services of a test's own."""

import asyncio
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from tools import services


def required(service: str) -> bool:
    return service in os.environ.get("REQUIRE_SERVICES", "").split(",")


def unavailable(service: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where the service is required."""
    if required(service):
        pytest.fail(f"{service} is required: {reason}", pytrace=False)
    pytest.skip(f"{service}: {reason}")


class PrivateService:
    """``service`` on a port of its own, keeping everything beneath ``directory``: it can be killed, paused, and started
    again with what it kept. Not started yet.
    """

    def __init__(self, service: services.Service, directory: Path) -> None:
        self._run = services.Run(service, directory)
        self._port = services.free_port()

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
