"""What the KeyValueStore port promises, of every engine: rows, own writes, failures, exports."""

import asyncio

import pytest

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state import limits
from storage_proxy.state.port import Row, Transaction
from tests.support.state import (
    StateBackend,
    read_all,
)

# Rows


async def test_what_was_set_is_there_for_every_later_transaction(state: StateBackend) -> None:
    await state.put(a=b"1", b=b"")

    async def fn(transaction: Transaction) -> list[bytes | None]:
        return [await transaction.get(state.key(name)) for name in (b"a", b"b", b"c")]

    assert await state.store.transact(fn) == [b"1", b"", None]
    assert await (await state.again()).transact(fn) == [b"1", b"", None]


async def test_rows_are_in_the_byte_order_of_keys(state: StateBackend) -> None:
    names = [b"", b"\x00", b"\x00\x00", b"\x00\xff", b"A", b"a", b"a\x00", b"a\x00b", b"ab", b"b", b"\x7f", b"\x80"]

    async def write(transaction: Transaction) -> None:
        for name in reversed(names):
            transaction.set(state.key(name), name)

    await state.store.transact(write)
    rows = await read_all(state.store, *state.bounds)
    assert [value for _, value in rows] == sorted(names)
    assert state.named(rows) == [(name, name) for name in sorted(names)]


RANGES = [
    (b"", b"~"),
    (b"03", b"07"),
    (b"03", b"03\x00"),
    (b"025", b"065"),
    (b"20", b"~"),
    (b"07", b"03"),
    (b"x", b"x"),
]


@pytest.mark.parametrize("bounds", RANGES, ids=ascii)
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_range_gives_what_lies_between_its_bounds(
    state: StateBackend, bounds: tuple[bytes, bytes], reverse: bool
) -> None:
    names = [f"{i:02}" for i in range(25)]
    await state.put(**{name: name.encode() for name in names})
    expected = sorted((name.encode() for name in names if bounds[0] <= name.encode() < bounds[1]), reverse=reverse)
    begin, end = map(state.key, bounds)

    async def fn(transaction: Transaction) -> None:
        for limit in (1, 2, 7, 8, 24, 25, 26, 1_000):
            rows = await transaction.get_range(begin, end, limit=limit, reverse=reverse)
            assert [value for _, value in rows] == expected[:limit]
        batches = [batch async for batch in transaction.get_batches(begin, end, reverse=reverse)]
        assert all(batches)
        assert [value for batch in batches for _, value in batch] == expected

    await state.store.transact(fn)


async def test_clear_removes_a_key_and_clear_range_all_between_its_bounds(state: StateBackend) -> None:
    await state.put(a=b"1", b=b"2", c=b"3", d=b"4", e=b"5")

    async def fn(transaction: Transaction) -> None:
        transaction.clear(state.key(b"a"))
        transaction.clear(state.key(b"nothing"))
        transaction.clear_range(state.key(b"b"), state.key(b"d"))
        transaction.clear_range(state.key(b"e"), state.key(b"e"))

    await state.store.transact(fn)
    assert await state.contents() == {b"d": b"4", b"e": b"5"}


async def test_many_rows_are_read_and_cleared(state: StateBackend) -> None:
    count = 2_500

    async def write(transaction: Transaction) -> None:
        for i in range(count):
            transaction.set(state.key(b"%05d" % i), bytes(100))

    await state.store.transact(write)
    assert len(await read_all(state.store, *state.bounds)) == count

    async def clear(transaction: Transaction) -> list[Row]:
        transaction.clear_range(state.key(b"00001"), state.key(b"02499"))
        return list(await transaction.get_range(*state.bounds, limit=10))

    assert [key for key, _ in state.named(await state.store.transact(clear))] == [b"00000", b"02499"]


# Own writes


async def test_a_transaction_reads_its_own_writes(state: StateBackend) -> None:
    await state.put(a=b"old", b=b"old", c=b"old", d=b"old")
    key = state.key

    async def fn(transaction: Transaction) -> None:
        for snapshot in (False, True):
            transaction.set(key(b"a"), b"new")
            transaction.clear(key(b"b"))
            transaction.clear_range(key(b"c"), key(b"e"))
            transaction.set(key(b"d"), b"again")
            transaction.set(key(b"x"), b"added")
            assert await transaction.get(key(b"a"), snapshot=snapshot) == b"new"
            assert await transaction.get(key(b"b"), snapshot=snapshot) is None
            assert await transaction.get(key(b"c"), snapshot=snapshot) is None
            assert await transaction.get(key(b"d"), snapshot=snapshot) == b"again"
            rows = list(await transaction.get_range(*state.bounds, limit=10, snapshot=snapshot))
            assert state.named(rows) == [(b"a", b"new"), (b"d", b"again"), (b"x", b"added")]
            (last,) = await transaction.get_range(*state.bounds, limit=1, reverse=True, snapshot=snapshot)
            assert last[1] == b"added"

    await state.store.transact(fn)
    assert await state.contents() == {b"a": b"new", b"d": b"again", b"x": b"added"}


async def test_a_limit_counts_rows_that_are_there_and_not_those_just_cleared(state: StateBackend) -> None:
    await state.put(**{f"{i:03}": b"" for i in range(60)})

    async def fn(transaction: Transaction) -> None:
        for i in range(50):
            transaction.clear(state.key(b"%03d" % i))
        transaction.set(state.key(b"0005"), b"")
        rows = list(await transaction.get_range(*state.bounds, limit=3))
        assert [name for name, _ in state.named(rows)] == [b"0005", b"050", b"051"]

    await state.store.transact(fn)


async def test_nobody_sees_writes_before_the_commit(state: StateBackend) -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"1")
        assert await state.contents() == {}

    await state.store.transact(fn)
    assert await state.contents() == {b"a": b"1"}


async def test_a_transaction_sees_one_moment_however_long_it_reads(state: StateBackend) -> None:
    await state.put(a=b"1", b=b"1")

    async def fn(transaction: Transaction) -> tuple[bytes | None, ...]:
        first = await transaction.get(state.key(b"a"))
        await state.put(a=b"2", b=b"2", c=b"2")
        second = await transaction.get(state.key(b"b"))
        third = await transaction.get(state.key(b"c"))
        assert state.named(list(await transaction.get_range(*state.bounds, limit=9))) == [
            (b"a", b"1"),
            (b"b", b"1"),
        ]
        return first, second, third

    assert await state.store.transact(fn) == (b"1", b"1", None)


async def test_several_tasks_of_one_function_may_read_at_once(state: StateBackend) -> None:
    await state.put(**{f"{i:02}": str(i).encode() for i in range(50)})

    async def fn(transaction: Transaction) -> list[bytes | None]:
        return await asyncio.gather(*(transaction.get(state.key(b"%02d" % i)) for i in range(50)))

    assert await state.store.transact(fn) == [b"%d" % i for i in range(50)]


# Failure


async def test_many_keys_are_read_at_once_own_writes_included(state: StateBackend) -> None:
    await state.put(a=b"1", b=b"2", c=b"3")

    async def fn(transaction: Transaction) -> list[bytes | None]:
        transaction.set(state.key(b"b"), b"own")
        transaction.clear(state.key(b"c"))
        keys = [state.key(name) for name in (b"c", b"a", b"b", b"d", b"a")]
        found = [*await transaction.get_many(keys), *await transaction.get_many(keys[1:2], snapshot=True)]
        return found + list(await transaction.get_many([]))

    assert await state.store.transact(fn) == [None, b"1", b"own", None, b"1", b"1"]


async def test_an_exception_of_the_function_comes_out_as_it_is_and_nothing_is_written(state: StateBackend) -> None:
    class Refused(Exception):
        pass

    async def fn(transaction: Transaction) -> None:
        await transaction.get(state.key(b"a"))
        transaction.set(state.key(b"a"), b"1")
        raise Refused

    with pytest.raises(Refused):
        await state.store.transact(fn)
    assert await state.contents() == {}


async def test_a_timeout_of_the_function_itself_is_not_the_stores(state: StateBackend) -> None:
    async def fn(_: Transaction) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await state.store.transact(fn)


async def test_a_transaction_that_outlives_its_function_is_refused(state: StateBackend) -> None:
    leaked: list[Transaction] = []

    async def fn(transaction: Transaction) -> None:
        leaked.append(transaction)
        await transaction.get(state.key(b"a"))

    await state.store.transact(fn)
    (transaction,) = leaked
    with pytest.raises(limits.TransactionFinished):
        await transaction.get(state.key(b"a"))
    with pytest.raises(limits.TransactionFinished):
        await transaction.get_range(*state.bounds, limit=1)
    with pytest.raises(limits.TransactionFinished):
        transaction.set(state.key(b"a"), b"1")
    with pytest.raises(limits.TransactionFinished):
        transaction.clear_range(*state.bounds)


async def test_a_closed_store_is_unavailable(state: StateBackend) -> None:
    await state.put(a=b"1")
    await state.store.aclose()
    await state.store.aclose()
    with pytest.raises(StateUnavailable):
        await state.contents()
    with pytest.raises(StateUnavailable):
        await state.put(a=b"2")
    with pytest.raises(StateUnavailable):
        await state.store.probe()
    with pytest.raises(StateUnavailable):
        await anext(aiter(state.store.read_snapshot(*state.bounds)))


async def test_a_store_that_works_answers_the_probe(state: StateBackend) -> None:
    await state.store.probe()


# Snapshots for an export


async def test_an_export_sees_one_moment_while_others_write(state: StateBackend) -> None:
    await state.put(**{f"{i:03}": b"old" for i in range(300)})
    found: list[Row] = []
    async for batch in state.store.read_snapshot(*state.bounds):
        assert batch
        if not found:
            await state.put(**{f"{i:03}": b"new" for i in range(0, 400, 7)})
        found += batch
    assert state.named(found) == [(b"%03d" % i, b"old") for i in range(300)]


async def test_an_abandoned_export_holds_nothing(state: StateBackend) -> None:
    await state.put(**{f"{i:03}": b"old" for i in range(200)})
    async for batch in state.store.read_snapshot(*state.bounds):
        assert batch
        break
    assert [batch async for batch in state.store.read_snapshot(b"a", b"a")] == []
    await state.put(a=b"1")
