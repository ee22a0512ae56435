from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import GIB, MEMORY_STEP_BYTES, PRICE_FUEL
from xsc.terms.pricing import amount, compute_amount, fuel_steps, memory_steps


def test_memory_is_paid_in_begun_steps():
    sizes = [1, MEMORY_STEP_BYTES, MEMORY_STEP_BYTES + 1, 3 * MEMORY_STEP_BYTES]
    assert [memory_steps(size) for size in sizes] == [1, 1, 2, 3]
    assert fuel_steps(7, 2 * MEMORY_STEP_BYTES) == 14


def test_a_gfuel_costs_the_price():
    assert compute_amount(5, PRICE_FUEL) == 5
    assert compute_amount(5, PRICE_FUEL - 1) == 4
    assert amount("storage", 3, 10 * GIB) == 30
    assert amount("storage", 3, GIB // 3 - 1) == 0


@given(st.integers(0, 2**40), st.integers(0, 2**60), st.integers(0, 2**60))
def test_two_bills_are_never_more_than_one(price, some, more):
    apart = compute_amount(price, some) + compute_amount(price, more)
    assert apart <= compute_amount(price, some + more) <= apart + 1
