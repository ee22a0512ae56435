"""What a node publishes after a round of its allocation (docs/design/allocation.md, R1 to R3)."""

from __future__ import annotations

from xsc.allocation.convergence import EPSILON_PPM, change_ppm, shares_of
from xsc.allocation.granting import Inputs
from xsc.allocation.recognition import mutual_ppm
from xsc.base.limits import DAMPING_HISTORY_MAX
from xsc.terms.clearing import TwoTierAllocationState


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
