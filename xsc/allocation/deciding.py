"""One round of a node's allocation as a rule: from what was published to what is granted.

`clear` goes over the windows, `state_after` sums up what holds then. Neither reads a clock, draws
a salt or signs: all that they follow from is in `Inputs` (docs/design/allocation.md, R1 to R3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from xsc.allocation.clearing_record import Published
from xsc.allocation.convergence import change_ppm, has_converged, shares_of
from xsc.allocation.granting import Cleared, Now, Pass, Seen
from xsc.allocation.ports import SlotRoom
from xsc.allocation.queues import Key, Queues
from xsc.allocation.recognition import mutual_ppm
from xsc.base.encoding import tagged_sha256
from xsc.base.limits import DAMPING_HISTORY_MAX
from xsc.terms.clearing import SlotAllocationRecord, SlotDenominators, TwoTierAllocationState
from xsc.terms.quote import Kind
from xsc.terms.slot import Entitlement, EntitlementKey


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a round follows from, beside the last state."""

    now_ms: int
    salt: bytes
    """Those of windows that were not cleared before come from it."""
    own: Published
    others: Mapping[bytes, Published]
    """By node: at least whose needs match a slot."""
    theirs: Mapping[bytes, int]
    """By peer: the weight that it gives this node, in ppm, above 0."""
    drawn: Mapping[EntitlementKey, int]
    credit: Mapping[bytes, int]
    """By customer: the micro-credits that it may still come to owe."""
    free: Mapping[Kind, int]
    """What is neither used nor reserved."""
    before: Mapping[Key, Cleared]
    is_pending: bool
    """Whether something has changed that is not in here yet."""
    queues: Queues | None = field(default=None, compare=False)
    """An index of `others` that is kept from round to round."""
    last: Seen | None = field(default=None, compare=False)
    """What the last round saw over these queues."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round comes to."""

    cleared: Mapping[Key, Cleared]
    fresh: tuple[Key, ...]
    """Windows that were cleared anew."""
    granted: tuple[Entitlement, ...]


def begin(inputs: Inputs, room: SlotRoom) -> Pass:
    """Return the round, to be run window by window.

    Args:
        inputs: what it follows from.
        room: what `inputs.free` has room for; it is used up.
    """
    queues = inputs.queues
    if queues is None:
        queues = Queues(inputs.own.node)
        queues.change_own(inputs.own, inputs.now_ms)
        for node, other in inputs.others.items():
            queues.change(node, other, inputs.now_ms)
    now = Now(inputs.now_ms, inputs.own, inputs.drawn, inputs.credit.__getitem__, room)

    def salt(key: Key) -> bytes:
        return tagged_sha256("clearing/salt", inputs.salt, key[0], key[1].to_bytes(8, "big"))

    return Pass(now, queues, inputs.before, salt, inputs.last)


def outcome_of(made: Pass) -> Outcome:
    """Return what a round came to that was run to its end."""
    return Outcome(made.cleared, tuple(made.fresh), tuple(made.granted))


def clear(inputs: Inputs, room: SlotRoom) -> Outcome:
    """Clear what has changed at once, as `begin`."""
    made = begin(inputs, room)
    for _ in made.run():
        pass
    return outcome_of(made)


@dataclass(frozen=True, slots=True)
class Granted:
    """An outcome as the state has it, which needs no records for that."""

    slots: tuple[SlotDenominators, ...]
    """By rising slot and window."""
    lines: tuple[SlotAllocationRecord, ...]
    is_fresh: bool
    """Whether a window was cleared anew."""


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
    return Granted(slots, lines, bool(outcome.fresh))


def _rank(each: Entitlement) -> tuple[bytes, int, bytes, bytes]:
    return each.slot, each.opens_ms, each.customer, each.need


def is_due(outcome: Outcome, last: TwoTierAllocationState) -> bool:
    """Say whether a state is to be published: others clearings hold, or they have settled."""
    ids = [each.id for _, each in sorted(outcome.cleared.items())]
    settles = not last.converged and bool(ids)
    return settles or ids != [each.clearing for each in last.slot_denominators]


def state_after(
    inputs: Inputs, granted: Granted, last: TwoTierAllocationState, damping_ppm: int
) -> TwoTierAllocationState:
    """Return the state that is published.

    Args:
        inputs: what the outcome followed from.
        granted: what `clear` gave.
        last: what was published before.
        damping_ppm: the factor of the own history.
    """
    totals: defaultdict[bytes, int] = defaultdict(int)
    for line in granted.lines:
        totals[line.customer] += line.quantity
    weights = inputs.own.weights
    mutual = {peer: mutual_ppm(weights.get(peer, 0), ppm) for peer, ppm in inputs.theirs.items()}
    before, after = shares_of(last.slot_denominators), shares_of(granted.slots)
    moved = change_ppm(before, after), inputs.now_ms
    converged = has_converged(before, after, pending=inputs.is_pending)
    return TwoTierAllocationState(
        slot_denominators=granted.slots,
        slot_allocations=granted.lines,
        recipient_totals=tuple(sorted(totals.items())),
        mr_values=tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
        damping_factor=damping_ppm,
        damping_history=inputs.own.commitment.damping_history,
        converged=converged and not granted.is_fresh,
        convergence_history=(*last.convergence_history, moved)[-DAMPING_HISTORY_MAX:],
    )
