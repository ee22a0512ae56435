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

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, Self, TypeAlias

from pydantic import Field

from xsc.allocation.clearing_record import (
    Clearing,
    Granted,
    Pin,
    Published,
    Said,
    Taker,
    admitted,
    lines_of,
    takers_of,
)
from xsc.allocation.matching import common
from xsc.base.limits import (
    ALLOCATIONS_A_CUSTOMER_MAX,
    ALLOCATIONS_A_STRANGER_MAX,
    ALLOCATIONS_MAX,
    CLEARINGS_BYTES_MAX,
    GATHERED_BYTES_MAX,
    OFFER_MS,
    OFFER_PAUSE_MS,
    OFFER_PAUSE_MS_MAX,
    OFFER_PAUSES_MAX,
    PPM,
)
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.clearing import (
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
    recipient_totals,
)
from xsc.terms.pricing import SLOT_UNIT, affordable, slot_amount
from xsc.terms.quote import Kind, SlotId
from xsc.terms.slot import AvailabilitySlot, Entitlement, EntitlementKey, NeedSlot, Window

Drawn: TypeAlias = tuple[SlotId, Id32, SlotId, Count]
"""Slot, customer, need and steps."""


class Market(Protocol):
    """Capacity, what was drawn of it, and credit."""

    def free(self) -> Mapping[Kind, int]:
        """Return the steps that are neither used nor reserved now."""

    def drawn(self) -> Mapping[EntitlementKey, int]:
        """Return the steps that leases have drawn of each entitlement, rounded up."""

    def pinned(self) -> Mapping[EntitlementKey, int]:
        """Return the same of those that are not cleared again yet."""

    def credit_micro(self, customer: bytes, takers: Collection[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        It has an equal part of a credit that it shares with others of these takers.
        """


class Gathered(Record):
    """All that a round follows from, beside the last state, as its bytes have it."""

    now_ms: Count
    own: Said
    others: tuple[Said, ...]
    """By rising id: at least those whose needs match a slot."""
    theirs: tuple[tuple[Id32, Annotated[int, Field(gt=0, le=PPM)]], ...]
    """By rising id of a peer: the weight that it gives this node."""
    drawn: tuple[Drawn, ...]
    """The steps that leases have of what was granted."""
    pinned: tuple[Drawn, ...]
    """Those of them that are not cleared again yet."""
    credit: tuple[tuple[Id32, int], ...]
    """By rising id of a customer: the micro-credits that it may still come to owe."""
    free: dict[Kind, Count]
    """Steps that are neither used nor reserved."""
    is_pending: bool
    """Whether something has changed that is not in here yet."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was gathered, with what nodes have published as it was read from there."""

    gathered: Gathered
    own: Published
    others: Sequence[Published]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return what a round follows from.

        Raises:
            TooLarge, RecordInvalid: the bytes are of no such thing.
        """
        found = Gathered.from_bytes(raw, size_max=GATHERED_BYTES_MAX)
        others = [Published.read(*said) for said in found.others]
        return cls(found, Published.read(*found.own), others)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round comes to."""

    state: TwoTierAllocationState
    """Its slots, allocations, totals and pauses; `program.state_after` adds the rest."""
    records: Mapping[bytes, ClearingRecord]
    """Of the slots that came to something else than before, by id."""


def until_ms(offered_ms: int, time: Window) -> int:
    """Return when an offer lapses: after a minute, or with its time."""
    return min(time[1], max(offered_ms, time[0]) + OFFER_MS)


def entitlements(
    provider: bytes,
    state: TwoTierAllocationState,
    slots: Mapping[bytes, AvailabilitySlot],
    needs: Mapping[Pin, NeedSlot],
    now_ms: int,
) -> Iterator[Entitlement]:
    """Yield what a provider's state grants now of slots and to needs that are still there."""
    cleared = {each.slot: each for each in state.slot_denominators}
    for line in state.slot_allocations:
        need, slot = needs.get((line.customer, line.need)), slots.get(line.slot)
        if need is None or slot is None:
            continue
        divided, time = cleared[line.slot], common(slot, need, now_ms)
        if time is not None and divided.window == slot.window_at(now_ms):
            yield Entitlement(
                slot=line.slot,
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
        self._now_ms = inputs.gathered.now_ms
        self._free = Counter(inputs.gathered.free)
        self._gathered = inputs.gathered
        self._credit = Counter(dict(inputs.gathered.credit))
        self._given = Counter[Pin]()
        self._lines = Counter[bytes]()
        self._last = {each.slot: each for each in last.slot_denominators}
        self._lines_before: defaultdict[bytes, dict[Pin, SlotAllocationRecord]] = defaultdict(dict)
        for line in last.slot_allocations:
            self._lines_before[line.slot][line.customer, line.need] = line
        self._pauses = {(slot, node): (count, end) for slot, node, count, end in last.pauses}
        """By slot and customer: how often in a row it let an offer lapse, and the pause's end."""
        self._waiting: set[tuple[bytes, bytes]] = set()
        """Slots and customers that can take more of them than they have taken."""
        self._divided: list[SlotDenominators] = []
        self._granted: list[SlotAllocationRecord] = []
        self._records: dict[bytes, ClearingRecord] = {}

    def outcome(self) -> Outcome:
        """Return what all slots came to."""
        lines = sorted(self._granted, key=lambda line: line.key)
        pauses = [
            (*key, count, end)
            for key, (count, end) in self._pauses.items()
            if end > self._now_ms or key in self._waiting
        ]
        # Of more than a state says, those that end first are forgotten.
        kept = sorted(pauses, key=lambda each: -each[-1])[:OFFER_PAUSES_MAX]
        state = TwoTierAllocationState(
            slot_denominators=tuple(self._divided),
            slot_allocations=tuple(lines),
            recipient_totals=recipient_totals(self._divided, lines),
            pauses=tuple(sorted(kept)),
        )
        return Outcome(state, self._records)

    def clear(self, slot: AvailabilitySlot, window: Window, bytes_max: int) -> None:
        """Clear a slot where somebody needs something of it, and count what it grants."""
        now_ms = self._now_ms
        drawn = _of(slot.slot_id, self._gathered.drawn)
        pinned = _of(slot.slot_id, self._gathered.pinned)
        last, before = self._last.get(slot.slot_id), self._lines_before[slot.slot_id]
        if last is not None and last.window != window:
            last, before = None, {}
        takers = takers_of(slot, now_ms, self._own, self._others)
        if not takers and last is None:
            return
        # All records of a round fit the own space, and all that it grants one state.
        needs_max = ALLOCATIONS_MAX - len(self._granted)
        taking = admitted(slot, self._own, takers, bytes_max=bytes_max, needs_max=needs_max)
        taken, all_free = sum(drawn.values()), self._free[slot.kind]
        free = min(all_free, slot.quantity - taken)
        offered = self._offered(slot, taking, before, drawn, free)
        eligible = {each.published.node: self._eligible(slot, each, drawn) for each in taking}
        left_out = {each.published.node for each in takers} - eligible.keys()
        clearing = Clearing(
            slot,
            now_ms,
            min(slot.quantity, taken + all_free),
            self._own,
            [each.published for each in taking],
            eligible,
            left_out,
        )
        record, lines = _around(clearing, pinned)
        told = {pin: line.said for pin, line in before.items()}
        said = slot.rule, record.capacity, record.tiers, lines
        if last is None or (last.rule, last.capacity, last.tiers, told) != said:
            self._records[record.id] = record
            last = SlotDenominators(
                slot=slot.slot_id,
                window=window,
                kind=slot.kind,
                rule=slot.rule,
                capacity=record.capacity,
                clearing=record.id,
                tiers=record.tiers,
            )
        self._divided.append(last)
        left = {pin: max(0, line[1] - drawn.get(pin, 0)) for pin, line in lines.items()}
        waiting = {pin[0] for pin, steps in left.items() if steps}
        self._waiting |= {(slot.slot_id, node) for node in waiting}
        since_ms = {
            node: offered.get(node, now_ms) for node in waiting if not self._is_paused(slot, node)
        }
        for pin in pinned.keys() | lines.keys():
            self._given[pin] += max(pinned.get(pin, 0), lines[pin][1] if pin in lines else 0)
        for (node, need), (tier, steps, price) in lines.items():
            self._lines[node] += 1
            self._granted.append(
                SlotAllocationRecord(
                    slot=slot.slot_id,
                    customer=node,
                    need=need,
                    tier=tier,
                    quantity=steps,
                    price=price,
                    granted_ms=since_ms.get(node, 0),
                )
            )
            if node in since_ms:
                self._credit[node] -= slot_amount(slot.kind, price, left[node, need])
                self._free[slot.kind] -= left[node, need]

    def _is_paused(self, slot: AvailabilitySlot, customer: bytes) -> bool:
        return self._now_ms < self._pauses.get((slot.slot_id, customer), (0, 0))[1]

    def _eligible(
        self, slot: AvailabilitySlot, taker: Taker, drawn: Mapping[Pin, int]
    ) -> dict[bytes, int]:
        """Return what each need may be granted of a slot, of what it wants."""
        found: dict[bytes, int] = {}
        kind, price, provider = slot.kind, slot.reserve, self._own.node
        customer, is_open = taker.published.node, taker.tier == "open"
        credit, is_paused = self._credit[customer], self._is_paused(slot, customer)
        lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
        lines -= self._lines[customer]
        for need in taker.published.commitment.needs:
            if need.slot_id not in taker.wanted:
                continue
            pin = customer, need.slot_id
            mine = drawn.get(pin, 0)
            # A margin asks for free room, and not for what lies under others' leases.
            margin = max(0, need.part(provider) - mine)
            most = min(
                taker.wanted[need.slot_id] - self._given[pin],
                need.most(provider) - max(0, margin - self._free[kind]),
            )
            # Not at what the need says that it pays: who said less would be eligible for more.
            more = affordable(kind, price, credit)
            if more is not None:
                most = min(most, mine + more // SLOT_UNIT[kind])
            # What was taken stays.
            if is_paused or len(found) >= lines:
                most = min(most, mine)
            if most > 0:
                found[need.slot_id] = most
                credit -= slot_amount(kind, price, max(0, most - mine))
        return found

    def _offered(
        self,
        slot: AvailabilitySlot,
        taking: Iterable[Taker],
        before: Mapping[Pin, SlotAllocationRecord],
        drawn: Mapping[Pin, int],
        free: int,
    ) -> dict[bytes, int]:
        """Return since when customers are offered what they have not taken; pause who took nothing.

        To withdraw what was offered and not taken is to let it lapse.
        """
        offered = {
            pin[0]: line.granted_ms
            for pin, line in before.items()
            if line.granted_ms and line.quantity > drawn.get(pin, 0)
        }
        there = {taker.published.node for taker in taking}
        for node, since_ms in tuple(offered.items()):
            if node in there and since_ms + OFFER_MS > self._now_ms:
                continue
            if node in there and free <= 0:
                # What others still hold can be taken by nobody: it stands until some falls free.
                offered[node] = self._now_ms
                continue
            lapses, _ = self._pauses.get((slot.slot_id, node), (0, 0))
            pause_ms = min(OFFER_PAUSE_MS << min(lapses, 16), OFFER_PAUSE_MS_MAX)
            self._pauses[slot.slot_id, node] = lapses + 1, self._now_ms + pause_ms
        return offered


def _around(
    clearing: Clearing, pinned: Mapping[Pin, int]
) -> tuple[ClearingRecord, dict[Pin, Granted]]:
    """Return a record and its lines; who has pinned more than it is granted keeps that."""
    taking = {node: dict(units) for node, units in clearing.eligible.items()}
    while True:
        stays = [pin for pin in pinned if pin[1] not in taking.get(pin[0], {})]
        capacity = max(0, clearing.capacity - sum(pinned[pin] for pin in stays))
        record = replace(clearing, capacity=capacity, eligible=taking).record()
        lines = lines_of(record)
        short = [
            pin for pin in pinned.keys() - stays if pin not in lines or lines[pin][1] < pinned[pin]
        ]
        if not short:
            return record, lines
        for node, need_id in short:
            del taking[node][need_id]


def clear_all(inputs: Inputs, last: TwoTierAllocationState) -> Outcome:
    """Clear all slots that have a window now.

    Args:
        inputs: what the round follows from.
        last: the state that was published before.
    """
    now_ms = inputs.gathered.now_ms
    slots = inputs.own.commitment.slots
    present = [(slot, now) for slot in slots if (now := slot.window_at(now_ms)) is not None]
    made = _Round(inputs, last)
    for slot, window in present:
        made.clear(slot, window, CLEARINGS_BYTES_MAX // len(present))
    return made.outcome()
