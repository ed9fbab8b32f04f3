"""Sending a body after its headers: watched, counted, logged, and aborted when it cannot be ended well.

The law: after the headers there are two endings, all of it or an aborted connection.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from aiohttp import web

from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.middleware import REQUEST_ID, abort
from storage_proxy.common.service.request_log import LOGGED
from storage_proxy.downloads.bodies import Body
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.http.stall_watch import StallWatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """What the log line of a download says of it: ``jti_hash`` names what it was permitted by, never that itself."""

    op: str
    jti_hash: str
    entries: int


@dataclass(slots=True)
class _Transfer:
    """How one download goes."""

    outcome: str = "complete"
    watch: StallWatch | None = None

    @property
    def written(self) -> int:
        """Body bytes given to the connection."""
        return self.watch.written if self.watch else 0

    @property
    def gone(self) -> str:
        """Why the connection ended when we did not end it."""
        return "client-stalled" if self.watch and self.watch.stalled else "client-gone"


class Transfers:
    """Sends bodies. ``stall_seconds`` bounds the wait for a client that takes nothing."""

    def __init__(self, metrics: DownloadMetrics, *, stall_seconds: float) -> None:
        self._metrics = metrics
        self._stall_seconds = stall_seconds

    async def send(self, request: web.Request, response: web.StreamResponse, body: Body, download: Download) -> None:
        """Begin ``body``, then prepare ``response`` and write all of it. What fails before the headers is raised."""
        began = time.monotonic()
        transfer = _Transfer()
        self._metrics.active.inc()
        try:
            async with body:
                await body.begin()
                await self._write(request, response, body, download, transfer)
        except ServiceError as error:
            transfer.outcome = error.code
            if not response.prepared:
                raise
            abort(request)
        except ConnectionError:
            transfer.outcome = transfer.gone
            abort(request)
        except asyncio.CancelledError:  # the client went away, or the drain is over
            transfer.outcome = transfer.gone if request.transport is None else "drained"
            abort(request)
            raise
        except Exception:
            transfer.outcome = "internal"
            if not response.prepared:
                raise
            _log.exception("unexpected error in a download", extra={"request_id": request[REQUEST_ID]})
            abort(request)
        finally:
            self._metrics.active.dec()
            if response.prepared:  # else nothing of it was seen but an error
                self._finished(request, response, download, transfer, time.monotonic() - began)

    async def _write(
        self, request: web.Request, response: web.StreamResponse, body: Body, download: Download, transfer: _Transfer
    ) -> None:
        sent = self._metrics.sent_bytes.labels(download.op)
        writer = await response.prepare(request)
        if request.transport is None or writer is None:
            raise ConnectionResetError
        # Drained means empty: what counts as sent has left this process, and no chunk is overwritten while it waits.
        request.transport.set_write_buffer_limits(high=0)
        with StallWatch(request.transport, self._stall_seconds) as transfer.watch:
            async for chunk in body:
                transfer.watch.written += len(chunk)
                await response.write(chunk)
                await writer.drain()  # `write` itself waits only once 64 KiB are on their way
                sent.inc(len(chunk))
            await response.write_eof()

    def _finished(
        self,
        request: web.Request,
        response: web.StreamResponse,
        download: Download,
        transfer: _Transfer,
        seconds: float,
    ) -> None:
        self._metrics.finished.labels(download.op, transfer.outcome).inc()
        self._metrics.seconds.labels(download.op).observe(seconds)
        if transfer.outcome != "complete":
            self._metrics.aborted.labels(transfer.outcome).inc()
        request[LOGGED] = True
        _log.info(
            "download",
            extra={
                "request_id": request[REQUEST_ID],
                "jti_hash": download.jti_hash,
                "op": download.op,
                "entries": download.entries,
                "bytes": transfer.written,
                "status": response.status,
                "seconds": round(seconds, 3),
                "outcome": transfer.outcome,
            },
        )
