"""What a round of a node's allocation comes to, as its state has it.

`granting.clear_all` goes over the windows, `state_after` sums up what holds then. Neither reads a
clock nor signs: all that they follow from is in `Inputs` (docs/design/allocation.md, R1 to R3).
"""

from __future__ import annotations

from dataclasses import dataclass

from xsc.allocation.convergence import EPSILON_PPM, change_ppm, shares_of
from xsc.allocation.granting import Inputs, Outcome
from xsc.allocation.recognition import mutual_ppm
from xsc.base.limits import DAMPING_HISTORY_MAX
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
    recipient_totals,
)
from xsc.terms.slot import Entitlement


@dataclass(frozen=True, slots=True)
class Granted:
    """An outcome as the state has it, which needs no records for that."""

    slots: tuple[SlotDenominators, ...]
    """By rising slot and window."""
    lines: tuple[SlotAllocationRecord, ...]


def granted_of(outcome: Outcome) -> Granted:
    """Return what a state has of an outcome."""
    slots = tuple(
        SlotDenominators(
            slot=each.record.slot.slot_id,
            window=each.record.window,
            kind=each.record.slot.kind,
            rule=each.record.slot.rule,
            capacity=each.record.capacity,
            clearing=each.id,
            tiers=each.record.tiers,
        )
        for _, each in sorted(outcome.cleared.items())
    )
    lines = tuple(
        SlotAllocationRecord(
            slot=each.slot,
            window=(each.opens_ms, each.closes_ms),
            customer=each.customer,
            need=each.need,
            tier=each.tier,
            quantity=each.quantity,
            price=each.price,
            granted_ms=each.granted_ms,
        )
        for each in sorted(outcome.granted, key=_rank)
    )
    return Granted(slots, lines)


def _rank(each: Entitlement) -> tuple[bytes, int, bytes, bytes]:
    return each.slot, each.opens_ms, each.customer, each.need


def granted_by(state: TwoTierAllocationState, outcome: Outcome) -> Outcome:
    """Return what of an outcome a state grants: clearings and lines that it names."""
    named = {slot.clearing for slot in state.slot_denominators}
    lines = {
        (line.slot, line.window[0], line.customer, line.need): line.quantity
        for line in state.slot_allocations
    }
    return Outcome(
        {key: each for key, each in outcome.cleared.items() if each.id in named},
        tuple(
            each
            for each in outcome.granted
            if each.clearing in named and lines.get(_rank(each)) == each.quantity
        ),
    )


def state_after(
    inputs: Inputs, granted: Granted, last: TwoTierAllocationState, damping_ppm: int
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
    moved = change_ppm(shares_of(last.slot_denominators), shares_of(granted.slots))
    known = {each.clearing for each in last.slot_denominators}
    is_kept = all(each.clearing in known for each in granted.slots)
    return TwoTierAllocationState(
        slot_denominators=granted.slots,
        slot_allocations=granted.lines,
        recipient_totals=recipient_totals(granted.slots, granted.lines),
        mr_values=tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
        damping_factor=damping_ppm,
        damping_history=inputs.own.commitment.damping_history,
        converged=is_kept and not inputs.is_pending and moved <= EPSILON_PPM,
        convergence_history=(*last.convergence_history, (moved, inputs.now_ms))[
            -DAMPING_HISTORY_MAX:
        ],
    )
