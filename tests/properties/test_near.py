"""The laws of choosing near the data, which is a part of a bid's quality."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import NEAR_PRICE_PPM
from xsc.market.auction import Bid, near, place

PPM = 1_000_000
MAX = 24
NODES = [bytes([number]) for number in range(6)]
SAVED = st.dictionaries(st.sampled_from(NODES), st.integers(0, 3))


@st.composite
def offers(draw):
    qualities = st.integers(10_000, PPM)
    return [
        Bid(node, draw(st.integers(0, MAX + 20)), draw(qualities), node)
        for node in draw(st.lists(st.sampled_from(NODES), unique=True))
    ]


def chosen(bids, saved, price_max=MAX):
    nearer = [replace(bid, quality_ppm=near(bid.quality_ppm, bid.node, saved)) for bid in bids]
    return next(iter(place(nearer, 1, price_max)), None)


@given(offers(), SAVED)
def test_somebody_is_chosen_where_anybody_offers_within_the_reserve_and_nobody_above_it(
    bids, saved
):
    within = {bid.node for bid in bids if bid.price <= MAX}
    winner = chosen(bids, saved)
    assert (winner is not None and winner.node in within) if within else winner is None


@given(offers(), SAVED)
def test_nobody_is_chosen_that_is_far_above_the_best_price(bids, saved):
    winner = chosen(bids, saved)
    if winner is not None:
        scores = {bid.node: bid.score for bid in bids if bid.price <= MAX}
        # A quality is rounded down to a ppm, of at least 8,000.
        assert scores[winner.node] * PPM <= min(scores.values()) * (NEAR_PRICE_PPM + 200)


@given(offers(), SAVED, st.integers(1, MAX), st.integers(10_000, PPM))
def test_at_equal_price_and_quality_the_one_that_saves_most_is_chosen(bids, saved, price, quality):
    equal = [replace(bid, price=price, quality_ppm=quality) for bid in bids]
    if equal:
        most = max(saved.get(bid.node, 0) for bid in equal)
        assert saved.get(chosen(equal, saved).node, 0) == most


@given(offers(), SAVED)
def test_the_price_is_the_most_that_could_have_been_asked(bids, saved):
    winner = chosen(bids, saved)
    if winner is None:
        return
    (own,) = [bid for bid in bids if bid.node == winner.node]
    others = [bid for bid in bids if bid is not own]
    for price in range(MAX + 1):
        again = chosen([*others, replace(own, price=price)], saved)
        if price != winner.price:  # There a tie decides.
            assert (again.node == winner.node) == (price < winner.price)


@given(offers())
def test_where_nobody_saves_anything_it_is_the_auction(bids):
    assert chosen(bids, {}) == next(iter(place(bids, 1, MAX)), None)
