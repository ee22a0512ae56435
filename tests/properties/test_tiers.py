"""The laws of the division (docs/design/allocation-laws.md), exhaustive where games are small."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.allocation.clearing import RULES, TIERS, Claim, divide

WEIGHTS = st.integers(1, 1_000_000)


@st.composite
def claims(draw, need_max=10**12, count_max=12):
    found = []
    for index in range(draw(st.integers(0, count_max))):
        tier = draw(st.sampled_from(TIERS))
        weight = 1 if tier == "open" else draw(WEIGHTS | st.integers(1, 5))
        need = draw(st.integers(0, need_max) | st.integers(0, 5))
        damping_ppm = draw(st.integers(0, 1_000_000))
        found.append(Claim(bytes([index]), tier, weight, need, damping_ppm))
    return found


CAPACITY = st.integers(0, 4 * 10**12) | st.integers(0, 30)


def unit_by_unit(capacity, claims):
    """Hand out one unit after another: the definition of the rule."""
    given = {claim.id: 0 for claim in claims}
    for tier in TIERS:
        while capacity:
            waiting = [c for c in claims if c.tier == tier and given[c.id] < c.need]
            if not waiting:
                break
            first = min(waiting, key=lambda c: (-Fraction(c.weight, given[c.id] + 1), c.id))
            given[first.id] += 1
            capacity -= 1
    return given


@given(st.integers(0, 60), claims(need_max=25, count_max=8))
def test_the_level_search_is_the_unit_by_unit_rule(capacity, claims):
    assert divide(capacity, claims).allocations == unit_by_unit(capacity, claims)


def test_the_level_search_is_the_unit_by_unit_rule_in_every_small_game():
    for weights in product((1, 2, 5), repeat=3):
        for needs in product(range(5), repeat=3):
            members = [
                Claim(bytes([index]), "mutual", weights[index], needs[index]) for index in range(3)
            ]
            for capacity in range(8):
                division = divide(capacity, members)
                assert division.allocations == unit_by_unit(capacity, members)


@pytest.mark.parametrize("rule", RULES)
@given(CAPACITY, claims())
def test_feasible_and_capped(rule, capacity, claims):
    given = divide(capacity, claims, rule).allocations
    assert set(given) == {claim.id for claim in claims}
    assert sum(given.values()) <= capacity
    assert all(0 <= given[claim.id] <= claim.need for claim in claims)


@pytest.mark.parametrize("rule", RULES)
@given(CAPACITY, claims(), st.randoms(use_true_random=False))
def test_the_order_of_claims_does_not_matter(rule, capacity, claims, random):
    shuffled = list(claims)
    random.shuffle(shuffled)
    assert divide(capacity, shuffled, rule) == divide(capacity, claims, rule)


@pytest.mark.parametrize("rule", RULES)
@given(CAPACITY, claims())
def test_the_tiers_add_up(rule, capacity, claims):
    division = divide(capacity, claims, rule)
    assert [result.tier for result in division.tiers] == list(TIERS)
    for result in division.tiers:
        assert result.given == sum(
            division.allocations[claim.id] for claim in claims if claim.tier == result.tier
        )


@given(CAPACITY, claims())
def test_nothing_is_wasted(capacity, claims):
    given = divide(capacity, claims).allocations
    assert sum(given.values()) == min(capacity, sum(claim.need for claim in claims))


@given(CAPACITY, claims())
def test_a_tier_is_served_only_when_those_before_it_are_sated(capacity, claims):
    given = divide(capacity, claims).allocations
    for earlier, later in (("mutual", "one_way"), ("mutual", "open"), ("one_way", "open")):
        if any(given[claim.id] for claim in claims if claim.tier == later):
            assert all(given[c.id] == c.need for c in claims if c.tier == earlier)


@given(CAPACITY, claims())
def test_nobody_in_a_tier_lags_behind_by_more_than_a_unit(capacity, claims):
    given = divide(capacity, claims).allocations
    for one in claims:
        for other in claims:
            if one.tier == other.tier and given[one.id] < one.need and given[other.id]:
                assert Fraction(given[other.id], other.weight) <= Fraction(
                    given[one.id] + 1, one.weight
                )


@given(CAPACITY, st.integers(0, 5), claims())
def test_more_capacity_takes_from_nobody(capacity, more, claims):
    less = divide(capacity, claims).allocations
    given = divide(capacity + more, claims).allocations
    assert all(given[id_] >= less[id_] for id_ in less)


@given(CAPACITY, claims())
def test_another_claimant_gives_nobody_more(capacity, claims):
    for gone in claims[:3]:
        without = divide(capacity, [c for c in claims if c is not gone]).allocations
        given = divide(capacity, claims).allocations
        assert all(given[id_] <= without[id_] for id_ in without)


@given(CAPACITY, claims(), st.integers(1, 9))
def test_the_scale_of_weights_does_not_matter(capacity, claims, factor):
    scaled = [Claim(c.id, c.tier, c.weight * factor, c.need, c.damping_ppm) for c in claims]
    assert divide(capacity, scaled).allocations == divide(capacity, claims).allocations


@given(CAPACITY, claims())
def test_damping_is_no_entitlement(capacity, claims):
    undamped = [Claim(c.id, c.tier, c.weight, c.need) for c in claims]
    assert divide(capacity, claims) == divide(capacity, undamped)


@given(CAPACITY, claims(), st.integers(0, 2 * 10**12), st.integers(0, 11))
def test_no_lie_pays(capacity, claims, lie, which):
    if which >= len(claims):
        return
    true = claims[which]
    honest = divide(capacity, claims).allocations[true.id]
    lied = Claim(true.id, true.tier, true.weight, lie)
    others = [claim for claim in claims if claim is not true]
    got = divide(capacity, [*others, lied]).allocations[true.id]
    assert min(got, true.need) <= honest


KINDS = [("mutual", 1), ("mutual", 3), ("one_way", 2), ("open", 1)]


def profitable_lies(rule, needs_told, kinds_of_games):
    """Yield every game of three with needs and capacity up to 4 in which a lie pays."""
    for kinds in kinds_of_games:
        made = [
            {need: Claim(bytes([index]), *kinds[index], need) for need in needs_told}
            for index in range(3)
        ]
        for capacity in range(5):
            outcome = {
                told: divide(
                    capacity, [made[index][told[index]] for index in range(3)], rule
                ).allocations
                for told in product(needs_told, repeat=3)
            }
            for needs in product(range(5), repeat=3):
                for liar, true in enumerate(needs):
                    honest = min(outcome[needs][bytes([liar])], true)
                    for lie in needs_told:
                        told = (*needs[:liar], lie, *needs[liar + 1 :])
                        if min(outcome[told][bytes([liar])], true) > honest:
                            yield kinds, capacity, needs, liar, lie


def test_weighted_uniform_pays_no_lie_in_any_small_game():
    # Above the capacity all needs are alike (next test), so 5 stands for every larger lie.
    lies = profitable_lies("weighted-uniform", range(6), product(KINDS, repeat=3))
    assert next(lies, None) is None


def test_a_need_above_the_capacity_is_a_need_of_the_capacity():
    for kinds in product(KINDS, repeat=2):
        for capacity, needs in product(range(5), product(range(9), repeat=2)):
            stated = [Claim(bytes([i]), *kinds[i], needs[i]) for i in range(2)]
            clipped = [Claim(bytes([i]), *kinds[i], min(needs[i], capacity)) for i in range(2)]
            assert divide(capacity, stated).allocations == divide(capacity, clipped).allocations


def test_proportional_pays_a_lie():
    games = [(("mutual", 1), ("mutual", 1), ("mutual", 1))]
    kinds, capacity, needs, liar, lie = next(profitable_lies("proportional", (*range(5), 8), games))
    assert lie > needs[liar]
    told = [Claim(bytes([i]), *kinds[i], lie if i == liar else needs[i]) for i in range(len(needs))]
    true = [Claim(bytes([i]), *kinds[i], needs[i]) for i in range(len(needs))]
    key = bytes([liar])
    assert (
        min(divide(capacity, told, "proportional").allocations[key], needs[liar])
        > divide(capacity, true, "proportional").allocations[key]
    )


def test_proportional_serves_tier_two_before_tier_one_is_sated():
    division = divide(
        100,
        [
            Claim(b"a", "mutual", 900_000, 1),
            Claim(b"b", "mutual", 100_000, 100),
            Claim(b"c", "one_way", 200_000, 50),
        ],
        "proportional",
    )
    assert division.allocations[b"b"] < 100
    assert division.allocations[b"c"] > 0
