"""Convergence: of one node, of the network, and what the original's test takes for it."""

from fractions import Fraction

import pytest

from xsc.allocation.settling import (
    EPSILON_PPM,
    change_ppm,
    network_has_converged,
    shares_of,
)
from xsc.allocation.tiers import Claim, proportional
from xsc.base.limits import PPM
from xsc.terms.clearing import SlotDenominators, TierLine, to_ratio

PLACE = (bytes(16), (0, 1), "mutual")
OTHER = (bytes(16), (1, 2), "mutual")


def share(denominator, level=None):
    return Fraction(denominator), None if level is None else Fraction(level)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({}, {}, 0),
        ({PLACE: share(1000)}, {PLACE: share(1000)}, 0),
        ({PLACE: share(1000)}, {PLACE: share(1001)}, 1_000),
        ({PLACE: share(1000)}, {PLACE: share(998)}, 2_000),
        ({PLACE: share(3)}, {PLACE: share(2)}, 333_334),
        ({PLACE: share(3, 10)}, {PLACE: share(3, 11)}, 100_000),
        ({PLACE: share(3, 10)}, {PLACE: share(3)}, PPM),
        ({PLACE: share(3)}, {PLACE: share(3, 10)}, PPM),
        ({PLACE: share(0)}, {PLACE: share(1)}, PPM),
        ({PLACE: share(1)}, {PLACE: share(100)}, PPM),
        ({}, {PLACE: share(1)}, PPM),
        ({PLACE: share(1)}, {}, PPM),
        ({PLACE: share(1), OTHER: share(5)}, {PLACE: share(1), OTHER: share(5)}, 0),
    ],
)
def test_the_greatest_relative_change_counts_and_what_appears_or_vanishes(before, after, change):
    assert change_ppm(before, after) == change


def test_a_change_of_one_in_a_thousand_is_none():
    before = {PLACE: share(1_000_000)}
    for after, has in ((1_001_000, True), (999_000, True), (1_001_001, False), (998_999, False)):
        assert (change_ppm(before, {PLACE: share(after)}) <= EPSILON_PPM) == has


def test_the_network_has_converged_at_four_fifths_of_whom_is_known():
    for converged in range(11):
        flags = {bytes([n]): n < converged for n in range(10)}
        assert network_has_converged(flags) == (converged >= 8)


def test_what_is_published_is_what_is_compared():
    lines = tuple(
        TierLine(
            tier=tier,
            capacity=10,
            given=5,
            denominator=to_ratio(Fraction(3, 2)),
            level=None if tier == "open" else to_ratio(Fraction(7, 3)),
        )
        for tier in ("mutual", "one_way", "open")
    )
    cleared = SlotDenominators(
        slot=bytes(16),
        window=(0, 1),
        kind="compute",
        rule="proportional",
        capacity=10,
        clearing=bytes(32),
        inputs=bytes(32),
        tiers=lines,
    )
    shares = shares_of([cleared])
    assert len(shares) == 3
    assert shares[PLACE] == share(Fraction(3, 2), Fraction(7, 3))


def original_has_converged(before, after):
    """Return what the original's test says: no denominator that was there moved by 0.001.

    It takes slots that appear or vanish for converged, and says nothing of feasibility.
    """
    return all(
        abs(share[0] - before[place][0]) <= Fraction(1, 1_000)
        for place, share in after.items()
        if place in before
    )


def test_the_original_s_test_calls_an_infeasible_allocation_converged():
    """Two providers fill the same need each, and neither denominator ever moves."""
    received, states = 0, []
    for provider in range(2):
        division = proportional(10, [Claim(b"need", "mutual", 10_000, 10)])
        received += division.allocations[b"need"]
        states.append({(bytes([provider]) * 16, (0, 1), "mutual"): share(10)})
    assert received == 20, "of a need of 10"
    assert all(original_has_converged(state, state) for state in states)
    assert original_has_converged({}, states[0]), "what appears is taken for stable"
    assert not original_has_converged(states[0], {next(iter(states[0])): share(11)})
