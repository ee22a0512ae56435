"""What a node asks for its capacity, and how that is said to people.

The unit price rises in a straight line with utilisation: twice the base price at full use
(`1 + utilisation`). It only proposes the reserve, which is what unrecognised peers pay at least;
recognised and mutual peers pay the lower rungs (docs/design/market.md). What a use costs at a price
is the arithmetic of `xsc.terms.pricing`, which customers recompute.
"""

from __future__ import annotations

from dataclasses import dataclass

from xsc.base.limits import PPM
from xsc.terms import lease, quote
from xsc.terms.pricing import Ladder, amount, fuel_steps


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of an idle node, and the discounts off the reserve."""

    storage: int
    """Micro-credits a GiB and hour."""
    compute: int
    """Micro-credits a Gfuel."""
    mutual_discount_ppm: int = 0
    one_way_discount_ppm: int = 0


def utilisation_ppm(free: int, capacity: int) -> int:
    """Return the share in use, in whole percents, so that prices move in steps.

    A node that offers nothing is full.
    """
    if capacity <= 0:
        return PPM
    return (capacity - min(max(free, 0), capacity)) * 100 // capacity * (PPM // 100)


def unit_price(base: int, used_ppm: int) -> int:
    """Return the price at a utilisation, rounded down; it never falls with use."""
    assert 0 <= used_ppm <= PPM, "utilisation is a share"
    return base * (PPM + used_ppm) // PPM


@dataclass(frozen=True, slots=True)
class MarketPricing:
    """A price list at one moment's utilisation, in integers.

    The duration of compute is fuel, not time, so that a bill needs no clock.
    """

    prices: PriceList
    storage_used_ppm: int = 0
    compute_used_ppm: int = 0

    def unit_price(self, kind: quote.Kind) -> int:
        """Return the reserve: micro-credits a GiB and hour, or a Gfuel."""
        if kind == "storage":
            return unit_price(self.prices.storage, self.storage_used_ppm)
        return unit_price(self.prices.compute, self.compute_used_ppm)

    def ladder(self, kind: quote.Kind, reserve: int | None = None) -> Ladder:
        """Return the rungs below a reserve, the present one for None, each rounded down."""
        top = self.unit_price(kind) if reserve is None else reserve
        return Ladder(
            top * (PPM - self.prices.mutual_discount_ppm) // PPM,
            top * (PPM - self.prices.one_way_discount_ppm) // PPM,
            top,
        )

    def storage_price(self, size_bytes: int, epochs: int) -> int:
        """Return the micro-credits for holding bytes over epochs, at the reserve."""
        return amount("storage", self.unit_price("storage"), size_bytes * epochs)

    def compute_price(self, fuel: int, memory_bytes: int) -> int:
        """Return the micro-credits for a run of that fuel under that memory limit."""
        return amount("compute", self.unit_price("compute"), fuel_steps(fuel, memory_bytes))

    def total_price(self, storage_micro: int, compute_micro: int) -> int:
        """Return both prices together."""
        return storage_micro + compute_micro


def why(terms: lease.LeaseRequest) -> str:
    """Return why a lease has its price, as a sentence for people."""
    if terms.cleared:
        return "a cleared lease costs what was granted for it ahead of use"
    if terms.tier != "open":
        return "a provider that recognises its customer is paid what it has posted"
    return (
        "the auction pays the most that the provider could have asked and still won: what the "
        "next one asked, or else the reserve, which is the customer's own price"
    )


def domain(site: str, owner: str, node: bytes) -> bytes:
    """Return the failure domain: the site, else the owner, else the node by itself."""
    if site:
        return b"site/" + site.encode()
    if owner:
        return b"owner/" + owner.encode()
    return b"node/" + node
