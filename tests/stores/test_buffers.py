"""The buffers of readers: within the process's budget, larger for the fast, and never filled under somebody's eyes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.stores.buffers import LEAST, READ_AHEAD, RECEIVED, Buffer, BufferPool, Levels, ReaderBuffers
from tests.support.programs import memory_figure

MIB = 1 << 20


def pool(total: int = 128 * MIB) -> BufferPool:
    return BufferPool(ByteBudget(total))


def filled(lent: BufferPool, size: int) -> Buffer:
    """A leased buffer whose memory is there."""
    buffer = lent.lease(size)
    assert buffer is not None
    buffer.view[:] = b"x" * size
    return buffer


def own_memory() -> int:
    """Bytes of memory that are this process's own."""
    return memory_figure("RssAnon", "self")


def turns(buffers: ReaderBuffers, count: int, seconds: float) -> None:
    """Read so many full buffers, each within ``seconds``."""
    for _ in range(count):
        held = [buffer for _ in range(3) if (buffer := buffers.obtain(None)) is not None]
        for buffer in held:
            buffers.paced(len(buffer), len(buffer), seconds)
            buffers.spend(buffer, None)


@pytest.mark.parametrize(("levels", "sizes"), [(RECEIVED, [4 * MIB, 4 * MIB]), (READ_AHEAD, [MIB, MIB])])
def test_a_reader_begins_with_64_kib_and_grows_while_it_is_quick(levels: Levels, sizes: list[int]) -> None:
    lent = pool()
    buffers = ReaderBuffers(lent, 1 << 30, levels)
    assert buffers.obtain(None) is not None
    assert (buffers.obtain(None), buffers.held_bytes) == (None, LEAST)
    buffers.close()
    buffers = ReaderBuffers(lent, 1 << 30, levels)
    turns(buffers, 10, 0.001)
    assert [len(buffer) for _ in range(3) if (buffer := buffers.obtain(None)) is not None] == sizes
    buffers.close()
    assert (lent.budget.taken, lent.readers, lent.grown) == (0, 0, 0)


def test_a_reader_that_becomes_slow_shrinks_to_its_least() -> None:
    buffers = ReaderBuffers(pool(), 1 << 30)
    turns(buffers, 10, 0.001)
    turns(buffers, 3, 10.0)
    buffers.obtain(None)
    assert buffers.held_bytes == LEAST


def test_a_source_that_does_not_fill_a_buffer_gets_no_larger_one() -> None:
    buffers = ReaderBuffers(pool(), 1 << 30)
    for _ in range(10):
        buffer = buffers.obtain(None)
        assert buffer is not None
        buffers.paced(1500, len(buffer), 0.0)
        buffers.spend(buffer, None)
    assert buffers.held_bytes == LEAST


def test_a_thousand_slow_readers_have_64_kib_each_and_a_fast_one_among_them_4_mib() -> None:
    lent = pool()
    readers = [ReaderBuffers(lent, 1 << 30) for _ in range(1000)]
    for buffers in readers:
        turns(buffers, 3, 1.0)
        buffers.obtain(None)
    turns(fast := ReaderBuffers(lent, 1 << 30), 10, 0.001)
    fast.obtain(None)
    assert ({buffers.held_bytes for buffers in readers}, fast.held_bytes) == ({LEAST}, 4 * MIB)
    for buffers in (*readers, fast):
        buffers.close()
    assert (lent.budget.taken, lent.readers, lent.grown) == (0, 0, 0)


def test_what_many_fast_readers_have_beyond_their_least_is_at_most_half_of_the_budget() -> None:
    lent = pool()
    readers = [ReaderBuffers(lent, 1 << 30) for _ in range(300)]
    for _ in range(5):
        for buffers in readers:
            turns(buffers, 1, 0.001)
            buffers.obtain(None)
    larger = [buffers.held_bytes for buffers in readers if buffers.held_bytes > LEAST]
    assert 16 * MIB < sum(larger) <= 64 * MIB
    assert lent.budget.taken <= 64 * MIB + 300 * LEAST


def test_a_reader_has_its_least_when_the_budget_is_taken() -> None:
    lent = pool(MIB)
    lent.budget.take_anyway(2 * MIB)
    buffers = ReaderBuffers(lent, 1 << 30)
    turns(buffers, 5, 0.001)
    buffer = buffers.obtain(None)
    assert buffer is not None
    assert len(buffer) == LEAST


@pytest.mark.parametrize(("length", "size"), [(1, 16), (10 << 10, 16), (16 << 10, 32), (40 << 10, 64), (1 << 30, 64)])
def test_a_small_answer_takes_no_more_than_it_needs(length: int, size: int) -> None:
    buffers = ReaderBuffers(pool(), length)
    buffer = buffers.obtain(None)
    assert buffer is not None
    assert len(buffer) == size << 10


def test_what_somebody_may_still_look_at_is_not_leased_again() -> None:
    lent = pool()
    buffers = ReaderBuffers(lent, 1 << 30)
    seen = buffers.obtain(None)
    buffers.close(seen)
    assert lent.budget.taken == 0
    assert lent.lease(LEAST) is not seen


def test_what_nobody_leases_is_kept_within_bounds() -> None:
    lent = pool()
    leased = [lent.lease(MIB) for _ in range(20)]
    for buffer in leased:
        assert buffer is not None
        lent.give_back(buffer)
    assert lent.budget.taken == 0
    again = [lent.lease(MIB) for _ in range(20)]
    assert sum(any(buffer is each for each in leased) for buffer in again) == 16


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc that tells a process's memory")
def test_the_memory_of_what_is_not_kept_goes_back_to_the_system() -> None:
    lent = pool()
    lent.give_back(filled(lent, 4 * MIB))  # a malloc that saw this one freed would keep all smaller ones in its heap
    before = own_memory()
    buffers = [filled(lent, MIB) for _ in range(64)]
    assert own_memory() - before >= 60 * MIB
    left = buffers[7::8]  # and in a heap each of these would hold back what lies below it
    for buffer in buffers:
        if not any(buffer is each for each in left):
            lent.give_back(buffer)
    del buffers, buffer
    assert own_memory() - before < 8 * MIB + 16 * MIB + 8 * MIB


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(("obtain", "spend", "close")),
            st.sampled_from((0.001, 0.2, 5.0)),
            st.one_of(st.none(), st.integers(1, 3 * MIB)),
        ),
        max_size=120,
    )
)
def test_whatever_readers_do_no_buffer_has_two_owners_and_all_is_given_back(
    steps: list[tuple[int, str, float, int | None]],
) -> None:
    lent = pool(4 * MIB)
    readers = [ReaderBuffers(lent, 1 << 30) for _ in range(5)]
    owned: list[list[Buffer]] = [[] for _ in readers]
    for which, step, seconds, expected in steps:
        buffers, own = readers[which], owned[which]
        if step == "close":
            buffers.close(*own)
            readers[which], owned[which] = ReaderBuffers(lent, 1 << 30), []
        elif step == "spend" and own:
            buffer = own.pop(0)
            buffers.paced(len(buffer), len(buffer), seconds)
            buffers.spend(buffer, expected)
        elif step == "obtain":
            buffer_or_none = buffers.obtain(expected)
            assert buffer_or_none is not None or own, "a reader has its least"
            if buffer_or_none is not None:
                assert not any(buffer_or_none is each for others in owned for each in others)
                own.append(buffer_or_none)
        assert lent.budget.taken == sum(each.held_bytes for each in readers)
        assert lent.budget.taken <= 4 * MIB + 5 * LEAST
    for buffers in readers:
        buffers.close()
    assert (lent.budget.taken, lent.readers, lent.grown) == (0, 0, 0)
