"""Decides which grants of other nodes a customer takes.

A state only says what to look at. A line of it counts if the provider publishes a slot with that
window which matches the need, and if the clearing record that it names has the same line
(docs/design/allocation.md, G8).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from xsc.allocation.granting import price_of, until_ms
from xsc.allocation.matching import overlap, windows_of
from xsc.terms.clearing import ClearingRecord, LineValue, TwoTierAllocationState
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, NeedSlot, Window

Line: TypeAlias = tuple[bytes, Window, bytes, Tier, int, int]
"""Slot, window, need, first tier, units and price."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a clearing record grants to one customer."""

    at_ms: int
    """When it was made, by its provider."""
    lines: frozenset[Line]
    stages: tuple[LineValue, ...] = ()
    """The same by stages, as the record has them."""


def offered_by(
    provider: bytes,
    customer: bytes,
    state: TwoTierAllocationState,
    needs: Mapping[bytes, NeedSlot],
    slots: Mapping[bytes, Mapping[tuple[bytes, bytes], AvailabilitySlot]],
) -> list[Entitlement]:
    """Return what a provider says that it grants, as far as it can be so.

    Args:
        provider: whose state it is.
        customer: whose needs are granted something.
        state: what the provider says.
        needs: of the customer, by id.
        slots: by need, the published slots that match it, by node and id.
    """
    divided = {(slot.slot, slot.window): slot.clearing for slot in state.slot_denominators}
    windows: dict[bytes, frozenset[Window]] = {}
    found = []
    for line in state.slot_allocations:
        need = needs.get(line.need) if line.customer == customer else None
        slot = slots.get(line.need, {}).get((provider, line.slot))
        if need is None or slot is None or line.price > need.price_max:
            continue
        if line.slot not in windows:
            windows[line.slot] = frozenset(slot.windows)
        time = overlap(line.window, windows_of(need))
        if (
            time is None
            or line.window not in windows[line.slot]
            or line.quantity > min(need.most(provider), slot.quantity)
        ):
            continue
        found.append(
            Entitlement(
                slot=line.slot,
                opens_ms=line.window[0],
                closes_ms=line.window[1],
                window=time,
                provider=provider,
                customer=customer,
                need=line.need,
                kind=slot.kind,
                quantity=line.quantity,
                slot_quantity=slot.quantity,
                tier=line.tier,
                price=line.price,
                granted_ms=line.granted_ms,
                until_ms=until_ms(line.granted_ms, time),
                clearing=divided[line.slot, line.window],
            )
        )
    return found


def proven_of(record: ClearingRecord, customer: bytes) -> Proven:
    """Return what a record grants to each need of a customer, over all stages."""
    parts: defaultdict[bytes, list[tuple[Tier, int, int]]] = defaultdict(list)
    stages: tuple[LineValue, ...] = ()
    for participant in record.participants:
        if participant.customer == customer:
            stages = participant.lines
            for need, tier, units, price in participant.lines:
                parts[need].append((tier, units, price))
    found = set()
    for need, lines in parts.items():
        units = sum(line[1] for line in lines)
        price = price_of(record.slot, lines)
        found.add((record.slot.slot_id, record.window, need, lines[0][0], units, price))
    return Proven(record.at_ms, frozenset(found), stages)


def is_line_right(record: ClearingRecord, customer: bytes) -> bool:
    """Return whether each line of a customer has a price that the slot asks of its stage."""
    slot = record.slot
    rungs = {"mutual": slot.price_mutual, "one_way": slot.price_one_way}
    return all(
        price == rungs[tier] if tier in rungs else price >= slot.reserve
        for each in record.participants
        if each.customer == customer
        for _, tier, _, price in each.lines
    )


def is_proven(each: Entitlement, proven: Mapping[bytes, Proven]) -> bool:
    """Return whether the checked record that an entitlement names has it."""
    found = proven.get(each.clearing)
    window = each.opens_ms, each.closes_ms
    line = each.slot, window, each.need, each.tier, each.quantity, each.price
    return found is not None and line in found.lines


def still_offered(
    before: Iterable[Entitlement], offered: Iterable[Entitlement]
) -> list[Entitlement]:
    """Return what was proven before, for no more than is offered now."""
    now = {each.key: each for each in offered}
    return [
        replace(
            each,
            quantity=min(each.quantity, now[each.key].quantity),
            price=min(each.price, now[each.key].price),
        )
        for each in before
        if each.key in now
    ]
