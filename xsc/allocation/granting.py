"""Grants the windows of a node's slots to standing needs, ahead of use.

One pass goes over the windows in the order in which they begin. Each is cleared by itself
(`clearing_record`), over the slot's quantity and whole needs. What was drawn stays: a need that
has drawn more than it is granted now keeps that, and the rest is cleared without both. So a
customer gains nothing by drawing early, and nothing that it drew is recalled.

What a need got in one window counts in those after it, so no need is filled twice. A window
whose inputs are those of its last clearing is not cleared again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from xsc.allocation.acceptance import Given, still_wanted
from xsc.allocation.clearing_record import (
    Offer,
    Published,
    Room,
    Taker,
    admitted,
    clear_window,
)
from xsc.allocation.matching import overlap, windows_of
from xsc.allocation.ports import SlotRoom
from xsc.allocation.queues import Key, Queue, Queues, windows_ahead
from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.limits import (
    ALLOCATIONS_A_CUSTOMER_MAX,
    ALLOCATIONS_A_STRANGER_MAX,
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    CLEARINGS_BYTES_MAX,
    ENTITLEMENT_LAPSE_MS,
)
from xsc.base.units import ceil_div
from xsc.terms.clearing import ClearingRecord
from xsc.terms.pricing import SLOT_UNIT, affordable, slot_amount
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Entitlement, EntitlementKey, NeedSlot, Window


@dataclass(frozen=True, slots=True)
class Grant:
    """When a need was first granted something of a window, under which number."""

    number: int
    granted_ms: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """The last clearing of one window of one slot."""

    inputs: bytes
    """Hash of what it followed from."""
    record: ClearingRecord
    id: bytes
    """Of the signed record."""
    grants: Mapping[tuple[bytes, bytes], Grant]
    """By customer and need."""


@dataclass(frozen=True, slots=True)
class Now:
    """What a pass follows from, beside what others publish."""

    now_ms: int
    own: Published
    drawn: Mapping[EntitlementKey, int]
    credit_micro: Callable[[bytes], int]
    room: SlotRoom


def begins_ms(grant: Grant, time: Window) -> int:
    """Return from when what is granted can be drawn, and costs."""
    return max(grant.granted_ms, time[0])


def until_ms(grant: Grant, time: Window) -> int:
    """Return when what is granted ends if it is not drawn."""
    return min(time[1], begins_ms(grant, time) + ENTITLEMENT_LAPSE_MS)


def price_of(slot: AvailabilitySlot, lines: Sequence[tuple[Tier, int, int]]) -> int:
    """Return the price of an entitlement, by tier, units and price of its lines.

    Of two stages the mean, rounded up. What others lose by it decides who is granted what, and
    is not charged: nobody pays more for what is granted than the slot asks of everybody.
    """
    units = sum(line[1] for line in lines)
    return min(slot.reserve, ceil_div(sum(line[1] * line[2] for line in lines), units))


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
            need, grant = needs.get(key), cleared.grants.get(key)
            time = None if need is None else overlap(record.window, windows_of(need))
            if grant is None or time is None:
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
                    tier=parts[0][0],
                    price=price_of(record.slot, parts),
                    granted_ms=grant.granted_ms,
                    until_ms=until_ms(grant, time),
                    clearing=cleared.id,
                )
            )
    return found


def _asked(need: NeedSlot, units: int) -> Value:
    return [need.slot_id, units, need.number, need.quantity_min, need.price_max]


def _inputs(
    offer: Offer, takers: Sequence[Taker], eligible: Mapping[bytes, Mapping[bytes, int]]
) -> bytes:
    """Return the hash of what decides a clearing, beside its time and salt."""
    told: list[Value] = []
    for taker in sorted(takers, key=lambda taker: taker.published.node):
        customer = taker.published
        mine = eligible[customer.node]
        told.append(
            [
                customer.node,
                taker.tier,
                taker.weight,
                customer.commitment.damping_ppm if offer.slot.rule == "proportional" else 0,
                [_asked(need, mine[need.slot_id]) for need in taker.needs if need.slot_id in mine],
            ]
        )
    return tagged_sha256(
        "clearing/inputs",
        encode([offer.slot.to_bytes(), list(offer.window), offer.capacity, told]),
    )


@dataclass(frozen=True, slots=True)
class _Eligible:
    """What the needs of a customer may be granted of a window."""

    taker: Taker
    units: Mapping[bytes, int]
    until_ms: int
    """When it may be other units only because time has passed."""


_Counted: TypeAlias = tuple[Window, int, int, int]
"""What a window grants a need counts in others: time, quantity, and what is undrawn, with price."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a pass saw of a window, and came to."""

    place: tuple[Queue, int, Room]
    """The queue, its version and the room: what decides who takes part."""
    takers: list[Taker]
    eligible: Mapping[bytes, _Eligible]
    capacity: int
    cleared: Cleared
    granted: list[Entitlement]


def _are_as(now: Mapping[bytes, _Eligible], before: Mapping[bytes, _Eligible]) -> bool:
    """Return whether a clearing of the same capacity follows from the same."""
    return now.keys() == before.keys() and all(
        each is before[node] or (each.taker, each.units) == (before[node].taker, before[node].units)
        for node, each in now.items()
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass saw, for the next one over the same queues to go on from."""

    drawn: Mapping[EntitlementKey, int] = field(default_factory=dict)
    credit: dict[bytes, int] = field(default_factory=dict)
    """By customer, when the pass began."""
    looks: dict[Key, _Look] = field(default_factory=dict)
    counted: dict[EntitlementKey, _Counted] = field(default_factory=dict)


class Pass:
    """One pass over the windows of a node's slots.

    It looks again at what has changed since the last pass: at the customers of a window that
    published something, or whose credit, draws or earlier grants are others, and at the windows
    in which one of these is eligible for something else.

    Args:
        now: what it follows from.
        queues: who may take part in each window, as of now.
        before: the last clearing of each window.
        salt: returns that of a window that was not cleared before.
        last: what the pass before saw, over the same queues and run to its end; without it a
            pass looks at everything.
    """

    def __init__(
        self,
        now: Now,
        queues: Queues,
        before: Mapping[Key, Cleared],
        salt: Callable[[Key], bytes],
        last: Seen | None = None,
    ) -> None:
        self.seen = Seen(now.drawn)
        """For the next pass."""
        self.cleared: dict[Key, Cleared] = {}
        """All present clearings."""
        self.fresh: list[Key] = []
        """Those that were cleared anew."""
        self.granted: list[Entitlement] = []
        """What they grant."""
        self._now = now
        self._queues = queues
        self._before = before
        self._salt = salt
        self._last = Seen() if last is None else last
        self._moved: set[bytes] = set()
        """Customers for whom something is not as it was at this point of the last pass."""
        self._given: dict[tuple[bytes, bytes], Given] = {}
        """By customer and need: what earlier windows gave."""
        self._drawn: defaultdict[Key, dict[tuple[bytes, bytes], int]] = defaultdict(dict)
        """By window: what was drawn, by customer and need."""
        for each, quanta in now.drawn.items():
            if quanta:
                self._drawn[each.slot, each.opens_ms][each.customer, each.need] = quanta
        self._credit: dict[bytes, int] = {}
        """By customer: what earlier windows have left of it."""
        self._lines: Counter[bytes] = Counter()
        """By customer: how much there is of what earlier windows granted."""

    def run(self) -> Iterator[None]:
        """Clear what has changed, one window a step: a long pass need not hold up other work."""
        slots = {slot.slot_id: slot for slot in self._now.own.commitment.slots}
        self._queues.pass_time(self._now.now_ms)
        windows = windows_ahead(slots.values(), self._now.now_ms)
        drawn, before = self._now.drawn, self._last.drawn
        self._moved.update(
            each.customer
            for each in drawn.keys() | before.keys()
            if drawn.get(each, 0) != before.get(each, 0)
        )
        for key in self._last.looks.keys() - {key for _, key in windows}:
            self._moved.update(each.customer for each in self._last.looks[key].granted)
        for window, key in windows:
            # All records of a pass fit the own space, and all that it grants one state.
            room = Room(
                min(CLEARING_BYTES_MAX, CLEARINGS_BYTES_MAX // len(windows)),
                ALLOCATIONS_MAX - len(self.granted),
            )
            self._clear(slots[key[0]], window, room)
            yield

    def _clear(self, slot: AvailabilitySlot, window: Window, room: Room) -> None:
        """Look at a window, clear it if something is not as it was, and count what it grants."""
        key = slot.slot_id, window[0]
        last = self._last.looks.get(key)
        look, is_fresh = self._look(slot, window, room, last)
        granted = [] if last is None else [each.key for each in last.granted]
        if look is not None:
            self.seen.looks[key] = look
            self.cleared[key] = look.cleared
            if is_fresh:
                self.fresh.append(key)
            for each in look.granted:
                self._count(each, look)
                granted.append(each.key)
            self.granted += look.granted
        now, before = self.seen.counted, self._last.counted
        self._moved.update(each.customer for each in granted if now.get(each) != before.get(each))

    def _count(self, each: Entitlement, look: _Look) -> None:
        """Count what was granted against its need, its customer's credit and the capacity."""
        needs = look.eligible[each.customer].taker.needs
        need = next(need for need in needs if need.slot_id == each.need)
        self._given_of(each.customer, need).add(each.window, each.quantity)
        self._lines[each.customer] += 1
        drawn = self._now.drawn.get(each.key, 0)
        left = max(0, each.quantity - drawn) if each.until_ms > self._now.now_ms else 0
        self._credit[each.customer] = self._credit_of(each.customer) - slot_amount(
            each.kind, each.price, left
        )
        self._now.room.take(each.kind, each.window, left)
        self.seen.counted[each.key] = each.window, each.quantity, left, each.price

    def _given_of(self, customer: bytes, need: NeedSlot) -> Given:
        key = customer, need.slot_id
        if key not in self._given:
            self._given[key] = Given(need)
        return self._given[key]

    def _credit_of(self, customer: bytes) -> int:
        if customer not in self._credit:
            credit = self._now.credit_micro(customer)
            self.seen.credit[customer] = self._credit[customer] = credit
            if self._last.credit.get(customer) != credit:
                self._moved.add(customer)
        return self._credit[customer]

    def _look(
        self, slot: AvailabilitySlot, window: Window, room: Room, last: _Look | None
    ) -> tuple[_Look | None, bool]:
        """Return what a window comes to, and whether it was cleared anew."""
        now, key = self._now, (slot.slot_id, window[0])
        before = self._before.get(key)
        # Kept for the window: a tie falls as it fell before.
        salt = self._salt(key) if before is None else before.record.salt
        queue = self._queues.of(key, salt)
        if not queue and before is None:
            return None, False
        if last is not None and last.place[0] is not queue:
            last = None  # it was of another slot under the same id
        drawn = self._drawn.get(key, {})
        free = sum(drawn.values()) + now.room.left(slot.kind, window)
        offer = Offer(slot, window, now.now_ms, salt, min(slot.quantity, free))
        if last is not None and last.place == (queue, queue.version, room):
            takers = last.takers
        else:
            takers = admitted(now.own, queue, slot, room)
        known = {} if last is None else last.eligible
        eligible = {}
        for taker in takers:
            customer = taker.published.node
            each = known.get(customer)
            if each is None or each.taker is not taker or self._has_moved(each):
                each = self._eligible(offer, queue, taker, before, drawn)
            eligible[customer] = each
        seen = (queue, queue.version, room), takers, eligible, offer.capacity
        if (
            last is not None
            and last.cleared is before
            and last.capacity == offer.capacity
            and _are_as(eligible, known)
        ):
            return _Look(*seen, before, last.granted), False
        units = {node: dict(each.units) for node, each in eligible.items()}
        inputs = _inputs(offer, takers, units)
        is_fresh = before is None or before.inputs != inputs
        if before is None or is_fresh:
            left_out = len(queue) - len(takers)
            record, given = self._divide(offer, takers, units, drawn, left_out)
            before = Cleared(inputs, record, record.id, self._grants(before, given, takers))
        needs = {
            (taker.published.node, need.slot_id): need for taker in takers for need in taker.needs
        }
        return _Look(*seen, before, entitlements(before, needs)), is_fresh

    def _has_moved(self, each: _Eligible) -> bool:
        customer = each.taker.published.node
        self._credit_of(customer)  # what it owes can have changed
        return customer in self._moved or self._now.now_ms >= each.until_ms

    def _grants(
        self,
        before: Cleared | None,
        given: Iterable[tuple[bytes, bytes]],
        takers: Iterable[Taker],
    ) -> dict[tuple[bytes, bytes], Grant]:
        """Return since when, and under which number, each need is granted something."""
        numbers = {
            (taker.published.node, need.slot_id): need.number
            for taker in takers
            for need in taker.needs
        }
        earlier = {} if before is None else before.grants
        # What has lapsed stays so, also while nothing is granted, as long as the need is there.
        stated = {pin: grant for pin, grant in earlier.items() if self._queues.is_stated(*pin)}
        return stated | {
            pin: earlier[pin]
            if pin in earlier and earlier[pin].number == numbers[pin]
            else Grant(numbers[pin], self._now.now_ms)
            for pin in given
        }

    def _divide(
        self,
        offer: Offer,
        takers: Sequence[Taker],
        eligible: dict[bytes, dict[bytes, int]],
        drawn: Mapping[tuple[bytes, bytes], int],
        left_out: int,
    ) -> tuple[ClearingRecord, Mapping[tuple[bytes, bytes], int]]:
        """Return the record of a window and what each need got; whoever drew more keeps that."""
        customers = [taker.published for taker in takers]
        pinned: set[tuple[bytes, bytes]] = set()
        while True:
            kept = sum(
                quanta
                for pin, quanta in drawn.items()
                if pin in pinned or pin[1] not in eligible.get(pin[0], {})
            )
            least = replace(offer, capacity=max(0, offer.capacity - kept))
            record = clear_window(least, self._now.own, customers, eligible, left_out=left_out)
            units: defaultdict[tuple[bytes, bytes], int] = defaultdict(int)
            for participant in record.participants:
                for need_id, _, quantity, _ in participant.lines:
                    units[participant.customer, need_id] += quantity
            short = [
                pin
                for pin, quanta in drawn.items()
                if pin[1] in eligible.get(pin[0], {}) and units[pin] < quanta
            ]
            if not short:
                return record, units
            for customer_id, need_id in short:
                pinned.add((customer_id, need_id))
                del eligible[customer_id][need_id]

    def _eligible(
        self,
        offer: Offer,
        queue: Queue,
        taker: Taker,
        before: Cleared | None,
        drawn: Mapping[tuple[bytes, bytes], int],
    ) -> _Eligible:
        """Return what each need may be granted of a window, of what it wants."""
        found: dict[bytes, int] = {}
        customer, now_ms = taker.published.node, self._now.now_ms
        credit = self._credit_of(customer)
        is_open = taker.tier == "open"
        if is_open and offer.window[0] > now_ms and not any(pin[0] == customer for pin in drawn):
            # As below for each of its needs.
            return _Eligible(taker, found, offer.window[0])
        lines = ALLOCATIONS_A_STRANGER_MAX if is_open else ALLOCATIONS_A_CUSTOMER_MAX
        lines -= self._lines[customer]
        moments = [offer.window[1]]
        for need, time in queue.asks(customer):
            key = customer, need.slot_id
            mine = drawn.get(key, 0)
            most = still_wanted(need, self._now.own.node, time, self._given_of(customer, need))
            # Not at what the need says that it pays: who said less would be eligible for more.
            price = offer.slot.reserve
            more = affordable(offer.slot.kind, price, credit)
            if more is not None:
                most = min(most, mine + more // SLOT_UNIT[offer.slot.kind])
            grant = None if before is None else before.grants.get(key)
            if grant is None or grant.number != need.number:
                grant = Grant(need.number, now_ms)
            lapses_ms = until_ms(grant, time)
            if lapses_ms <= now_ms:
                # It lapsed: what was drawn stays, and nothing is granted before the need changes.
                most = min(most, mine)
            else:
                moments.append(lapses_ms)
            if is_open and time[0] > now_ms:
                # Nothing is billed before it begins: a stranger would hold it for nothing.
                moments.append(time[0])
                most = min(most, mine)
            if len(found) >= lines:
                most = min(most, mine)
            if most > 0:
                found[need.slot_id] = most
                credit -= slot_amount(offer.slot.kind, price, max(0, most - mine))
        return _Eligible(taker, found, min(moments))
