from itertools import permutations, product

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.market.fakes import divide
from xsc.base.limits import MIB
from xsc.market.clearing import Ask, by_lot, clear, within_credit, worth

SALT = b"salt"


def ask(name, quantity, least=1, *, customer=None, tier="open", weight=1, price=10):
    return Ask(name, customer or name, tier, weight, quantity, least, price)


def never(_capacity, _needs):
    raise AssertionError("there was room for all")


def test_while_all_fits_nobody_is_divided():
    clearing = clear([ask(b"a", 4), ask(b"b", 6)], 10, never, SALT)
    assert clearing.grants == {b"a": 4, b"b": 6}
    assert clearing.refused == frozenset()


def test_what_is_scarce_goes_by_standing():
    asks = [
        ask(b"a", 8, tier="mutual", weight=20_000),
        ask(b"b", 8, tier="mutual", weight=10_000),
        ask(b"c", 8, 0),
    ]
    assert clear(asks, 9, divide, SALT).grants == {b"a": 6, b"b": 3, b"c": 0}


def test_asking_in_pieces_gains_nothing():
    whole = clear([ask(b"a", 8), ask(b"b", 8)], 8, divide, SALT).grants
    pieces = clear(
        [ask(bytes([n]), 2, customer=b"a") for n in range(4)] + [ask(b"b", 8)], 8, divide, SALT
    ).grants
    assert whole == {b"a": 4, b"b": 4}
    # Two pieces of a are full, the other two are refused; b gets what the window cleared for it.
    assert sum(amount for id_, amount in pieces.items() if id_ != b"b") == 4
    assert pieces[b"b"] == 4


def test_a_useless_grant_is_refused_and_left_to_the_others():
    clearing = clear([ask(b"a", 6, 5), ask(b"b", 6, 5), ask(b"c", 6, 5)], 12, divide, SALT)
    assert len(clearing.refused) == 1
    assert clearing.grants == dict.fromkeys({b"a", b"b", b"c"} - clearing.refused, 6)


def test_ties_fall_by_lot_whatever_ids_were_made_and_whoever_came_first():
    least = [ask(bytes([n]), 6, 5) for n in range(3)]
    odd = [ask(b"x", 6, 1, customer=b"x"), ask(b"y", 6, 1, customer=b"y")]
    credit = [ask(bytes([n]), 4 * MIB, 4 * MIB, customer=b"x") for n in range(3)]
    for asks, outcome in (
        (least, lambda asks, salt: clear(asks, 12, divide, salt).refused),
        (odd, lambda asks, salt: clear(asks, 11, divide, salt).grants[b"x"]),
        (
            credit,
            lambda asks, salt: within_credit("storage", by_lot(asks, salt), {b"x": 90})[1],
        ),
    ):
        found = set()
        for number in range(40):
            salt = bytes([number])
            outcomes = {outcome(order, salt) for order in permutations(asks)}
            assert len(outcomes) == 1, "the order of arrival decides nothing"
            found |= outcomes
        assert len(found) == len(asks), "no id is favoured for ever"


def test_the_lowest_tier_gives_way_first():
    asks = [
        ask(b"a", 6, 6, tier="mutual", weight=10_000),
        ask(b"b", 6, 6, tier="one_way", weight=900_000),
    ]
    assert clear(asks, 6, divide, SALT).grants == {b"a": 6}
    assert clear(asks, 5, divide, SALT).grants == {}


def test_a_tier_gives_way_before_the_next_however_little_it_lacks():
    asks = [
        ask(b"a", 5, 5, tier="mutual", weight=10_000),
        ask(b"b", 6, 6, tier="one_way", weight=10_000),
        ask(b"c", 3, 1),
    ]
    # With b refused first there would be room for c.
    assert clear(asks, 6, divide, SALT).grants == {b"a": 5}
    twice = [asks[0], ask(b"d", 3, 3, tier="mutual", weight=40_000), asks[1]]
    assert clear(twice, 6, divide, SALT).grants == {b"d": 3}


@given(
    st.integers(0, 40),
    st.lists(
        st.tuples(
            st.integers(1, 12),
            st.integers(1, 12),
            st.sampled_from(["mutual", "one_way", "open"]),
            st.integers(1, 4),
            st.integers(0, 3),
        ),
        max_size=7,
    ),
)
def test_grants_are_feasible_useful_and_complete(free, wishes):
    standing = {}
    asks = []
    for index, (most, least, own_tier, own_weight, customer) in enumerate(wishes):
        name = bytes([customer])
        tier, weight = standing.setdefault(name, (own_tier, own_weight))
        asks.append(
            ask(
                bytes([100 + index]),
                max(most, least),
                min(most, least),
                customer=name,
                tier=tier,
                weight=weight,
            )
        )
    clearing = clear(asks, free, divide, SALT)
    assert set(clearing.grants) | clearing.refused == {one.lease_id for one in asks}
    assert not set(clearing.grants) & clearing.refused
    assert sum(clearing.grants.values()) <= free
    for one in asks:
        if one.lease_id in clearing.grants:
            assert one.quantity_min <= clearing.grants[one.lease_id] <= one.quantity
    granted = [one for one in asks if one.lease_id in clearing.grants]
    wanted = sum(one.quantity for one in granted)
    assert sum(clearing.grants.values()) == min(free, wanted)


def test_credit_is_used_up_one_after_another():
    asks = [
        ask(b"a", 3 * MIB, MIB, customer=b"x"),
        ask(b"b", 3 * MIB, MIB, customer=b"x"),
        ask(b"c", MIB, MIB, customer=b"x"),
        ask(b"d", 9 * MIB, MIB, customer=b"y"),
        ask(b"e", 9 * MIB, MIB, customer=b"z", price=0),
    ]
    kept, refused = within_credit("storage", asks, {b"x": 45, b"y": -1, b"z": -1})
    assert refused == {b"c", b"d"}
    assert [one.lease_id for one in kept] == [b"a", b"b", b"e"]
    assert worth("storage", 10, kept[0].quantity) + worth("storage", 10, kept[1].quantity) <= 45
    assert kept[1].quantity < 2 * MIB


def test_every_small_credit_holds():
    for credit, first, second in product(range(-1, 60, 7), range(1, 5), range(1, 5)):
        asks = [
            ask(b"a", first * MIB, 1, customer=b"x"),
            ask(b"b", second * MIB, 1, customer=b"x"),
        ]
        kept, _ = within_credit("storage", asks, {b"x": credit})
        assert sum(worth("storage", 10, one.quantity) for one in kept) <= max(credit, 0)
