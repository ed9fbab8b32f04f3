"""Transactions are serialisable on every engine, and conflict exactly where FoundationDB's do."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from storage_proxy.state.port import Transaction
from tests.support.state import (
    Meeting,
    StateBackend,
    runs_when_overtaken,
)

Step = Callable[[Transaction, StateBackend], Awaitable[object]]


def get(name: bytes, *, snapshot: bool = False) -> Step:
    return lambda transaction, state: transaction.get(state.key(name), snapshot=snapshot)


def get_many(*names: bytes, snapshot: bool = False) -> Step:
    return lambda transaction, state: transaction.get_many([state.key(name) for name in names], snapshot=snapshot)


def get_range(begin: bytes, end: bytes, limit: int = 100, *, reverse: bool = False, snapshot: bool = False) -> Step:
    return lambda transaction, state: transaction.get_range(
        state.key(begin), state.key(end), limit=limit, reverse=reverse, snapshot=snapshot
    )


async def nothing() -> None: ...


def put(name: bytes) -> Step:
    return lambda transaction, state: (transaction.set(state.key(name), b"new"), nothing())[1]


def clear(name: bytes) -> Step:
    return lambda transaction, state: (transaction.clear(state.key(name)), nothing())[1]


def clear_range(begin: bytes, end: bytes) -> Step:
    return lambda transaction, state: (
        transaction.clear_range(state.key(begin), state.key(end)),
        nothing(),
    )[1]


def conflict_range(begin: bytes, end: bytes) -> Step:
    return lambda transaction, state: (
        transaction.add_read_conflict_range(state.key(begin), state.key(end)),
        nothing(),
    )[1]


# What the first transaction does (it writes a key of its own, too), what the other one commits, whether that conflicts.
# There are b, d, f and h.
CONFLICTS: dict[str, tuple[list[Step], list[Step], bool]] = {
    "get, set": ([get(b"b")], [put(b"b")], True),
    "get, set to the same value": ([get(b"b")], [put(b"b"), put(b"b")], True),
    "get, clear": ([get(b"b")], [clear(b"b")], True),
    "get, clear range": ([get(b"d")], [clear_range(b"a", b"z")], True),
    "get, clear range before it": ([get(b"d")], [clear_range(b"a", b"d")], False),
    "get, clear range from it": ([get(b"d")], [clear_range(b"d", b"e")], True),
    "get of nothing, set": ([get(b"c")], [put(b"c")], True),
    "get of nothing, clear of nothing": ([get(b"c")], [clear(b"c")], True),
    "get, set of another": ([get(b"b")], [put(b"d")], False),
    "many gets, set of one": ([get_many(b"b", b"c", b"d")], [put(b"c")], True),
    "many gets, set between them": ([get_many(b"b", b"d")], [put(b"c")], False),
    "many snapshot gets, set of one": ([get_many(b"b", b"c", snapshot=True)], [put(b"b")], False),
    "own set then many gets, set": ([get(b"h"), put(b"b"), get_many(b"b", b"d")], [put(b"b")], False),
    "snapshot get, set": ([get(b"b", snapshot=True)], [put(b"b")], False),
    "snapshot get and conflict range, set": (
        [get(b"b", snapshot=True), conflict_range(b"b", b"c")],
        [put(b"b")],
        True,
    ),
    "conflict range after a read, set": ([get(b"h"), conflict_range(b"b", b"c")], [put(b"bb")], True),
    "conflict range, set outside": ([get(b"h"), conflict_range(b"b", b"c")], [put(b"c")], False),
    "set, set": ([put(b"b")], [put(b"b")], False),
    "own set then get, set": ([get(b"h"), put(b"b"), get(b"b")], [put(b"b")], False),
    "own clear then get, set": ([get(b"h"), clear(b"b"), get(b"b")], [put(b"b")], False),
    "get then own set, set": ([get(b"b"), put(b"b")], [put(b"b")], True),
    "range, set of a row": ([get_range(b"a", b"e")], [put(b"b")], True),
    "range, set between rows": ([get_range(b"a", b"e")], [put(b"c")], True),
    "range, set at its begin": ([get_range(b"a", b"e")], [put(b"a")], True),
    "range, set at its end": ([get_range(b"a", b"e")], [put(b"e")], False),
    "empty range, set in it": ([get_range(b"bb", b"c")], [put(b"bc")], True),
    "range, clear range that overlaps": ([get_range(b"a", b"c")], [clear_range(b"bz", b"z")], True),
    "range, clear range beside it": ([get_range(b"a", b"c")], [clear_range(b"c", b"z")], False),
    "snapshot range, set": ([get_range(b"a", b"e", snapshot=True)], [put(b"c")], False),
    "limit, set before the last row": ([get_range(b"a", b"z", 2)], [put(b"c")], True),
    "limit, set of the last row": ([get_range(b"a", b"z", 2)], [put(b"d")], True),
    "limit, set after the last row": ([get_range(b"a", b"z", 2)], [put(b"d\x00")], False),
    "limit not reached, set at the end": ([get_range(b"a", b"z", 5)], [put(b"y")], True),
    "reverse limit, set after the last row": ([get_range(b"a", b"z", 2, reverse=True)], [put(b"g")], True),
    "reverse limit, set of the last row": ([get_range(b"a", b"z", 2, reverse=True)], [put(b"f")], True),
    "reverse limit, set before the last row": ([get_range(b"a", b"z", 2, reverse=True)], [put(b"e")], False),
    "range with an own row, set of that row": ([put(b"c"), get_range(b"bz", b"cz")], [put(b"c")], False),
    "range with an own row, set beside it": ([put(b"c"), get_range(b"bz", b"cz")], [put(b"cc")], True),
    "limit with an own row, set before the last row": ([put(b"c"), get_range(b"a", b"z", 2)], [put(b"bb")], True),
    "limit with an own row, set after the last row": ([put(b"c"), get_range(b"a", b"z", 2)], [put(b"cc")], False),
    "own cleared range then range, set": (
        [get(b"h"), clear_range(b"a", b"e"), get_range(b"a", b"e")],
        [put(b"b")],
        False,
    ),
    "range beyond own cleared range, set": ([clear_range(b"a", b"e"), get_range(b"a", b"g")], [put(b"e")], True),
    "clear range, set in it": ([clear_range(b"a", b"z")], [put(b"b")], False),
}


@pytest.mark.parametrize("case", CONFLICTS)
async def test_a_transaction_runs_again_exactly_when_what_it_read_was_written(state: StateBackend, case: str) -> None:
    await state.put(b=b"1", d=b"1", f=b"1", h=b"1")
    reads, writes, conflicts = CONFLICTS[case]

    async def fn(transaction: Transaction) -> None:
        transaction.set(state.key(b"\xfe"), b"")
        for step in reads:
            await step(transaction, state)

    async def by(transaction: Transaction) -> None:
        for step in writes:
            await step(transaction, state)

    assert await runs_when_overtaken(state.store, fn, by) == (2 if conflicts else 1)


async def test_a_transaction_that_only_reads_never_runs_again(state: StateBackend) -> None:
    async def fn(transaction: Transaction) -> None:
        await transaction.get_range(*state.bounds, limit=10)

    async def by(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"")

    assert await runs_when_overtaken(state.store, fn, by) == 1


async def test_a_conflict_is_seen_between_two_stores_on_one_content(state: StateBackend) -> None:
    other = await state.again()
    runs = 0

    async def fn(transaction: Transaction) -> None:
        nonlocal runs
        runs += 1
        rows = await transaction.get_range(*state.bounds, limit=10)
        transaction.set(state.key(b"count"), b"%d" % len(rows))
        if runs == 1:
            await other.transact(by)

    async def by(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"")

    await state.store.transact(fn)
    assert runs == 2
    assert await state.contents() == {b"a": b"", b"count": b"1"}


async def test_no_update_is_lost(state: StateBackend) -> None:
    stores = [state.store, await state.again()]

    async def add(number: int) -> None:
        async def fn(transaction: Transaction) -> None:
            done = state.key(b"done/%d" % number)
            if await transaction.get(done) is None:  # a commit of unknown result runs again
                transaction.set(done, b"")
                count = int(await transaction.get(state.key(b"count")) or 0)
                transaction.set(state.key(b"count"), b"%d" % (count + 1))

        await stores[number % 2].transact(fn)

    await asyncio.gather(*(add(number) for number in range(40)))
    assert (await state.contents())[b"count"] == b"40"


async def test_two_that_each_read_what_the_other_writes_are_not_both_let_through(state: StateBackend) -> None:
    await state.put(a=b"1", b=b"1")
    meeting = Meeting(2)

    async def leave(name: bytes) -> None:
        async def fn(transaction: Transaction) -> None:
            on_call = [value for _, value in await transaction.get_range(*state.bounds, limit=10)]
            await meeting.wait()
            if on_call.count(b"1") > 1:
                transaction.set(state.key(name), b"0")

        await state.store.transact(fn)

    await asyncio.gather(leave(b"a"), leave(b"b"))
    assert sorted((await state.contents()).values()) == [b"0", b"1"]


async def test_a_retried_transaction_sees_what_overtook_it(state: StateBackend) -> None:
    seen: list[bytes | None] = []

    async def fn(transaction: Transaction) -> None:
        seen.append(await transaction.get(state.key(b"a")))
        transaction.set(state.key(b"b"), b"")

    async def by(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"1")

    await runs_when_overtaken(state.store, fn, by)
    assert seen == [None, b"1"]


async def test_a_failed_attempt_fails_even_if_its_function_swallows_that(state: StateBackend) -> None:
    """The first attempt is made too old, in a task group, and its exception is dropped."""
    if state.clock is None:
        pytest.skip("fdb: the time of a real cluster cannot be moved")
    runs = 0

    async def fn(transaction: Transaction) -> None:
        nonlocal runs
        runs += 1
        await transaction.get(state.key(b"a"))
        if runs == 1:
            assert state.clock
            state.clock.now += 5.1
            await state.put(other=b"")
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(transaction.get(state.key(b"b")))
            transaction.set(state.key(b"a"), b"%d" % runs)

    await state.store.transact(fn)
    assert await state.contents() == {b"a": b"2", b"other": b""}
