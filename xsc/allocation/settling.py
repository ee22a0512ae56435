"""How a node settles: damping, convergence, and what its state says of both.

Damping follows from what a node was granted beyond its needs. Under `proportional` the factor
scales needs, as in the original. Elsewhere it limits how fast new asks are published, and is no
entitlement. Convergence is whether what a node grants has settled (docs/design/allocation.md, G5,
G6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from xsc.allocation.granting import Inputs
from xsc.allocation.recognition import mutual_ppm
from xsc.base.limits import DAMPING_HISTORY_MAX, PPM
from xsc.base.units import ceil_div
from xsc.terms.clearing import TwoTierAllocationState

SMOOTH_PPM: Final = PPM
MODERATE_PPM: Final = 800_000
OSCILLATING_PPM: Final = 500_000

OVER_MAX: Final = 2**31 - 1
"""What is beyond needs counts up to here: a ring of i32 has it."""

History: TypeAlias = tuple[tuple[int, int], ...]
"""What was granted beyond the needs, in ppm of them, and when in milliseconds, the oldest first."""

NETWORK_PPM: Final = 800_000


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
    before, now = ({each.clearing for each in state.slot_denominators} for state in (last, granted))
    changed = ceil_div(len(before ^ now) * PPM, max(1, len(before | now)))
    changes = (*last.convergence_history, (changed, inputs.now_ms))
    return granted.model_copy(
        update={
            "mr_values": tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
            "damping_factor": damping_ppm,
            "damping_history": inputs.own.commitment.damping_history,
            # While a clearing is the same, no denominator and no level of it moves at all.
            "converged": changed == 0 and not inputs.is_pending,
            "convergence_history": changes[-DAMPING_HISTORY_MAX:],
        }
    )
