"""Convergence: of one node, of the network, and what the original's test takes for it."""

from fractions import Fraction

import pytest

from tests.gathering import inputs_of
from xsc.allocation.clearing import Claim, divide
from xsc.allocation.program import state_after
from xsc.allocation.published import Published
from xsc.allocation.queries import network_has_converged
from xsc.base.limits import PPM
from xsc.terms.clearing import (
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import Commitment


def divided(clearing, slot=0):
    return SlotDenominators(
        slot=bytes([slot]) * 16,
        window=(0, 1),
        kind="compute",
        rule="proportional",
        clearing=clearing * 32,
        tiers=tuple(
            TierLine(tier=tier, capacity=0, given=0, denominator=0)
            for tier in ("mutual", "one_way", "open")
        ),
        allocations=(),
    )


ONE, OTHER, AGAIN = divided(b"1"), divided(b"2", 1), divided(b"3")


@pytest.mark.parametrize(
    ("before", "after", "is_pending", "has", "changed"),
    [
        ((), (), False, True, 0),
        ((ONE,), (ONE,), False, True, 0),
        ((ONE, OTHER), (ONE, OTHER), False, True, 0),
        ((ONE,), (ONE,), True, False, 0),
        ((ONE,), (AGAIN,), False, False, PPM),
        ((), (ONE,), False, False, PPM),
        ((ONE,), (), False, False, PPM),
        ((ONE,), (ONE, OTHER), False, False, PPM // 2),
        ((ONE, OTHER), (AGAIN, OTHER), False, False, 666_667),
    ],
)
def test_a_node_has_converged_while_its_clearings_are_the_same(
    before, after, is_pending, has, changed
):
    """What appears, vanishes or is cleared anew has changed, and so has what waits."""
    inputs = inputs_of(
        now_ms=1,
        own=Published(b"p" * 32, Commitment(), SpaceValue(record=b"", value=b"")),
        others={},
        is_pending=is_pending,
    )
    granted, last = (TwoTierAllocationState(slot_denominators=slots) for slots in (after, before))
    state = state_after(inputs, granted, last)
    assert (state.converged, state.convergence_history) == (has, ((changed, 1),))


def test_the_network_has_converged_at_four_fifths_of_whom_is_known():
    for converged in range(11):
        flags = {bytes([n]): n < converged for n in range(10)}
        assert network_has_converged(flags) == (converged >= 8)


def original_has_converged(before, after):
    """Return what the original's test says: no denominator that was there moved by 0.001.

    It takes slots that appear or vanish for converged, and says nothing of feasibility.
    """
    return all(
        abs(share - before[place]) <= Fraction(1, 1_000)
        for place, share in after.items()
        if place in before
    )


def test_the_original_s_test_calls_an_infeasible_allocation_converged():
    """Two providers fill the same need each, and neither denominator ever moves."""
    received, states = 0, []
    for provider in range(2):
        division = divide(10, [Claim(b"need", "mutual", 10_000, 10)], "proportional")
        received += division.allocations[b"need"]
        states.append({(bytes([provider]) * 16, (0, 1), "mutual"): Fraction(10)})
    assert received == 20, "of a need of 10"
    assert all(original_has_converged(state, state) for state in states)
    assert original_has_converged({}, states[0]), "what appears is taken for stable"
    assert not original_has_converged(states[0], {next(iter(states[0])): Fraction(11)})
