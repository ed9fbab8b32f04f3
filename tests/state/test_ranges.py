from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.state.ranges import RangeSet
from storage_proxy.state.sqlite_commits import History, Reads, Written

bounds = st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda each: each[0] != each[1]).map(sorted)
key_bytes = st.binary(max_size=5)


def at(number: int) -> bytes:
    return bytes([number])


@given(added=st.lists(bounds, max_size=12), asked=bounds)
def test_a_range_set_is_the_union_of_what_was_added(added: list[list[int]], asked: list[int]) -> None:
    ranges = RangeSet()
    members: set[int] = set()
    for begin, end in added:
        ranges.add(at(begin), at(end))
        members |= set(range(begin, end))
    assert {number for number in range(31) if at(number) in ranges} == members
    pairs = list(ranges)
    assert all(begin < end for begin, end in pairs)
    assert all(former[1] < later[0] for former, later in pairwise(pairs))
    begin, end = asked
    assert ranges.overlaps(at(begin), at(end)) == bool(members & set(range(begin, end)))
    gaps = ranges.gaps(at(begin), at(end))
    assert [number for low, high in gaps for number in range(low[0], high[0])] == sorted(
        set(range(begin, end)) - members
    )


@given(
    keys=st.frozensets(key_bytes | st.just(b"k" * 10_000), max_size=8),
    ranges=st.lists(st.tuples(key_bytes, st.just(b"k" * 10_001) | key_bytes), max_size=8).map(tuple),
)
def test_what_a_commit_wrote_is_read_back(keys: frozenset[bytes], ranges: tuple[tuple[bytes, bytes], ...]) -> None:
    written = Written(7, keys, ranges)
    assert Written.decode(7, written.encode()) == written


def commit(version: int, *keys: bytes) -> Written:
    return Written(version, frozenset(keys), ())


def test_a_history_knows_what_was_written_since_a_version() -> None:
    history = History()
    history.start(0)
    history.extend([commit(1, b"a"), commit(2, b"b"), commit(3, b"c")])
    reads = Reads({b"b"})
    assert history.conflicts(reads, 0)
    assert history.conflicts(reads, 1)
    assert not history.conflicts(reads, 2)


def test_a_history_that_dropped_commits_says_that_it_does_not_know() -> None:
    history = History(max_parts=4)
    history.start(0)
    history.extend([commit(1, b"a"), commit(2, b"b"), commit(3, b"c")])
    assert not history.knows_since(0)
    assert history.knows_since(1)
    history.extend([commit(9, b"d")])  # what lies between was pruned from the file
    assert not history.knows_since(7)
    assert history.knows_since(8)
    assert history.newest == 9
