"""Several processes that serve as one: begun, begun again when they die, drained together, asked as one.

The law: a process that dies is replaced after a pause that grows with each death; what can never start ends the
service with its exit code. Nothing serves here but health and metrics.
"""

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from storage_proxy.common.service.background import Restarts
from storage_proxy.common.service.children import ANSWER_SECONDS, Child, ChildCommand
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.merged_metrics import MergedMetrics, told_metrics
from storage_proxy.common.service.operations import Readiness
from storage_proxy.common.service.process import Life, start_listener

_log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
_OWN = 0
"""The number under which the supervisor's own metrics are merged: processes count from 1."""


class CannotStart(Exception):
    """A process ended before it had started, and no other one serves; its own output says why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class Supervisor:
    """``count`` processes that ``command`` begins. A drain may take ``drain_seconds``; who has not ended
    ``grace_seconds`` later, and so long after another order, is killed.
    """

    def __init__(
        self, command: ChildCommand, count: int, *, drain_seconds: float, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._command = command
        self._numbers = range(1, count + 1)
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._children: dict[int, Child] = {}
        self._merged = MergedMetrics()
        self.life = Life()
        """Whoever runs this says by it when to stop."""
        self._killed = 0
        self._registry = CollectorRegistry()
        running = Gauge("storage_proxy_processes", "Processes that run", registry=self._registry)
        running.set_function(lambda: len(self._children))
        self._restarts = Counter(
            "storage_proxy_process_restarts", "Processes that died and were begun again", registry=self._registry
        )

    async def run(self, operations: Listener) -> int:
        """Run until `life` says so, drain, and return the exit code: 0, or 1 when a process had to be killed.

        Raises `AddressTaken` for ``operations``, and `CannotStart`.
        """
        try:
            await start_listener(operations)
            return await self._run()
        finally:
            await operations.aclose()

    async def _run(self) -> int:
        keepers = [asyncio.create_task(self._keep(number)) for number in self._numbers]
        stopping = asyncio.create_task(self.life.stopping.wait())
        await asyncio.wait([stopping, *keepers], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            _log.info("draining", extra={"cause": self.life.cause, "seconds": self._drain_seconds})
        else:  # a keeper ends by itself only when its process cannot start
            self.life.stop_at_once("a process cannot start")
            await stopping
        await self._end_all(keepers)
        for keeper in keepers:
            keeper.result()
        _log.info("stopped")
        return 1 if self._killed else 0

    async def metrics(self) -> MergedMetrics:
        """The metrics of all processes as those of one, and the supervisor's own."""
        children = [child for child in self._children.values() if child.started]
        for child, told in zip(children, await asyncio.gather(*(each.metrics() for each in children)), strict=True):
            if told is not None and self._children.get(child.number) is child:
                self._merged.tell(child.number, told)
        self._merged.tell(_OWN, told_metrics(self._registry))
        return self._merged

    async def readiness(self) -> Readiness:
        """Ready as soon as one process is; what any of them misses is named once."""
        states = await asyncio.gather(*map(self._state_of, self._numbers))
        ready = not self.life.stopping.is_set() and any(state.ready for state in states)
        return Readiness(ready=ready, degraded=list(dict.fromkeys(line for state in states for line in state.degraded)))

    async def _state_of(self, number: int) -> Readiness:
        child = self._children.get(number)
        if child is None or not child.started:
            reason = "is starting" if child is not None else "does not run"
            return Readiness(ready=False, degraded=[f"process {number}: {reason}"])
        told = await child.readiness()
        return told or Readiness(ready=False, degraded=[f"process {number}: no answer within {ANSWER_SECONDS:g} s"])

    async def _keep(self, number: int) -> None:
        """A process under ``number``, and another one when it dies, until the drain."""
        restarts = Restarts()
        while not self.life.stopping.is_set():
            restarts.begins()
            reason = await self._one(number)
            if self.life.stopping.is_set():
                return
            pause = restarts.pause()
            extra = {"child": number, "reason": reason, "again_in_seconds": round(pause, 3)}
            _log.error("a process died", extra=extra)
            self._restarts.inc()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.life.stopping.wait()

    async def _one(self, number: int) -> str:
        """Begin a process and wait for its end; how it ended. Raises `CannotStart`."""
        try:
            child = await Child.begin(number, self._command)
        except OSError as error:  # the machine has no room for it now
            return str(error)
        self._children[number] = child
        _log.info("a process was begun", extra={"child": number, "pid": child.pid})
        if self.life.stopping.is_set():
            child.drain()
        code = await child.ended()
        del self._children[number]
        self._merged.end(number)
        others_serve = any(each.started for each in self._children.values())
        if code > 0 and not child.started and not others_serve and not self.life.stopping.is_set():
            raise CannotStart(code)
        return f"exit code {code}" if code >= 0 else _signal_name(-code)

    async def _end_all(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Drain what runs, end it where there is no more time, kill what does not end."""
        for child in self._children.values():
            child.drain()
        ended = asyncio.gather(*keepers, return_exceptions=True)
        ending = asyncio.create_task(self.life.ending.wait())
        timeout = self._drain_seconds + self._grace_seconds
        both: list[asyncio.Future[Any]] = [ended, ending]
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        for child in self._children.values():
            child.end()
        await asyncio.wait([ended], timeout=self._grace_seconds)
        for child in self._children.values():
            _log.error("a process that does not end is killed", extra={"child": child.number})
            self._killed += 1
            child.kill()
        await ended


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
