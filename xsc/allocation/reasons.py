"""Says in sentences why a need was granted what it was, and what would have changed that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xsc.allocation.clearing_record import Checked
from xsc.allocation.matching import Mismatch, Party, mismatch, overlap, unmet, windows_of
from xsc.allocation.why import Why
from xsc.base.limits import PPM
from xsc.base.units import ceil_div, format_credits, format_level, format_share
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP, AvailabilitySlot, NeedSlot

_SHARE_STEP_PPM: Final = 1000
"""Shares are shown with one decimal; a bound is rounded up, so that it suffices."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A slot and a need of two nodes, as each sees the other."""

    slot: AvailabilitySlot
    provider: Party
    need: NeedSlot
    customer: Party

    def mismatch(self) -> Mismatch | None:
        """Return why the slot cannot serve the need, by the matching rule."""
        return mismatch(self.slot, self.provider, self.need, self.customer)


@dataclass(frozen=True, slots=True)
class Said:
    """Why something is so, and what would have changed it."""

    because: str
    changes: tuple[str, ...] = ()


def _shown(kind: Kind, steps: int) -> str:
    return format_level(kind, steps * STEP[kind])


def of_mismatch(pair: Pair, reason: Mismatch) -> Said:
    """Return why a slot cannot serve a need."""
    slot, need = pair.slot, pair.need
    match reason:
        case "kind":
            return Said(f"the slot offers {slot.kind}, and the need is of {need.kind}")
        case "node":
            return Said("a node does not serve itself")
        case "location":
            return Said(
                f"the slot is at '{slot.location}', and the need at '{need.location}'",
                (f"the location '{slot.location}', or none, would match",),
            )
        case "filter_of_slot":
            name, wanted = unmet(slot, need, pair.customer) or ("", "")
            return Said(f"the slot serves only {name}={wanted}, which the customer is not")
        case "filter_of_need":
            name, wanted = unmet(need, slot, pair.provider) or ("", "")
            return Said(
                f"the need takes only {name}={wanted}, which the provider is not",
                ("a need without this filter would pass it",),
            )
        case "time":
            return Said("no window of the slot overlaps one of the need")


def of_absence(pair: Pair, checked: Checked, drawn: int) -> Said:
    """Return why a need that matches a slot took no part in a clearing.

    Args:
        pair: the slot and the need, as they are now.
        checked: the clearing.
        drawn: steps that the need has drawn of the window.
    """
    need, customer, record = pair.need, pair.customer.node, checked.record
    time = overlap(record.window, windows_of(need))
    if time is None:
        return Said("this window of the slot overlaps none of the need")
    if drawn:
        has = _shown(need.kind, drawn)
        return Said(f"it has drawn {has} and keeps that; only the rest was cleared")
    if need.cap(pair.provider.node) == 0:
        return Said("others fill it, so it takes nothing more of this provider")
    if customer in record.left_out:
        return Said("its provider had no room for all customers, and left this one out")
    seen = next((each.commitment for each in checked.customers if each.node == customer), None)
    if seen is None:
        return Said("its provider had not seen the need when it cleared")
    stated = {each.slot_id: each.number for each in seen.needs}
    if stated.get(need.slot_id) != need.number:
        return Said("the need was stated or changed after this clearing")
    if pair.customer.tier == "open" and time[0] > record.at_ms:
        return Said(
            "what begins later is granted only to customers that the provider recognises",
            ("recognition by the provider would have let it take part",),
        )
    return Said(
        "the provider found nothing of it eligible: its other slots fill the need, its customer's "
        "credit or its share is used up, or it took no lease on what it was granted",
        ("payment of what is owed, or a changed need, would let it take part again",),
    )


def of_outcome(why: Why, need: NeedSlot) -> Said:
    """Return why a need was granted what a clearing gave it."""
    return Said(_because(why, need), tuple(_changes(why, need)))


def _because(why: Why, need: NeedSlot) -> str:
    if why.quantity >= why.eligible:
        if why.eligible < need.quantity:
            asked = _shown(need.kind, need.quantity)
            return (
                f"it asks for {asked}, and its customer's credit and share, what it took of "
                "others, and other windows leave no more"
            )
        return "all that it asked for was there"
    if why.price_max < why.price_least:
        return (
            f"it pays at most {format_credits(why.price_max)}, and the slot asks "
            f"{format_credits(why.price_least)} of the tier {why.tier}"
        )
    if not why.others:
        return "the slot has no more"
    if why.tier == "open":
        return "others are recognised, or bid more"
    return (
        f"the rest went to others: it stands in the tier {why.tier} with {format_share(why.weight)}"
    )


def _changes(why: Why, need: NeedSlot) -> list[str]:
    found = []
    for each in why.changes:
        share = min(PPM, ceil_div(each.bound, _SHARE_STEP_PPM) * _SHARE_STEP_PPM)
        what = {
            "mutual": f"mutual recognition of {format_share(share)}",
            "one_way": f"recognition by the provider of {format_share(share)}",
            "price": f"a greatest price of {format_credits(each.bound)}",
        }[each.what]
        found.append(f"{what} would have given it {_shown(need.kind, each.quantity)}")
    return found
