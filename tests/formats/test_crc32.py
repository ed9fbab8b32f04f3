import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.formats.crc32 import combine
from tests.support.zip_archive import combine_all

CRC = st.integers(min_value=0, max_value=0xFFFFFFFF)
LENGTH = st.integers(min_value=0, max_value=1 << 64)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_combine_is_the_crc_of_the_concatenation(a: bytes, b: bytes) -> None:
    assert combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


@given(st.lists(st.binary(max_size=300)))
def test_combine_all_is_the_crc_of_all_parts_in_order(parts: list[bytes]) -> None:
    assert combine_all((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


@given(CRC, CRC, CRC, LENGTH, LENGTH)
def test_combine_is_associative_at_any_length(a: int, b: int, c: int, length_b: int, length_c: int) -> None:
    left = combine(combine(a, b, length_b), c, length_c)
    right = combine(a, combine(b, c, length_c), length_b + length_c)
    assert left == right


def test_five_gibibytes_of_zeros() -> None:
    gibibyte = combine_all([(zlib.crc32(bytes(1 << 20)), 1 << 20)] * 1024)
    assert combine_all([(gibibyte, 1 << 30)] * 5) == 0x193838C3  # by zlib, once


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        combine(0, 0, -1)
