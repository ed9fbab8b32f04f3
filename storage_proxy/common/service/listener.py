"""A listening socket with an application behind it; what aiohttp's parser refuses is a problem document, too.

The law: nothing a client sends is logged as it came, and nothing it sends is answered in another form.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

from storage_proxy.common.errors import HeadersTooLarge, Internal, InvalidRequest, ServiceError
from storage_proxy.common.service.expectations import remember, without_expect
from storage_proxy.common.service.middleware import (
    REQUEST_ID_HEADER,
    InFlight,
    add_common_headers,
    new_request_id,
    observe_requests,
    problem_response,
)
from storage_proxy.common.service.settings import parse_listen

MAX_LINE_BYTES = 16384
KEEPALIVE_SECONDS = 75.0

_log = logging.getLogger(__name__)


class Listener:
    """One address, one application. ``listen`` is ``host:port``; port 0 takes a free one."""

    def __init__(self, name: str, listen: str, *middlewares: Middleware, max_body_bytes: int = 1 << 20) -> None:
        self.name = name
        self.in_flight = InFlight()
        self.app = web.Application(
            middlewares=[observe_requests(self.in_flight), *middlewares], client_max_size=max_body_bytes
        )
        self.app.on_response_prepare.append(add_common_headers)
        self.shares_address = False
        """Whether other sockets of the same user may listen on the address, too: the kernel spreads connections."""
        self._listen = listen
        self._runner: _Runner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        host, port = parse_listen(self._listen)
        self._runner = _Runner(
            self.app,
            access_log=None,
            handler_cancellation=True,  # a client that went away ends its handler, and its upstream reads
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            shutdown_timeout=1.0,
            auto_decompress=False,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024, reuse_port=self.shares_address or None).start()
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        _log.info("listening", extra={"listener": self.name, "address": self.address, "loop": loop})

    @property
    def address(self) -> str:
        """The actual ``host:port``, once started."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def drain(self, timeout: float) -> int:
        """Stop accepting, give running requests ``timeout`` seconds, cut the rest; how many were cut."""
        if self._runner is None:
            return 0
        for site in list(self._runner.sites):
            await site.stop()
        return await self.in_flight.drain(timeout)

    async def aclose(self) -> None:
        """Close what is left. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=_without_expectations(made.request_factory),
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,  # noqa: SLF001 aiohttp has no other way to choose the protocol class
        )


def _without_expectations(factory: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    def make(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        message, expects_continue = without_expect(message)
        request = factory(message, *others)
        if expects_continue:
            remember(request)
        return request

    return make


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's door for what its parser refuses, and for what escapes every handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun; the connection is cut")
        error: ServiceError
        if status >= 500:
            error = Internal()
            _log.error("unexpected error outside of a handler", exc_info=exc)
        elif isinstance(exc, LineTooLong):
            error = HeadersTooLarge()
        else:
            error = InvalidRequest("The request is not valid HTTP")
        request_id = new_request_id()
        _log.info("request refused by the parser", extra={"code": error.code, "request_id": request_id})
        response = problem_response(error, request_id)
        response.headers[REQUEST_ID_HEADER] = request_id
        response.headers[hdrs.SERVER] = "storage-proxy"
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's message, without the request in it."""
        _log.error("connection failed", exc_info=kw.get("exc_info"))
