"""The defects of the original, each as a test of the clearing (docs/design/allocation-laws.md).

D3, D4, D5 and D10 are about matching, D8 about damping, D2 about a need that several slots serve.
"""

from tests.gathering import Terms, given_of
from xsc.allocation.clearing import Bid
from xsc.base.limits import PPM

SALT = b"salt"
NEED = bytes(16)


def bid(name, tier, weight, quantity, **changes):
    fields = {"price_max": 5, "damping_ppm": PPM, **changes}
    return Bid(name, NEED, quantity, tier=tier, weight=weight, **fields)


def cleared_of(terms, bids):
    return terms.clear(bids, SALT)


def given(capacity, bids, rule="weighted-uniform", reserve=9):
    cleared = cleared_of(Terms(capacity, 0, 0, reserve, rule), bids)
    units = {customer: count for (customer, _), count in given_of(cleared).items()}
    return [units.get(one.customer, 0) for one in bids]


def test_d1_a_tier_is_not_served_before_those_above_it_are_sated():
    bids = [
        bid(b"a", "mutual", 900_000, 1),
        bid(b"b", "mutual", 100_000, 100),
        bid(b"d", "one_way", 200_000, 50),
    ]
    assert given(100, bids) == [1, 99, 0]
    # The original gives b 91.743 and d 7.257; in whole units d has what b leaves.
    assert given(100, bids, "proportional") == [1, 91, 8]


def test_d6_damping_is_no_entitlement():
    alone = [bid(b"a", "mutual", 10_000, 10, damping_ppm=PPM // 2)]
    for rule in ("weighted-uniform", "proportional"):
        assert given(20, alone, rule) == [10]
    pair = [*alone, bid(b"b", "mutual", 10_000, 10)]
    assert given(10, pair) == [5, 5]


def test_d7_a_damping_of_zero_is_zero():
    pair = [
        bid(b"a", "mutual", 10_000, 10, damping_ppm=0),
        bid(b"b", "mutual", 10_000, 10),
    ]
    assert given(10, pair, "proportional") == [0, 10]
    assert given(10, pair) == [5, 5]


def test_d9_the_worked_example_of_the_original_s_guide():
    """Its formula gives 29.27, 21.95 and 48.78; its prose 30, 30 and 40."""
    bids = [
        bid(b"a", "mutual", 300_000, 40),
        bid(b"b", "mutual", 300_000, 30),
        bid(b"c", "mutual", 400_000, 50),
    ]
    cleared = cleared_of(Terms(100, 0, 0, 9, "proportional"), bids)
    assert [given_of(cleared)[one.pin] for one in bids] == [29, 21, 48]
    assert cleared.tiers[0].denominator == 41 * PPM
    assert given(100, bids) == [30, 30, 40]


def test_what_a_tier_leaves_is_sold_to_whom_it_left_short():
    """Caps make `proportional` leave units; a mutual peer buys them like anybody else."""
    bids = [bid(b"a", "mutual", 900_000, 1), bid(b"b", "mutual", 100_000, 100, price_max=9)]
    cleared = cleared_of(Terms(100, 0, 0, 9, "proportional"), bids)
    # One line a need, at the mean of 91 for nothing and 8 at 9.
    assert cleared.lines == {(b"a", NEED): ("mutual", 1, 0), (b"b", NEED): ("mutual", 99, 1)}
    assert [tier.given for tier in cleared.tiers] == [92, 0, 8]


def test_a_bid_of_nothing_takes_no_part():
    assert given(9, [bid(b"b", "one_way", 10_000, 0)]) == [0]


def test_a_winner_pays_what_the_others_lose():
    bids = [
        bid(b"a", "open", 1, 2, price_max=20),
        bid(b"b", "open", 1, 2, price_max=15),
        bid(b"c", "open", 1, 2, price_max=12),
    ]
    cleared = cleared_of(Terms(3, 1, 1, 10), bids)
    # Without a, b has 2 and c 1: one unit more at 15 and one at 12. Without b, c has 1.
    assert cleared.payments == {b"a": 27, b"b": 12}
    assert [(line.quantity, line.price) for line in cleared.lines.values()] == [(2, 14), (1, 12)]
    assert given(6, bids, reserve=10) == [2, 2, 2]
    assert cleared_of(Terms(6, 1, 1, 10), bids).payments == dict.fromkeys((b"a", b"b", b"c"), 20)
