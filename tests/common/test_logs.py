import json
import logging

import pytest

from storage_proxy.common.service.logs import JsonFormatter, LineFormatter, redacted

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJvcCI6ImJsb2IifQ.c2lnbmF0dXJl"


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "n", "levelname": "INFO", "levelno": logging.INFO, "msg": message})
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"/download?token={TOKEN}",
        f"Authorization: Bearer {TOKEN}",
        "token=abc",
        "Bearer abc",
        "X-Amz-Signature=ab",
    ],
)
def test_nothing_like_a_token_stays_in_a_line(text: str) -> None:
    line = redacted(text)
    assert "abc" not in line
    assert "eyJ" not in line
    assert "[redacted]" in line


def test_a_production_line_is_one_json_object_with_its_fields() -> None:
    line = JsonFormatter().format(record("request", status=200, route="/v1/blobs", note=f"token={TOKEN}"))
    entry = json.loads(line)
    assert (entry["message"], entry["status"], entry["route"], entry["level"]) == ("request", 200, "/v1/blobs", "info")
    assert TOKEN not in line


def test_a_line_for_a_person_ends_with_its_fields() -> None:
    line = LineFormatter().format(record("request", status=200, caller=None))
    assert line.endswith("n: request status=200")


def test_an_exception_is_in_the_line_and_its_tokens_are_not() -> None:
    try:
        raise ValueError(f"token={TOKEN}")
    except ValueError as error:
        made = record("failed")
        made.exc_info = (ValueError, error, error.__traceback__)
    for formatter in (JsonFormatter(), LineFormatter()):
        line = formatter.format(made)
        assert "ValueError" in line
        assert TOKEN not in line
