import pytest

from xsc.base.limits import PPM
from xsc.market.auction import (
    QUALITY_PPM_LEAST,
    Bid,
    place,
    reserve,
)


def bid(name, price, quality=PPM, domain=None):
    return Bid(name, price, quality, domain or name)


def paid(winners):
    return [(winner.node, winner.price) for winner in winners]


def test_six_winners_are_paid_the_seventh_price():
    bids = [bid(bytes([n]), n) for n in range(1, 9)]
    assert paid(place(bids, 6, 100)) == [(bytes([n]), 7) for n in range(1, 7)]


def test_payment_is_weighed_by_quality():
    bids = [bid(b"a", 10), bid(b"b", 6, 500_000), bid(b"c", 30)]
    assert paid(place(bids, 2, 100)) == [(b"a", 30), (b"b", 15)]


def test_without_a_further_bid_the_reserve_is_paid():
    assert paid(place([bid(b"a", 10), bid(b"b", 20)], 2, 40)) == [(b"a", 40), (b"b", 40)]


def test_a_bid_above_the_reserve_does_not_even_set_the_price():
    bids = [bid(b"a", 10, 100_000), bid(b"b", 41)]
    assert paid(place(bids, 1, 40)) == [(b"a", 40)]
    assert place([bid(b"b", 41)], 1, 40) == []


def test_one_winner_a_domain_and_its_neighbour_limits_the_price():
    bids = [bid(b"a", 1, PPM, b"x"), bid(b"b", 2, PPM, b"x"), bid(b"c", 9), bid(b"d", 20)]
    assert paid(place(bids, 2, 40)) == [(b"a", 2), (b"c", 20)]
    assert paid(place(bids, 4, 40)) == [(b"a", 2), (b"c", 40), (b"d", 40)]


def test_ties_fall_by_id_or_by_seed():
    bids = [bid(b"b", 5), bid(b"a", 5), bid(b"c", 5)]
    assert [w.node for w in place(bids, 2, 9)] == [b"a", b"b"]
    first = {place(bids, 1, 9, seed=bytes([n]))[0].node for n in range(20)}
    assert first == {b"a", b"b", b"c"}


def test_six_bids_at_the_own_price_are_paid_that_and_not_the_maximum():
    bids = [bid(bytes([n]), 8 + n % 3) for n in range(6)]
    assert reserve(bids, 6, 10, 40) == 10
    assert {winner.price for winner in place(bids, 6, 10)} == {10}


def test_the_reserve_is_raised_in_eighths_while_a_further_one_can_win():
    bids = [bid(b"a", 9), bid(b"b", 12), bid(b"c", 33), bid(b"d", 41)]
    assert [reserve(bids, count, 10, 40) for count in (1, 2, 3, 4)] == [10, 13, 36, 36]
    assert reserve(bids, 1, 60, 40) == 40
    assert reserve([bid(b"d", 41)], 1, 10, 40) == 10


def test_a_posted_price_is_paid_and_still_sets_those_of_others():
    bids = [Bid(b"a", 5, PPM, b"a", posted=True), bid(b"b", 6), Bid(b"c", 8, PPM, b"c", True)]
    assert paid(place(bids, 2, 10)) == [(b"a", 5), (b"b", 8)]


def test_a_provider_without_history_counts_a_hundredth():
    assert QUALITY_PPM_LEAST == PPM // 100


def test_nothing_comes_of_nothing():
    assert place([], 6, 100) == []
    assert place([bid(b"a", 1)], 0, 100) == []


def test_two_bids_of_a_node_are_a_bug():
    with pytest.raises(AssertionError):
        place([bid(b"a", 1), bid(b"a", 2)], 1, 9)
    with pytest.raises(AssertionError):
        bid(b"a", 1, 0)
