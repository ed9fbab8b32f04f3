"""What a supervisor and its children say to each other, over one socket a child; this is the child's end.

The law: questions are answered until the end, and a child whose supervisor is gone ends at once. Orders come by this
socket alone: signals, which a terminal or a service manager may send to every process of a group, only begin the drain
here, however many there are.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field, TypeAdapter

from storage_proxy.common.concurrency import cancel_and_wait
from storage_proxy.common.service.merged_metrics import ToldMetric, told_metrics
from storage_proxy.common.service.operations import Health, Readiness
from storage_proxy.common.service.process import Life

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20

DRAIN, END, ASK_METRICS, ASK_READINESS = b"drain\n", b"end\n", b"metrics\n", b"readiness\n"
"""What a supervisor says."""


class Started(BaseModel):
    """The child listens."""

    kind: Literal["started"] = "started"


class MetricsTold(BaseModel):
    """The child's metrics, asked for."""

    kind: Literal["metrics"] = "metrics"
    metrics: list[ToldMetric]


class ReadinessTold(BaseModel):
    """The child's readiness, asked for."""

    kind: Literal["readiness"] = "readiness"
    readiness: Readiness


Told = Annotated[Started | MetricsTold | ReadinessTold, Field(discriminator="kind")]
TOLD: TypeAdapter[Started | MetricsTold | ReadinessTold] = TypeAdapter(Told)
"""What a child says, one JSON object a line."""


class Supervised:
    """A child's end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.life = Life()

    @asynccontextmanager
    async def answering(self, health: Health, registry: CollectorRegistry) -> AsyncIterator[None]:
        """Tell of ``health`` and ``registry`` while entered, and obey."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self.life.stop, each.name)
        tasks = [asyncio.create_task(self._obey(health, registry)), asyncio.create_task(self._tell_of_the_start())]
        try:
            yield
        finally:
            await cancel_and_wait(*tasks)

    async def _tell_of_the_start(self) -> None:
        await self.life.started.wait()
        await self._tell(Started())

    async def _obey(self, health: Health, registry: CollectorRegistry) -> None:
        try:
            while said := await self._reader.readline():
                try:
                    await self._answer(said, health, registry)
                except ConnectionError:
                    raise
                except Exception:  # noqa: BLE001 a defect; the next order may be the one to end
                    _log.exception("the supervisor could not be answered")
        except ConnectionError:
            pass
        _log.warning("the supervisor is gone")
        self.life.stop_at_once("supervisor gone")

    async def _answer(self, said: bytes, health: Health, registry: CollectorRegistry) -> None:
        if said == ASK_METRICS:
            await self._tell(MetricsTold(metrics=told_metrics(registry)))
        elif said == ASK_READINESS:
            await self._tell(ReadinessTold(readiness=await health.readiness()))
        elif said == DRAIN:
            self.life.stop("supervisor")
        elif said == END:
            self.life.stop_at_once("supervisor")

    async def _tell(self, told: BaseModel) -> None:
        self._writer.write(told.model_dump_json().encode() + b"\n")
        await self._writer.drain()


@asynccontextmanager
async def supervised_by(descriptor: int) -> AsyncIterator[Supervised]:
    """The child's end of the socket that its supervisor gave it as ``descriptor``."""
    with socket.socket(fileno=descriptor) as inherited:
        inherited.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=inherited)
        try:
            yield Supervised(reader, writer)
        finally:
            writer.close()
