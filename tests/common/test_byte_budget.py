"""The byte budget: never more than the total but for the least that goes on, and all of it given back."""

import pytest

from storage_proxy.common.byte_budget import ByteBudget


def test_what_is_not_free_is_refused_and_takes_nothing() -> None:
    budget = ByteBudget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert (budget.taken, budget.free) == (6, 4)
    assert budget.take(4)
    budget.give(10)
    assert (budget.taken, budget.free) == (0, 10)


def test_the_least_is_had_beyond_the_total() -> None:
    budget = ByteBudget(10)
    budget.take_anyway(12)
    assert (budget.free, budget.take(1)) == (0, False)
    budget.give(12)
    assert budget.free == 10


def test_giving_back_what_was_not_taken_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        ByteBudget(10).give(1)
