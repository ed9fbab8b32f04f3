"""One child process of a supervisor: begun, asked, given orders, waited for.

The law: a child that does not answer in time has said nothing; what it told before stands.
"""

import asyncio
import logging
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from pydantic import ValidationError

from storage_proxy.common.concurrency import cancel_and_wait
from storage_proxy.common.service.merged_metrics import ToldMetric
from storage_proxy.common.service.operations import PROBE_TIMEOUT_SECONDS, Readiness
from storage_proxy.common.service.supervision import (
    ASK_METRICS,
    ASK_READINESS,
    DRAIN,
    END,
    MAX_MESSAGE_BYTES,
    TOLD,
    MetricsTold,
    ReadinessTold,
    Started,
)

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

ANSWER_SECONDS = PROBE_TIMEOUT_SECONDS + 1.0
"""A child asks its dependencies for its readiness."""

ChildCommand = Callable[[int, int], Sequence[str]]
"""The command line of a child: its number, and the descriptor of its socket."""


class Child:
    """A child that has been begun."""

    def __init__(
        self, number: int, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.started = False
        """Whether it has ever listened."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._metrics: asyncio.Future[Sequence[ToldMetric] | None] | None = None
        self._readiness: asyncio.Future[Readiness | None] | None = None
        self._listening = asyncio.create_task(self._listen(), name=f"process {number}")

    @classmethod
    async def begin(cls, number: int, command: ChildCommand) -> Self:
        """Begin one: a fresh interpreter, in a session of its own so that a terminal's signals come to us alone."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command(number, theirs.fileno()), pass_fds=[theirs.fileno()], start_new_session=True
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE_BYTES)
        return cls(number, process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end: its exit code, negative for the signal that killed it."""
        code = await self._process.wait()
        await cancel_and_wait(self._listening)
        self._writer.close()
        for asked in (self._metrics, self._readiness):
            if asked is not None and not asked.done():
                asked.set_result(None)
        return code

    async def metrics(self) -> Sequence[ToldMetric] | None:
        """Its metrics now; None when it does not answer in time."""
        if self._metrics is None or self._metrics.done():
            self._metrics = asyncio.get_running_loop().create_future()
            self._say(ASK_METRICS)
        return await _in_time(self._metrics)

    async def readiness(self) -> Readiness | None:
        """Its readiness now; None when it does not answer in time."""
        if self._readiness is None or self._readiness.done():
            self._readiness = asyncio.get_running_loop().create_future()
            self._say(ASK_READINESS)
        return await _in_time(self._readiness)

    def drain(self) -> None:
        """Let it finish what runs, and end."""
        self._say(DRAIN)

    def end(self) -> None:
        """Let it end now."""
        self._say(END)

    def kill(self) -> None:
        """End it without its consent."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    def _say(self, order: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(order)

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._hear(line)
        except ConnectionError:  # it ended, and something for it was still on its way
            pass
        except (ValueError, ValidationError):
            _log.exception("a process cannot be understood", extra={"child": self.number})
            self._writer.close()  # its law: without its supervisor it ends

    def _hear(self, line: bytes) -> None:
        told = TOLD.validate_json(line)
        if isinstance(told, Started):
            self.started = True
        elif isinstance(told, MetricsTold) and self._metrics is not None and not self._metrics.done():
            self._metrics.set_result(told.metrics)
        elif isinstance(told, ReadinessTold) and self._readiness is not None and not self._readiness.done():
            self._readiness.set_result(told.readiness)


async def _in_time(answer: "asyncio.Future[_Answer | None]") -> _Answer | None:
    done, _ = await asyncio.wait([answer], timeout=ANSWER_SECONDS)
    return answer.result() if done else None
