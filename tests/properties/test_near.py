"""The laws of choosing near the data; what is paid is held against every price there is."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import NEAR_PRICE_PPM
from xsc.market.auction import Bid, place
from xsc.market.locality import choose

PPM = 1_000_000
MAX = 24
NODES = [bytes([number]) for number in range(6)]
SAVED = st.dictionaries(st.sampled_from(NODES), st.integers(0, 3))


@st.composite
def offers(draw):
    qualities = st.sampled_from([500_000, 900_000, PPM]) | st.integers(1, PPM)
    return [
        Bid(node, draw(st.integers(0, MAX + 20)), draw(qualities), node)
        for node in draw(st.lists(st.sampled_from(NODES), unique=True))
    ]


def chosen(bids, saved, **how):
    winner = choose(bids, saved, MAX, **how)
    return None if winner is None else winner.node


@given(offers(), SAVED)
def test_somebody_is_chosen_where_anybody_offers_within_the_reserve_and_nobody_above_it(
    bids, saved
):
    within = {bid.node for bid in bids if bid.price <= MAX}
    assert (chosen(bids, saved) in within) if within else chosen(bids, saved) is None


@given(offers(), SAVED)
def test_the_chosen_one_is_of_about_the_best_price_and_nobody_such_saves_more(bids, saved):
    winner = chosen(bids, saved)
    if winner is None:
        return
    scores = {bid.node: bid.score for bid in bids if bid.price <= MAX}
    bound = min(scores.values()) * Fraction(NEAR_PRICE_PPM, PPM)
    assert scores[winner] <= bound
    near = [node for node, score in scores.items() if score <= bound]
    most = max(saved.get(node, 0) for node in near)
    assert saved.get(winner, 0) == most
    best = min(scores[node] for node in near if saved.get(node, 0) == most)
    assert scores[winner] == best


@given(offers(), SAVED, st.integers(0, MAX), st.integers(1, PPM))
def test_at_equal_price_and_quality_the_one_that_saves_most_is_chosen(bids, saved, price, quality):
    equal = [replace(bid, price=price, quality_ppm=quality) for bid in bids]
    if equal:
        most = max(saved.get(bid.node, 0) for bid in equal)
        assert saved.get(chosen(equal, saved), 0) == most


@given(offers(), SAVED, st.randoms(use_true_random=False), st.binary(max_size=4))
def test_the_same_offers_and_seed_give_the_same_choice_in_any_order(bids, saved, random, seed):
    shuffled = list(bids)
    random.shuffle(shuffled)
    assert choose(shuffled, saved, MAX, seed=seed) == choose(bids, saved, MAX, seed=seed)


@given(offers(), SAVED)
def test_the_price_is_the_most_that_could_have_been_asked(bids, saved):
    winner = choose(bids, saved, MAX)
    if winner is None:
        return
    (own,) = [bid for bid in bids if bid.node == winner.node]
    others = [bid for bid in bids if bid is not own]
    winning = [
        price
        for price in range(MAX + 1)
        if chosen([*others, replace(own, price=price)], saved) == winner.node
    ]
    assert winning == list(range(winner.price + 1)), "asking less never turns the choice away"
    assert own.price <= winner.price <= MAX


@given(offers())
def test_where_nobody_saves_anything_it_is_the_auction(bids):
    winner = choose(bids, {}, MAX)
    best = place(bids, 1, MAX)
    found = [] if winner is None else [winner.node]
    assert found == [each.node for each in best]
