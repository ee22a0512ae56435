"""Grants what slots of a node have now to the needs of others.

A round goes over the slots by their ids and clears each that has a window now by itself
(`clearing_record`), over the slot's quantity and whole needs. What is pinned stays: a need whose
leases in the first half of their term have more than it is granted now keeps that, and the rest is
cleared without both. So a customer gains nothing by drawing early, and no lease is recalled.

What a need got of one slot counts in those after it, so no need is filled twice. The last state is
all that a round remembers: what it offered and when, who is paused, and what each slot came to. A
slot that comes to the same keeps its record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self, TypeAlias

from pydantic import Field

from xsc.allocation import clearing_record, published
from xsc.allocation.clearing import Pin
from xsc.base import limits
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms import pricing, quote
from xsc.terms.clearing import (
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
)
from xsc.terms.slot import AvailabilitySlot, Entitlement, EntitlementKey, NeedSlot, Window

OFFER_PAUSE_MS = 10 * 60_000
"""A customer that took no lease is offered nothing of the slot for so long; then twice as long."""
OFFER_PAUSE_MS_MAX = 24 * 3_600_000
GATHERED_BYTES_MAX = 16 * limits.MIB
"""Of all that one round of the allocation follows from. Beyond it the program does not serve."""
ALLOCATIONS_A_CUSTOMER_MAX = 512
"""Of them, those of one customer that its provider recognises."""
ALLOCATIONS_A_STRANGER_MAX = 64
"""The same of one that is not recognised."""

Drawn: TypeAlias = tuple[quote.SlotId, Id32, quote.SlotId, Count]
"""Slot, customer, need and steps."""


class Gathered(Record):
    """All that a round follows from, beside the last state, as its bytes have it."""

    now_ms: Count
    own: published.Said
    others: tuple[published.Said, ...]
    """By rising id: at least those whose needs match a slot."""
    theirs: tuple[tuple[Id32, Annotated[int, Field(gt=0, le=limits.PPM)]], ...]
    """By rising id of a peer: the weight that it gives this node."""
    drawn: tuple[Drawn, ...]
    """The steps that leases have of what was granted."""
    pinned: tuple[Drawn, ...]
    """Those of them that are not cleared again yet."""
    credit: tuple[tuple[Id32, int], ...]
    """By rising id of a customer: the micro-credits that it may still come to owe."""
    free: dict[quote.Kind, Count]
    """Steps that are neither used nor reserved."""
    is_pending: bool
    """Whether something has changed that is not in here yet."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was gathered, with what nodes have published as it was read from there."""

    gathered: Gathered
    own: published.Published
    others: Sequence[published.Published]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return what a round follows from.

        Raises:
            TooLarge, RecordInvalid: the bytes are of no such thing.
        """
        found = Gathered.from_bytes(raw, size_max=GATHERED_BYTES_MAX)
        others = [published.Published.read(*said) for said in found.others]
        return cls(found, published.Published.read(*found.own), others)


def until_ms(offered_ms: int, time: Window) -> int:
    """Return when an offer lapses: after a minute, or with its time."""
    return min(time[1], max(offered_ms, time[0]) + limits.OFFER_MS)


def entitlements(
    provider: bytes,
    state: TwoTierAllocationState,
    slots: Mapping[bytes, AvailabilitySlot],
    needs: Mapping[Pin, NeedSlot],
    now_ms: int,
) -> Iterator[Entitlement]:
    """Yield what a provider's state grants now of slots and to needs that are still there."""
    for divided in state.slot_denominators:
        slot = slots.get(divided.slot)
        if slot is None or divided.window != slot.window_at(now_ms):
            continue
        for line in divided.allocations:
            need = needs.get(line.pin)
            other = None if need is None else need.window_at(now_ms)
            if other is None:
                continue
            time = max(divided.window[0], other[0]), min(divided.window[1], other[1])
            yield Entitlement(
                slot=divided.slot,
                window=time,
                provider=provider,
                customer=line.customer,
                need=line.need,
                kind=slot.kind,
                quantity=line.quantity,
                slot_quantity=slot.quantity,
                tier=line.tier,
                price=line.price,
                granted_ms=line.granted_ms,
                until_ms=until_ms(line.granted_ms, time),
                clearing=divided.clearing,
            )


def rows_of(drawn: Mapping[EntitlementKey, int]) -> tuple[Drawn, ...]:
    """Return what was drawn of a provider's entitlements as it is gathered."""
    return tuple((*key[1:], steps) for key, steps in sorted(drawn.items()))


def _of(slot_id: bytes, drawn: Iterable[Drawn]) -> dict[Pin, int]:
    """Return the steps of a slot by customer and need."""
    return {(node, need): steps for slot, node, need, steps in drawn if slot == slot_id and steps}


class _Round:
    """What the slots that were cleared have taken of needs, credit and capacity."""

    def __init__(self, inputs: Inputs, last: TwoTierAllocationState) -> None:
        self._own, self._others = inputs.own, inputs.others
        self._gathered, self._now_ms = inputs.gathered, inputs.gathered.now_ms
        self._free = Counter(inputs.gathered.free)
        self._credit = Counter(dict(inputs.gathered.credit))
        self._given = Counter[Pin]()
        self._lines = Counter[bytes]()
        """By customer, how many needs of it were granted something."""
        self._last = {each.slot: each for each in last.slot_denominators}
        self._pauses = {(slot, node): (count, end) for slot, node, count, end in last.pauses}
        """By slot and customer: how often in a row it let an offer lapse, and the pause's end."""
        self._waiting: set[tuple[bytes, bytes]] = set()
        """Slots and customers that can take more of them than they have taken."""
        self._divided: list[SlotDenominators] = []
        self.records: dict[bytes, ClearingRecord] = {}
        """By id, of the slots that came to something else than before."""

    def state(self) -> TwoTierAllocationState:
        """Return what all slots came to."""
        pauses = [
            (*key, count, end)
            for key, (count, end) in self._pauses.items()
            if end > self._now_ms or key in self._waiting
        ]
        # Of more than a state says, those that end first are forgotten.
        kept = sorted(pauses, key=lambda each: -each[-1])[: limits.OFFER_PAUSES_MAX]
        return TwoTierAllocationState(
            slot_denominators=tuple(self._divided), pauses=tuple(sorted(kept))
        )

    def clear(self, slot: AvailabilitySlot, window: Window, bytes_max: int) -> None:
        """Clear a slot where somebody needs something of it, and count what it grants."""
        own, last = self._own, self._last.get(slot.slot_id)
        if last is not None and last.window != window:
            last = None
        drawn = _of(slot.slot_id, self._gathered.drawn)
        pinned = _of(slot.slot_id, self._gathered.pinned)
        # All records of a round fit the own space, and all that it grants one state.
        needs_max = limits.ALLOCATIONS_MAX - self._lines.total()
        taking, left_out = clearing_record.admitted(
            slot, self._now_ms, own, self._others, bytes_max=bytes_max, needs_max=needs_max
        )
        if not (taking or left_out or last):
            self._given.update(pinned)
            return
        customers = {customer.node: customer for customer, _ in taking}
        capacity = min(slot.quantity, sum(drawn.values()) + self._free[slot.kind])
        is_full = capacity <= sum(drawn.values())
        since_ms: dict[bytes, int] = {}
        for line in () if last is None else last.allocations:
            is_open = line.granted_ms and line.quantity > drawn.get(line.pin, 0)
            if is_open and line.customer not in since_ms:
                since_ms[line.customer] = self._offered_ms(
                    slot.slot_id, line, is_there=line.customer in customers, is_full=is_full
                )
        eligible = [each for taken in taking for each in self._eligible(slot, taken, drawn)]
        # A need that has more than it is granted keeps that, and the rest is cleared without both.
        stays = {pin for pin in pinned if pin[0] not in {node for node, _, _ in eligible}}
        while True:
            record = ClearingRecord(
                provider=own.named,
                slot=slot,
                at_ms=self._now_ms,
                capacity=max(0, capacity - sum(pinned[pin] for pin in stays)),
                participants=tuple(sorted(each.named for each in customers.values())),
                eligible=tuple(sorted(each for each in eligible if each[:2] not in stays)),
                left_out=tuple(sorted(left_out)),
            )
            cleared = clearing_record.Clearing(record, own, customers).clear()
            given = {pin: granted.quantity for pin, granted in cleared.lines.items()}
            short = {pin for pin in pinned.keys() - stays if given.get(pin, 0) < pinned[pin]}
            if not short:
                break
            stays |= short
            # A customer is one claim: what a need keeps beyond its grant its other needs lack.
            beyond = Counter[bytes]()
            for pin in short:
                beyond[pin[0]] += pinned[pin] - given.get(pin, 0)
            for place, (node, need, _) in enumerate(eligible):
                if node in beyond and (node, need) not in stays:
                    less = min(beyond[node], given.get((node, need), 0))
                    beyond[node] -= less
                    eligible[place] = node, need, given.get((node, need), 0) - less
            eligible = [each for each in eligible if each[2]]
        said = [(*pin, *granted) for pin, granted in sorted(cleared.lines.items())]
        told = last and (last.rule, last.tiers, [line.said for line in last.allocations])
        if last is not None and told == (slot.rule, cleared.tiers, said):
            clearing_id = last.clearing
        else:
            clearing_id = record.id
            self.records[clearing_id] = record
        self._given.update(pinned)
        allocations = []
        for (node, need), granted in sorted(cleared.lines.items()):
            self._given[node, need] += max(0, granted.quantity - pinned.get((node, need), 0))
            left, offered_ms = granted.quantity - drawn.get((node, need), 0), 0
            if left > 0:
                self._waiting.add((slot.slot_id, node))
            if left > 0 and not self._is_paused(slot, node):
                offered_ms = since_ms.get(node, self._now_ms)
                self._credit[node] -= pricing.slot_amount(slot.kind, granted.price, left)
                self._free[slot.kind] -= left
            self._lines[node] += 1
            allocations.append(
                SlotAllocationRecord(
                    customer=node, need=need, granted_ms=offered_ms, **granted._asdict()
                )
            )
        self._divided.append(
            SlotDenominators(
                slot=slot.slot_id,
                window=window,
                kind=slot.kind,
                rule=slot.rule,
                clearing=clearing_id,
                tiers=cleared.tiers,
                allocations=tuple(allocations),
            )
        )

    def _is_paused(self, slot: AvailabilitySlot, customer: bytes) -> bool:
        return self._now_ms < self._pauses.get((slot.slot_id, customer), (0, 0))[1]

    def _eligible(
        self, slot: AvailabilitySlot, taking: clearing_record.Taking, drawn: Mapping[Pin, int]
    ) -> list[tuple[bytes, bytes, int]]:
        """Return what each need may be granted of a slot, of what it wants."""
        found = list[tuple[bytes, bytes, int]]()
        (taker, wanted), kind, provider = taking, slot.kind, self._own.node
        customer = taker.node
        credit, is_paused = self._credit[customer], self._is_paused(slot, customer)
        is_open = published.standing(self._own, taker)[0] == "open"
        lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
        lines -= self._lines[customer]
        for need in taker.commitment.needs:
            if need.slot_id not in wanted:
                continue
            pin = customer, need.slot_id
            mine = drawn.get(pin, 0)
            # A margin asks for free room, and not for what lies under others' leases.
            margin = max(0, need.part(provider) - mine)
            most = min(
                wanted[need.slot_id] - self._given[pin],
                need.most(provider) - max(0, margin - self._free[kind]),
            )
            # Not at what the need says that it pays: who said less would be eligible for more.
            more = pricing.affordable(kind, slot.reserve, credit)
            if more is not None:
                most = min(most, mine + more // pricing.SLOT_UNIT[kind])
            # What was taken stays.
            if is_paused or len(found) >= lines:
                most = min(most, mine)
            if most > 0:
                found.append((*pin, most))
                credit -= pricing.slot_amount(kind, slot.reserve, max(0, most - mine))
        return found

    def _offered_ms(
        self, slot_id: bytes, line: SlotAllocationRecord, *, is_there: bool, is_full: bool
    ) -> int:
        """Return since when a customer is offered what it has not taken; pause it if that lapses.

        To withdraw what was offered and not taken is to let it lapse.
        """
        if is_there and self._now_ms < line.granted_ms + limits.OFFER_MS:
            return line.granted_ms
        if is_there and is_full:
            # What others still hold can be taken by nobody: it stands until some falls free.
            return self._now_ms
        key = slot_id, line.customer
        lapses, _ = self._pauses.get(key, (0, 0))
        pause_ms = min(OFFER_PAUSE_MS << min(lapses, 16), OFFER_PAUSE_MS_MAX)
        self._pauses[key] = lapses + 1, self._now_ms + pause_ms
        return line.granted_ms


def clear_all(
    inputs: Inputs, last: TwoTierAllocationState
) -> tuple[TwoTierAllocationState, dict[bytes, ClearingRecord]]:
    """Clear all slots that have a window now.

    Args:
        inputs: what the round follows from.
        last: the state that was published before.

    Returns:
        A state with slots, allocations and pauses (`program.state_after` adds the rest), and by id
        the records of the slots that came to something else than before.
    """
    now_ms = inputs.gathered.now_ms
    slots = inputs.own.commitment.slots
    present = [(slot, now) for slot in slots if (now := slot.window_at(now_ms)) is not None]
    made = _Round(inputs, last)
    for slot, window in present:
        made.clear(slot, window, limits.CLEARINGS_BYTES_MAX // len(present))
    return made.state(), made.records
