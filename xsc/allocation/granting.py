"""Grants the windows of a node's slots to the needs of others, ahead of use.

A round goes over the windows in the order in which they begin, and clears each by itself
(`clearing_record`), over the slot's quantity and whole needs. What is pinned stays: a need whose
leases in the first half of their term have more than it is granted now keeps that, and the rest is
cleared without both. So a customer gains nothing by drawing early, and no lease is recalled.

What a need got in one window counts in those after it, so no need is filled twice. The last state
is all that a round remembers: what it offered and when, who is paused, and from what each window
was cleared. A window whose inputs are the same keeps its record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Annotated, ClassVar, Protocol, Self, TypeAlias

from pydantic import Field

from xsc.allocation.clearing_record import (
    Offer,
    Pin,
    Published,
    Said,
    Taker,
    admitted,
    clear_window,
    lines_of,
    rank,
    standing,
    wanted,
)
from xsc.allocation.matching import piece, places, windows_of
from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.limits import (
    ALLOCATIONS_A_CUSTOMER_MAX,
    ALLOCATIONS_A_STRANGER_MAX,
    ALLOCATIONS_MAX,
    CLEARED_SLOTS_MAX,
    CLEARINGS_BYTES_MAX,
    GATHERED_BYTES_MAX,
    OFFER_MS,
    OFFER_PAUSE_MS,
    OFFER_PAUSE_MS_MAX,
    OFFER_PAUSES_MAX,
    PPM,
    WINDOWS_AHEAD,
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

Key: TypeAlias = tuple[bytes, int]
"""A slot and the start of one of its windows."""
Drawn: TypeAlias = tuple[SlotId, Count, Id32, SlotId, Count]
"""Slot, start of its window, customer, need and steps."""
_Lines: TypeAlias = Mapping[Pin, SlotAllocationRecord]
"""What is granted of one window."""


class SlotRoom(Protocol):
    """What this node can grant, as one pass over its slots takes it."""

    def left(self, kind: Kind, window: Window) -> int:
        """Return the steps that can be granted over a window, beside what is drawn."""

    def take(self, kind: Kind, window: Window, steps: int) -> None:
        """Count steps as granted over a window."""


class Market(Protocol):
    """Capacity, what was drawn of it, and credit."""

    def free(self) -> Mapping[Kind, int]:
        """Return what is neither used nor reserved now."""

    def room(self, free: Mapping[Kind, int], now_ms: int) -> SlotRoom:
        """Return what so much has room for."""

    def drawn(self) -> Mapping[EntitlementKey, int]:
        """Return the steps that leases have drawn of each entitlement, rounded up."""

    def pinned(self) -> Mapping[EntitlementKey, int]:
        """Return the same of those that are not cleared again yet."""

    def credit_micro(self, customer: bytes, takers: Collection[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        It has an equal part of a credit that it shares with others of these takers.
        """


class Given:
    """What a provider has granted a need in windows that began before, of all of its slots."""

    def __init__(self) -> None:
        self._units = 0
        self._open: list[tuple[int, int]] = []
        """End of the window and units; those that end first stand first."""

    def add(self, window: Window, units: int) -> None:
        """Count units; none of the windows that are asked for later may begin before this one."""
        heappush(self._open, (window[1], units))
        self._units += units

    def beside(self, window: Window) -> int:
        """Return what is granted when a window begins; later ones begin no earlier."""
        while self._open and self._open[0][0] <= window[0]:
            self._units -= heappop(self._open)[1]
        return self._units


def still_wanted(need: NeedSlot, provider: bytes, window: Window, given: Given) -> int:
    """Return what a need still accepts of a provider in a window, after its other slots."""
    return max(0, need.cap(provider) - given.beside(window))


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


class Gathered(Record):
    """All that a round follows from, beside the last state, as its bytes have it."""

    KIND: ClassVar[str] = "gathered"

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
    """What is neither used nor reserved."""
    is_pending: bool
    """Whether something has changed that is not in here yet."""

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return what bytes have.

        Raises:
            TooLarge, RecordInvalid: they are of no such thing.
        """
        return cls.from_bytes(raw, size_max=GATHERED_BYTES_MAX)


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
        found = Gathered.read(raw)
        others = [Published.read(*said) for said in found.others]
        return cls(found, Published.read(*found.own), others)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round comes to."""

    state: TwoTierAllocationState
    """Its slots, allocations, totals and pauses; `program.state_after` adds the rest."""
    records: Mapping[bytes, ClearingRecord]
    """Of the windows that were cleared anew, by id."""


def windows_ahead(slots: Iterable[AvailabilitySlot], now_ms: int) -> list[tuple[Window, Key]]:
    """Return the windows that are cleared: the next ones of each slot, in order of their start."""
    found = []
    for slot in slots:
        if slot.valid_until_ms > now_ms:
            first, _ = places((now_ms, slot.valid_until_ms), slot.windows)
            ahead = slot.windows[first : first + WINDOWS_AHEAD]
            found += [(window, (slot.slot_id, window[0])) for window in ahead]
    return sorted(found, key=lambda item: (item[0][0], item[1]))[:CLEARED_SLOTS_MAX]


def until_ms(offered_ms: int, time: Window) -> int:
    """Return when an offer lapses: a minute after a lease can be taken on it."""
    return min(time[1], max(offered_ms, time[0]) + OFFER_MS)


def entitlements(
    provider: bytes,
    state: TwoTierAllocationState,
    slots: Mapping[bytes, AvailabilitySlot],
    needs: Mapping[Pin, NeedSlot],
    now_ms: int,
) -> Iterator[Entitlement]:
    """Yield what a provider's state grants now of slots and to needs that are still there."""
    clearings = {(each.slot, each.window): each.clearing for each in state.slot_denominators}
    for line in state.slot_allocations:
        need, slot = needs.get((line.customer, line.need)), slots.get(line.slot)
        if need is None or slot is None:
            continue
        time = piece(line.window, windows_of(need), kind=slot.kind, now_ms=now_ms)
        if time is not None:
            yield Entitlement(
                slot=line.slot,
                opens_ms=line.window[0],
                closes_ms=line.window[1],
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
                clearing=clearings[line.slot, line.window],
            )


def _beyond(lines: _Lines, pinned: Mapping[Pin, int]) -> dict[Pin, int]:
    """Return what is pinned of needs beyond what they are given."""
    given = {pin: line.quantity for pin, line in lines.items()}
    return {pin: more for pin, steps in pinned.items() if (more := steps - given.get(pin, 0)) > 0}


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


def rows_of(drawn: Mapping[EntitlementKey, int]) -> tuple[Drawn, ...]:
    """Return what was drawn of a provider's entitlements as it is gathered."""
    return tuple((*key[1:], steps) for key, steps in sorted(drawn.items()))


def _by_window(drawn: Iterable[Drawn]) -> dict[Key, dict[Pin, int]]:
    found: defaultdict[Key, dict[Pin, int]] = defaultdict(dict)
    for slot, opens_ms, customer, need, steps in drawn:
        if steps:
            found[slot, opens_ms][customer, need] = steps
    return found


@dataclass(slots=True)
class _Last:
    """What the last state says of one window."""

    divided: SlotDenominators | None = None
    lines: dict[Pin, SlotAllocationRecord] = field(default_factory=dict)
    turns: dict[bytes, Turn] = field(default_factory=dict)
    """By customer that has something to take, or let an offer lapse."""


def _by_last_window(state: TwoTierAllocationState) -> defaultdict[Key, _Last]:
    found: defaultdict[Key, _Last] = defaultdict(_Last)
    for divided in state.slot_denominators:
        found[divided.slot, divided.window[0]].divided = divided
    for slot, start, customer, lapses, paused_until_ms in state.pauses:
        turn = Turn(lapses=lapses, paused_until_ms=paused_until_ms)
        found[slot, start].turns[customer] = turn
    for line in state.slot_allocations:
        last, customer = found[line.slot, line.window[0]], line.customer
        last.lines[customer, line.need] = line
        if line.granted_ms:
            turn = last.turns.get(customer, Turn())
            last.turns[customer] = replace(turn, offered_ms=line.granted_ms)
    return found


class _Round:
    """What the windows that begin first have taken of needs, credit and capacity."""

    def __init__(self, inputs: Inputs, last: TwoTierAllocationState, room: SlotRoom) -> None:
        self._own, self._others = inputs.own, inputs.others
        self._now_ms = inputs.gathered.now_ms
        self._room = room
        self._last = _by_last_window(last)
        self._leased = _by_window(inputs.gathered.drawn)
        self._pinned = _by_window(inputs.gathered.pinned)
        self._given: defaultdict[Pin, Given] = defaultdict(Given)
        self._credit = Counter(dict(inputs.gathered.credit))
        self._lines = Counter[bytes]()
        self._divided: list[SlotDenominators] = []
        self._granted: list[SlotAllocationRecord] = []
        self._pauses: list[tuple[bytes, int, bytes, int, int]] = []
        self._records: dict[bytes, ClearingRecord] = {}
        # Of the window that is cleared now:
        self._drawn: Mapping[Pin, int] = {}
        self._times: dict[Pin, Window] = {}
        """When a need that takes part can take a lease."""
        self._turns: dict[bytes, Turn] = {}

    def outcome(self) -> Outcome:
        """Return what all windows came to."""
        slots = sorted(self._divided, key=lambda each: (each.slot, each.window))
        lines = sorted(self._granted, key=lambda line: line.key)
        # Of more than a state says, those that end first are forgotten.
        pauses = sorted(self._pauses, key=lambda each: -each[-1])[:OFFER_PAUSES_MAX]
        state = TwoTierAllocationState(
            slot_denominators=tuple(slots),
            slot_allocations=tuple(lines),
            recipient_totals=recipient_totals(slots, lines),
            pauses=tuple(sorted(pauses)),
        )
        return Outcome(state, self._records)

    def clear(self, slot: AvailabilitySlot, window: Window, bytes_max: int) -> None:
        """Clear a window where somebody needs something of it, and count what it grants."""
        key = slot.slot_id, window[0]
        self._drawn = self._leased.get(key, {})
        free, taken = self._room.left(slot.kind, window), sum(self._drawn.values())
        offer = Offer(slot, window, self._now_ms, min(slot.quantity, taken + free))
        takers, last = self._takers(offer), self._last[key]
        if not takers and last.divided is None:
            return
        # All records of a round fit the own space, and all that it grants one state.
        taking = admitted(
            self._own,
            takers,
            slot,
            bytes_max=bytes_max,
            needs_max=ALLOCATIONS_MAX - len(self._granted),
        )
        self._times = {
            (taker.published.node, need.slot_id): time
            for taker in taking
            for need in taker.needs
            if (time := self._time(slot, window, need)) is not None
        }
        room = min(free, slot.quantity - taken)
        self._turns = self._turns_now(last, room)
        eligible = {taker.published.node: self._eligible(offer, taker, free) for taker in taking}
        pinned = self._pinned.get(key, {})
        divided, lines = last.divided, last.lines
        beyond = _beyond(lines, pinned)
        if divided is None or divided.inputs != _inputs(offer, taking, eligible, beyond):
            left_out = {each.published.node for each in takers} - eligible.keys()
            record = self._divide(offer, taking, eligible, pinned, left_out)
            self._records[record.id] = record
            lines = lines_of(record)
            beyond = _beyond(lines, pinned)
            divided = _divided(record, _inputs(offer, taking, eligible, beyond))
        self._divided.append(divided)
        waiting = self._waiting(lines)
        for node, turn in self._turns.items():
            if turn.paused_until_ms == 0:
                offered_ms = turn.offered_ms or self._now_ms
                turn = Turn(offered_ms, turn.lapses) if waiting[node] else Turn()  # noqa: PLW2901
            if turn.lapses:
                self._pauses.append((*key, node, turn.lapses, turn.paused_until_ms))
            self._turns[node] = turn
        for (node, _), line in lines.items():
            offered = line.model_copy(update={"granted_ms": self._turns[node].offered_ms})
            self._count(slot.kind, offered)
        for pin, steps in beyond.items():
            if (time := self._times.get(pin)) is not None:
                self._given[pin].add(time, steps)

    def _time(self, slot: AvailabilitySlot, window: Window, need: NeedSlot) -> Window | None:
        """Return when a need can take a lease on what it is granted of a window."""
        return piece(window, windows_of(need), kind=slot.kind, now_ms=self._now_ms)

    def _takers(self, offer: Offer) -> list[Taker]:
        """Return those with a need that matches, by rank."""
        own, found = self._own, []
        for other in self._others:
            units = wanted(offer, own, other)
            if units:
                needs = tuple(need for need in other.commitment.needs if need.slot_id in units)
                found.append(Taker(other, *standing(own, other), needs))
        return sorted(found, key=lambda taker: rank(taker, offer.salt))

    def _count(self, kind: Kind, line: SlotAllocationRecord) -> None:
        """Count what was granted against its need, its customer's credit and the capacity."""
        pin = line.customer, line.need
        time = self._times[pin]
        self._given[pin].add(time, line.quantity)
        self._lines[line.customer] += 1
        if until_ms(line.granted_ms, time) > self._now_ms:
            left = max(0, line.quantity - self._drawn.get(pin, 0))
            self._credit[line.customer] -= slot_amount(kind, line.price, left)
            self._room.take(kind, time, left)
        self._granted.append(line)

    def _eligible(self, offer: Offer, taker: Taker, free: int) -> dict[bytes, int]:
        """Return what each need may be granted of a window, of what it wants.

        Args:
            offer: the window.
            taker: whose needs they are.
            free: what no lease has of the window.
        """
        found: dict[bytes, int] = {}
        customer, now_ms = taker.published.node, self._now_ms
        credit, is_open = self._credit[customer], taker.tier == "open"
        is_paused = now_ms < self._turns[customer].paused_until_ms
        lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
        lines -= self._lines[customer]
        for need in taker.needs:
            pin = customer, need.slot_id
            time = self._times[pin]
            mine = self._drawn.get(pin, 0)
            provider = self._own.node
            most = still_wanted(need, provider, time, self._given[pin])
            # A margin asks for free room, and not for what lies under others' leases.
            margin = max(0, need.part(provider) - mine)
            most = min(most, need.most(provider) - max(0, margin - free))
            # Not at what the need says that it pays: who said less would be eligible for more.
            kind, price = offer.slot.kind, offer.slot.reserve
            more = affordable(kind, price, credit)
            if more is not None:
                most = min(most, mine + more // SLOT_UNIT[kind])
            # A stranger would hold for nothing what begins later. What was taken stays.
            if is_paused or (is_open and time[0] > now_ms) or len(found) >= lines:
                most = min(most, mine)
            if most > 0:
                found[need.slot_id] = most
                credit -= slot_amount(kind, price, max(0, most - mine))
        return found

    def _waiting(self, lines: _Lines) -> defaultdict[bytes, list[Window]]:
        """Return by customer when it can take what lines offer it, and it has not taken."""
        found: defaultdict[bytes, list[Window]] = defaultdict(list)
        for pin, line in lines.items():
            time = self._times.get(pin)
            if time is not None and line.quantity > self._drawn.get(pin, 0):
                found[pin[0]].append(time)
        return found

    def _turns_now(self, last: _Last, free: int) -> dict[bytes, Turn]:
        """Return how all customers stand: a pause holds also for who states nothing meanwhile.

        To withdraw what was offered and not taken is to let it lapse.
        """
        now_ms, turns, waiting = self._now_ms, dict[bytes, Turn](), self._waiting(last.lines)
        taking = dict.fromkeys(node for node, _ in self._times)
        for node in taking | last.turns:
            turn, is_gone = last.turns.get(node, Turn()), node not in taking
            if turn.paused_until_ms <= now_ms:
                turn = Turn(turn.offered_ms, turn.lapses)
            ends_ms = [until_ms(turn.offered_ms, time) for time in waiting[node]]
            is_over = bool(ends_ms) and max(ends_ms) <= now_ms
            if turn.offered_ms and (is_gone or is_over):
                # What others still hold can be taken by nobody: it stands until some falls free.
                if is_gone or free > 0:
                    pause_ms = min(OFFER_PAUSE_MS << min(turn.lapses, 16), OFFER_PAUSE_MS_MAX)
                    turn = Turn(0, turn.lapses + 1, now_ms + pause_ms)
                else:
                    turn = Turn(now_ms, turn.lapses)
            turns[node] = turn
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
            record = clear_window(least, self._own, customers, taking, left_out=left_out)
            short = _beyond(lines_of(record), pinned).keys() - stays
            if not short:
                return record
            for node, need_id in short:
                del taking[node][need_id]


def _divided(record: ClearingRecord, inputs: bytes) -> SlotDenominators:
    """Return how a clearing divided its window, as a state says it."""
    return SlotDenominators(
        slot=record.slot.slot_id,
        window=record.window,
        kind=record.slot.kind,
        rule=record.slot.rule,
        capacity=record.capacity,
        clearing=record.id,
        inputs=inputs,
        tiers=record.tiers,
    )


def clear_all(inputs: Inputs, last: TwoTierAllocationState, room: SlotRoom) -> Outcome:
    """Clear all windows that are ahead.

    Args:
        inputs: what the round follows from.
        last: the state that was published before.
        room: what is free has room for; it is used up.
    """
    slots = {slot.slot_id: slot for slot in inputs.own.commitment.slots}
    windows = windows_ahead(slots.values(), inputs.gathered.now_ms)
    bytes_max = CLEARINGS_BYTES_MAX // max(1, len(windows))
    made = _Round(inputs, last, room)
    for window, key in windows:
        made.clear(slots[key[0]], window, bytes_max)
    return made.outcome()
