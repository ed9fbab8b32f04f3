"""How the API writes values: times, checksums, durations. One type each, for every model."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, StringConstraints, WithJsonSchema


def rfc3339(seconds: int) -> str:
    """Whole seconds since the epoch as RFC 3339, UTC, ending in ``Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00") + "Z"


def _whole_seconds(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset from UTC")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies in the years 1 to 9999 of UTC") from None


Timestamp = Annotated[
    datetime,
    AfterValidator(_whole_seconds),
    PlainSerializer(lambda moment: rfc3339(int(moment.timestamp())), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A moment, written as RFC 3339 in UTC ending in ``Z``, to the second."""

Crc32Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
"""A CRC-32 as 8 lower-case hex digits."""

ContentType = Annotated[str, StringConstraints(pattern=r"^[!-~]([ -~]{0,253}[!-~])?$")]
"""A media type as a header can carry it."""


def crc32_hex(crc32: int | None) -> str | None:
    """A CRC-32 as the API writes it, None where it is unknown."""
    return None if crc32 is None else f"{crc32:08x}"


def moment(seconds: int) -> datetime:
    """Whole seconds since the epoch as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)
