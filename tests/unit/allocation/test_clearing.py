"""The defects of the original, each as a test of the clearing (docs/design/allocation.md).

D3, D4, D5 and D10 are about matching, D8 about damping, D2 about a need that several slots serve.
"""

from fractions import Fraction

from xsc.allocation.clearing import Bid, SlotTerms, clear_slot
from xsc.base.limits import PPM

SALT = b"salt"
NEED = bytes(16)


def bid(name, tier, weight, quantity, **changes):
    fields = {"quantity_min": 1, "price_max": 5, "damping_ppm": PPM, **changes}
    return Bid(name, NEED, tier, weight, quantity, **fields)


def given(capacity, bids, rule="weighted-uniform", reserve=9):
    cleared = clear_slot(SlotTerms(capacity, 0, 0, reserve, rule), bids, SALT)
    units = {customer: count for (customer, _), count in cleared.given().items()}
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
    cleared = clear_slot(SlotTerms(100, 0, 0, 9, "proportional"), bids, SALT)
    assert [cleared.given()[one.key] for one in bids] == [29, 21, 48]
    first = cleared.tiers[0]
    assert first.denominator == Fraction(41)
    assert [first.level * share for share in (12, 9, 20)] == [
        Fraction(1200, 41),
        Fraction(900, 41),
        Fraction(2000, 41),
    ]
    assert given(100, bids) == [30, 30, 40]


def test_what_a_tier_leaves_is_sold_to_whom_it_left_short():
    """Caps make `proportional` leave units; a mutual peer buys them like anybody else."""
    bids = [bid(b"a", "mutual", 900_000, 1), bid(b"b", "mutual", 100_000, 100, price_max=9)]
    cleared = clear_slot(SlotTerms(100, 0, 0, 9, "proportional"), bids, SALT)
    assert [(line.tier, line.quantity, line.price) for line in cleared.lines] == [
        ("mutual", 1, 0),
        ("mutual", 91, 0),
        ("open", 8, 9),
    ]


def test_the_least_recognised_leaves_first_and_the_rest_is_divided_again():
    bids = [
        bid(b"a", "mutual", 30_000, 6, quantity_min=5),
        bid(b"b", "mutual", 20_000, 6, quantity_min=6),
        bid(b"c", "mutual", 10_000, 6, quantity_min=2),
    ]
    cleared = clear_slot(SlotTerms(9, 0, 0, 9), bids, SALT)
    # Shares of 4 (or 5), 3 and 1: c leaves, then b; what they leave is a's need, and the rest free.
    assert [key[0] for key in cleared.left] == [b"c", b"b"]
    assert cleared.given() == {bids[0].key: 6}


def test_who_left_may_buy_what_is_left():
    bids = [
        bid(b"a", "mutual", 10_000, 3, quantity_min=3, price_max=9),
        bid(b"b", "mutual", 20_000, 6, quantity_min=6, price_max=8),
        bid(b"c", "mutual", 90_000, 1, price_max=9),
    ]
    cleared = clear_slot(SlotTerms(6, 1, 1, 9), bids, SALT)
    assert [(line.customer, line.tier, line.quantity) for line in cleared.lines] == [
        (b"c", "mutual", 1),
        (b"a", "open", 3),
    ]


def test_a_bid_below_its_minimum_takes_no_part():
    bids = [bid(b"a", "mutual", 10_000, 4, quantity_min=5), bid(b"b", "one_way", 10_000, 0)]
    cleared = clear_slot(SlotTerms(9, 0, 0, 1), bids, SALT)
    assert (cleared.lines, cleared.left) == ((), ())


def test_a_winner_pays_what_the_others_lose():
    bids = [
        bid(b"a", "open", 1, 2, price_max=20),
        bid(b"b", "open", 1, 2, price_max=15),
        bid(b"c", "open", 1, 2, price_max=12),
    ]
    cleared = clear_slot(SlotTerms(3, 1, 1, 10), bids, SALT)
    # Without a, b has 2 and c 1: one unit more at 15 and one at 12. Without b, c has 1.
    assert cleared.payments == {b"a": 27, b"b": 12}
    assert [(line.quantity, line.price) for line in cleared.lines] == [(2, 14), (1, 12)]
    assert given(6, bids, reserve=10) == [2, 2, 2]
    assert clear_slot(SlotTerms(6, 1, 1, 10), bids, SALT).payments == dict.fromkeys(
        (b"a", b"b", b"c"), 20
    )


def test_the_auction_serves_minima_that_are_worth_more_together():
    bids = [
        bid(b"a", "open", 1, 4, quantity_min=2, price_max=6),
        bid(b"b", "open", 1, 3, quantity_min=3, price_max=5),
    ]
    cleared = clear_slot(SlotTerms(5, 1, 1, 1), bids, SALT)
    # a alone is worth 4 · 5 = 20; two units of it and b 2 · 5 + 3 · 4 = 22.
    assert cleared.given() == {bids[0].key: 2, bids[1].key: 3}
    assert cleared.payments == {b"a": 2, b"b": 3 + 10}
