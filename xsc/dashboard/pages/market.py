"""Market and allocation: offers and needs, leases, and who is given what of each slot, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from xsc.api import market, monitor, peers
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import from_text
from xsc.base.turns import one_of_each
from xsc.dashboard.page import Action, Asked, Page, number
from xsc.dashboard.pages.circle import recognise
from xsc.dashboard.source import Node, Pick, Rows, fetch

LEASES_SHOWN: Final = 50
SLOTS_SHOWN: Final = 48
"""Of other nodes, however much one of them states."""
LINES_SHOWN: Final = 24
"""Of one of these."""
_COLOURS: Final = "abcdef"


async def gather_market(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what is offered and needed, and so many leases."""
    first = number("first", asked.get("first", "0"))
    last = first + LEASES_SHOWN
    leases: Rows = await fetch(node, market.LEASES, Nothing(), window=slice(first, last))
    own = from_text((await fetch(node, monitor.MEASURES, Nothing()))["status"]["id"])
    slots: Rows = await fetch(node, market.SLOTS, Nothing(), pick=_in_turn(own))
    return {
        "slots": slots,
        "leases": leases,
        "next": last if last < leases.total else None,
        "previous": max(0, first - LEASES_SHOWN) if first else None,
    }


def _in_turn(own: bytes) -> Pick:
    """Return what picks all slots of this node, and so many of others, of each in its turn."""

    def pick(rows: Sequence[market.Slot]) -> Sequence[int]:
        places: dict[bytes, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.node, []).append(place)
        ours = places.pop(own, [])
        return [*ours, *one_of_each([*places.values()], SLOTS_SHOWN)]

    return pick


async def gather_why(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return why a need or slot came out as it did: the node may ask providers for records."""
    said = asked.get("id", "")
    if not said:
        raise ArgumentInvalid("the page explains one need or slot", hint="follow a link of Market")
    slots = await fetch(node, market.SLOTS, Nothing())
    return {
        "explained": await fetch(node, market.WHY, Id(id=said)),
        "about": next((row for row in slots if row["id"] == said), None),
    }


async def gather_allocation(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what was cleared, with a colour for each node that has something of a slot."""
    shown = await fetch(node, market.SHOW, market.Show(slots=SLOTS_SHOWN, lines=LINES_SHOWN))
    groups = await fetch(node, market.GROUPS, Nothing())
    known = await fetch(node, peers.LIST, Nothing())
    commitments = await fetch(node, market.CONSISTENT, Nothing())
    named = {row["node"]: row["name"] for row in commitments} | {
        row["node"]: row["name"]
        for slot in shown["slots"]
        for row in (slot, *slot["allocations"], *slot["pinned"])
    }
    colours = {
        each: f"t-{_COLOURS[place % 6]}{' pale' if place // 6 % 2 else ''}"
        for place, each in enumerate(sorted(named))
    }
    return {
        "shown": shown,
        "groups": groups,
        "peers": known,
        "commitments": commitments,
        "names": named | groups["names"],
        "colours": colours,
    }


PAGES: Final = (
    Page("/market", "Market", "market.html", gather_market),
    Page("/market/why", "Why it came out so", "why.html", gather_why, listed=False),
    Page("/allocation", "Allocation", "allocation.html", gather_allocation),
)
ACTIONS: Final = (Action("/allocation/recognise", "/allocation", change=recognise),)
