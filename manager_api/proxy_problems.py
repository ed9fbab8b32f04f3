"""Answers of the storage proxy that are no success, as errors of ours.

The law: what concerns the caller arrives with its code, detail and fields; what is wrong between the two programs is
logged here and shown as nothing more than ours.
"""

import logging
from collections.abc import Collection

from pydantic import ValidationError

from storage_proxy.common.errors import (
    FieldError,
    HeadersTooLarge,
    Internal,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    StorageError,
    Unauthorized,
    UnsupportedMediaType,
    error_class,
)
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE, Problem, ProblemField

_log = logging.getLogger(__name__)

_BETWEEN_US = frozenset({Unauthorized, NotFound, MethodNotAllowed, UnsupportedMediaType, HeadersTooLarge, Internal})
"""What the proxy says of this program's request, not of the caller's: a wrong secret, URL or version."""


def error_of(
    body: bytes,
    status: int,
    content_type: str,
    retry_after: str | None,
    *,
    for_caller: Collection[type[ServiceError]] = (),
) -> ServiceError:
    """The error that an answer tells of. ``for_caller``: those that concern the caller here."""
    try:
        problem = Problem.model_validate_json(body) if content_type == PROBLEM_CONTENT_TYPE else None
    except ValidationError:
        problem = None
    if problem is None:
        _log.error("the proxy's answer is not a problem document", extra={"status": status, "type": content_type})
        return StorageError("The storage proxy gave an answer that is not understood")
    found = error_class(problem.code)
    if found in _BETWEEN_US and found not in for_caller:
        extra = {"status": status, "code": problem.code, "proxy_request_id": problem.request_id}
        _log.error("the proxy refused this program: are rpc_url, rpc_secret and the version right?", extra=extra)
        return Internal()
    if found is None:
        _log.error("the proxy's problem has an unknown code", extra={"status": status, "code": problem.code})
        return StorageError("The storage proxy reported a problem that is not understood")
    return found(
        problem.detail,
        errors=[_field_error(each) for each in problem.errors or ()],
        retry_after=int(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None,
    )


def _field_error(field: ProblemField) -> FieldError:
    error: FieldError = {"loc": field.loc, "msg": field.msg}
    if field.key is not None:
        error["key"] = field.key
    return error
