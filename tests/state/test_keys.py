import pytest

from storage_proxy.state.keys import Subspace


def test_packed_keys_sort_as_their_elements_do() -> None:
    space = Subspace("runs")
    elements: list[tuple[str, int]] = [("a", -1), ("a", 0), ("a", 255), ("a", 256), ("a\x00", 1), ("ab", 1), ("b", 1)]
    keys = [space.pack(*each) for each in elements]
    assert keys == sorted(keys)
    assert [space.unpack(key) for key in keys] == elements


def test_a_subspaces_range_is_what_begins_with_its_elements() -> None:
    space = Subspace("runs").subspace("r1")
    begin, end = space.range()
    assert begin <= space.pack("x") < end
    assert begin <= space.pack(None) < end
    assert not begin <= Subspace("runs").pack("r10", "x") < end
    assert not begin <= Subspace("runs").pack("r1") < end
    assert space.pack("x") in space
    with pytest.raises(ValueError, match="not of this subspace"):
        space.unpack(Subspace("other").pack("x"))
    with pytest.raises(ValueError, match="no packed tuple"):
        space.unpack(space.prefix + b"\x33\x00")
