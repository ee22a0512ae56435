"""Limits what one customer may have reserved and not used, to a share of what is free.

The share is smaller for customers that the node does not recognise; these have a share
together as well. So the next customer still finds room, however much others reserve and
however many leases they take. Used capacity is paid for, and not limited by shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    ROOM_LEAST_BYTES,
    ROOM_LEAST_STEPS,
    ROOM_PART_MUTUAL,
    ROOM_PART_ONE_WAY,
    ROOM_PART_OPEN,
    ROOM_PART_STRANGERS,
)
from xsc.market.clearing import Ask, clear, within_credit
from xsc.market.ports import Divide
from xsc.terms.quote import Kind, Tier

PARTS: Final[dict[Tier, int]] = {
    "open": ROOM_PART_OPEN,
    "one_way": ROOM_PART_ONE_WAY,
    "mutual": ROOM_PART_MUTUAL,
}
LEAST: Final[dict[Kind, int]] = {"storage": ROOM_LEAST_BYTES, "compute": ROOM_LEAST_STEPS}


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """What a node has of one kind at a moment."""

    kind: Kind
    free: int
    """Neither used nor reserved."""
    reserved: Mapping[bytes, int]
    """By customer: reserved and not used."""
    strangers: frozenset[bytes]
    """The customers among those that are not recognised."""


def share(room: FreeRoom, customer: bytes, tier: Tier) -> int:
    """Return what a customer may have reserved in all."""
    base = room.free + room.reserved.get(customer, 0)
    return max(base // PARTS[tier], min(base, LEAST[room.kind]))


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
        most = min(most, max(strangers_left(room), LEAST[room.kind] - own))
    return max(0, min(most, room.free))


def within_share(room: FreeRoom, asks: Sequence[Ask]) -> tuple[list[Ask], frozenset[bytes]]:
    """Return the asks cut to their customers' shares, and the leases refused for that.

    A customer's asks use up its share one after another, in the order given (`by_lot`).
    """
    spare = {ask.customer: left(room, ask.customer, ask.tier) for ask in asks}
    kept: list[Ask] = []
    refused: set[bytes] = set()
    for ask in asks:
        quantity = min(ask.quantity, spare[ask.customer])
        if quantity < ask.quantity_min:
            refused.add(ask.lease_id)
            continue
        spare[ask.customer] -= quantity
        kept.append(replace(ask, quantity=quantity))
    return kept, frozenset(refused)


Reason: TypeAlias = Literal["credit", "share", "capacity"]
"""Why a request is refused: its customer's debt limit, its share, or too little is left."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What becomes of the requests of one window, by lease id."""

    grants: dict[bytes, int]
    refused: dict[bytes, Reason]


def plan_window(
    asks: Sequence[Ask],
    credit_micro: Mapping[bytes, int],
    room: FreeRoom,
    divide: Divide,
    salt: bytes,
) -> WindowPlan:
    """Return what each request of a window is granted, or why it is refused.

    Credit bounds a request first, then its customer's share of the room, then the capacity.
    Strangers divide their part of the room among them, and then take part in all of it.

    Args:
        asks: in the order of `by_lot`.
        credit_micro: what each customer may still come to owe.
        room: what there is.
        divide: the division rule.
        salt: of the lots.
    """
    affordable, without_credit = within_credit(room.kind, asks, credit_micro)
    shared, beyond_share = within_share(room, affordable)
    strangers = [ask for ask in shared if ask.tier == "open"]
    for_strangers = min(room.free, max(strangers_left(room), LEAST[room.kind]))
    of_strangers = clear(strangers, for_strangers, divide, salt)
    grants = of_strangers.grants
    bounded = [replace(a, quantity=grants[a.lease_id]) for a in strangers if a.lease_id in grants]
    known = [ask for ask in shared if ask.tier != "open"]
    clearing = clear([*known, *bounded], room.free, divide, salt)
    refused: dict[bytes, Reason] = dict.fromkeys(without_credit, "credit")
    refused |= dict.fromkeys(beyond_share, "share")
    refused |= dict.fromkeys(clearing.refused | of_strangers.refused, "capacity")
    return WindowPlan(clearing.grants, refused)
