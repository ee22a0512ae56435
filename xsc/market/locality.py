"""Data locality: among offers of about one price, prefers the one that saves most bytes.

A provider that holds shards of a job's inputs, or its module, need not be sent them. That
is worth a little money: offers above the reserve, or above NEAR_PRICE_PPM of the best
price for quality, are ignored. Of the others the one that saves most bytes wins, then the
best price for quality, then as in any auction (`xsc.market.auction`). The winner is paid
as there, the most that it could have asked and still won. A lower ask never loses where a
higher one wins, so that price is found by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xsc.base.limits import NEAR_PRICE_PPM, PPM
from xsc.market.auction import Bid, Winner, order_of, reserve


def _best(
    bids: Sequence[Bid], saved: Mapping[bytes, int], price_max: int, seed: bytes
) -> Bid | None:
    open_bids = [bid for bid in bids if bid.price <= price_max]
    if not open_bids:
        return None
    least = min(bid.score for bid in open_bids)
    near = [bid for bid in open_bids if bid.score * PPM <= least * NEAR_PRICE_PPM]
    return min(near, key=lambda bid: (-saved.get(bid.node, 0), order_of(bid, seed)))


def near_reserve(bids: Sequence[Bid], own_price: int, price_max: int) -> int:
    """Return the reserve for a job: that of the auction, and what nearness is worth above it."""
    return min(price_max, reserve(bids, 1, own_price, price_max) * NEAR_PRICE_PPM // PPM)


def choose(
    bids: Sequence[Bid], saved: Mapping[bytes, int], price_max: int, *, seed: bytes = b""
) -> Winner | None:
    """Return the provider of a job and what it is paid; None without an offer in the reserve.

    Args:
        bids: at most one a node, in any order; a lease at hand bids its agreed price.
        saved: bytes that need not be sent to a node, 0 where it is not named.
        price_max: the reserve, micro-credits a GiB and hour, or a Gfuel (`near_reserve`).
        seed: as for `auction.place`.
    """
    assert len({bid.node for bid in bids}) == len(bids), "one bid a node"
    chosen = _best(bids, saved, price_max, seed)
    if chosen is None:
        return None
    if chosen.posted:
        return Winner(chosen.node, chosen.price)
    others = [bid for bid in bids if bid.node != chosen.node]
    low, high = chosen.price, price_max
    while low < high:
        middle = (low + high + 1) // 2
        dearer = replace(chosen, price=middle)
        if _best([*others, dearer], saved, price_max, seed) == dearer:
            low = middle
        else:
            high = middle - 1
    return Winner(chosen.node, low)
