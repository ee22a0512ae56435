"""Decides which grants of other nodes a customer takes.

A state only says what to look at. A line of it counts if the provider publishes a slot with that
window which matches the need, and if the clearing record that it names has the same line
(docs/design/allocation.md, G8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from xsc.allocation.granting import entitlements, granted_by
from xsc.allocation.matching import places
from xsc.terms.clearing import ClearingRecord, SlotAllocationRecord, TwoTierAllocationState
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, NeedSlot, Window

Lines: TypeAlias = Mapping[tuple[bytes, Window, bytes], SlotAllocationRecord]
"""What a state says that needs of one customer are granted, by slot, window and need."""


def lines_for(
    customer: bytes, state: TwoTierAllocationState, needs: Mapping[bytes, NeedSlot]
) -> Lines:
    """Return what a state says that needs of a customer are granted."""
    return {
        (line.slot, line.window, line.need): line
        for line in state.slot_allocations
        if line.customer == customer and line.need in needs
    }


def clearings_of(lines: Lines, state: TwoTierAllocationState) -> frozenset[bytes]:
    """Return the clearing records that a state names for lines."""
    cleared = {(slot, window) for slot, window, _ in lines}
    return frozenset(
        each.clearing for each in state.slot_denominators if (each.slot, each.window) in cleared
    )


def own_part(record: ClearingRecord, customer: bytes) -> ClearingRecord:
    """Return a record without the lines of others."""
    mine = tuple(each for each in record.participants if each.customer == customer)
    return record.model_copy(update={"participants": mine, "left_out": ()})


def is_line_right(record: ClearingRecord, customer: bytes, tier: Tier) -> bool:
    """Return whether the lines of a customer begin with its tier, at what the slot asks of each.

    Whoever is served in a later stage was served in its own before.

    Args:
        record: of the clearing.
        customer: whose lines are looked at.
        tier: on which the provider serves it now; the clearing may have seen another.
    """
    slot = record.slot
    rungs = {"mutual": slot.price_mutual, "one_way": slot.price_one_way}
    lines = [line for each in own_part(record, customer).participants for line in each.lines]
    return not lines or (
        lines[0][1] == tier
        and all(
            price == rungs[stage] if stage in rungs else price >= slot.reserve
            for _, stage, _, price in lines
        )
    )


def received(
    customer: bytes,
    provider: bytes,
    state: TwoTierAllocationState,
    *,
    records: Mapping[bytes, ClearingRecord],
    needs: Mapping[bytes, NeedSlot],
    slots: Mapping[bytes, Mapping[bytes, AvailabilitySlot]],
) -> list[Entitlement]:
    """Return what one provider grants to needs of a customer, as its records and state both say.

    Args:
        customer: whose needs they are.
        provider: whose state it is.
        state: what it says.
        records: of the provider, which its state names, by id.
        needs: of the customer, by id.
        slots: of the provider, by need that they match and id, as they are published.
    """
    mine = {(customer, need_id): need for need_id, need in needs.items()}
    offered = {slot_id: slot for of in slots.values() for slot_id, slot in of.items()}
    granted = {record_id: granted_by(record) for record_id, record in records.items()}

    def is_right(each: Entitlement) -> bool:
        record, need = records.get(each.clearing), needs[each.need]
        if record is None or each.slot not in slots.get(each.need, ()):
            return False
        line, window = granted[each.clearing].get((customer, each.need)), record.window
        first, _ = places(window, offered[each.slot].windows)
        return (
            line == (each.tier, each.quantity, each.price)
            and (record.slot.slot_id, record.slot.kind) == (each.slot, each.kind)
            and (each.opens_ms, each.closes_ms) == window
            and offered[each.slot].windows[first : first + 1] == (window,)
            and each.quantity <= min(need.most(provider), each.slot_quantity)
            and each.price <= need.price_max
        )

    return [each for each in entitlements(provider, state, offered, mine) if is_right(each)]


def still_received(before: Iterable[Entitlement], lines: Lines) -> list[Entitlement]:
    """Return what was received before, for no more than the state says now."""
    return [
        replace(each, quantity=min(each.quantity, line.quantity), price=min(each.price, line.price))
        for each in before
        if (line := lines.get((each.slot, (each.opens_ms, each.closes_ms), each.need)))
    ]
