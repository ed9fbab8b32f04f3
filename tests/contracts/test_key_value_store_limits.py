"""FoundationDB's limits hold on every engine: at exactly the bound, and one over."""

from collections.abc import Awaitable, Callable

import pytest

from storage_proxy.state import limits
from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.keys import after
from storage_proxy.state.port import Transaction, TransactionTooOld
from tests.support.state import (
    StateBackend,
    read_all,
)


async def set_sizes(state: StateBackend, key_bytes: int, value_bytes: int) -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.set(state.key(b"").ljust(key_bytes, b"k"), bytes(value_bytes))

    await state.store.transact(fn)


async def test_keys_and_values_of_exactly_the_limits_are_taken(state: StateBackend) -> None:
    await set_sizes(state, limits.MAX_KEY_BYTES, limits.MAX_VALUE_BYTES)
    ((key, value),) = await read_all(state.store, *state.bounds)
    assert (len(key), len(value)) == (10_000, 100_000)

    async def fn(transaction: Transaction) -> None:
        assert await transaction.get(key) == value
        assert len(await transaction.get_range(key, after(key), limit=1)) == 1
        transaction.clear_range(key, after(key))

    await state.store.transact(fn)
    assert await state.contents() == {}


@pytest.mark.parametrize(
    ("key_bytes", "value_bytes", "error"),
    [(10_001, 0, limits.KeyTooLarge), (100, 100_001, limits.ValueTooLarge)],
)
async def test_a_key_or_value_of_one_byte_more_is_refused(
    state: StateBackend, key_bytes: int, value_bytes: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await set_sizes(state, key_bytes, value_bytes)
    assert await state.contents() == {}


KEY = b"k" * 10_001
BOUND = b"k" * 10_002
REFUSED: list[tuple[Callable[[Transaction], Awaitable[object] | None], type[Exception]]] = [
    (lambda t: t.get(KEY), limits.KeyTooLarge),
    (lambda t: t.clear(KEY), limits.KeyTooLarge),
    (lambda t: t.get_range(b"", BOUND, limit=1), limits.KeyTooLarge),
    (lambda t: t.clear_range(b"", BOUND), limits.KeyTooLarge),
    (lambda t: t.add_read_conflict_range(BOUND, b"\xff"), limits.KeyTooLarge),
    (lambda t: t.get(b"\xff"), limits.KeyReserved),
    (lambda t: t.set(b"\xff/x", b""), limits.KeyReserved),
    (lambda t: t.clear(b"\xff\xff"), limits.KeyReserved),
    (lambda t: t.get_range(b"", b"\xff\x00", limit=1), limits.KeyReserved),
    (lambda t: t.clear_range(b"b", b"a"), ValueError),
    (lambda t: t.get_range(b"a", b"b", limit=0), ValueError),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
async def test_what_foundationdb_would_refuse_is_refused_at_the_call(state: StateBackend, number: int) -> None:
    call, error = REFUSED[number]

    async def fn(transaction: Transaction) -> None:
        with pytest.raises(error):
            made = call(transaction)
            if made is not None:
                await made
        raise error("out of the transaction, too")

    with pytest.raises(error):
        await state.store.transact(fn)


async def fill(state: StateBackend, size: int) -> None:
    """Write a transaction of exactly ``size`` bytes."""

    async def fn(transaction: Transaction) -> None:
        for i in range(1_000):
            key = state.key(b"%03d" % i)
            overhead = limits.set_size(key, b"")
            left = size - transaction.size - overhead
            # The last but one leaves room for the overhead of the last.
            value = min(left, limits.MAX_VALUE_BYTES if left > limits.MAX_VALUE_BYTES + overhead else left - overhead)
            transaction.set(key, bytes(left if 0 <= left <= limits.MAX_VALUE_BYTES - overhead else value))
            if transaction.size == size:
                return

    await state.store.transact(fn)


async def test_a_transaction_of_exactly_10_mb_is_taken(state: StateBackend) -> None:
    await fill(state, limits.MAX_TRANSACTION_BYTES)
    assert sum(map(len, (await state.contents()).values())) > 9_900_000


async def test_a_transaction_of_one_byte_more_is_refused_before_its_commit(state: StateBackend) -> None:
    with pytest.raises(limits.TransactionTooLarge):
        await fill(state, limits.MAX_TRANSACTION_BYTES + 1)
    assert await state.contents() == {}


async def test_what_is_read_after_the_last_write_counts_too(state: StateBackend) -> None:
    async def fn(transaction: Transaction) -> None:
        for i in range(99):
            transaction.set(state.key(b"%03d" % i), bytes(limits.MAX_VALUE_BYTES))
        for i in range(40):
            await transaction.get(state.key(b"%04d" % i).ljust(limits.MAX_KEY_BYTES, b"r"))

    with pytest.raises(limits.TransactionTooLarge):
        await state.store.transact(fn)
    assert await state.contents() == {}


async def test_a_transaction_that_only_reads_may_read_more_than_10_mb(state: StateBackend) -> None:
    for _ in range(2):
        await fill(state, 6_000_000)

    async def fn(transaction: Transaction) -> int:
        total = 0
        for _ in range(4):
            async for batch in transaction.get_batches(*state.bounds):
                total += sum(len(value) for _, value in batch)
        return total

    assert await state.store.transact(fn) > 20_000_000


async def test_a_swallowed_refusal_still_refuses_the_transaction(state: StateBackend) -> None:
    async def fn(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"1")
        with pytest.raises(limits.ValueTooLarge):
            transaction.set(state.key(b"b"), bytes(limits.MAX_VALUE_BYTES + 1))

    with pytest.raises(limits.ValueTooLarge):
        await state.store.transact(fn)
    assert await state.contents() == {}


async def test_an_attempt_of_more_than_5_s_is_run_again(state: StateBackend) -> None:
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
            await state.put(other=b"")  # FoundationDB forgets old versions as new ones are made
        transaction.set(state.key(b"a"), b"1")

    await state.store.transact(fn)
    assert runs == 2


async def test_a_transaction_that_always_takes_more_than_5_s_is_too_old(state: StateBackend) -> None:
    if state.clock is None:
        pytest.skip("fdb: the time of a real cluster cannot be moved")

    async def fn(transaction: Transaction) -> None:
        await transaction.get(state.key(b"a"))
        assert state.clock
        state.clock.now += 5.1
        await state.put(other=b"")
        await transaction.get(state.key(b"b"))
        transaction.set(state.key(b"a"), b"1")

    store = await state.again(RetryPolicy(attempts=3))
    with pytest.raises(TransactionTooOld):
        await store.transact(fn)
    assert await state.contents() == {b"other": b""}


async def test_a_transaction_that_only_writes_may_take_its_time(state: StateBackend) -> None:
    if state.clock is None:
        pytest.skip("fdb: the time of a real cluster cannot be moved")

    async def fn(transaction: Transaction) -> None:
        transaction.set(state.key(b"a"), b"1")
        assert state.clock
        state.clock.now += 20
        await state.put(other=b"")

    await state.store.transact(fn)
    assert await state.contents() == {b"a": b"1", b"other": b""}
