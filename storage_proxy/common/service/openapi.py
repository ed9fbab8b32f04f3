"""The OpenAPI 3.1 document of an API, made from its endpoints and their models.

The law: what the document says is read from the code that runs; nothing is written twice.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from storage_proxy.common.errors import (
    Internal,
    InvalidRequest,
    PayloadTooLarge,
    ServiceError,
    Unauthorized,
    UnsupportedMediaType,
)
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE, Problem
from storage_proxy.common.service.endpoints import Endpoint

Json = dict[str, Any]

_REF = "#/components/schemas/"
_SECURITY = "bearer"
_PARAMETERS = {"path": "path", "query": "query"}


def openapi_document(
    groups: Mapping[str, Sequence[Endpoint]],
    *,
    title: str,
    version: str,
    description: str = "",
    open_paths: Collection[str] = (),
) -> Json:
    """The document of the endpoints of ``groups`` (tag -> endpoints); all but ``open_paths`` ask for a bearer key."""
    endpoints = [each for group in groups.values() for each in group]
    schemas = _Schemas(endpoints)
    paths: dict[str, Json] = defaultdict(dict)
    for tag, group in groups.items():
        for each in group:
            paths[each.path][each.method.lower()] = _operation(each, tag, schemas, secured=each.path not in open_paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "tags": [{"name": tag} for tag in groups],
        "paths": dict(paths),
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {_SECURITY: {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """The JSON schemas of every model that the endpoints take or answer."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
        for each in endpoints:
            wanted |= {(model, "validation"): None for part, model in each.parts.items() if part != "claims"}
            if each.answer is not None:
                wanted[each.answer, "serialization"] = None
        self._refs, schema = models_json_schema(list(wanted), ref_template=_REF + "{model}")
        self.components: dict[str, Json] = schema["$defs"]

    def ref(self, model: type[BaseModel], mode: JsonSchemaMode) -> Json:
        return dict(self._refs[model, mode])

    def fields(self, model: type[BaseModel]) -> Json:
        schema = self.components[self.ref(model, "validation")["$ref"].removeprefix(_REF)]
        return dict(schema)


def _operation(each: Endpoint, tag: str, schemas: _Schemas, *, secured: bool) -> Json:
    operation: Json = {
        "operationId": _operation_id(each),
        "tags": [tag],
        "summary": each.summary,
        "parameters": [
            parameter
            for part, place in _PARAMETERS.items()
            if part in each.parts
            for parameter in _parameters(schemas.fields(each.parts[part]), place)
        ],
        "responses": _responses(each, schemas, secured=secured),
        "security": [{_SECURITY: []}] if secured else [],
    }
    if each.description:
        operation["description"] = each.description
    if "body" in each.parts:
        body = each.parts["body"]
        schema = schemas.ref(body, "validation")
        operation["requestBody"] = {
            "required": bool(body.model_fields),
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _operation_id(each: Endpoint) -> str:
    words = "".join(c if c.isalnum() else " " for c in f"{each.method.lower()} {each.path}").split()
    return "_".join(words)


def _parameters(schema: Json, place: str) -> list[Json]:
    return [
        {
            "name": name,
            "in": place,
            "required": name in schema.get("required", ()),
            "description": field.get("description", ""),
            "schema": {key: value for key, value in field.items() if key != "description"},
        }
        for name, field in schema.get("properties", {}).items()
    ]


def _responses(each: Endpoint, schemas: _Schemas, *, secured: bool) -> Json:
    answer: Json = {"description": HTTPStatus(each.status).phrase}
    if each.answer is not None:
        answer["content"] = {"application/json": {"schema": schemas.ref(each.answer, "serialization")}}
    by_status: dict[int, dict[str, type[ServiceError]]] = defaultdict(dict)
    for error in (*_implied_errors(each, secured=secured), *each.errors):
        by_status[error.status_hint][error.code] = error
    problem = schemas.ref(Problem, "serialization")
    problems = {str(status): _problem(status, by_status[status], problem) for status in sorted(by_status)}
    return {str(each.status): answer, **problems}


def _implied_errors(each: Endpoint, *, secured: bool) -> list[type[ServiceError]]:
    """What the layers around the handler answer, whatever it does."""
    errors: list[type[ServiceError]] = [Internal]
    if each.parts.keys() & {"body", "query", "path"}:
        errors.append(InvalidRequest)
    if "body" in each.parts:
        errors += [PayloadTooLarge, UnsupportedMediaType]
    if secured:
        errors.append(Unauthorized)
    return errors


def _problem(status: int, errors: Mapping[str, type[ServiceError]], problem: Json) -> Json:
    codes = "; ".join(f"`{code}`: {error.public_message}" for code, error in errors.items())
    schema = {"allOf": [problem, {"properties": {"code": {"enum": list(errors)}}}]}
    response: Json = {
        "description": f"{HTTPStatus(status).phrase}. {codes}.",
        "content": {PROBLEM_CONTENT_TYPE: {"schema": schema}},
    }
    if any(error.default_retry_after is not None for error in errors.values()):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response
