"""One log line for each request that was answered.

The law: the line names the endpoint and the caller, never a path, a query, a body or a token as it came.
"""

import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.metrics import method_label, route_template, status_of
from storage_proxy.common.service.middleware import CALLER, REQUEST_ID, of_aiohttp

LOGGED: web.RequestKey[bool] = web.RequestKey("logged", bool)
"""Set by a handler that has written a fuller line of its own."""

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def log_requests(
    listener: str, *, quiet_paths: frozenset[str] = frozenset(), clock: Callable[[], float] = time.monotonic
) -> Middleware:
    """Log every request of ``listener``; those of ``quiet_paths``, asked for every second, at level DEBUG."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        started = clock()
        fields: dict[str, object] = {}
        try:
            response = await handler(request)
            fields = {"status": response.status}
        except BaseException as error:
            fields = {"status": status_of(error), "code": _code_of(error)}
            raise
        finally:
            quiet = request.path in quiet_paths or request.get(LOGGED, False)
            level = logging.DEBUG if quiet else logging.INFO
            fields |= {
                "listener": listener,
                "method": method_label(request),
                "route": route_template(request),
                "seconds": round(clock() - started, 4),
                "request_id": request.get(REQUEST_ID),
                "caller": request.get(CALLER),
            }
            _log.log(level, "request", extra=fields)
        return response

    return middleware


def _code_of(error: BaseException) -> str | None:
    if isinstance(error, web.HTTPException):
        error = of_aiohttp(error)
    return error.code if isinstance(error, ServiceError) else None
