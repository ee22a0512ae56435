"""Why a need was granted what it was, and what would have changed that.

Everything is found by clearing again with one thing changed, so it is what would have happened
and not a guess (docs/design/allocation.md, W1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from xsc.allocation.clearing import STRANGER, Bid, Line, SlotTerms, Standing, clear
from xsc.allocation.clearing_record import (
    Checked,
    bids_of,
    eligible_of,
    offer_of,
    terms_of,
    weights_of,
)
from xsc.allocation.tiers import TIERS
from xsc.base.errors import NotFound
from xsc.base.ids import to_text
from xsc.base.limits import MUTUAL_RECOGNITION_THRESHOLD_PPM, PPM
from xsc.terms.quote import Tier


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that, alone, would have given the need more."""

    what: Literal["mutual", "one_way", "price"]
    bound: int
    """The least recognition in ppm, or the least greatest price."""
    quantity: int
    """What the need would have been granted."""


@dataclass(frozen=True, slots=True)
class Why:
    """The outcome of one need, explained."""

    customer: bytes
    need: bytes
    tier: Tier
    """How the provider stands to the customer."""
    weight: int
    eligible: int
    """The need, its cap and what credit and shares left of it, the least of these."""
    price_max: int
    price_least: int
    """What the slot asks of such a customer: its rung, or the reserve."""
    lines: tuple[Line, ...]
    others: int
    """Units granted to all other needs."""
    changes: tuple[Change, ...]

    @property
    def quantity(self) -> int:
        """The units granted in all."""
        return sum(line.quantity for line in self.lines)


def _least(low: int, high: int, serves: Callable[[int], int], now: int) -> int | None:
    """Return the least number from low to high that serves more than now; None where none does.

    Found by halving, and so exact where more never serves less.
    """
    if low > high or serves(high) <= now:
        return None
    while low < high:
        middle = (low + high) // 2
        if serves(middle) > now:
            high = middle
        else:
            low = middle + 1
    return low


def why(
    terms: SlotTerms, bids: Sequence[Bid], weights: Mapping[bytes, Standing], salt: bytes, bid: Bid
) -> Why:
    """Return why one of the bids was granted what it was."""
    cleared = clear(terms, bids, weights, salt)
    given = cleared.given()
    now = given.get(bid.key, 0)
    own_tier, own_weight = weights.get(bid.customer, STRANGER)

    def standing(tier: Tier, weight: int) -> int:
        """Serve the whole customer in a tier: its needs stand there together."""
        changed = {**weights, bid.customer: (tier, weight)}
        return clear(terms, bids, changed, salt).given().get(bid.key, 0)

    def paying(price_max: int) -> int:
        told = [replace(one, price_max=price_max) if one == bid else one for one in bids]
        return clear(terms, told, weights, salt).given().get(bid.key, 0)

    changes: list[Change] = []
    if now < bid.quantity:
        lows: tuple[tuple[Tier, int], ...] = (
            ("one_way", 1),
            ("mutual", MUTUAL_RECOGNITION_THRESHOLD_PPM),
        )
        for tier, low in lows:
            if TIERS.index(tier) <= TIERS.index(own_tier):
                start = max(low, own_weight + 1) if tier == own_tier else low
                found = _least(start, PPM, lambda weight, tier=tier: standing(tier, weight), now)  # type: ignore[misc]
                if found is not None:
                    name: Literal["mutual", "one_way"] = "mutual" if tier == "mutual" else "one_way"
                    changes.append(Change(name, found, standing(tier, found)))
        top = max((one.price_max for one in bids), default=0)
        top = max(top, terms.reserve) + 1
        price = _least(bid.price_max + 1, top, paying, now)
        if price is not None:
            changes.append(Change("price", price, paying(price)))
    return Why(
        bid.customer,
        bid.need,
        own_tier,
        own_weight,
        bid.quantity,
        bid.price_max,
        {
            "mutual": terms.price_mutual,
            "one_way": terms.price_one_way,
            "open": terms.reserve,
        }[own_tier],
        tuple(line for line in cleared.lines if (line.customer, line.need) == bid.key),
        sum(given.values()) - now,
        tuple(changes),
    )


def explain(checked: Checked, customer: bytes, need: bytes) -> Why:
    """Return why a need was granted what a clearing record says.

    Raises:
        NotFound: the need took no part in it.
    """
    offer = offer_of(checked.record)
    bids = bids_of(checked.customers, eligible_of(checked.record))
    weights = weights_of(checked.provider, checked.customers)
    for bid in bids:
        if bid.key == (customer, need):
            return why(terms_of(offer), bids, weights, offer.salt, bid)
    raise NotFound(f"need {to_text(need)} took no part in this clearing")
