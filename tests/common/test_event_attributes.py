"""What a producer may attach to a blob comes back in the list of its run."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.events import MAX_ATTRIBUTES_DEPTH, Poison, blob_ref, parse_blob_ref
from storage_proxy.common.values import moment
from storage_proxy.common.wire import RunBlob, RunBlobs

PAYLOAD = {"bucket": "default", "key": "runs/r1/a", "path": "a"}


def event(attributes: Any) -> bytes:
    message = json.loads(blob_ref("r1", PAYLOAD, event_id="e", now=0))
    message["payload"]["attributes"] = attributes
    return json.dumps(message).encode()


def listed(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the one blob of a page that went through JSON twice: from the proxy, from the manager."""
    record = RunBlob(
        path="a",
        key="runs/r1/a",
        bucket="default",
        size=1,
        etag=None,
        crc32=None,
        content_type=None,
        state="verified",
        created_at=moment(0),
        attributes=attributes,
    )
    page = RunBlobs(blobs=[record], next_cursor=None).model_dump_json()
    shown = json.loads(RunBlobs.model_validate_json(page).model_dump_json())
    found: dict[str, Any] = shown["blobs"][0]["attributes"]
    return found


def nested(depth: int, *, lists: bool) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value] if lists else {"a": value}
    return {"a": value}


@pytest.mark.parametrize("lists", [True, False])
def test_attributes_may_be_nested_to_a_bound(lists: bool) -> None:
    deepest = nested(MAX_ATTRIBUTES_DEPTH, lists=lists)
    attributes = parse_blob_ref(event(deepest)).payload.attributes
    assert attributes is not None
    assert listed(attributes) == deepest
    with pytest.raises(Poison, match="nested more than 32 deep"):
        parse_blob_ref(event(nested(MAX_ATTRIBUTES_DEPTH + 1, lists=lists)))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_a_message_may_hold_is_listed_as_it_came(attributes: dict[str, Any]) -> None:
    kept = parse_blob_ref(event(attributes)).payload.attributes
    assert kept is not None
    assert listed(kept) == attributes
