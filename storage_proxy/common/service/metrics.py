"""What every listener counts about its requests, for Prometheus.

The law: labels come from small fixed sets; nothing that a client sends becomes one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry, Counter, Histogram

from storage_proxy.common.errors import ServiceError

UNMATCHED = "unmatched"
"""The route of a request that no endpoint answers."""
CANCELLED = "cancelled"
"""The status of a request that ended without an answer: its client left, or the drain cut it."""

_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_DELETE})
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 20, 60, 300, 1800, float("inf"))
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestMetrics:
    """The request metrics of one process, in ``registry``; each listener gets its own middleware."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = Counter(
            "http_requests", "Requests that were answered", ["listener", "method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_seconds",
            "From a request's headers to the end of its handler",
            ["listener", "method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )

    def middleware(self, listener: str) -> Middleware:
        """The middleware that counts the requests of ``listener``."""

        @web.middleware
        async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
            started = self._clock()
            status = CANCELLED
            try:
                response = await handler(request)
                status = str(response.status)
            except Exception as error:
                status = str(status_of(error))
                raise
            finally:
                method, route = method_label(request), route_template(request)
                self._requests.labels(listener, method, route, status).inc()
                self._seconds.labels(listener, method, route).observe(self._clock() - started)
            return response

        return middleware


def method_label(request: web.Request) -> str:
    """The method, ``other`` for any that no endpoint has."""
    return request.method if request.method in _METHODS else "other"


def route_template(request: web.Request) -> str:
    """The path of the endpoint as it was declared, never as it was asked for."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def status_of(error: BaseException) -> int | str:
    """The status that ``error`` will be answered with, `CANCELLED` when nothing will be."""
    if isinstance(error, ServiceError):
        return error.status_hint
    if isinstance(error, web.HTTPException):
        return error.status
    return CANCELLED if isinstance(error, asyncio.CancelledError) else 500
