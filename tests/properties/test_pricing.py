"""The laws of prices: they rise with use, stand in order, and add up."""

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import MIB, PPM, PRICE_FUEL
from xsc.market.pricing import (
    MarketPricing,
    PriceList,
    unit_price,
    utilisation_ppm,
)
from xsc.terms.pricing import affordable, amount

SHARE = st.integers(0, PPM)
PRICE = st.integers(0, 10**12)
KIND = st.sampled_from(["storage", "compute"])


@given(PRICE, SHARE, SHARE)
def test_the_unit_price_never_falls_with_use(base, one, other):
    low, high = sorted((one, other))
    assert base <= unit_price(base, low) <= unit_price(base, high) <= 2 * base


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(-5, 10**15))
def test_utilisation_is_a_share_and_falls_with_what_is_free(capacity, free, other):
    less, more = sorted((free, other))
    assert 0 <= utilisation_ppm(more, capacity) <= utilisation_ppm(less, capacity) <= PPM


@given(PRICE, SHARE, SHARE)
def test_the_rungs_stand_in_order(reserve, one, other):
    low, high = sorted((one, other))
    rungs = MarketPricing(PriceList(1, 1, high, low)).ladder("compute", reserve)
    assert 0 <= rungs.price_mutual <= rungs.price_one_way <= rungs.reserve == reserve


@given(PRICE, SHARE, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2200))
def test_two_bills_are_within_one_of_one(price, used, left, right, epochs):
    pricing = MarketPricing(PriceList(price, price), used, used)
    whole = pricing.storage_price(left + right, epochs)
    parts = pricing.storage_price(left, epochs) + pricing.storage_price(right, epochs)
    assert parts <= whole <= parts + 1


@given(PRICE, st.integers(0, 10**12), st.integers(1, 2**30))
def test_compute_is_billed_by_begun_steps_of_memory(price, fuel, memory):
    pricing = MarketPricing(PriceList(0, price))
    steps = fuel * -(-memory // (64 * MIB))
    assert pricing.compute_price(fuel, memory) == price * steps // PRICE_FUEL


@given(KIND, st.integers(1, 10**9), st.integers(0, 10**12))
def test_the_affordable_quantity_is_the_largest(kind, price, credit):
    most = affordable(kind, price, credit)
    assert amount(kind, price, most) <= credit < amount(kind, price, most + 1)


@given(KIND, st.integers(1, 10**9), st.integers(-(10**12), -1))
def test_debt_affords_nothing(kind, price, credit):
    assert affordable(kind, price, credit) == 0
    assert affordable(kind, 0, credit) is None
