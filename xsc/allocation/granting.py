"""Grants the windows of a node's slots to the needs of others, ahead of use.

A round goes over the windows in the order in which they begin, and clears each by itself
(`clearing_record`), over the slot's quantity and whole needs. What is pinned stays: a need whose
leases in the first half of their term have more than it is granted now keeps that, and the rest is
cleared without both. So a customer gains nothing by drawing early, and no lease is recalled.

What a need got in one window counts in those after it, so no need is filled twice. A window
whose inputs are those of its last clearing keeps that record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from xsc.allocation.acceptance import Given, still_wanted
from xsc.allocation.clearing_record import (
    Offer,
    Published,
    Taker,
    admitted,
    clear_window,
    rank,
    standing,
    wanted,
)
from xsc.allocation.matching import overlap, places, windows_of
from xsc.allocation.ports import SlotRoom
from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.limits import (
    ALLOCATIONS_A_CUSTOMER_MAX,
    ALLOCATIONS_A_STRANGER_MAX,
    ALLOCATIONS_MAX,
    CLEARED_SLOTS_MAX,
    CLEARINGS_BYTES_MAX,
    OFFER_MS,
    OFFER_PAUSE_MS,
    OFFER_PAUSE_MS_MAX,
    WINDOWS_AHEAD,
)
from xsc.base.units import ceil_div
from xsc.terms.clearing import ClearingRecord
from xsc.terms.pricing import SLOT_UNIT, affordable, slot_amount
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, EntitlementKey, NeedSlot, Window

Key: TypeAlias = tuple[bytes, int]
"""A slot and the start of one of its windows."""
Pin: TypeAlias = tuple[bytes, bytes]
"""A customer and one of its needs."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How a customer stands with the offers of one window of a slot.

    Whoever takes no lease on what it is offered is offered nothing for a while, whatever it needs.
    """

    offered_ms: int = 0
    """When what it has not taken yet was offered; 0 where that is nothing."""
    lapses: int = 0
    """How often in a row it let an offer lapse."""
    paused_until_ms: int = 0


def lapsed(turn: Turn, now_ms: int) -> Turn:
    """Return the turn of a customer that has let an offer lapse."""
    pause_ms = min(OFFER_PAUSE_MS << min(turn.lapses, 16), OFFER_PAUSE_MS_MAX)
    return Turn(turn.offered_ms, turn.lapses + 1, now_ms + pause_ms)


@dataclass(frozen=True, slots=True)
class Cleared:
    """The last clearing of one window of one slot."""

    inputs: bytes
    """Hash of what it followed from."""
    record: ClearingRecord
    id: bytes
    """Of the signed record."""
    turns: Mapping[bytes, Turn]
    """By customer that has something to take, or is paused."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a round follows from, beside the last state."""

    now_ms: int
    own: Published
    others: Mapping[bytes, Published]
    """By node: at least whose needs match a slot."""
    theirs: Mapping[bytes, int]
    """By peer: the weight that it gives this node, in ppm, above 0."""
    drawn: Mapping[EntitlementKey, int]
    """The steps that leases have of what was granted."""
    pinned: Mapping[EntitlementKey, int]
    """Those of them that are not cleared again yet."""
    credit: Mapping[bytes, int]
    """By customer: the micro-credits that it may still come to owe."""
    free: Mapping[Kind, int]
    """What is neither used nor reserved."""
    before: Mapping[Key, Cleared]
    is_pending: bool
    """Whether something has changed that is not in here yet."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round comes to."""

    cleared: Mapping[Key, Cleared]
    granted: tuple[Entitlement, ...]


def windows_ahead(slots: Iterable[AvailabilitySlot], now_ms: int) -> list[tuple[Window, Key]]:
    """Return the windows that are cleared: the next ones of each slot, in order of their start."""
    found = []
    for slot in slots:
        if slot.valid_until_ms > now_ms:
            first, _ = places((now_ms, slot.valid_until_ms), slot.windows)
            ahead = slot.windows[first : first + WINDOWS_AHEAD]
            found += [(window, (slot.slot_id, window[0])) for window in ahead]
    return sorted(found, key=lambda item: (item[0][0], item[1]))[:CLEARED_SLOTS_MAX]


def begins_ms(offered_ms: int, time: Window) -> int:
    """Return from when a lease can be taken on what is offered."""
    return max(offered_ms, time[0])


def until_ms(offered_ms: int, time: Window) -> int:
    """Return when an offer lapses."""
    return min(time[1], begins_ms(offered_ms, time) + OFFER_MS)


def price_of(lines: Sequence[tuple[Tier, int, int]]) -> int:
    """Return the price of an entitlement, by tier, units and price of its lines.

    Of two stages the mean, rounded up. Where needs go unserved it can be above the reserve: what
    others lose by it is charged, or it would cost nothing to state a higher price.
    """
    units = sum(line[1] for line in lines)
    return ceil_div(sum(line[1] * line[2] for line in lines), units)


def entitlements(
    cleared: Cleared, needs: Mapping[tuple[bytes, bytes], NeedSlot]
) -> list[Entitlement]:
    """Return what a clearing grants to the needs that are still there."""
    record, found = cleared.record, []
    for participant in record.participants:
        lines: defaultdict[bytes, list[tuple[Tier, int, int]]] = defaultdict(list)
        for slot_id, tier, units, price in participant.lines:
            lines[slot_id].append((tier, units, price))
        for need_id, parts in lines.items():
            key = participant.customer, need_id
            need, turn = needs.get(key), cleared.turns.get(key[0], Turn())
            time = None if need is None else overlap(record.window, windows_of(need))
            if need is None or time is None:
                continue
            quantity = sum(part[1] for part in parts)
            found.append(
                Entitlement(
                    slot=record.slot.slot_id,
                    opens_ms=record.window[0],
                    closes_ms=record.window[1],
                    window=time,
                    provider=record.provider,
                    customer=participant.customer,
                    need=need_id,
                    kind=record.slot.kind,
                    quantity=quantity,
                    slot_quantity=record.slot.quantity,
                    tier=parts[0][0],
                    price=price_of(parts),
                    granted_ms=turn.offered_ms,
                    until_ms=until_ms(turn.offered_ms, time),
                    clearing=cleared.id,
                )
            )
    return found


def _units(record: ClearingRecord) -> Counter[Pin]:
    """Return the steps that a clearing gives each need."""
    units = Counter[Pin]()
    for participant in record.participants:
        for need_id, _, quantity, _ in participant.lines:
            units[participant.customer, need_id] += quantity
    return units


def _beyond(record: ClearingRecord, pinned: Mapping[Pin, int]) -> dict[Pin, int]:
    """Return what is pinned of needs that a clearing gives less than that."""
    units = _units(record)
    return {pin: steps for pin, steps in pinned.items() if steps > units[pin]}


def _inputs(
    offer: Offer,
    takers: Iterable[Taker],
    eligible: Mapping[bytes, Mapping[bytes, int]],
    beyond: Mapping[Pin, int],
) -> bytes:
    """Return the hash of what decides a clearing; `beyond`: of what it comes to."""
    stays: list[Value] = [[*pin, steps] for pin, steps in sorted(beyond.items())]
    told: list[Value] = []
    for taker in sorted(takers, key=lambda taker: taker.published.node):
        customer = taker.published
        units = eligible[customer.node]
        asked: list[Value] = [
            [need.slot_id, units[need.slot_id], need.number, need.price_max]
            for need in taker.needs
            if need.slot_id in units
        ]
        damping = customer.commitment.damping_ppm if offer.slot.rule == "proportional" else 0
        told.append([customer.node, taker.tier, taker.weight, damping, asked])
    slot = offer.slot.to_bytes()
    return tagged_sha256(
        "clearing/inputs",
        encode([slot, list(offer.window), offer.salt, offer.capacity, stays, told]),
    )


def _by_window(drawn: Mapping[EntitlementKey, int]) -> dict[Key, dict[Pin, int]]:
    found: defaultdict[Key, dict[Pin, int]] = defaultdict(dict)
    for each, steps in drawn.items():
        if steps:
            found[each.slot, each.opens_ms][each.customer, each.need] = steps
    return found


class _Round:
    """What the windows that begin first have taken of needs, credit and capacity."""

    def __init__(self, inputs: Inputs, room: SlotRoom) -> None:
        self._inputs = inputs
        self._room = room
        self._drawn = _by_window(inputs.drawn)
        self._pinned = _by_window(inputs.pinned)
        self._turns: dict[bytes, Turn] = {}
        """By customer, in the window that is cleared now."""
        self._given: dict[Pin, Given] = {}
        self._credit = dict(inputs.credit)
        self._lines = Counter[bytes]()
        self.granted: list[Entitlement] = []

    def clear(self, slot: AvailabilitySlot, window: Window, bytes_max: int) -> Cleared | None:
        """Clear a window, and count what it grants. None where nobody needs anything of it."""
        inputs, key = self._inputs, (slot.slot_id, window[0])
        drawn = self._drawn.get(key, {})
        free = self._room.left(slot.kind, window)
        taken = sum(drawn.values())
        capacity, room = min(slot.quantity, taken + free), min(free, slot.quantity - taken)
        offer = Offer(slot, window, inputs.now_ms, capacity)
        takers = self._takers(offer)
        before = inputs.before.get(key)
        if not takers and before is None:
            return None
        # All records of a round fit the own space, and all that it grants one state.
        taking = admitted(
            inputs.own,
            takers,
            slot,
            bytes_max=bytes_max,
            needs_max=ALLOCATIONS_MAX - len(self.granted),
        )
        self._turns = {}
        eligible = {
            taker.published.node: self._eligible(offer, taker, before, drawn, room)
            for taker in taking
        }
        pinned = self._pinned.get(key, {})

        def inputs_of(record: ClearingRecord) -> bytes:
            return _inputs(offer, taking, eligible, _beyond(record, pinned))

        if before is None or before.inputs != inputs_of(before.record):
            nodes = {taker.published.node for taker in taking}
            left_out = {taker.published.node for taker in takers} - nodes
            record = self._divide(offer, taking, eligible, pinned, left_out)
            turns = before.turns if before else {}
            before = Cleared(inputs_of(record), record, record.id, turns)
        before = replace(before, turns=self._turns_after(before, taking, drawn))
        needs = {
            (taker.published.node, need.slot_id): need for taker in taking for need in taker.needs
        }
        for each in entitlements(before, needs):
            self._count(each, needs[each.customer, each.need])
        units = _units(before.record)
        for pin, steps in _beyond(before.record, pinned).items():
            time = overlap(window, windows_of(needs[pin])) if pin in needs else None
            if time is not None:
                self._given_of(pin[0], needs[pin]).add(time, steps - units[pin])
        return before

    def _takers(self, offer: Offer) -> list[Taker]:
        """Return those with a need that matches, by rank."""
        own, found = self._inputs.own, []
        for other in self._inputs.others.values():
            units = wanted(offer, own, other)
            if units:
                needs = tuple(need for need in other.commitment.needs if need.slot_id in units)
                found.append(Taker(other, *standing(own, other), needs))
        return sorted(found, key=lambda taker: rank(taker, offer.salt))

    def _count(self, each: Entitlement, need: NeedSlot) -> None:
        """Count what was granted against its need, its customer's credit and the capacity."""
        self._given_of(each.customer, need).add(each.window, each.quantity)
        self._lines[each.customer] += 1
        drawn = self._inputs.drawn.get(each.key, 0)
        left = max(0, each.quantity - drawn) if each.until_ms > self._inputs.now_ms else 0
        self._credit[each.customer] = self._credit.get(each.customer, 0) - slot_amount(
            each.kind, each.price, left
        )
        self._room.take(each.kind, each.window, left)
        self.granted.append(each)

    def _given_of(self, customer: bytes, need: NeedSlot) -> Given:
        return self._given.setdefault((customer, need.slot_id), Given())

    def _eligible(
        self,
        offer: Offer,
        taker: Taker,
        before: Cleared | None,
        drawn: Mapping[Pin, int],
        free: int,
    ) -> dict[bytes, int]:
        """Return what each need may be granted of a window, of what it wants."""
        found: dict[bytes, int] = {}
        customer, now_ms = taker.published.node, self._inputs.now_ms
        credit = self._credit.get(customer, 0)
        is_open = taker.tier == "open"
        turn = self._turn(taker, before, drawn, free)
        lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
        lines -= self._lines[customer]
        for need in taker.needs:
            time = overlap(offer.window, windows_of(need))
            if time is None:
                continue
            mine = drawn.get((customer, need.slot_id), 0)
            given = self._given_of(customer, need)
            most = still_wanted(need, self._inputs.own.node, time, given)
            # Not at what the need says that it pays: who said less would be eligible for more.
            kind, price = offer.slot.kind, offer.slot.reserve
            more = affordable(kind, price, credit)
            if more is not None:
                most = min(most, mine + more // SLOT_UNIT[kind])
            # A stranger would hold for nothing what begins later. What was taken stays.
            if (
                now_ms < turn.paused_until_ms
                or (is_open and time[0] > now_ms)
                or len(found) >= lines
            ):
                most = min(most, mine)
            if most > 0:
                found[need.slot_id] = most
                credit -= slot_amount(kind, price, max(0, most - mine))
        return found

    def _turn(
        self, taker: Taker, before: Cleared | None, drawn: Mapping[Pin, int], free: int
    ) -> Turn:
        """Return how a customer stands with this window now."""
        customer, now_ms = taker.published.node, self._inputs.now_ms
        turn = Turn() if before is None else before.turns.get(customer, Turn())
        if turn.paused_until_ms:
            turn = turn if now_ms < turn.paused_until_ms else Turn(lapses=turn.lapses)
        elif before is not None and turn.offered_ms:
            waiting = self._waiting(before, taker, drawn)
            if waiting and all(until_ms(turn.offered_ms, time) <= now_ms for time, _ in waiting):
                # What others still hold can be taken by nobody: it stands until some falls free.
                turn = lapsed(turn, now_ms) if free > 0 else Turn(now_ms, turn.lapses)
        self._turns[customer] = turn
        return turn

    @staticmethod
    def _waiting(
        before: Cleared, taker: Taker, drawn: Mapping[Pin, int]
    ) -> list[tuple[Window, int]]:
        """Return times and steps of what a customer was offered and has not taken."""
        needs = {need.slot_id: need for need in taker.needs}
        node = taker.published.node
        return [
            (time, quantity - drawn.get((node, need_id), 0))
            for (customer, need_id), quantity in _units(before.record).items()
            if customer == node
            and need_id in needs
            and quantity > drawn.get((node, need_id), 0)
            and (time := overlap(before.record.window, windows_of(needs[need_id]))) is not None
        ]

    def _turns_after(
        self, cleared: Cleared, takers: Iterable[Taker], drawn: Mapping[Pin, int]
    ) -> dict[bytes, Turn]:
        """Return the turns of all: a pause holds also for who states nothing meanwhile.

        To withdraw what was offered and not taken is to let it lapse.
        """
        now_ms = self._inputs.now_ms
        turns = {}
        for node, turn in cleared.turns.items():
            if turn.paused_until_ms > now_ms:
                turns[node] = turn
            elif turn.offered_ms and node not in self._turns:
                turns[node] = lapsed(turn, now_ms)
        for taker in takers:
            node = taker.published.node
            turn = self._turns[node]
            if turn.paused_until_ms:
                turns[node] = turn
            elif self._waiting(cleared, taker, drawn):
                turns[node] = Turn(turn.offered_ms or now_ms, turn.lapses)
        return turns

    def _divide(
        self,
        offer: Offer,
        takers: Sequence[Taker],
        eligible: Mapping[bytes, Mapping[bytes, int]],
        pinned: Mapping[Pin, int],
        left_out: Iterable[bytes],
    ) -> ClearingRecord:
        """Return the record of a window; whoever has drawn more than it is granted keeps that."""
        customers = [taker.published for taker in takers]
        taking = {node: dict(units) for node, units in eligible.items()}
        while True:
            stays = [pin for pin in pinned if pin[1] not in taking.get(pin[0], {})]
            capacity = max(0, offer.capacity - sum(pinned[pin] for pin in stays))
            least = replace(offer, capacity=capacity)
            record = clear_window(least, self._inputs.own, customers, taking, left_out=left_out)
            short = _beyond(record, pinned).keys() - stays
            if not short:
                return record
            for node, need_id in short:
                del taking[node][need_id]


def clear_all(inputs: Inputs, room: SlotRoom) -> Outcome:
    """Clear all windows that are ahead.

    Args:
        inputs: what the round follows from.
        room: what `inputs.free` has room for; it is used up.
    """
    slots = {slot.slot_id: slot for slot in inputs.own.commitment.slots}
    windows = windows_ahead(slots.values(), inputs.now_ms)
    bytes_max = CLEARINGS_BYTES_MAX // max(1, len(windows))
    made, cleared = _Round(inputs, room), {}
    for window, key in windows:
        found = made.clear(slots[key[0]], window, bytes_max)
        if found is not None:
            cleared[key] = found
    return Outcome(cleared, tuple(made.granted))
