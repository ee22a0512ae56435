"""Why a need came out at a slot as it did, and what would have changed that, in sentences.

What would have changed an outcome is found by clearing again with that one thing changed, so it is
what would have happened and not a guess (docs/design/allocation.md, W1).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from xsc.allocation.clearing import STRANGER, Bid, Line, SlotTerms, Standing, clear
from xsc.allocation.clearing_record import (
    Checked,
    bids_of,
    eligible_of,
    offer_of,
    terms_of,
    weights_of,
)
from xsc.allocation.matching import Party, overlap, windows_of
from xsc.allocation.tiers import TIERS
from xsc.base.limits import MUTUAL_RECOGNITION_THRESHOLD_PPM, PPM
from xsc.base.units import ceil_div, format_credits, format_level, format_share
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import STEP, AvailabilitySlot, NeedSlot

_SHARE_STEP_PPM: Final = 1000
"""Shares are shown with one decimal; a bound is rounded up, so that it suffices."""
_CHANGES: Final[Mapping[str, tuple[str, Callable[[int], str]]]] = {
    "mutual": ("mutual recognition", format_share),
    "one_way": ("recognition by the provider", format_share),
    "price": ("a greatest price", format_credits),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A slot and a need of two nodes, as each sees the other."""

    slot: AvailabilitySlot
    provider: Party
    need: NeedSlot
    customer: Party


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that, alone, would have given the need more."""

    what: str
    """mutual, one_way or price."""
    bound: int
    """The least recognition in ppm, or the least greatest price."""
    quantity: int
    """What the need would have been granted."""

    def said(self, kind: Kind) -> str:
        """Return it as a sentence."""
        what, shown = _CHANGES[self.what]
        bound = self.bound
        if self.what != "price":
            bound = min(PPM, ceil_div(bound, _SHARE_STEP_PPM) * _SHARE_STEP_PPM)
        return f"{what} of {shown(bound)} would have given it {_shown(kind, self.quantity)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a clearing gave a need that took part, explained."""

    tier: Tier
    """How the provider stands to the customer."""
    weight: int
    eligible: int
    """The need, its cap and what credit and shares left of it, the least of these."""
    lines: tuple[Line, ...]
    because: str
    changes: tuple[Change, ...]

    @property
    def quantity(self) -> int:
        """The units granted in all."""
        return sum(line.quantity for line in self.lines)


def _shown(kind: Kind, steps: int) -> str:
    return format_level(kind, steps * STEP[kind])


def changes_of(
    terms: SlotTerms, bids: Sequence[Bid], weights: Mapping[bytes, Standing], salt: bytes, bid: Bid
) -> list[Change]:
    """Return each change that, alone, would have given one of the bids more.

    Found by halving, and so the least one where more recognition or a higher price never serves
    less.
    """

    def standing(tier: Tier, weight: int) -> int:
        """Serve the whole customer in a tier: its needs stand there together."""
        changed = {**weights, bid.customer: (tier, weight)}
        return clear(terms, bids, changed, salt).given().get(bid.key, 0)

    def paying(price_max: int) -> int:
        told = [replace(each, price_max=price_max) if each == bid else each for each in bids]
        return clear(terms, told, weights, salt).given().get(bid.key, 0)

    own_tier, own_weight = weights.get(bid.customer, STRANGER)
    now = paying(bid.price_max)
    if now >= bid.quantity:
        return []
    tries: list[tuple[str, int, int, Callable[[int], int]]] = []
    lows: tuple[tuple[Tier, int], ...] = (
        ("one_way", 1),
        ("mutual", MUTUAL_RECOGNITION_THRESHOLD_PPM),
    )
    for tier, low in lows:
        if TIERS.index(tier) <= TIERS.index(own_tier):
            least = max(low, own_weight + 1) if tier == own_tier else low
            tries.append((tier, least, PPM, partial(standing, tier)))
    top = max(terms.reserve, *(each.price_max for each in bids)) + 1
    tries.append(("price", bid.price_max + 1, top, paying))
    changes = []
    for what, low, high, serve in tries:
        if low <= high and serve(high) > now:
            more = range(low, high)
            bound = low + bisect_left(more, True, key=lambda tried, of=serve: of(tried) > now)  # type: ignore[misc]
            changes.append(Change(what, bound, serve(bound)))
    return changes


def explain(checked: Checked, customer: bytes, need_id: bytes) -> Outcome | None:
    """Return why a need was granted what a clearing record says; None if it took no part."""
    offer = offer_of(checked.record)
    bids = bids_of(checked.customers, eligible_of(checked.record))
    bid = next((each for each in bids if each.key == (customer, need_id)), None)
    if bid is None:
        return None
    weights = weights_of(checked.provider, checked.customers)
    (need,) = (
        need
        for each in checked.customers
        if each.node == customer
        for need in each.commitment.needs
        if need.slot_id == need_id
    )
    terms = terms_of(offer)
    lines = clear(terms, bids, weights, offer.salt).lines
    mine = tuple(line for line in lines if (line.customer, line.need) == bid.key)
    tier, weight = weights.get(customer, STRANGER)
    return Outcome(
        tier,
        weight,
        bid.quantity,
        mine,
        _because(offer.slot, need, bid, (tier, weight), mine, has_others=len(mine) < len(lines)),
        tuple(changes_of(terms, bids, weights, offer.salt, bid)),
    )


def _because(
    slot: AvailabilitySlot,
    need: NeedSlot,
    bid: Bid,
    standing: Standing,
    lines: Sequence[Line],
    *,
    has_others: bool,
) -> str:
    tier, weight = standing
    asked = slot.ladder.rung(tier)
    if sum(line.quantity for line in lines) >= bid.quantity:
        if bid.quantity < need.quantity:
            return (
                f"it asks for {_shown(need.kind, need.quantity)}, and its customer's credit and "
                "share, what it took of others, and other windows leave no more"
            )
        return "all that it asked for was there"
    if bid.price_max < asked:
        return (
            f"it pays at most {format_credits(bid.price_max)}, and the slot asks "
            f"{format_credits(asked)} of the tier {tier}"
        )
    if not has_others:
        return "the slot has no more"
    if tier == "open":
        return "others are recognised, or bid more"
    return f"the rest went to others: it stands in the tier {tier} with {format_share(weight)}"


def absence(pair: Pair, checked: Checked, drawn: int) -> str:
    """Return why a need that matches a slot took no part in a clearing.

    Args:
        pair: the slot and the need, as they are now.
        checked: the clearing.
        drawn: steps that the need has drawn of the window.
    """
    need, customer, record = pair.need, pair.customer.node, checked.record
    time = overlap(record.window, windows_of(need))
    if time is None:
        return "this window of the slot overlaps none of the need"
    if drawn:
        has = _shown(need.kind, drawn)
        return f"it has drawn {has} and keeps that; only the rest was cleared"
    if need.cap(pair.provider.node) == 0:
        return "others fill it, so it takes nothing more of this provider"
    if customer in record.left_out:
        return "its provider had no room for all customers, and left this one out"
    seen = next((each.commitment for each in checked.customers if each.node == customer), None)
    if seen is None:
        return "its provider had not seen the need when it cleared"
    if {each.slot_id: each.number for each in seen.needs}.get(need.slot_id) != need.number:
        return "the need was stated or changed after this clearing"
    if pair.customer.tier == "open" and time[0] > record.at_ms:
        return "what begins later is granted only to customers that the provider recognises"
    return (
        "the provider found nothing of it eligible: its other slots fill the need, its customer's "
        "credit or its share is used up, or it took no lease on what it was granted; payment of "
        "what is owed, or a changed need, lets it take part again"
    )
