"""The laws of clearing a slot (A-1 to A-12, I-1 to I-4), exhaustive where games are small.

A game is a slot and three customers, each with one need: quantity and greatest price.
`make test` plays every game with quantities up to 2, prices up to 4 and a capacity of 2 or 3, and
120 with quantities up to 4 and prices up to 5. `make test-long` plays every one of these with
every scarce capacity, and 4,000 more (TEST_CLEARING_GAMES).

What stage 3 promises: with its exact payments no lie about quantity, price or identity gains. A
line's price is the payment rounded up to a whole micro-credit a unit, so a lie can move what is
billed by less than one micro-credit a unit. A provider that bids against its customers by another
identity can raise a price up to what the lowest winner bids (`test_a_sham_bid_raises_the_price`).

Credit needs no games of its own. It bounds what a need is eligible for, whatever the need states
(`test_credit_bounds_a_need_whatever_price_it_states`). So a need of 4 with credit for 2 is a need
of 2 whose lies are fewer.
Every law is also shown to notice a rule that is broken where the law looks.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product
from random import Random

import pytest

from tests.gathering import Terms, given_of
from xsc.allocation.clearing import TIERS, Bid, Granted, SlotClearing
from xsc.allocation.recognition import tier_of
from xsc.terms.quote import Tier

SALT = b"salt"
LADDER = (1, 2, 3)
STANDINGS = (("mutual", 1), ("mutual", 3), ("one_way", 1), ("one_way", 2), ("open", 1))
KINDS = (("mutual", 1), ("mutual", 3), ("one_way", 1), ("open", 1))
SAMPLE = int(os.environ.get("TEST_CLEARING_GAMES", "120"))


def name(index):
    return bytes([index + 1]) * 32


def need_id(number=0):
    return bytes([number]) * 16


@dataclass(frozen=True)
class Told:
    """A need, and the tier and weight that its provider gives its customer."""

    customer: bytes
    need: bytes
    tier: Tier
    weight: int
    quantity: int
    price_max: int

    @property
    def key(self):
        return self.customer, self.need


def clear_slot(terms, bids, salt):
    """Call the rule."""
    needs = [
        Bid(told.customer, told.need, told.quantity, told.price_max, told.tier, told.weight)
        for told in bids
    ]
    return terms.clear(needs, salt)


def types(quantity, price):
    return list(product(range(1, quantity + 1), range(1, price + 1)))


def game_of(capacity, standings, told, rule="weighted-uniform"):
    """Return the slot's terms and a bid each."""
    return Terms(capacity, *LADDER, rule), [
        Told(name(index), need_id(), *standing, *said)
        for index, (standing, said) in enumerate(zip(standings, told, strict=True))
    ]


def sampled(count=SAMPLE, seed=1):
    """Yield so many games with quantities up to 4 and prices up to 5."""
    known = types(4, 5)
    random = Random(seed)
    for _ in range(count):
        standings = tuple(random.choice(STANDINGS) for _ in range(3))
        yield random.randint(1, 8), standings, tuple(random.choice(known) for _ in range(3))


def units(cleared, customer):
    return sum(line.quantity for (who, _), line in cleared.lines.items() if who == customer)


def cost(cleared, customer):
    """What a customer pays: the tiers' prices, and its payment of the auction exactly."""
    return cleared.payments.get(customer, 0) + sum(
        line.quantity * line.price
        for (who, _), line in cleared.lines.items()
        if who == customer and line.tier != "open"
    )


def utility(cleared, customer, true):
    most, value = true
    return value * min(units(cleared, customer), most) - cost(cleared, customer)


# Each law returns whether it holds for a rule in a game; most need the outcome only.


def a1_never_more_than_there_is(terms, bids, cleared):
    return sum(given_of(cleared).values()) <= terms.capacity


def a2_never_more_than_is_wanted(terms, bids, cleared):
    given = given_of(cleared)
    return all(given.get(bid.key, 0) <= bid.quantity for bid in bids)


def _rung(terms, bid):
    return {"mutual": terms.price_mutual, "one_way": terms.price_one_way, "open": terms.reserve}[
        bid.tier
    ]


def _rest(terms, bids):
    """The bids that take part."""
    return [bid for bid in bids if bid.price_max >= _rung(terms, bid)]


def a3_a_tier_waits_for_those_before_it(terms, bids, cleared):
    given = given_of(cleared)
    for pin, line in cleared.lines.items():
        for bid in _rest(terms, bids):
            if TIERS.index(bid.tier) < TIERS.index(line.tier) and bid.tier != "open":
                whole = given.get(bid.key, 0) == bid.quantity
                if not whole and bid.key != pin:
                    return False
    return True


def a4_nothing_is_wasted(terms, bids, cleared):
    given = given_of(cleared)
    rest = terms.capacity - sum(given.values())
    return rest == 0 or all(
        given.get(bid.key, 0) == bid.quantity
        for bid in bids
        if bid.price_max >= min(terms.reserve, _rung(terms, bid))
    )


def a5_nobody_lags_behind_by_more_than_a_unit(terms, bids, cleared):
    given = defaultdict(int)
    for pin, line in cleared.lines.items():
        if line.tier != "open":
            given[pin] = line.quantity
    rest = [bid for bid in _rest(terms, bids) if bid.tier != "open"]
    return all(
        Fraction(given[other.key], other.weight) <= Fraction(given[one.key] + 1, one.weight)
        for one in rest
        for other in rest
        if one.tier == other.tier and given[one.key] < one.quantity and given[other.key]
    )


def a7_nobody_pays_more_than_it_said(terms, bids, cleared):
    said = {bid.key: bid.price_max for bid in bids}
    return all(line.price <= said[pin] for pin, line in cleared.lines.items())


def a8_an_auction_price_is_the_reserve_at_least(terms, bids, cleared):
    for customer, paid in cleared.payments.items():
        lines = [
            line
            for (who, _), line in cleared.lines.items()
            if who == customer and line.tier == "open"
        ]
        rounded = sum(line.quantity * line.price for line in lines)
        won = sum(line.quantity for line in lines)
        if not (terms.reserve * won <= paid <= rounded < paid + won):
            return False
    return all(
        line.price >= terms.reserve for line in cleared.lines.values() if line.tier == "open"
    )


OUTCOME_LAWS = [
    a1_never_more_than_there_is,
    a2_never_more_than_is_wanted,
    a3_a_tier_waits_for_those_before_it,
    a4_nothing_is_wasted,
    a5_nobody_lags_behind_by_more_than_a_unit,
    a7_nobody_pays_more_than_it_said,
    a8_an_auction_price_is_the_reserve_at_least,
]


def a9_the_order_of_bids_does_not_matter(rule, terms, bids):
    outcomes = [rule(terms, list(order), SALT) for order in permutations(bids)]
    return all(outcome == outcomes[0] for outcome in outcomes)


def a10_more_recognition_takes_nothing(rule, terms, bids):
    before = rule(terms, bids, SALT)
    for index, bid in enumerate(bids):
        for tier, weight in STANDINGS:
            rises = TIERS.index(tier) < TIERS.index(bid.tier) or (
                tier == bid.tier and weight > bid.weight
            )
            if rises:
                raised = [*bids]
                raised[index] = replace(bid, tier=tier, weight=weight)
                after = rule(terms, raised, SALT)
                if units(after, bid.customer) < units(before, bid.customer):
                    return False
    return True


def a10_a_higher_price_takes_nothing(rule, terms, bids):
    before = rule(terms, bids, SALT)
    for index, bid in enumerate(bids):
        raised = [*bids]
        raised[index] = replace(bid, price_max=bid.price_max + 1)
        if units(rule(terms, raised, SALT), bid.customer) < units(before, bid.customer):
            return False
    return True


def profitable(rule, terms, bids, lies):
    """Yield (liar, lie) for every lie that gains."""
    honest = rule(terms, bids, SALT)
    for index, bid in enumerate(bids):
        true = (bid.quantity, bid.price_max)
        gain = utility(honest, bid.customer, true)
        if gain < 0:
            yield index, true
        for lie in lies:
            told = [*bids]
            told[index] = Told(bid.customer, bid.need, bid.tier, bid.weight, *lie)
            if lie != true and utility(rule(terms, told, SALT), bid.customer, true) > gain:
                yield index, lie


def a6_no_lie_gains(rule, terms, bids):
    lies = types(5, 6)
    return next(profitable(rule, terms, bids, lies), None) is None


def a11_a_second_identity_gains_nothing(rule, terms, bids):
    """Split the first customer's quantity and price in every way; the second is a stranger."""
    bid = bids[0]
    true = (bid.quantity, bid.price_max)
    gain = utility(rule(terms, bids, SALT), bid.customer, true)
    for first, second in product(range(1, bid.quantity + 1), repeat=2):
        for one, other in product((bid.price_max - 1, bid.price_max, bid.price_max + 1), repeat=2):
            told = [
                replace(bid, quantity=first, price_max=one),
                Told(name(9), need_id(), "open", 1, second, other),
                *bids[1:],
            ]
            cleared = rule(terms, told, SALT)
            got = units(cleared, bid.customer) + units(cleared, name(9))
            paid = cost(cleared, bid.customer) + cost(cleared, name(9))
            if bid.price_max * min(got, bid.quantity) - paid > gain:
                return False
    return True


GAME_LAWS = [
    a6_no_lie_gains,
    a9_the_order_of_bids_does_not_matter,
    a10_more_recognition_takes_nothing,
    a10_a_higher_price_takes_nothing,
    a11_a_second_identity_gains_nothing,
]


def check_outcome(terms, bids):
    cleared = clear_slot(terms, bids, SALT)
    for law in OUTCOME_LAWS:
        assert law(terms, bids, cleared), (law.__name__, terms, bids, cleared)


def test_larger_games_keep_the_laws_of_outcomes():
    for game in sampled(count=SAMPLE * 20, seed=2):
        check_outcome(*game_of(*game))


@pytest.mark.parametrize("law", GAME_LAWS, ids=lambda law: law.__name__)
def test_every_law_holds(law):
    for game in sampled(count=SAMPLE // 4, seed=3):
        terms, bids = game_of(*game)
        assert law(clear_slot, terms, bids), (terms, bids)


GAMES = [
    # Within a tier only the proportion of weights counts.
    standings
    for standings in combinations_with_replacement(KINDS, 3)
    if ("mutual", 3) not in standings or ("mutual", 1) in standings
]
RUNGS = dict(zip(TIERS, LADDER, strict=True))


def alike(standing, said):
    """Return what stands for all that a clearing does not tell from it; None takes no part.

    Who does not pay the reserve is in no auction: its price counts as that of its tier.
    """
    most, value = said
    rung = RUNGS[standing[0]]
    if value < rung:
        return None
    return most, value if value >= LADDER[2] else rung


def played(capacity, standings, kinds):
    """Clear every game, see that the laws of outcomes hold; by what is told, what each gets."""
    results = {}
    for told in product(*kinds):
        bids = [
            Told(name(index), need_id(), *standing, *said)
            for index, (standing, said) in enumerate(zip(standings, told, strict=True))
            if said is not None
        ]
        terms = Terms(capacity, *LADDER)
        cleared = clear_slot(terms, bids, SALT)
        for law in OUTCOME_LAWS:
            assert law(terms, bids, cleared), (law.__name__, terms, bids, cleared)
        results[told] = tuple(
            (units(cleared, name(index)), cost(cleared, name(index))) for index in range(3)
        )
    return results


def check_games(standings, capacities, quantity, price):
    """Assert that in each game no customer gains by stating another need or price."""
    known = types(quantity, price)
    kinds = [
        list(dict.fromkeys([None, *(alike(standing, said) for said in known)]))
        for standing in standings
    ]
    for capacity in capacities:
        results = played(capacity, standings, kinds)
        for index, standing in enumerate(standings):
            for others in product(*kinds[:index], *kinds[index + 1 :]):
                told = {
                    said: results[(*others[:index], said, *others[index:])][index]
                    for said in kinds[index]
                }
                for most, value in known:
                    gains = {
                        said: value * min(got, most) - paid for said, (got, paid) in told.items()
                    }
                    honest = gains[alike(standing, (most, value))]
                    assert honest >= 0
                    assert max(gains.values()) == honest, (capacity, standings, others, most, value)


def test_every_small_game_keeps_the_laws_and_pays_no_lie():
    for standings in GAMES:
        check_games(standings, (2, 3), 2, 4)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("standings", GAMES, ids=str)
def test_every_game_keeps_the_laws_and_pays_no_lie(standings):
    """A capacity of 12 is enough for every game."""
    check_games(standings, range(1, 12), 4, 5)


def test_a_sham_bid_raises_the_price():
    """Known and left: who offers a slot may bid for it by another identity."""
    terms = Terms(2, *LADDER)
    honest = Told(name(0), need_id(), "open", 1, 2, 9)
    assert clear_slot(terms, [honest], SALT).payments == {name(0): 6}
    sham = Told(name(1), need_id(), "open", 1, 2, 8)
    assert clear_slot(terms, [honest, sham], SALT).payments == {name(0): 16}


def test_prices_below_the_reserve_count_as_that_of_the_tier():
    """So that the games above need not be played for each of them."""
    for capacity, standings, told in sampled(count=SAMPLE * 5, seed=7):
        terms, bids = game_of(capacity, standings, told)
        fewer = [
            replace(bid, price_max=said[1])
            for bid, standing, true in zip(bids, standings, told, strict=True)
            if (said := alike(standing, true)) is not None
        ]
        assert clear_slot(terms, bids, SALT) == clear_slot(terms, fewer, SALT)


def test_a_second_identity_gains_nothing_in_the_open_tier():
    """Equal parts gave one of two strangers 5 of 10, and two names of it 6 or 7."""
    terms = Terms(10, *LADDER)
    rival = Told(name(5), need_id(), "open", 1, 10, 8)
    for value in range(3, 12):
        alone = clear_slot(terms, [Told(name(0), need_id(), "open", 1, 10, value), rival], SALT)
        gain = utility(alone, name(0), (10, value))
        for first in range(1, 11):
            for second in range(1, 11):
                told = [
                    Told(name(0), need_id(), "open", 1, first, value),
                    Told(name(1), need_id(), "open", 1, second, value),
                    rival,
                ]
                cleared = clear_slot(terms, told, SALT)
                got = min(10, units(cleared, name(0)) + units(cleared, name(1)))
                paid = cost(cleared, name(0)) + cost(cleared, name(1))
                assert value * got - paid <= gain


def test_recognition_below_the_threshold_changes_nothing():
    """A-12: a crumb of reciprocity lifts nobody."""
    for given in (0, 1, 500_000):
        assert {tier_of(given, crumb) for crumb in (0, 1, 9_999)} == {tier_of(given, 0)}
    assert tier_of(500_000, 10_000) == "mutual"


def test_a_customer_counts_once_however_many_needs_it_states():
    terms = Terms(6, *LADDER)
    one = Told(name(0), need_id(), "mutual", 1, 6, 5)
    for parts in range(1, 6):
        pieces = [Told(name(1), need_id(n), "mutual", 1, 6, 5 - n % 2) for n in range(parts)]
        cleared = clear_slot(terms, [one, *pieces], SALT)
        assert units(cleared, name(0)) == 3
        # Split back: the highest price first, then by id.
        assert given_of(cleared)[pieces[0].key] == 3


def test_several_needs_of_one_customer_are_steps_of_one_bid():
    """They do not raise each other's price: nobody bids against itself."""
    terms = Terms(4, *LADDER)
    steps = [Told(name(0), need_id(n), "open", 1, 2, 9 - n) for n in range(3)]
    cleared = clear_slot(terms, steps, SALT)
    assert cleared.payments == {name(0): 3 * 4}
    rival = Told(name(1), need_id(), "open", 1, 2, 8)
    cleared = clear_slot(terms, [*steps, rival], SALT)
    # The last step loses its place to nobody; the rival displaces step 2 at its price of 8 by lot.
    assert sum(units(cleared, name(index)) for index in range(2)) == 4
    said = {bid.key: bid.price_max for bid in [*steps, rival]}
    for pin, line in cleared.lines.items():
        assert terms.reserve <= line.price <= said[pin]


def test_the_two_rules_agree_at_equal_needs_where_nothing_is_capped():
    for weights in product((1, 2, 3, 5), repeat=3):
        outcomes = []
        for rule in ("weighted-uniform", "proportional"):
            capacity = 4 * sum(weights)
            bids = [
                Told(name(index), need_id(), "mutual", weight, capacity, 1)
                for index, weight in enumerate(weights)
            ]
            outcomes.append(clear_slot(Terms(capacity, 1, 2, 3, rule), bids, SALT))
        assert outcomes[0].lines == outcomes[1].lines
        assert outcomes[0].tiers[0].given == 4 * sum(weights)


def gain(terms, bids, cleared, without):
    """Return what all customers but one gain above the reserve."""
    said = {bid.key: bid.price_max for bid in bids}
    return sum(
        line.quantity * (said[pin] - terms.reserve)
        for pin, line in cleared.lines.items()
        if pin[0] != without
    )


def test_a_winner_pays_what_others_gain_where_the_auction_is_held_again_without_it():
    """Also where a customer has several needs, some of which win and some wait."""
    random = Random(8)
    for _ in range(SAMPLE * 5):
        bids = [
            Told(
                name(index // 2),
                need_id(index),
                "open",
                1,
                random.randint(1, 6),
                random.randint(3, 8),
            )
            for index in range(random.randint(2, 7))
        ]
        terms = Terms(random.randint(1, 12), *LADDER)
        cleared = clear_slot(terms, bids, SALT)
        for customer, paid in cleared.payments.items():
            others = [bid for bid in bids if bid.customer != customer]
            again = clear_slot(terms, others, SALT)
            lost = gain(terms, bids, again, customer) - gain(terms, bids, cleared, customer)
            assert paid == terms.reserve * units(cleared, customer) + lost


def test_ties_fall_by_lot_whatever_ids_were_made():
    for tier in ("mutual", "open"):
        bids = [Told(name(index), need_id(), tier, 1, 1, 5) for index in range(3)]
        winners = {
            customer
            for salt in range(40)
            for customer, _ in clear_slot(Terms(1, *LADDER), bids, bytes([salt])).lines
        }
        assert len(winners) == 3


# What is broken in one place is noticed by the law that looks there.


def _lines(change):
    def broken(terms, bids, salt):
        cleared = clear_slot(terms, bids, salt)
        lines = {pin: change(terms, line) for pin, line in cleared.lines.items()}
        return replace(cleared, lines=lines)

    return broken


def _bids(change):
    return lambda terms, bids, salt: clear_slot(terms, [change(terms, bid) for bid in bids], salt)


def pay_as_bid(terms, bids, salt):
    cleared = clear_slot(terms, bids, salt)
    said = {bid.customer: bid.price_max for bid in bids}
    return replace(
        cleared,
        payments={customer: said[customer] * units(cleared, customer) for customer in said},
    )


def equal_parts(terms, bids, salt):
    """Strangers share at the reserve, as before there was an auction."""
    asked = [replace(bid, tier="mutual", weight=1) for bid in bids if bid.price_max >= 3]
    return clear_slot(Terms(terms.capacity, 3, 3, 3), asked, salt)


def first_come(terms, bids, salt):
    rest, lines = terms.capacity, {}
    for bid in bids:
        quantity = min(rest, bid.quantity)
        rest -= quantity
        if quantity:
            lines[bid.key] = Granted(bid.tier, quantity, 1)
    return SlotClearing(lines, (), {})


BROKEN_OUTCOMES = [
    (
        a1_never_more_than_there_is,
        lambda terms, bids, salt: clear_slot(replace(terms, capacity=9), bids, salt),
    ),
    (
        a2_never_more_than_is_wanted,
        _bids(lambda terms, bid: replace(bid, quantity=bid.quantity + 1)),
    ),
    (
        a3_a_tier_waits_for_those_before_it,
        _bids(lambda terms, bid: replace(bid, tier="open")),
    ),
    (
        a4_nothing_is_wasted,
        lambda terms, bids, salt: clear_slot(
            replace(terms, capacity=terms.capacity - 1), bids, salt
        ),
    ),
    (
        a5_nobody_lags_behind_by_more_than_a_unit,
        _bids(lambda terms, bid: replace(bid, weight=4 - bid.weight)),
    ),
    (
        a7_nobody_pays_more_than_it_said,
        _lines(lambda terms, line: line._replace(price=line.price + 5)),
    ),
    (
        a8_an_auction_price_is_the_reserve_at_least,
        _lines(lambda terms, line: line._replace(price=line.price - 1)),
    ),
]


@pytest.mark.parametrize(
    ("law", "broken"), BROKEN_OUTCOMES, ids=[law.__name__ for law, _ in BROKEN_OUTCOMES]
)
def test_a_broken_outcome_is_noticed(law, broken):
    for game in sampled(count=400, seed=5):
        terms, bids = game_of(*game)
        if not law(terms, bids, broken(terms, bids, SALT)):
            return
    pytest.fail("the law noticed nothing")


BROKEN_GAMES = [
    (a6_no_lie_gains, pay_as_bid),
    (
        a6_no_lie_gains,
        lambda terms, bids, salt: clear_slot(replace(terms, rule="proportional"), bids, salt),
    ),
    (a9_the_order_of_bids_does_not_matter, first_come),
    (
        a10_more_recognition_takes_nothing,
        _bids(lambda terms, bid: replace(bid, weight=4 - bid.weight)),
    ),
    (
        a10_a_higher_price_takes_nothing,
        _bids(lambda terms, bid: replace(bid, price_max=max(0, 8 - bid.price_max))),
    ),
    (a11_a_second_identity_gains_nothing, equal_parts),
]


@pytest.mark.parametrize(
    ("law", "broken"),
    BROKEN_GAMES,
    ids=[f"{law.__name__}-{n}" for n, (law, _) in enumerate(BROKEN_GAMES)],
)
def test_a_broken_rule_is_noticed(law, broken):
    for game in sampled(count=300, seed=6):
        terms, bids = game_of(*game)
        if not law(broken, terms, bids):
            return
    pytest.fail("the law noticed nothing")
