"""Whose word on a blob's type counts, as pure functions."""

from dataclasses import replace

import pytest

from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.transitions import verified
from storage_proxy.ingest.verification import Seen
from storage_proxy.state.records import BlobRecord
from storage_proxy.stores.port import BlobStat

KEPT = BlobStat("runs/r1/a.csv", 3, '"e"', 0, content_type="application/x-kept")
GUESSED = replace(KEPT, content_type="text/csv", type_is_guessed=True)


def recorded(stat: BlobStat, said: str | None, before: BlobRecord | None = None) -> BlobRecord:
    place = Place("default", "r1", "a.csv")
    return verified(place, before, Announced(content_type=said), Seen(stat, 7), order=None, now=1.0)


@pytest.mark.parametrize(
    ("stat", "said", "counts"),
    [
        (KEPT, "text/plain", "application/x-kept"),
        (KEPT, None, "application/x-kept"),
        (replace(KEPT, content_type=None), "text/plain", "text/plain"),
        (GUESSED, "text/plain", "text/plain"),
        (GUESSED, None, "text/csv"),
    ],
)
def test_a_guess_counts_less_than_what_was_announced_and_that_less_than_what_is_kept(
    stat: BlobStat, said: str | None, counts: str
) -> None:
    assert recorded(stat, said).content_type == counts


def test_another_look_at_the_same_version_keeps_the_announced_type() -> None:
    before = recorded(GUESSED, "text/plain")
    assert recorded(GUESSED, None, before).content_type == "text/plain"
    assert recorded(replace(GUESSED, etag='"f"'), None, before).content_type == "text/csv"
