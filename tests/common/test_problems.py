import asyncio
import json

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from storage_proxy.common.errors import (
    BlobNotFound,
    InvalidRequest,
    ServiceError,
    Unauthorized,
    UnsafeName,
    error_class,
)
from storage_proxy.common.problems import MAX_FIELD_ERRORS, Problem, invalid_input, problem_of
from storage_proxy.common.service.middleware import problem_response

CONTRACT = {
    400: {"invalid-request", "unsafe-name"},
    401: {"unauthorized", "token-missing", "token-invalid", "token-expired", "token-not-active"},
    403: {"token-wrong-operation"},
    404: {"blob-not-found", "bucket-not-found", "not-found"},
    405: {"method-not-allowed"},
    409: {"duplicate-name"},
    410: {"blob-changed"},
    412: {"precondition-failed"},
    413: {"selection-too-large", "payload-too-large"},
    415: {"unsupported-media-type"},
    416: {"range-not-satisfiable"},
    429: {"too-many-downloads"},
    431: {"headers-too-large"},
    500: {"internal"},
    502: {"storage-error"},
    503: {"storage-unavailable", "state-unavailable", "busy", "shutting-down"},
    504: {"storage-timeout"},
    505: {"http-version-not-supported"},
}


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, str_min_length=0)
    numbers: list[int]
    text: str = ""


def refusal(given: object) -> ServiceError:
    with pytest.raises(ValidationError) as error:
        Given.model_validate(given)
    return invalid_input(error.value)


@pytest.mark.parametrize(
    ("status", "code"), [(status, code) for status in CONTRACT for code in sorted(CONTRACT[status])]
)
def test_every_code_has_the_status_of_the_contract(status: int, code: str) -> None:
    error = error_class(code)
    assert error is not None
    assert error.status_hint == status


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in ServiceError.__subclasses__()]
    assert len(codes) == len(set(codes))


def test_an_unknown_code_has_no_error() -> None:
    assert error_class("no-such-code") is None


def test_a_problem_says_what_where_and_for_which_request() -> None:
    error = BlobNotFound("2 are missing", errors=[{"loc": ["entries", 1, "key"], "msg": "does not exist", "key": "a"}])
    problem = problem_of(error, "r1")
    assert problem == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "2 are missing",
        "code": "blob-not-found",
        "request_id": "r1",
        "errors": [{"loc": ["entries", 1, "key"], "msg": "does not exist", "key": "a"}],
    }
    Problem.model_validate(problem)


def test_an_unauthorized_answer_says_how_to_authenticate() -> None:
    assert problem_response(Unauthorized(), "r1").headers["WWW-Authenticate"] == "Bearer"


def test_field_errors_say_where_and_never_repeat_the_input() -> None:
    error = refusal({"numbers": [1, "my-secret-input"], "nope-field": "my-secret-input"})
    assert isinstance(error, InvalidRequest)
    assert [list(each["loc"]) for each in error.errors] == [["numbers", 1], ["nope-field"]]
    assert "my-secret-input" not in json.dumps([dict(each) for each in error.errors])


def test_the_list_of_field_errors_is_bounded() -> None:
    assert len(refusal({"numbers": ["x"] * 1000}).errors) == MAX_FIELD_ERRORS


def test_text_that_is_no_unicode_is_an_unsafe_name() -> None:
    assert isinstance(refusal({"numbers": [], "text": "\ud800"}), UnsafeName)


async def test_versions_of_http_that_are_not_spoken_are_told_so(start) -> None:
    listener = await start()
    host, _, port = listener.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n")
    assert b" 505 " in await reader.readline()
    writer.close()
