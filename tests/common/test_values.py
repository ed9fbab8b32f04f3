from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import BaseModel, ValidationError

from storage_proxy.common.values import Crc32Hex, Timestamp, crc32_hex, moment, rfc3339


class Described(BaseModel):
    at: Timestamp
    crc32: Crc32Hex | None = None


def test_a_time_is_written_in_utc_to_the_second_ending_in_z() -> None:
    at = datetime(2024, 2, 29, 13, 5, 7, 999_000, tzinfo=timezone(timedelta(hours=2)))
    assert Described(at=at).model_dump_json() == '{"at":"2024-02-29T11:05:07Z","crc32":null}'


def test_a_time_without_an_offset_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs its offset"):
        Described.model_validate_json('{"at": "2024-02-29T11:05:07"}')


def test_a_time_survives_being_written_and_read() -> None:
    described = Described(at=moment(1_700_000_000))
    assert Described.model_validate_json(described.model_dump_json()) == described
    assert rfc3339(1_700_000_000) == "2023-11-14T22:13:20Z"
    assert moment(0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["ABCDEF00", "1234567", "123456789", "xyzxyzxy", "0x123456"])
def test_a_crc32_is_8_lower_case_hex_digits(text: str) -> None:
    with pytest.raises(ValidationError):
        Described.model_validate({"at": "2024-02-29T11:05:07Z", "crc32": text})


def test_an_unknown_crc32_is_none() -> None:
    assert crc32_hex(None) is None
    assert crc32_hex(0) == "00000000"
    assert crc32_hex(0xFFFFFFFF) == "ffffffff"
