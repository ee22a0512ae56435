"""How a node settles: damping, convergence, and what its state says of both.

Damping follows from what a node was granted beyond its needs. Under `proportional` the factor
scales needs, as in the original. Elsewhere it limits how fast new asks are published, and is no
entitlement. Convergence is whether what a node grants has settled (docs/design/allocation.md, G5,
G6).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import ceil
from typing import Final, TypeAlias

from xsc.allocation.granting import Inputs
from xsc.allocation.recognition import mutual_ppm
from xsc.base.limits import DAMPING_HISTORY_MAX, PPM
from xsc.base.units import ceil_div
from xsc.terms.clearing import SlotDenominators, TwoTierAllocationState, from_ratio
from xsc.terms.slot import Window

SMOOTH_PPM: Final = PPM
MODERATE_PPM: Final = 800_000
OSCILLATING_PPM: Final = 500_000

OVER_MAX: Final = 2**31 - 1
"""What is beyond needs counts up to here: a ring of i32 has it."""

History: TypeAlias = tuple[tuple[int, int], ...]
"""What was granted beyond the needs, in ppm of them, and when in milliseconds, the oldest first."""

EPSILON_PPM: Final = 1_000
"""0.1 %: a denominator or level that changes by no more is stable."""
NETWORK_PPM: Final = 800_000

Shares: TypeAlias = Mapping[tuple[bytes, Window, str], tuple[Fraction, Fraction | None]]
"""By slot, window and tier, what the tier is divided by, and the units a unit of weight.

The latter is None where every need is sated."""


def over_allocated(needs: Mapping[bytes, int], received: Mapping[bytes, int]) -> int:
    """Return what is received beyond each need, in ppm of it, in all.

    One need's excess serves no other, and steps of bytes and of fuel do not add up.
    """
    return sum(
        max(0, units - needs[need]) * PPM // needs[need]
        for need, units in received.items()
        if need in needs
    )


def observe(history: History, over: int, now_ms: int) -> History:
    """Return the history with one more computation.

    The original keeps three of the last 30 s, or the last three where these are fewer: the last
    three in both cases.
    """
    return (*history, (min(over, OVER_MAX), now_ms))[-DAMPING_HISTORY_MAX:]


def factor_ppm(history: History) -> int:
    """Return the factor of a history.

    Up and down again, or down and up, oscillates; so does what is over-allocated by the same
    amount each time. What never rises is smooth, and so are less than three computations.
    """
    if len(history) < DAMPING_HISTORY_MAX:
        return SMOOTH_PPM
    first, second, third = (over for over, _ in history[-DAMPING_HISTORY_MAX:])
    if first < second > third or first > second < third or first == second == third > 0:
        return OSCILLATING_PPM
    return SMOOTH_PPM if first >= second >= third else MODERATE_PPM


def publish_delay_ms(debounce_ms: int, damping_ppm: int) -> int:
    """Return how long a new ask waits before it is published: the longer, the more it swings."""
    assert damping_ppm > 0, "no history gives 0"
    return ceil_div(debounce_ms * PPM, damping_ppm)


def shares_of(cleared: Collection[SlotDenominators]) -> Shares:
    """Return what is compared of the present clearings."""
    return {
        (slot.slot, slot.window, line.tier): (
            from_ratio(line.denominator),
            None if line.level is None else from_ratio(line.level),
        )
        for slot in cleared
        for line in slot.tiers
    }


def _moved_ppm(before: Fraction | None, after: Fraction | None) -> int:
    if before == after:
        return 0
    if not before or after is None:
        return PPM
    return min(PPM, ceil(abs(after - before) * PPM / before))


def change_ppm(before: Shares, after: Shares) -> int:
    """Return the greatest relative change of a denominator or level, rounded up, at most PPM.

    What appears or vanishes has changed as a whole.
    """
    appeared = before.keys() != after.keys()
    moved = (
        _moved_ppm(*pair)
        for place in before.keys() & after.keys()
        for pair in zip(before[place], after[place], strict=True)
    )
    return PPM if appeared else max(moved, default=0)


def network_has_converged(flags: Mapping[bytes, bool]) -> bool:
    """Return whether 80 % of the nodes say that they have: an estimate, over those heard lately.

    Args:
        flags: what each known fresh participant says, this node among them.
    """
    return sum(flags.values()) * PPM >= NETWORK_PPM * len(flags)


def state_after(
    inputs: Inputs,
    granted: TwoTierAllocationState,
    last: TwoTierAllocationState,
    damping_ppm: int,
) -> TwoTierAllocationState:
    """Return the state that is published.

    Args:
        inputs: what the outcome followed from.
        granted: what `clear_all` gave.
        last: what was published before.
        damping_ppm: the factor of the own history.
    """
    weights = inputs.own.weights
    mutual = {peer: mutual_ppm(weights.get(peer, 0), ppm) for peer, ppm in inputs.theirs.items()}
    slots = granted.slot_denominators
    moved = change_ppm(shares_of(last.slot_denominators), shares_of(slots))
    known = {each.clearing for each in last.slot_denominators}
    is_kept = all(each.clearing in known for each in slots)
    changes = (*last.convergence_history, (moved, inputs.now_ms))
    return granted.model_copy(
        update={
            "mr_values": tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
            "damping_factor": damping_ppm,
            "damping_history": inputs.own.commitment.damping_history,
            "converged": is_kept and not inputs.is_pending and moved <= EPSILON_PPM,
            "convergence_history": changes[-DAMPING_HISTORY_MAX:],
        }
    )
