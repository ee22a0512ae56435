"""How much of what is free one customer may have reserved and not used.

A share of what is free, smaller for those whom the node does not recognise; these
have a share together as well. So whoever comes next still finds room, however much
others reserve and however many leases they take. What is used is no matter of
shares: it is paid for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xsc.base.limits import (
    ROOM_LEAST_BYTES,
    ROOM_LEAST_STEPS,
    ROOM_PART_MUTUAL,
    ROOM_PART_ONE_WAY,
    ROOM_PART_OPEN,
    ROOM_PART_STRANGERS,
)
from xsc.market.clearing import Ask
from xsc.terms.quote import Kind, Tier

PARTS: Final[dict[Tier, int]] = {
    "open": ROOM_PART_OPEN,
    "one_way": ROOM_PART_ONE_WAY,
    "mutual": ROOM_PART_MUTUAL,
}
LEAST: Final[dict[Kind, int]] = {"storage": ROOM_LEAST_BYTES, "compute": ROOM_LEAST_STEPS}


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has of one kind at a moment."""

    kind: Kind
    free: int
    """Neither used nor reserved."""
    reserved: Mapping[bytes, int]
    """By customer: reserved and not used."""
    strangers: frozenset[bytes]
    """The customers among those that are not recognised."""


def share(room: Room, customer: bytes, tier: Tier) -> int:
    """Return what a customer may have reserved in all."""
    base = room.free + room.reserved.get(customer, 0)
    return max(base // PARTS[tier], min(base, LEAST[room.kind]))


def strangers_left(room: Room) -> int:
    """Return what customers that are not recognised may still reserve together."""
    all_room = room.free + sum(room.reserved.values())
    theirs = sum(room.reserved[customer] for customer in room.strangers)
    return min(room.free, max(0, all_room // ROOM_PART_STRANGERS - theirs))


def left(room: Room, customer: bytes, tier: Tier) -> int:
    """Return what a customer may still reserve.

    The least that each may have is left to it, where it is free, also where others have
    what all strangers have together.
    """
    own = room.reserved.get(customer, 0)
    most = share(room, customer, tier) - own
    if tier == "open":
        most = min(most, max(strangers_left(room), LEAST[room.kind] - own))
    return max(0, min(most, room.free))


def within_share(room: Room, asks: Sequence[Ask]) -> tuple[list[Ask], frozenset[bytes]]:
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


def granted(asks: Iterable[Ask], grants: Mapping[bytes, int]) -> list[Ask]:
    """Return the asks that were granted something, cut to that."""
    return [replace(ask, quantity=grants[ask.lease_id]) for ask in asks if ask.lease_id in grants]
