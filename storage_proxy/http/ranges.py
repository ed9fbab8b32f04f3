"""Conditional requests and ranges, by RFC 9110 sections 13 and 14.

The law: pure functions of headers and validators; a Range is honoured only for the very representation it was asked
of.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from storage_proxy.common.errors import PreconditionFailed, RangeNotSatisfiable

_ETAG = re.compile(r'[\s,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,1000})-(\d{0,1000})\s*", re.ASCII | re.IGNORECASE)
_STRONG_DATE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Validators:
    """``etag`` with its quotes (and ``W/`` where it is weak), ``last_modified`` in epoch seconds.

    ``dated`` says whether another content would have another ``last_modified``: else a date never shows that the
    content is the same.
    ``size`` is in bytes, None where only the end will tell: no range can be answered then, whatever ``ranges`` says.
    """

    etag: str
    last_modified: int
    dated: bool
    size: int | None
    ranges: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """Answer 200 with everything."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Answer 206 with bytes ``start`` (included) to ``stop`` (excluded)."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """Answer 304."""


Outcome = Whole | Partial | NotModified


def evaluate(method: str, headers: Mapping[str, str], validators: Validators, *, now: float) -> Outcome:
    """What the conditional headers and Range ask for; ``now`` is in epoch seconds.

    ``headers`` joins repeated fields by commas. The order is that of RFC 9110 section 13.2.2. Raises
    `PreconditionFailed` and `RangeNotSatisfiable`.
    """
    if_match, if_none_match = headers.get("If-Match"), headers.get("If-None-Match")
    if if_match is not None:
        current = _matches(if_match, validators.etag, weak=False)
    else:
        since = _date(headers.get("If-Unmodified-Since"))
        current = since is None or validators.last_modified <= since
    if not current:
        raise PreconditionFailed
    if if_none_match is not None:
        known = _matches(if_none_match, validators.etag, weak=True)
    else:
        since = _date(headers.get("If-Modified-Since"))
        known = since is not None and validators.dated and validators.last_modified <= since
    if known:
        return NotModified()
    asked = headers.get("Range")
    if method != "GET" or asked is None or not validators.ranges or validators.size is None:
        return Whole()
    if not _same_as_before(headers, validators, now):
        return Whole()
    return _range(asked, validators.size)


def _range(asked: str, size: int) -> Whole | Partial:
    """One byte range (section 14.1.2); an invalid one, or several, are ignored (section 14.2)."""
    match = _RANGE.fullmatch(asked)
    if match is None:
        return Whole()
    first, last = match[1], match[2]
    if not first and not last:
        return Whole()
    if not first:
        if not size and int(last):
            return Whole()  # satisfiable (section 14.1.2), and no Content-Range can say so
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return Whole()
    if start >= size or start >= stop:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return Partial(start, stop)


def _same_as_before(headers: Mapping[str, str], validators: Validators, now: float) -> bool:
    """If-Range (section 13.1.5): a strong comparison, of a date only when it is a strong validator."""
    condition = headers.get("If-Range")
    if condition is None:
        return True
    if condition.lstrip().startswith(('"', "W/")):
        return condition.strip() == validators.etag and not validators.etag.startswith("W/")
    is_strong = validators.dated and now - validators.last_modified >= _STRONG_DATE_SECONDS
    return is_strong and _date(condition) == validators.last_modified


def _matches(listed: str, etag: str, *, weak: bool) -> bool:
    if listed.strip() == "*":
        return True
    position = 0
    while match := _ETAG.match(listed, position):
        if match[2] == etag.removeprefix("W/") and (weak or not (match[1] or etag.startswith("W/"))):
            return True
        position = match.end()
        if position >= len(listed):
            break
    return False


def _date(text: str | None) -> int | None:
    """An HTTP-date in epoch seconds; None for what is none, which makes its field ignored."""
    if text is None:
        return None
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None
