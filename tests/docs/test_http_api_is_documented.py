"""docs/http-api.md has every endpoint of both programs, and every problem code with its status."""

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from aiohttp import web

import manager_api
import storage_proxy
from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.endpoints import endpoints_of

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text("utf-8")
CODE_ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (\d{3})( \*RA\*)? \| ([MCRO ]+) \| .+ \|$", re.MULTILINE)
OPERATION = re.compile(r"`(GET|HEAD|POST|PUT|DELETE) (/[^\s`?]*)")


def modules(package: ModuleType) -> list[ModuleType]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(each.name) for each in found if not each.name.endswith("__main__")]


def handler_classes() -> set[type]:
    return {
        value
        for module in (*modules(storage_proxy), *modules(manager_api))
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and value.__name__.endswith("Handlers")
    }


def operations() -> set[tuple[str, str]]:
    """Method and path of every endpoint, of handlers that have not been constructed: nothing is called."""
    return {
        (each.method, each.path)
        for handlers in handler_classes()
        for each in endpoints_of(object.__new__(handlers), claims_of=_no_claims)
    }


def _no_claims(request: web.Request) -> NoReturn:
    raise AssertionError("no request is made here")


def error_classes(error: type[ServiceError] = ServiceError) -> set[type[ServiceError]]:
    """Those with a code of their own: a subclass may only tell a backend something."""
    own = {error} if "code" in vars(error) else set()
    return own.union(*(error_classes(each) for each in error.__subclasses__()))


def test_the_handlers_are_found() -> None:
    assert {("GET", "/download"), ("POST", "/v1/tokens/archive"), ("GET", "/rpc/v1/blobs")} < operations()


@pytest.mark.parametrize(("method", "path"), sorted(operations()))
def test_an_endpoint_is_documented(method: str, path: str) -> None:
    assert (method, path) in OPERATION.findall(PAGE)


def test_no_operation_is_documented_that_does_not_exist() -> None:
    assert set(OPERATION.findall(PAGE)) - operations() == set()


@pytest.mark.parametrize("error", sorted(error_classes(), key=lambda each: each.code), ids=lambda each: each.code)
def test_a_problem_code_is_documented_with_its_status(error: type[ServiceError]) -> None:
    rows = {code: (int(status), bool(retry)) for code, status, retry, _ in CODE_ROW.findall(PAGE)}
    assert rows.get(error.code) == (error.status_hint, error.default_retry_after is not None)


def test_no_problem_code_is_documented_that_does_not_exist() -> None:
    assert {row[0] for row in CODE_ROW.findall(PAGE)} - {each.code for each in error_classes()} == set()
