import pytest

from xsc.base.limits import PPM
from xsc.market.auction import QUALITY_PPM_LEAST, Bid, Winner, place, rank_quality


def bid(name, price, quality=PPM, domain=None):
    return Bid(name, price, quality, domain or name)


def test_six_winners_are_paid_the_seventh_price():
    bids = [bid(bytes([n]), n) for n in range(1, 9)]
    assert place(bids, 6, 100) == [Winner(bytes([n]), 7) for n in range(1, 7)]


def test_payment_is_weighed_by_quality():
    bids = [bid(b"a", 10), bid(b"b", 6, 500_000), bid(b"c", 30)]
    assert place(bids, 2, 100) == [Winner(b"a", 30), Winner(b"b", 15)]


def test_without_a_further_bid_the_reserve_is_paid():
    assert place([bid(b"a", 10), bid(b"b", 20)], 2, 40) == [Winner(b"a", 40), Winner(b"b", 40)]


def test_a_bid_above_the_reserve_does_not_even_set_the_price():
    bids = [bid(b"a", 10, 100_000), bid(b"b", 41)]
    assert place(bids, 1, 40) == [Winner(b"a", 40)]
    assert place([bid(b"b", 41)], 1, 40) == []


def test_one_winner_a_domain_and_its_neighbour_limits_the_price():
    bids = [bid(b"a", 1, PPM, b"x"), bid(b"b", 2, PPM, b"x"), bid(b"c", 9), bid(b"d", 20)]
    assert place(bids, 2, 40) == [Winner(b"a", 2), Winner(b"c", 20)]
    assert place(bids, 4, 40) == [Winner(b"a", 2), Winner(b"c", 40), Winner(b"d", 40)]


def test_ties_fall_by_id_or_by_seed():
    bids = [bid(b"b", 5), bid(b"a", 5), bid(b"c", 5)]
    assert [w.node for w in place(bids, 2, 9)] == [b"a", b"b"]
    first = {place(bids, 1, 9, seed=bytes([n]))[0].node for n in range(20)}
    assert first == {b"a", b"b", b"c"}


def test_nothing_comes_of_nothing():
    assert place([], 6, 100) == []
    assert place([bid(b"a", 1)], 0, 100) == []


def test_two_bids_of_a_node_are_a_bug():
    with pytest.raises(AssertionError):
        place([bid(b"a", 1), bid(b"a", 2)], 1, 9)
    with pytest.raises(AssertionError):
        bid(b"a", 1, 0)


def test_reports_lower_the_rank_and_leave_a_rest():
    assert rank_quality(800_000, 0) == 800_000
    assert rank_quality(800_000, 2) == 200_000
    assert rank_quality(800_000, 1000) == rank_quality(0, 0) == QUALITY_PPM_LEAST
