"""Errors as ``application/problem+json`` (RFC 9457), and Pydantic's errors as ours."""

import json
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from storage_proxy.common.errors import FieldError, InvalidRequest, ServiceError, UnsafeName
from storage_proxy.common.large_json import READ_IN_TURNS

PROBLEM_CONTENT_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 100
_JSON = json.JSONEncoder(ensure_ascii=False)


class ProblemField(BaseModel):
    """One field at fault."""

    model_config = ConfigDict(extra="allow")

    loc: list[str | int] = Field(description="The path of keys and indexes to the field.")
    msg: str = Field(description="What is wrong with it.")
    key: str | None = Field(default=None, description="The key of the blob concerned, where it is one.")


class Problem(BaseModel):
    """The body of every error answer."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable: programs decide by this.")
    request_id: str
    errors: list[Annotated[ProblemField, READ_IN_TURNS]] | None = None


def problem_of(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The JSON object that tells a caller of ``error``."""
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(error.status_hint).phrase,
        "status": error.status_hint,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.errors:
        problem["errors"] = [dict(field) for field in error.errors]
    return problem


def problem_json(error: ServiceError, request_id: str) -> bytes:
    """The text of `problem_of`: field by field, so that a thread may write a hundred thousand."""
    problem = problem_of(error, request_id)
    fields = problem.pop("errors", ())
    text = _JSON.encode(problem)
    if fields:
        text = f'{text[:-1]}, "errors": [{", ".join(map(_encoded, fields))}]}}'
    return text.encode(errors="backslashreplace")


def _encoded(field: dict[str, Any]) -> str:
    return _JSON.encode(field)


def field_errors(error: ValidationError) -> list[FieldError]:
    """What Pydantic found, without the input: at most `MAX_FIELD_ERRORS` fields."""
    return _fields(_found(error))


def invalid_input(error: ValidationError) -> ServiceError:
    """Our error for input that a model refused; text that is no Unicode is an unsafe name."""
    found = _found(error)
    if any(each["type"] == "string_unicode" for each in found):
        return UnsafeName("A text contains a lone surrogate", errors=_fields(found))
    return InvalidRequest(errors=_fields(found))


def _found(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def _fields(found: list[ErrorDetails]) -> list[FieldError]:
    shown = found[:MAX_FIELD_ERRORS]
    return [{"loc": list(each["loc"]), "msg": each["msg"].removeprefix("Value error, ")} for each in shown]
