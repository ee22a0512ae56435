"""The reverse auction: which providers serve one object, and at what price.

Providers ask a price; the lowest price / quality wins, one provider a
failure domain, and each winner is paid the most that it could have asked and
still won (docs/design/market.md, A3: with six winners, the seventh bid sets the price).
A winner without a next bid is paid the reserve; bids above the reserve are ignored.
At one reserve these rules hold:

R-1 winners are in distinct domains.      R-4 a loser that sets no price changes none.
R-2 nobody is paid less than it asked.    R-5 nobody is paid more than the reserve.
R-3 no other ask than one's own gains.    R-6 the same bids and seed give the same winners.

The reserve is what the buyer itself asks for such capacity, whatever others bid. It is
raised in steps, to the most that the buyer pays, only while fewer win than could. A
provider that is needed for that can gain by asking for more than its cost, and no other
(docs/adr/0074-reserve-price.md). A provider that recognises the buyer has posted its
price, and is paid that.

`xsc.market.buyer` decides which nodes are asked for bids, and what to do when too few win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import NEAR_PRICE_PPM, PPM

RESERVE_STEPS = 8
"""From a buyer's own price to the most that it pays, where fewer win than could."""

QUALITY_PPM_LEAST = 10_000
"""A provider without history comes last, yet it comes."""


@dataclass(frozen=True, slots=True)
class Bid:
    """What one provider asks, and what it is worth to the buyer."""

    node: bytes
    price: int
    """Micro-credits a GiB and hour, or a Gfuel."""
    quality_ppm: int
    domain: bytes
    posted: bool = False
    """The price was fixed before: it is paid, and no more, whatever others ask."""
    tie: int = 0
    """Of bids of one score the lower comes first."""

    def __post_init__(self) -> None:
        assert self.price >= 0, "a price is not negative"
        assert 0 < self.quality_ppm <= PPM, "a bid without quality is no bid"

    @property
    def score(self) -> Fraction:
        """Price for quality: the less, the better."""
        return Fraction(self.price, self.quality_ppm)


def near(quality_ppm: int, node: bytes, saved: Mapping[bytes, int]) -> int:
    """Return what a bidder is worth beside those that save more or fewer bytes.

    Who saves most keeps its quality; who saves nothing wins only if that is NEAR_PRICE_PPM
    dearer. Where nobody saves anything all keep theirs.

    Args:
        quality_ppm: of the bidder.
        node: the bidder.
        saved: by node, the bytes that need not be sent to it.
    """
    most = max(saved.values(), default=0)
    if not most:
        return quality_ppm
    worth = PPM * most + (NEAR_PRICE_PPM - PPM) * saved.get(node, 0)
    return max(1, quality_ppm * worth // (NEAR_PRICE_PPM * most))


def reserve(bids: Sequence[Bid], count: int, own_price: int, price_max: int) -> int:
    """Return the least step from the buyer's own price at which as many win as at its maximum.

    Args:
        bids: as for `place`.
        count: how many providers are wanted.
        own_price: what the buyer asks itself, micro-credits a GiB and hour, or a Gfuel.
        price_max: the most that it pays.
    """

    def winners(price: int) -> int:
        return min(count, len({bid.domain for bid in bids if bid.price <= price}))

    start = min(own_price, price_max)
    steps = (
        start + (price_max - start) * step // RESERVE_STEPS for step in range(RESERVE_STEPS + 1)
    )
    return next(price for price in steps if winners(price) == winners(price_max))


def place(bids: Sequence[Bid], count: int, price_max: int, *, seed: bytes = b"") -> list[Bid]:
    """Return the winning bids, up to `count`, best first, each at the price that it is paid.

    Fewer are returned where fewer domains bid within `price_max`.

    Args:
        bids: at most one a node, in any order.
        count: how many providers are wanted, each in another domain.
        price_max: the reserve, micro-credits a GiB and hour, or a Gfuel.
        seed: where given, ties fall by hash, so that no id is favoured for ever.
    """
    assert len({bid.node for bid in bids}) == len(bids), "one bid a node"

    def order_of(bid: Bid) -> tuple[Fraction, int, bytes]:
        last = tagged_sha256("auction", seed, bid.node) if seed else bid.node
        return bid.score, bid.tie, last

    payable = [bid for bid in bids if bid.price <= price_max]
    by_domain: dict[bytes, list[Bid]] = {}
    for bid in sorted(payable, key=order_of):
        by_domain.setdefault(bid.domain, []).append(bid)
    # The best bid of a domain takes part for it; the second best limits what that is paid.
    champions = [best for best, *_ in by_domain.values()]
    winners = []
    for bid in champions[:count]:
        rivals = by_domain[bid.domain][1:2] + champions[count : count + 1]
        # Rounded down it is still at least the ask, which is a whole number below it.
        limits = [bid.quality_ppm * rival.price // rival.quality_ppm for rival in rivals]
        paid = bid.price if bid.posted else min([price_max, *limits])
        winners.append(replace(bid, price=paid))
    return winners
