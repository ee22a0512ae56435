"""The book of a node: what is free of its capacity, and what of that a customer may lease.

Levels add up over any moment, of storage (bytes held at any one time) and of compute (fuel steps in
the time of a lease). So room is capacity less levels: those of leases (`reserved`), and of what a
clearing offers while it can be taken.

A lease of compute for now has no level: it is granted while any of the rate is left, and what its
calls may cost is bounded when they come (`granter`).

The share limits what a customer may have reserved and not used. It is smaller for customers
that the node does not recognise; these have a share together as well. So the next customer
still finds room, however much others reserve and however many leases they take. Used capacity
is paid for, and not limited by shares. Nor is a lease on an entitlement: what that may draw is kept
free for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    ROOM_LEAST_BYTES,
    ROOM_PART_MUTUAL,
    ROOM_PART_ONE_WAY,
    ROOM_PART_OPEN,
    ROOM_PART_STRANGERS,
    SLOT_STEP_BYTES,
    SLOT_STEP_FUEL,
)
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import affordable
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import Entitlement, EntitlementKey, Window

EVER_MS: Final = 2**63 - 1
"""The end of what has none: what is stored does not go when a window ends."""
LEASE_UNIT: Final[dict[Kind, int]] = {
    "storage": SLOT_STEP_BYTES,
    "compute": SLOT_STEP_FUEL * COMPUTE_LEASE_MS // 1_000,
}
"""What a step of a slot is in a lease: bytes, or fuel steps in the time that a lease lasts."""

PARTS: Final[dict[Tier, int]] = {
    "open": ROOM_PART_OPEN,
    "one_way": ROOM_PART_ONE_WAY,
    "mutual": ROOM_PART_MUTUAL,
}


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity that is taken at every moment of a half-open time."""

    start_ms: int
    end_ms: int
    quantity: int


def free_over(capacity: int, levels: Iterable[Level], start_ms: int, end_ms: int) -> int:
    """Return what levels leave of a capacity at every moment of a half-open time."""
    changes: list[tuple[int, int]] = []
    for level in levels:
        start, end = max(level.start_ms, start_ms), min(level.end_ms, end_ms)
        if start < end:
            changes += ((start, level.quantity), (end, -level.quantity))
    # What ends at a moment makes room for what begins then.
    changes.sort()
    taken = most = 0
    for _, change in changes:
        taken += change
        most = max(most, taken)
    return max(0, capacity - most)


class SlotRoom:
    """What a provider can grant of its slots, as a pass over all of them takes it."""

    def __init__(self, free: Mapping[Kind, int], now_ms: int) -> None:
        self._free = free
        """By kind, what is neither used nor reserved."""
        self._now_ms = now_ms
        self._taken: dict[Kind, list[Level]] = {"storage": [], "compute": []}

    def left(self, kind: Kind, window: Window) -> int:
        """Return the steps that can be granted over a window."""
        left = free_over(self._free[kind], self._taken[kind], *self._span(kind, window))
        return left // LEASE_UNIT[kind]

    def take(self, kind: Kind, window: Window, steps: int) -> None:
        """Count steps as granted over a window."""
        if steps:
            self._taken[kind].append(Level(*self._span(kind, window), steps * LEASE_UNIT[kind]))

    def _span(self, kind: Kind, window: Window) -> Window:
        return max(self._now_ms, window[0]), EVER_MS if kind == "storage" else window[1]


def is_present(offer: Entitlement, now_ms: int) -> bool:
    """Return whether a lease can be taken on an offer now: only then it holds its room."""
    return offer.window[0] <= now_ms < offer.until_ms


def undrawn(offer: Entitlement, drawn: Mapping[EntitlementKey, int]) -> int:
    """Return what can still be leased of an offer: bytes, or fuel steps."""
    return max(0, offer.quantity * LEASE_UNIT[offer.kind] - drawn.get(offer.key, 0))


def slot_left(offer: Entitlement, drawn: Mapping[EntitlementKey, int]) -> int:
    """Return what no lease has of the slot's window."""
    taken = sum(level for key, level in drawn.items() if key[:3] == offer.key[:3])
    return max(0, offer.slot_quantity * LEASE_UNIT[offer.kind] - taken)


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The storage that a node has for leases for now."""

    free: int
    """Neither used nor reserved."""
    reserved: Mapping[bytes, int]
    """By customer: reserved and not used, without leases on entitlements."""
    strangers: frozenset[bytes]
    """The customers among those that are not recognised."""


def share(room: FreeRoom, customer: bytes, tier: Tier) -> int:
    """Return what a customer may have reserved in all."""
    base = room.free + room.reserved.get(customer, 0)
    return max(base // PARTS[tier], min(base, ROOM_LEAST_BYTES))


def strangers_left(room: FreeRoom) -> int:
    """Return what customers that are not recognised may still reserve together."""
    all_room = room.free + sum(room.reserved.values())
    theirs = sum(room.reserved[customer] for customer in room.strangers)
    return min(room.free, max(0, all_room // ROOM_PART_STRANGERS - theirs))


def left(room: FreeRoom, customer: bytes, tier: Tier) -> int:
    """Return what a customer may still reserve.

    The least that each may have is left to it, where it is free, also where others have
    what all strangers have together.
    """
    own = room.reserved.get(customer, 0)
    most = share(room, customer, tier) - own
    if tier == "open":
        most = min(most, max(strangers_left(room), ROOM_LEAST_BYTES - own))
    return max(0, min(most, room.free))


Reason: TypeAlias = Literal["credit", "share", "capacity"]
"""Why a request is refused: its customer's debt limit, its share, or too little is left."""


def grant(request: LeaseRequest, credit_micro: int, *, free: int, left: int) -> int | Reason:
    """Return the quantity that a request is granted, or why it is refused.

    Args:
        request: what is asked for.
        credit_micro: what the customer may still come to owe.
        free: what there is over the lease's time.
        left: what of that the customer may take: of its share, or of its entitlement.
    """
    most = affordable(request.kind, request.price, credit_micro)
    quantity = request.quantity if most is None else min(request.quantity, most)
    if quantity < request.quantity_min:
        return "credit"
    if free < request.quantity_min:
        return "capacity"
    quantity = min(quantity, left)
    return quantity if quantity >= request.quantity_min else "share"
