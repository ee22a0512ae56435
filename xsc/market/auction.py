"""The reverse auction: which providers serve one object, and at what price.

Providers ask a price a quantum; the lowest price / quality wins, one provider a
failure domain, and each winner is paid the most that it could have asked and
still won (DESIGN section 8: with six winners, the seventh bid sets the price).
So nobody gains by asking for anything but its cost, as long as each object is
an auction by itself. Where no further bid stands behind a winner, it is paid
the buyer's reserve. Rules R-1 to R-6 of the research, part 6.3:

R-1 winners are in distinct domains.      R-4 a loser that sets no price changes none.
R-2 nobody is paid less than it asked.    R-5 nobody is paid more than the buyer's reserve.
R-3 no other ask than one's own gains.    R-6 the same bids and seed give the same winners.

Bids above the reserve are not looked at. Who is asked for bids, and what to do
when too few win, is the service's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import PPM

QUALITY_PPM_LEAST = 10_000
"""A provider without history comes last, yet it comes."""


@dataclass(frozen=True, slots=True)
class Bid:
    """What one provider asks, and what it is worth to the buyer."""

    node: bytes
    price: int
    """Micro-credits a quantum."""
    quality_ppm: int
    domain: bytes

    def __post_init__(self) -> None:
        assert self.price >= 0, "a price is not negative"
        assert 0 < self.quality_ppm <= PPM, "a bid without quality is no bid"

    @property
    def score(self) -> Fraction:
        """Price for quality: the less, the better."""
        return Fraction(self.price, self.quality_ppm)


@dataclass(frozen=True, slots=True)
class Winner:
    """A provider that is chosen, and the price a quantum that it is paid."""

    node: bytes
    price: int


def rank_quality(quality_ppm: int, reports: int) -> int:
    """Return the quality that counts in auctions: halved for each recent wrong answer."""
    return max(QUALITY_PPM_LEAST, quality_ppm >> min(reports, 32))


def order_of(bid: Bid, seed: bytes = b"") -> tuple[Fraction, bytes]:
    """Sort by score; equal scores by the node's id, or by its hash where a seed is given."""
    return bid.score, tagged_sha256("auction", seed, bid.node) if seed else bid.node


def place(bids: Sequence[Bid], count: int, price_max: int, *, seed: bytes = b"") -> list[Winner]:
    """Return up to `count` winners, best first, with what they are paid.

    Fewer are returned where fewer domains bid within `price_max`.

    Args:
        bids: at most one a node, in any order.
        count: how many providers are wanted, each in another domain.
        price_max: the buyer's reserve, micro-credits a quantum.
        seed: where given, ties fall by hash, so that no id is favoured for ever.
    """
    assert len({bid.node for bid in bids}) == len(bids), "one bid a node"
    ranked = sorted(
        (bid for bid in bids if bid.price <= price_max), key=lambda bid: order_of(bid, seed)
    )
    # In a domain the best bid stands for it; the second best limits what that may be paid.
    seconds: dict[bytes, Bid] = {}
    best: dict[bytes, Bid] = {}
    for bid in ranked:
        if bid.domain not in best:
            best[bid.domain] = bid
        elif bid.domain not in seconds:
            seconds[bid.domain] = bid
    champions = list(best.values())
    winners = []
    for bid in champions[:count]:
        rivals = [seconds[bid.domain]] if bid.domain in seconds else []
        rivals += champions[count : count + 1]
        price = price_max
        for rival in rivals:
            # Rounded down it is still at least the ask, which is a whole number below it.
            price = min(price, bid.quality_ppm * rival.price // rival.quality_ppm)
        winners.append(Winner(bid.node, price))
    return winners
