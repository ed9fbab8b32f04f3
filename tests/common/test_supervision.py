"""A child's end of its supervisor's socket, which is real; the supervisor is the test."""

import asyncio
import json
import socket
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric

from storage_proxy.common.service.operations import Health
from storage_proxy.common.service.supervision import ASK_METRICS, ASK_READINESS, DRAIN, supervised_by


class Defect:
    """A collector that cannot collect."""

    def collect(self) -> Iterable[Metric]:
        raise RuntimeError("a defect")


async def test_a_question_that_cannot_be_answered_does_not_make_a_child_deaf() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Defect())
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        async with supervised_by(theirs.detach()) as child, child.answering(Health(), registry):
            async with asyncio.timeout(20):
                writer.write(ASK_METRICS + ASK_READINESS)
                assert json.loads(await reader.readline())["kind"] == "readiness"
                writer.write(DRAIN)
                await child.life.stopping.wait()
            assert not child.life.ending.is_set()
    finally:
        writer.close()
