"""Typed handlers: what a method's annotations say is parsed by Pydantic before it runs, its answer after.

The law: no handler parses a body, a query, a path or a token by hand, and what a model refuses is the API's
error before anything is read.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_type_hints
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError

from storage_proxy.common.errors import (
    InvalidRequest,
    PayloadTooLarge,
    ServiceError,
    TokenWrongOperation,
    UnsafeName,
    UnsupportedMediaType,
)
from storage_proxy.common.large_json import by_size, dumped
from storage_proxy.common.problems import invalid_input
from storage_proxy.common.service.expectations import send_continue
from storage_proxy.common.tokens import Claims

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ClaimsOf = Callable[[web.Request], Claims]

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])
MAX_JSON_VALUES = 2_000_000
"""Commas and brackets of a body: enough for 500,000 entries with key, name and bucket."""

_MARK = "__endpoint__"
_MODELLED = ("body", "query", "path", "claims")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation of an API: where it is, what it takes, what it answers.

    ``errors`` are those worth documenting; ``parts`` maps ``body``, ``query``, ``path`` and ``claims`` to models.
    """

    method: str
    path: str
    summary: str
    description: str
    status: int
    errors: Sequence[type[ServiceError]]
    parts: Mapping[str, type[BaseModel]]
    answer: type[BaseModel] | None
    handler: Handler


def endpoint(
    method: str, path: str, *, status: int = 200, errors: Sequence[type[ServiceError]] = ()
) -> Callable[[_Method], _Method]:
    """Mark a method as the handler of ``method path``.

    Its parameters are chosen by name: ``body``, ``query``, ``path`` and ``claims`` are Pydantic models,
    ``request`` is the request itself. A body of a model without fields may be empty. It returns a model (sent as JSON
    with ``status``), None (an empty body) or a response. A GET answers HEAD, too.
    """

    def mark(function: _Method) -> _Method:
        setattr(function, _MARK, (method, path, status, tuple(errors)))
        return function

    return mark


def endpoints_of(handlers: object, *, claims_of: ClaimsOf | None = None) -> list[Endpoint]:
    """The endpoints among the methods of ``handlers``, in the order of their definition."""
    found = []
    for name in vars(type(handlers)):
        method = getattr(handlers, name)
        if hasattr(method, _MARK):
            found.append(_bound(method, claims_of))
    return found


def add_endpoints(app: web.Application, endpoints: Sequence[Endpoint]) -> None:
    """Route ``endpoints`` in ``app``."""
    for each in endpoints:
        app.router.add_route(each.method, each.path, each.handler)
        if each.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, each.path, each.handler)


def _bound(method: Callable[..., Awaitable[Any]], claims_of: ClaimsOf | None) -> Endpoint:
    verb, path, status, errors = getattr(method, _MARK)
    hints = get_type_hints(method)
    answer = hints.pop("return", None)
    wants_request = hints.pop("request", None) is not None
    parts: dict[str, type[BaseModel]] = hints
    unknown = parts.keys() - set(_MODELLED)
    if unknown or ("claims" in parts and claims_of is None):
        raise TypeError(f"{method.__qualname__} asks for {sorted(unknown) or 'claims'}")

    async def handle(request: web.Request) -> web.StreamResponse:
        arguments: dict[str, Any] = {"request": request} if wants_request else {}
        for part, model in parts.items():
            arguments[part] = await _parse(request, part, model, claims_of)
        result = await method(**arguments)
        if isinstance(result, web.StreamResponse):
            return result
        if result is None:
            return web.Response(status=204 if status == 200 else status)
        return web.Response(status=status, body=await dumped(result), content_type="application/json")

    summary, _, description = (inspect.getdoc(method) or "").partition("\n\n")
    is_model = inspect.isclass(answer) and issubclass(answer, BaseModel)
    return Endpoint(verb, path, summary, description, status, errors, parts, answer if is_model else None, handle)


async def _parse(request: web.Request, part: str, model: type[BaseModel], claims_of: ClaimsOf | None) -> BaseModel:
    if part == "claims":
        assert claims_of is not None
        claims = claims_of(request)
        if not isinstance(claims, model):
            raise TokenWrongOperation(f"The token is for {claims.op}")
        return claims
    try:
        if part == "body" and not model.model_fields and not request.body_exists:
            return model()
        if part == "body":
            return await by_size(await _json_body(request), partial(_parsed, model))
        if part == "query":
            return model.model_validate(_query(request))
        return model.model_validate(dict(request.match_info))
    except ValidationError as error:
        raise invalid_input(error) from None


def _parsed(model: type[BaseModel], body: bytes) -> BaseModel:
    # A value in memory is up to 45 times as large as its text, so their number is bounded, too.
    if sum(body.count(mark) for mark in b",[{") > MAX_JSON_VALUES:
        raise PayloadTooLarge(errors=[{"loc": [], "msg": "holds too many values"}])
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > 1 or error.errors(include_input=False)[0]["type"] != "json_invalid":
            raise
        # Pydantic's parser calls a lone surrogate invalid JSON; the API calls it an unsafe name.
        try:
            given = json.loads(body.decode())
        except (ValueError, RecursionError):
            raise error from None
        return model.model_validate(given)


async def _json_body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise UnsupportedMediaType
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("A compressed request body is not accepted")
    if (request.content_length or 0) > request.client_max_size:
        raise _body_too_large(request)
    await send_continue(request)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _body_too_large(request) from None


def _body_too_large(request: web.Request) -> PayloadTooLarge:
    return PayloadTooLarge(errors=[{"loc": [], "msg": f"has more than {request.client_max_size} bytes"}])


def _query(request: web.Request) -> dict[str, str]:
    """The parameters of a query, each given once, all of them text."""
    values = dict(request.query)
    if len(values) != len(request.query):
        raise InvalidRequest("A query parameter is given twice")
    for parameter in request.rel_url.raw_query_string.split("&"):
        try:
            unquote_to_bytes(parameter).decode()
        except UnicodeDecodeError:
            name = parameter.partition("=")[0]
            raise UnsafeName("The query is not UTF-8", errors=[{"loc": [name], "msg": "is not UTF-8"}]) from None
    return values
