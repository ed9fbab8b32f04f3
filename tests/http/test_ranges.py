"""Conditional requests and ranges, by RFC 9110."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import PreconditionFailed, RangeNotSatisfiable
from storage_proxy.http.ranges import NotModified, Outcome, Partial, Validators, Whole, evaluate

ETAG = '"v1"'
MODIFIED = 1_700_000_000
DATE = formatdate(MODIFIED, usegmt=True)
EARLIER, LATER = formatdate(MODIFIED - 1, usegmt=True), formatdate(MODIFIED + 1, usegmt=True)


def asked(
    headers: dict[str, str],
    *,
    method: str = "GET",
    size: int | None = 100,
    ranges: bool = True,
    now: float = MODIFIED + 3600,
    etag: str = ETAG,
    dated: bool = True,
) -> Outcome:
    return evaluate(method, headers, Validators(etag, MODIFIED, dated, size, ranges), now=now)


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 100),
        ("bytes=10-19", 10, 20),
        ("bytes=99-", 99, 100),
        ("bytes=50-1000", 50, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-1000", 0, 100),
        ("Bytes = 5-6", 5, 7),
    ],
)
def test_one_range_is_cut_out(text: str, start: int, stop: int) -> None:
    assert asked({"Range": text}) == Partial(start, stop)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "items=0-1",
        "bytes=0-1,3-4",
        "bytes=0-1-2",
        "bytes=٣-٤",
    ],
)
def test_an_invalid_range_or_several_are_the_whole(text: str) -> None:
    assert asked({"Range": text}) == Whole()


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 30 + "-"])
def test_a_range_outside_is_not_satisfiable_and_says_the_size(text: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        asked({"Range": text})
    assert caught.value.headers == {"Content-Range": "bytes */100"}


def test_nothing_of_an_empty_representation_is_satisfiable() -> None:
    for text in ("bytes=0-", "bytes=0-0", "bytes=-0"):
        with pytest.raises(RangeNotSatisfiable):
            asked({"Range": text}, size=0)


def test_the_end_of_an_empty_representation_is_all_of_it() -> None:
    assert asked({"Range": "bytes=-5"}, size=0) == Whole()


def test_a_range_is_for_get_and_for_representations_that_have_ranges() -> None:
    assert asked({"Range": "bytes=0-1"}, method="HEAD") == Whole()
    assert asked({"Range": "bytes=0-1"}, ranges=False) == Whole()


@pytest.mark.parametrize(
    ("condition", "honoured"),
    [
        (ETAG, True),
        ('"v2"', False),
        ("W/" + ETAG, False),
        (DATE, True),
        (EARLIER, False),
        (LATER, False),
        ("junk", False),
    ],
)
def test_if_range_compares_strongly(condition: str, honoured: bool) -> None:
    expected = Partial(5, 100) if honoured else Whole()
    assert asked({"Range": "bytes=5-", "If-Range": condition}) == expected


def test_a_date_that_may_stay_while_the_content_changes_shows_nothing() -> None:
    assert asked({"Range": "bytes=5-", "If-Range": DATE}, dated=False) == Whole()
    assert asked({"If-Modified-Since": DATE}, dated=False) == Whole()
    assert asked({"Range": "bytes=5-", "If-Range": ETAG}, dated=False) == Partial(5, 100)


def test_a_date_is_no_strong_validator_within_its_first_minute() -> None:
    assert asked({"Range": "bytes=5-", "If-Range": DATE}, now=MODIFIED + 59) == Whole()


@pytest.mark.parametrize("condition", ["*", ETAG, f'"a", {ETAG}', f'"a",{ETAG} ,"b"', f',"a", ,,{ETAG},'])
def test_if_match_holds_for_the_current_version(condition: str) -> None:
    assert asked({"If-Match": condition}) == Whole()


@pytest.mark.parametrize("condition", ['"v2"', "W/" + ETAG, "v1", "", '"v1'])
def test_if_match_fails_for_another_or_a_weak_one(condition: str) -> None:
    with pytest.raises(PreconditionFailed):
        asked({"If-Match": condition})


@pytest.mark.parametrize("condition", ["*", ETAG, "W/" + ETAG, f'"a", W/{ETAG}'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_none_match_of_the_current_version_is_not_modified(condition: str, method: str) -> None:
    assert asked({"If-None-Match": condition}, method=method) == NotModified()


def test_dates_are_asked_only_where_no_etag_is() -> None:
    assert asked({"If-None-Match": '"v2"', "If-Modified-Since": DATE}) == Whole()
    assert asked({"If-Match": ETAG, "If-Unmodified-Since": EARLIER}) == Whole()


def test_dates_compare_to_the_second() -> None:
    assert asked({"If-Modified-Since": DATE}) == NotModified()
    assert asked({"If-Modified-Since": EARLIER}) == Whole()
    assert asked({"If-Modified-Since": "junk"}) == Whole()
    assert asked({"If-Unmodified-Since": DATE}) == Whole()
    with pytest.raises(PreconditionFailed):
        asked({"If-Unmodified-Since": EARLIER})


def test_a_failed_precondition_comes_before_everything() -> None:
    with pytest.raises(PreconditionFailed):
        asked({"If-Match": '"v2"', "If-None-Match": ETAG, "Range": "bytes=0-1"})


header = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
names = st.sampled_from(["Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"])


@given(st.dictionaries(names, header | st.sampled_from([ETAG, DATE, "bytes=1-2"])), st.integers(0, 200))
def test_no_header_is_a_defect_of_ours(headers: dict[str, str], size: int) -> None:
    try:
        outcome = asked(headers, size=size)
    except (PreconditionFailed, RangeNotSatisfiable):
        return
    if isinstance(outcome, Partial):
        assert 0 <= outcome.start < outcome.stop <= size


def test_a_range_of_what_has_no_size_is_the_whole() -> None:
    assert asked({"Range": "bytes=0-1"}, size=None) == Whole()


def test_a_weak_etag_answers_if_none_match_and_nothing_that_needs_the_same_bytes() -> None:
    """RFC 9110 sections 13.1.1, 13.1.2 and 13.1.5."""
    weak = 'W/"v1"'
    for listed in (weak, '"v1"', '"v0", W/"v1"', "*"):
        assert asked({"If-None-Match": listed}, etag=weak) == NotModified()
    assert asked({"If-None-Match": 'W/"v2"'}, etag=weak) == Whole()
    for listed in (weak, '"v1"'):
        with pytest.raises(PreconditionFailed):
            asked({"If-Match": listed}, etag=weak)
        assert asked({"Range": "bytes=0-1", "If-Range": listed}, etag=weak) == Whole()
    assert asked({"If-Match": "*"}, etag=weak) == Whole()
