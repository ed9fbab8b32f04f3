"""Others have their turns while a hundred thousand entries are read or written, and the text stays the same."""

import asyncio
import json
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from pydantic import TypeAdapter

from manager_api.proxy_problems import error_of
from manager_api.rpc_transport import _parsed
from storage_proxy.common.errors import BlobNotFound, FieldError
from storage_proxy.common.large_json import by_size, dumped
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE, problem_json, problem_of
from storage_proxy.common.wire import PlannedArchive, SkippedBlob
from tests.support.turns import turns_beside

COUNT = 60_000
TURNS = 1_500
"""A thread that holds the interpreter all along leaves a few hundred."""

MISSING: list[FieldError] = [
    {"loc": ["entries", number, "key"], "msg": "does not exist", "key": f"a/key-{number}-ü"} for number in range(COUNT)
]


@pytest.fixture(autouse=True)
def threads_change_as_soon_as_they_may() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def planned(count: int) -> PlannedArchive:
    skipped = [SkippedBlob(key=f"key-{number}", reason="does not exist") for number in range(count)]
    return PlannedArchive(manifest="sha256:" + "0" * 64, entries=1, size=1, etag='"e"', resumable=True, skipped=skipped)


async def test_a_long_answer_is_written_and_read_in_turns() -> None:
    answer = planned(COUNT)
    text = await dumped(answer)
    assert json.loads(text) == answer.model_dump(mode="json")
    turns, again = await turns_beside(dumped(answer))
    assert again == text
    assert turns > TURNS
    turns, read = await turns_beside(by_size(text, partial(_parsed, model=PlannedArchive)))
    assert read == answer
    assert turns > TURNS


async def test_a_short_answer_is_written_the_same_way() -> None:
    assert await dumped(planned(2)) == planned(2).model_dump_json().encode()


async def test_a_long_problem_is_written_and_read_in_turns() -> None:
    error = BlobNotFound("many are missing", errors=MISSING)
    text = problem_json(error, "r1")
    assert text == json.dumps(problem_of(error, "r1"), ensure_ascii=False).encode(errors="backslashreplace")
    turns, again = await turns_beside(asyncio.to_thread(problem_json, error, "r1"))
    assert again == text
    assert turns > TURNS
    reading = partial(error_of, status=404, content_type=PROBLEM_CONTENT_TYPE, retry_after=None)
    turns, read = await turns_beside(by_size(text, reading))
    assert read.errors == tuple(MISSING)
    assert turns > TURNS


@pytest.mark.parametrize("errors", [[], MISSING[:1], [{"loc": ["key"], "msg": "is unsafe", "key": "\ud800"}]])
def test_a_short_problem_is_the_same_text(errors: list[FieldError]) -> None:
    error = BlobNotFound("gone", errors=errors)
    expected = json.dumps(problem_of(error, "r1"), ensure_ascii=False).encode(errors="backslashreplace")
    assert problem_json(error, "r1") == expected


def test_the_schema_is_that_of_the_entries() -> None:
    schema = TypeAdapter(PlannedArchive).json_schema(mode="serialization")
    assert schema["properties"]["skipped"]["items"] == {"$ref": "#/$defs/SkippedBlob"}
