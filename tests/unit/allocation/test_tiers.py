"""The ten defects of the formula that `proportional` keeps, at the level of one division.

D1  tier 2 served while tier 1 lacks: kept exact in `proportional`, corrected in the default.
D6  damping of a lone recipient cancels in the ratio: kept exact in `proportional`; the
    default does not look at damping.
D7  damping 0 read as 1: corrected, 0 is 0.
D9  the guide's worked example: its prose is the default rule, its formula `proportional`.

Not at this level yet, because they need slots, places, times or a history:
D2 (one need filled by two slots), D3 (month buckets), D4 (undated need), D5 (hours),
D8 (constant over-allocation counted as smooth), D10 (city and country buckets).
"""

import json
from pathlib import Path

import pytest

from xsc.allocation.clearing import RULES, Claim, divide

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "two_tier.json").read_text(encoding="utf-8")
)["cases"]


def claims_of(case):
    return [
        Claim(
            bytes.fromhex(claim["id"]),
            claim["tier"],
            claim["weight"] or 1,
            claim["need"],
            claim.get("damping_ppm", 1_000_000),
        )
        for claim in case["claims"]
    ]


def case_of(name):
    return next(case for case in VECTORS if case["name"] == name)


def by_hex(division):
    return {id_.hex(): amount for id_, amount in division.allocations.items()}


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_weighted_uniform_vectors(case):
    assert by_hex(divide(case["capacity"], claims_of(case))) == (case["weighted_uniform"])


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_proportional_vectors(case):
    division = divide(case["capacity"], claims_of(case), "proportional")
    assert by_hex(division) == case["proportional"]["allocations"]
    found = {result.tier: result.denominator for result in division.tiers}
    assert found == case["proportional"]["denominators"]


def test_d1_tier_one_is_sated_before_tier_two():
    case = case_of("D1 tier priority")
    assert by_hex(divide(100, claims_of(case))) == {"aa": 1, "bb": 99, "cc": 0}
    original = divide(100, claims_of(case), "proportional")
    assert by_hex(original) == {"aa": 1, "bb": 91, "cc": 8}
    assert original.tiers[0].denominator == 10_900_000


def test_d6_damping_cancels_for_a_lone_recipient():
    assert (
        divide(10, [Claim(b"a", "mutual", 500_000, 10, 500_000)], "proportional").allocations[b"a"]
        == 10
    )


def test_d7_damping_of_zero_is_zero():
    lone = Claim(b"a", "mutual", 500_000, 10, 0)
    assert divide(10, [lone], "proportional").allocations == {b"a": 0}
    assert divide(10, [lone], "proportional").tiers[0].denominator == 0


def test_d9_the_guide_is_water_filling():
    case = case_of("guide")
    assert by_hex(divide(100, claims_of(case))) == {"aa": 30, "bb": 30, "cc": 40}
    assert by_hex(divide(100, claims_of(case), "proportional")) == {"aa": 29, "bb": 21, "cc": 48}


def test_the_stages_say_what_came_to_them_and_what_they_gave():
    division = divide(10, [Claim(b"a", "mutual", 1, 4), Claim(b"b", "open", 1, 5)])
    assert [result.capacity for result in division.tiers] == [10, 6, 6]
    assert [result.given for result in division.tiers] == [4, 0, 5]


def test_the_denominator_is_never_taken_for_less_than_a_ten_thousandth():
    lone = Claim(b"a", "mutual", 500_000, 10, 5)
    tier = divide(10, [lone], "proportional").tiers[0]
    assert (tier.denominator, tier.given) == (5 * 10, 5)


@pytest.mark.parametrize("rule", RULES)
def test_a_claim_that_needs_nothing_changes_nothing(rule):
    claims = [Claim(b"a", "mutual", 2, 10), Claim(b"b", "mutual", 3, 90), Claim(b"c", "open", 1, 9)]
    idle = [Claim(b"d", "mutual", 7, 0), Claim(b"e", "open", 1, 0)]
    for capacity in (0, 50, 105):
        alone, beside = divide(capacity, claims, rule), divide(capacity, [*claims, *idle], rule)
        assert beside.tiers == alone.tiers
        assert beside.allocations == alone.allocations | {b"d": 0, b"e": 0}


def test_a_tier_that_finds_nothing_left_says_so():
    claims = [Claim(b"a", "mutual", 1, 10), Claim(b"b", "one_way", 1, 10)]
    tier = divide(10, claims, "proportional").tiers[1]
    assert (tier.capacity, tier.given, tier.denominator) == (0, 0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_claim_a_division_cannot_understand_is_a_bug(rule):
    with pytest.raises(AssertionError):
        Claim(b"a", "mutual", 0, 1)
    with pytest.raises(AssertionError):
        Claim(b"a", "open", 0, 1)
    with pytest.raises(AssertionError):
        Claim(b"a", "open", 1, -1)
    with pytest.raises(AssertionError):
        divide(1, [Claim(b"a", "open", 1, 1), Claim(b"a", "mutual", 1, 1)], rule)
    with pytest.raises(AssertionError):
        divide(-1, [], rule)
