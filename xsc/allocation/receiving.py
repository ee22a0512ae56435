"""Decides which grants of other nodes a customer takes.

The state of a provider is enough: it is a value of its space, which it has signed. A line of it
counts if the provider publishes a slot with that window which matches the need, and if the line is
of the tier and at a price that both publish (docs/design/allocation.md, G8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xsc.allocation.granting import entitlements
from xsc.allocation.matching import places
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, NeedSlot


def _fits(each: Entitlement, need: NeedSlot, slot: AvailabilitySlot) -> bool:
    """Return whether a line is of a window of its slot, and within what slot and need say."""
    window = each.opens_ms, each.closes_ms
    first, _ = places(window, slot.windows)
    return (
        slot.windows[first : first + 1] == (window,)
        and each.quantity <= min(need.most(each.provider), slot.quantity)
        and each.price <= need.price_max
    )


def is_line_right(each: Entitlement, slot: AvailabilitySlot, tier: Tier) -> bool:
    """Return whether a line is of the tier of its customer, at what its slot asks of that.

    Under `proportional` the division can leave a need a rest that the auction sells it: the price
    is then the mean of both stages.
    """
    rung, is_mixed = slot.ladder.rung(each.tier), slot.rule == "proportional"
    if each.tier == "open" or is_mixed:
        return each.price >= rung and (each.tier == tier or (is_mixed and each.tier == "open"))
    return each.price == rung and each.tier == tier


def received(
    customer: bytes,
    provider: bytes,
    state: TwoTierAllocationState,
    *,
    tier: Tier,
    needs: Mapping[bytes, NeedSlot],
    slots: Mapping[bytes, Mapping[bytes, AvailabilitySlot]],
    before: Iterable[Entitlement],
) -> tuple[list[Entitlement], set[bytes]]:
    """Return what counts of a provider's state, and the clearings whose lines cannot be right.

    A line that has counted goes on: where recognition or a price changes, the provider clears
    again, and its state is a moment behind.

    Args:
        customer: whose needs they are.
        provider: whose state it is.
        state: what it says.
        tier: on which the provider serves the customer now.
        needs: of the customer, by id.
        slots: of the provider, by need that they match and id, as they are published.
        before: what counted of the state before.
    """
    mine = {(customer, need_id): need for need_id, need in needs.items()}
    offered = {slot_id: slot for of in slots.values() for slot_id, slot in of.items()}
    known = {_said(each) for each in before}
    counts, doubted = list[Entitlement](), set[bytes]()
    for each in entitlements(provider, state, offered, mine):
        slot = slots[each.need].get(each.slot)
        if slot is None or not _fits(each, needs[each.need], slot):
            continue
        if _said(each) in known or is_line_right(each, slot, tier):
            counts.append(each)
        else:
            doubted.add(each.clearing)
    return counts, doubted


def _said(each: Entitlement) -> tuple[object, ...]:
    return each.key, each.clearing, each.tier, each.quantity, each.price
