"""The events of the bus: what the topics carry, as JSON.

The law: what is published is valid by these models, what is read is validated by them, and a message that does not
pass never will.
"""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator

from storage_proxy.common.names import unsafe_key_reason, unsafe_reason
from storage_proxy.common.values import ContentType, Crc32Hex, Timestamp, moment
from storage_proxy.common.wire import RUN_ID_PATTERN, RunId, Wire

RUNS_PREFIX = "runs/"
"""Keys under it belong to runs: they are visible through the records alone."""
MAX_ATTRIBUTES_BYTES = 16 << 10
MAX_ATTRIBUTES_DEPTH = 32
"""Objects and lists within each other. A parser has its own bound: what one message may hold, a list must hold, too."""

_RUN_ID = re.compile(RUN_ID_PATTERN.removesuffix("$"))


def _safe_path(path: str) -> str:
    if reason := unsafe_path_reason(path):
        raise ValueError(reason)
    return path


def unsafe_path_reason(path: str) -> str | None:
    """Why ``path`` cannot be a blob's path within its run, or None when it can: a safe name, and no folder."""
    if reason := unsafe_reason(path):
        return reason
    return "ends in a slash" if path.endswith("/") else None


def run_prefix(run_id: str) -> str:
    """What the keys of a run begin with."""
    return f"{RUNS_PREFIX}{run_id}/"


def run_key(run_id: str, path: str) -> str:
    """The key of a run's blob."""
    return run_prefix(run_id) + path


def parse_run_key(key: str) -> tuple[str, str] | None:
    """``run_id, path`` of a run's key; None for one under ``runs/`` that can be no blob's."""
    run_id, slash, path = key.removeprefix(RUNS_PREFIX).partition("/")
    is_one = key.startswith(RUNS_PREFIX) and slash and _RUN_ID.fullmatch(run_id) and unsafe_path_reason(path) is None
    return (run_id, path) if is_one else None


class _Event(Wire):
    """What every event carries. Members that a later schema adds are another schema's: unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_min_length=0)

    schema_: Literal[1] = Field(default=1, alias="schema")
    id: Annotated[str, Field(min_length=1, max_length=128)] = Field(default_factory=lambda: str(uuid.uuid4()))
    run_id: RunId
    occurred_at: Timestamp


_Parsed = TypeVar("_Parsed", bound=_Event)


class BlobRefPayload(Wire):
    """Which blob of the run, and what its producer says of it."""

    bucket: Annotated[str, Field(min_length=1, max_length=64)]
    key: Annotated[str, Field(min_length=1)]
    path: Annotated[str, AfterValidator(_safe_path)]
    content_type: ContentType | None = None
    size: Annotated[int, Field(strict=True, ge=0, lt=2**63)] | None = None
    crc32: Crc32Hex | None = None
    attributes: dict[str, Any] | None = None

    @field_validator("attributes")
    @classmethod
    def _attributes_are_small(cls, attributes: dict[str, Any] | None) -> dict[str, Any] | None:
        # NaN and Infinity, which the parser takes, are no JSON: an answer could not show them.
        if attributes is not None and len(json.dumps(attributes, allow_nan=False)) > MAX_ATTRIBUTES_BYTES:
            raise ValueError(f"has more than {MAX_ATTRIBUTES_BYTES} bytes")
        if _is_deeper(attributes, MAX_ATTRIBUTES_DEPTH):
            raise ValueError(f"is nested more than {MAX_ATTRIBUTES_DEPTH} deep")
        return attributes


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether ``value`` has objects and lists more than ``depth`` within each other."""
    layer = [value]
    for _ in range(depth + 1):
        containers = [each for each in layer if isinstance(each, dict | list)]
        if not containers:
            return False
        layer = [member for each in containers for member in (each.values() if isinstance(each, dict) else each)]
    return True


class BlobRef(_Event):
    """A blob was announced: it is there, or will be."""

    type: Literal["blob_ref"] = "blob_ref"
    payload: BlobRefPayload


class RunDeletedPayload(Wire):
    """Where the run's objects are; ``bucket`` is null when it never had one: then they may be in any."""

    bucket: str | None
    prefix: str


class RunDeletedEvent(_Event):
    """A run was deleted: its objects are to be removed."""

    type: Literal["run_deleted"] = "run_deleted"
    payload: RunDeletedPayload


class Poison(Exception):
    """A message that can never be processed. ``reason`` is for an operator, and shows nothing of its values."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_blob_ref(value: bytes) -> BlobRef:
    """The event in a message of the ingest topic. Raises `Poison`."""
    event = _parse(BlobRef, value)
    payload = event.payload
    if payload.key != run_key(event.run_id, payload.path):
        raise Poison("payload.key: is not runs/<run_id>/<path>")
    if reason := unsafe_key_reason(payload.key):
        raise Poison(f"payload.key: {reason}")
    return event


def parse_run_deleted(value: bytes) -> RunDeletedEvent:
    """The event in a message of the control topic. Raises `Poison`."""
    return _parse(RunDeletedEvent, value)


def blob_ref(run_id: str, payload: Mapping[str, Any], *, event_id: str, now: int) -> str:
    """The JSON of a `BlobRef`; ``now`` in epoch seconds."""
    members = {"id": event_id, "run_id": run_id, "occurred_at": moment(now), "payload": payload}
    event = BlobRef.model_validate(members)
    return event.model_dump_json(by_alias=True, exclude_none=True)


def run_deleted(run_id: str, bucket: str | None, *, event_id: str, now: int) -> str:
    """The JSON of a `RunDeletedEvent`; ``now`` in epoch seconds."""
    payload = RunDeletedPayload(bucket=bucket, prefix=run_prefix(run_id))
    event = RunDeletedEvent(id=event_id, run_id=run_id, occurred_at=moment(now), payload=payload)
    return event.model_dump_json(by_alias=True)


def _parse(kind: type[_Parsed], value: bytes) -> _Parsed:
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"] if first["type"] != "json_invalid" else "is not JSON"
        raise Poison(f"{place}: {message}" if place else message) from None
    except RecursionError:
        raise Poison("is nested too deeply") from None
