import pytest

from tests.unit.market.test_lease import CUSTOMER, asked
from xsc.base.limits import GIB, MIB, PPM
from xsc.market.pricing import (
    MarketPricing,
    PriceList,
    domain,
    unit_price,
    utilisation_ppm,
    why,
)
from xsc.terms.pricing import Ladder


def test_the_seeds_three_methods():
    idle = MarketPricing(PriceList(10, 20))
    assert idle.storage_price(3 * GIB, 5) == 150
    assert idle.compute_price(2_000_000_000, 65 * MIB) == 80
    assert idle.total_price(150, 80) == 230


def test_the_price_doubles_at_full_use_as_in_the_seed():
    busy = MarketPricing(PriceList(10, 20), PPM, PPM // 2)
    assert busy.storage_price(3 * GIB, 5) == 300
    assert busy.unit_price("compute") == 30
    low = MarketPricing(PriceList(10, 20), 300_000).storage_price(GIB, 1)
    assert low < MarketPricing(PriceList(10, 20), 900_000).storage_price(GIB, 1)


def test_amounts_are_rounded_down_once():
    pricing = MarketPricing(PriceList(10, 20))
    assert pricing.storage_price(GIB // 10, 1) == 0
    assert pricing.storage_price(GIB // 10 + 1, 1) == 1
    assert pricing.compute_price(49_999_999, MIB) == 0
    assert pricing.compute_price(50_000_000, MIB) == 1


def test_the_ladder_stands_below_the_reserve():
    prices = PriceList(10, 20, 200_000, 100_000)
    rungs = MarketPricing(prices).ladder("compute", 10)
    assert rungs == Ladder(8, 9, 10)
    assert [rungs.rung(tier) for tier in ("mutual", "one_way", "open")] == [8, 9, 10]
    assert MarketPricing(prices, 500_000, 0).ladder("storage") == Ladder(12, 13, 15)
    free = PriceList(1, 1, PPM, 0)
    assert MarketPricing(free).ladder("storage", 7) == Ladder(0, 7, 7)


@pytest.mark.parametrize(
    ("free", "capacity", "used"),
    [
        (0, 0, PPM),
        (10, 0, PPM),
        (10, 10, 0),
        (0, 10, PPM),
        (-3, 10, PPM),
        (20, 10, 0),
        (5, 10, PPM // 2),
    ],
)
def test_utilisation(free, capacity, used):
    assert utilisation_ppm(free, capacity) == used


def test_more_use_than_all_is_a_bug():
    with pytest.raises(AssertionError):
        unit_price(10, PPM + 1)


def test_a_great_amount_stays_exact():
    assert MarketPricing(PriceList(10**12, 1)).storage_price(100 * GIB, 2160) == 10**12 * 100 * 2160


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"tier": "mutual"}, "what it has posted"),
        ({"tier": "one_way"}, "what it has posted"),
        ({"tier": "open"}, "the most that the provider could have asked"),
        ({"level": GIB}, "what was granted for it"),
    ],
)
def test_a_price_is_explained_by_what_was_signed(terms, says):
    assert says in why(asked(**terms))


def test_the_domain_is_the_site_then_the_owner_then_the_node():
    assert domain("attic", "eva", CUSTOMER) == domain("attic", "leo", CUSTOMER)
    assert domain("", "eva", CUSTOMER) != domain("eva", "", CUSTOMER)
    assert CUSTOMER in domain("", "", CUSTOMER)
    assert domain("", "eva", CUSTOMER) == domain("", "eva", b"p" * 32)
