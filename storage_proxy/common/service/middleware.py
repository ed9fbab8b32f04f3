"""What happens around every handler: request id, errors as problems, API keys, requests in flight.

The law: an error becomes one problem document before the first byte; after it the connection is aborted, its framing
unfinished, so that every client sees the failure.
"""

import asyncio
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from storage_proxy.common.errors import (
    HttpVersionNotSupported,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    ShuttingDown,
    Unauthorized,
)
from storage_proxy.common.large_json import MANY
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE, problem_json

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
CALLER: web.RequestKey[str] = web.RequestKey("caller", str)

_HTTP_VERSIONS = (HttpVersion10, HttpVersion11)
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")
_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_request_id() -> str:
    """A request id for a request that brought none."""
    return secrets.token_hex(8)


def problem_response(error: ServiceError, request_id: str) -> web.Response:
    """The answer that tells a client of ``error``."""
    headers = {
        hdrs.CACHE_CONTROL: "private, no-store",
        hdrs.REFERRER_POLICY: "no-referrer",
        "X-Content-Type-Options": "nosniff",
        **error.headers,
    }
    if error.status_hint == 401:
        headers.setdefault(hdrs.WWW_AUTHENTICATE, "Bearer")
    if error.retry_after is not None:
        headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    body = problem_json(error, request_id)
    return web.Response(status=error.status_hint, body=body, content_type=PROBLEM_CONTENT_TYPE, headers=headers)


def abort(request: web.Request) -> None:
    """Cut the connection at once: whatever was begun stays unfinished."""
    if request.transport is not None:
        request.transport.abort()


class InFlight:
    """The requests being answered: counted, waited for, and in the end cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: asyncio.Task[object]) -> None:
        self._tasks.add(task)
        self._idle.clear()

    def leave(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def drain(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for what is running, then cancel it; the number of the cancelled."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self.cancel_all()

    def cancel_all(self) -> int:
        """Cancel every running request: its connection is cut with its framing unfinished."""
        for task in self._tasks:
            task.cancel()
        return len(self._tasks)


def observe_requests(in_flight: InFlight) -> Middleware:
    """The outermost middleware: request id, errors, drain."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request[REQUEST_ID] = given if _REQUEST_ID_FORM.fullmatch(given) else new_request_id()
        task = asyncio.current_task()
        assert task is not None
        in_flight.enter(task)
        try:
            if in_flight.draining and not request.path.startswith("/health/"):
                raise ShuttingDown
            if request.version not in (
                HttpVersion10,
                HttpVersion11,
                HttpVersion11,
            ):  # the parser lets 0.9 and 2.0 through
                raise HttpVersionNotSupported("HTTP/1.0 or HTTP/1.1 is required")
            response = await handler(request)
        except ServiceError as error:
            response = await _answer(request, error)
        except web.HTTPException as error:
            response = await _answer(request, of_aiohttp(error))
        except Exception:  # noqa: BLE001 a defect of ours: logged whole, shown as nothing
            _log.exception("unexpected error", extra={"request_id": request[REQUEST_ID]})
            response = await _answer(request, Internal())
        finally:
            in_flight.leave(task)
        if in_flight.draining and not response.prepared:
            response.force_close()
        return response

    return middleware


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For ``on_response_prepare``: the request id on every answer, and no word on what runs here."""
    if request_id := request.get(REQUEST_ID):
        response.headers[REQUEST_ID_HEADER] = request_id
    response.headers[hdrs.SERVER] = "storage-proxy"


def require_bearer(keys: Mapping[str, str], *, open_paths: frozenset[str] = frozenset()) -> Middleware:
    """Only callers with one of ``keys`` (name -> secret) pass; their key's name is ``request[CALLER]``."""
    digests = {name: sha256(secret.encode()).digest() for name, secret in keys.items()}

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path in open_paths:
            return await handler(request)
        given = sha256(bearer(request).encode(errors="surrogateescape")).digest()
        callers = [name for name, digest in digests.items() if hmac.compare_digest(digest, given)]
        if not callers:
            raise Unauthorized
        request[CALLER] = callers[0]
        return await handler(request)

    return middleware


def bearer(request: web.Request) -> str:
    """What follows ``Bearer`` in the Authorization header, or an empty string."""
    scheme, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


async def _answer(request: web.Request, error: ServiceError) -> web.Response:
    if len(error.errors) > MANY:
        response = await asyncio.to_thread(problem_response, error, request[REQUEST_ID])
    else:
        response = problem_response(error, request[REQUEST_ID])
    if request.writer.output_size > 0:
        abort(request)
    if not request.body_exists or request.content.is_eof():
        return response
    response.force_close()  # an unread body is not worth reading to its end
    return response


def of_aiohttp(error: web.HTTPException) -> ServiceError:
    """What the router and the body's reader refuse, as our error."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(headers={hdrs.ALLOW: ", ".join(sorted(error.allowed_methods))})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge()
    if error.status == 404:
        return NotFound()
    if 400 <= error.status < 500:
        return InvalidRequest()
    return Internal()
