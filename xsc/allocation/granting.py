"""Grants the windows of a node's slots to standing needs, ahead of use.

One pass goes over the windows in the order in which they begin. Each is cleared by itself
(`clearing_record`), over the slot's quantity and whole needs. What was drawn stays: a need that
has drawn more than it is granted now keeps that, and the rest is cleared without both. So a
customer gains nothing by drawing early, and nothing that it drew is recalled.

What a need got in one window counts in those after it, so no need is filled twice. A window
whose inputs are those of its last clearing is not cleared again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from xsc.allocation.acceptance import Given, still_wanted
from xsc.allocation.clearing_record import (
    Offer,
    Published,
    Room,
    Taker,
    admitted,
    clear_window,
)
from xsc.allocation.matching import overlap, places, windows_of
from xsc.allocation.ports import SlotRoom
from xsc.allocation.queues import Key, Queue, Queues
from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARED_SLOTS_MAX,
    CLEARING_BYTES_MAX,
    CLEARINGS_BYTES_MAX,
    ENTITLEMENT_LAPSE_MS,
    WINDOWS_AHEAD,
)
from xsc.base.units import ceil_div
from xsc.terms.clearing import ClearingRecord
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


def windows_ahead(slots: Iterable[AvailabilitySlot], now_ms: int) -> list[tuple[Window, Key]]:
    """Return the windows that are cleared: the next ones of each slot, in order of their start."""
    found = []
    for slot in slots:
        if slot.valid_until_ms > now_ms:
            first, _ = places((now_ms, slot.valid_until_ms), slot.windows)
            ahead = slot.windows[first : first + WINDOWS_AHEAD]
            found += [(window, (slot.slot_id, window[0])) for window in ahead]
    return sorted(found, key=lambda item: (item[0][0], item[1]))[:CLEARED_SLOTS_MAX]


def begins_ms(grant: Grant, time: Window) -> int:
    """Return from when what is granted can be drawn, and costs."""
    return max(grant.granted_ms, time[0])


def until_ms(grant: Grant, time: Window) -> int:
    """Return when what is granted ends if it is not drawn."""
    return min(time[1], begins_ms(grant, time) + ENTITLEMENT_LAPSE_MS)


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
                    # Of two stages the mean, rounded up: at most the higher one.
                    price=ceil_div(sum(part[1] * part[2] for part in parts), quantity),
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


class Pass:
    """One pass over the windows of a node's slots.

    Args:
        now: what it follows from.
        queues: who may take part in each window, as of now.
        before: the last clearing of each window.
        salt: returns that of a window that was not cleared before.
    """

    def __init__(
        self,
        now: Now,
        queues: Queues,
        before: Mapping[Key, Cleared],
        salt: Callable[[Key], bytes],
    ) -> None:
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
        self._needs: dict[tuple[bytes, bytes], NeedSlot] = {}
        self._given: dict[tuple[bytes, bytes], Given] = {}
        """By customer and need: what earlier windows gave."""
        self._drawn: defaultdict[Key, dict[tuple[bytes, bytes], int]] = defaultdict(dict)
        """By window: what was drawn, by customer and need."""
        for (slot_id, start, customer, need), quanta in now.drawn.items():
            if quanta:
                self._drawn[slot_id, start][customer, need] = quanta
        self._credit: dict[bytes, int] = {}

    def run(self) -> Iterator[None]:
        """Clear what has changed, one window a step: a long pass need not hold up other work."""
        slots = {slot.slot_id: slot for slot in self._now.own.commitment.slots}
        windows = windows_ahead(slots.values(), self._now.now_ms)
        self._queues.keep({key for _, key in windows})
        self._queues.pass_time(self._now.now_ms)
        for window, key in windows:
            # All records of a pass fit the own space, and all that it grants one state.
            room = Room(
                min(CLEARING_BYTES_MAX, CLEARINGS_BYTES_MAX // len(windows)),
                ALLOCATIONS_MAX - len(self.granted),
            )
            cleared, is_fresh = self._clear(slots[key[0]], window, room)
            if cleared is not None:
                self.cleared[key] = cleared
                if is_fresh:
                    self.fresh.append(key)
                for each in entitlements(cleared, self._needs):
                    self.granted.append(each)
                    self._count(each)
            yield

    def _count(self, each: Entitlement) -> None:
        """Count what was granted against its need, its customer's credit and the capacity."""
        self._given_of(each.customer, self._needs[each.customer, each.need]).add(
            each.window, each.quantity
        )
        drawn = self._now.drawn.get(each.key, 0)
        left = max(0, each.quantity - drawn) if each.until_ms > self._now.now_ms else 0
        self._credit[each.customer] = self._credit_of(each.customer) - left * each.price
        self._now.room.take(each.kind, each.window, left)

    def _given_of(self, customer: bytes, need: NeedSlot) -> Given:
        key = customer, need.slot_id
        if key not in self._given:
            self._given[key] = Given(need)
        return self._given[key]

    def _credit_of(self, customer: bytes) -> int:
        if customer not in self._credit:
            self._credit[customer] = self._now.credit_micro(customer)
        return self._credit[customer]

    def _clear(
        self, slot: AvailabilitySlot, window: Window, room: Room
    ) -> tuple[Cleared | None, bool]:
        now, key = self._now, (slot.slot_id, window[0])
        before = self._before.get(key)
        # Kept for the window: a tie falls as it fell before.
        salt = self._salt(key) if before is None else before.record.salt
        queue = self._queues.of(key, window, salt)
        if not queue and before is None:
            return None, False
        drawn = self._drawn.get(key, {})
        free = sum(drawn.values()) + now.room.left(slot.kind, window)
        offer = Offer(slot, window, now.now_ms, salt, min(slot.quantity, free))
        takers = admitted(now.own, queue, slot, room)
        queue.keep({taker.published.node for taker in takers})
        eligible = {
            taker.published.node: self._eligible(offer, queue, taker, before, drawn)
            for taker in takers
        }
        inputs = _inputs(offer, takers, eligible)
        if before is not None and before.inputs == inputs:
            return before, False
        record, units = self._divide(offer, takers, eligible, drawn, len(queue) - len(takers))
        grants = {}
        for pin in units:
            number = self._needs[pin].number
            earlier = None if before is None else before.grants.get(pin)
            same = earlier is not None and earlier.number == number
            grants[pin] = earlier if earlier and same else Grant(number, now.now_ms)
        if before is not None:
            # What has lapsed stays so, also while nothing is granted, as long as the need is there.
            stated = {
                pin: grant for pin, grant in before.grants.items() if self._queues.is_stated(*pin)
            }
            grants = stated | grants
        return Cleared(inputs, record, record.id, grants), True

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
    ) -> dict[bytes, int]:
        """Return what each need may be granted of a window, of what it wants."""
        found: dict[bytes, int] = {}
        customer, now_ms = taker.published.node, self._now.now_ms
        is_open = taker.tier == "open"
        credit = self._credit_of(customer)
        for need, time in queue.asks(customer):
            key = customer, need.slot_id
            mine = drawn.get(key, 0)
            if time[0] > now_ms and is_open and not mine:
                # Nothing is billed before it begins: a stranger would hold it for nothing.
                continue
            most = still_wanted(need, self._now.own.node, time, self._given_of(customer, need))
            # Not at what the need says that it pays: who said less would be eligible for more.
            price = offer.slot.reserve
            if price:
                most = min(most, mine + max(0, credit) // price)
            grant = None if before is None else before.grants.get(key)
            if (
                grant is not None
                and grant.number == need.number
                and until_ms(grant, time) <= now_ms
            ):
                # It lapsed: what was drawn stays, and nothing is granted before the need changes.
                most = min(most, mine)
            if most > 0:
                found[need.slot_id] = most
                self._needs[key] = need
                credit -= max(0, most - mine) * price
        return found
