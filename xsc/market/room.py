"""What of a lease is granted: bounded by its customer's credit, its share, and what is free.

A lease of compute for now is of no room: it is granted while any of the rate is left, and what its
calls may cost is bounded when they come (`granted`).

The share limits what a customer may have reserved and not used. It is smaller for customers
that the node does not recognise; these have a share together as well. So the next customer
still finds room, however much others reserve and however many leases they take. Used capacity
is paid for, and not limited by shares. Nor is a lease on an entitlement (`entitlements`): what
that may draw is kept free for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    ROOM_LEAST_BYTES,
    ROOM_PART_MUTUAL,
    ROOM_PART_ONE_WAY,
    ROOM_PART_OPEN,
    ROOM_PART_STRANGERS,
)
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import affordable
from xsc.terms.quote import Tier

PARTS: Final[dict[Tier, int]] = {
    "open": ROOM_PART_OPEN,
    "one_way": ROOM_PART_ONE_WAY,
    "mutual": ROOM_PART_MUTUAL,
}


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The storage that a node has over the time of a lease, beside all entitlements."""

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
