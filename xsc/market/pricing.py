"""What a node asks for its capacity, and what makes a quote of that good.

The unit price rises in a straight line with utilisation: twice the base price at full use
(`1 + utilisation`). It only proposes the reserve, which is what unrecognised peers pay at least;
recognised and mutual peers pay the lower rungs (docs/design/market.md). What a use costs at a price
is the arithmetic of `xsc.terms.pricing`, which customers recompute.

A quote is the provider's word: signed, for one customer, for a minute. A lease embeds it, so that a
later price cannot touch the lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xsc.base.errors import NoOffers, RecordInvalid
from xsc.base.limits import (
    COMPUTE_LEASE_MICRO_MAX,
    PPM,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
    SHARE_LEASES,
    STORAGE_LEASE_BYTES,
)
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.pricing import Ladder, affordable, compute_amount, fuel_steps, storage_amount
from xsc.terms.quote import Kind, Quote

KINDS: Final[tuple[Kind, ...]] = ("storage", "compute")
QUANTITY_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of an idle node, and the discounts off the reserve."""

    storage: int
    """Micro-credits a GiB and hour."""
    compute: int
    """Micro-credits a Gfuel."""
    mutual_discount_ppm: int = 0
    one_way_discount_ppm: int = 0

    def __post_init__(self) -> None:
        assert self.storage >= 0, "a price is not negative"
        assert self.compute >= 0, "a price is not negative"
        assert 0 <= self.one_way_discount_ppm <= self.mutual_discount_ppm <= PPM, (
            "mutual peers do not pay more than one-way peers"
        )

    def base(self, kind: Kind) -> int:
        """Return the price of an idle node."""
        return self.storage if kind == "storage" else self.compute


def utilisation_ppm(free: int, capacity: int) -> int:
    """Return the share in use; a node that offers nothing is full."""
    if capacity <= 0:
        return PPM
    return (capacity - min(max(free, 0), capacity)) * PPM // capacity


def unit_price(base: int, used_ppm: int) -> int:
    """Return the price at a utilisation, rounded down; it never falls with use."""
    assert 0 <= used_ppm <= PPM, "utilisation is a share"
    return base * (PPM + used_ppm) // PPM


def ladder(reserve: int, prices: PriceList) -> Ladder:
    """Return the rungs below a reserve, each rounded down."""
    return Ladder(
        reserve * (PPM - prices.mutual_discount_ppm) // PPM,
        reserve * (PPM - prices.one_way_discount_ppm) // PPM,
        reserve,
    )


@dataclass(frozen=True, slots=True)
class MarketPricing:
    """A price list at one moment's utilisation, in integers.

    The duration of compute is fuel, not time, so that a bill needs no clock.
    """

    prices: PriceList
    storage_used_ppm: int = 0
    compute_used_ppm: int = 0

    def unit_price(self, kind: Kind) -> int:
        """Return the reserve: micro-credits a GiB and hour, or a Gfuel."""
        used = self.storage_used_ppm if kind == "storage" else self.compute_used_ppm
        return unit_price(self.prices.base(kind), used)

    def ladder(self, kind: Kind) -> Ladder:
        """Return the rungs of a kind."""
        return ladder(self.unit_price(kind), self.prices)

    def storage_price(self, size_bytes: int, epochs: int) -> int:
        """Return the micro-credits for holding bytes over epochs, at the reserve."""
        return storage_amount(self.unit_price("storage"), size_bytes * epochs)

    def compute_price(self, fuel: int, memory_bytes: int) -> int:
        """Return the micro-credits for a run of that fuel under that memory limit."""
        return compute_amount(self.unit_price("compute"), fuel_steps(fuel, memory_bytes))

    def total_price(self, storage_micro: int, compute_micro: int) -> int:
        """Return both prices together."""
        return storage_micro + compute_micro


# Quotes


def is_valid(quote: Quote, now_ms: int, *, margin_ms: int = 0) -> bool:
    """Return whether a quote holds now and for `margin_ms` more.

    It may begin a little later than now: two clocks differ by up to REQUEST_WINDOW_MS.
    """
    begins_ms = quote.valid_from_ms - REQUEST_WINDOW_MS
    return begins_ms <= now_ms and now_ms + margin_ms < quote.valid_until_ms


def open_quote(
    raw: bytes, *, network: bytes, provider: bytes, customer: bytes, kind: Kind, now_ms: int
) -> Signed[Quote]:
    """Return a quote once it is known to be that provider's, for that customer, and to hold.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: the first thing that is wrong with it.
        NoOffers: it does not hold now.
    """
    signed = open_signed(raw, Quote, network=network, author=provider)
    quote = signed.record
    if quote.provider != provider:
        raise RecordInvalid("the quote is signed by another node than its provider")
    if quote.customer != customer:
        raise RecordInvalid("the quote is for another customer")
    if quote.kind != kind:
        raise RecordInvalid(f"the quote is for {quote.kind}, not for {kind}")
    if quote.valid_until_ms - quote.valid_from_ms > QUOTE_TTL_MS:
        raise RecordInvalid("the quote holds longer than any quote may")
    if not is_valid(quote, now_ms):
        # Not the record's fault: a request that got lost is sent again until it cannot be granted.
        raise NoOffers(
            "the quote has expired, or has not begun", hint="ask for a new one; check the clocks"
        )
    return signed


def wanted_quantity(quote: Quote, price: int, least: int) -> int:
    """Return what a customer asks for where `least` is needed: modestly more, to be shared.

    Of compute nothing is kept free for it: it bounds what may be billed under the lease.
    """
    if quote.kind == "compute":
        worth = affordable("compute", price, COMPUTE_LEASE_MICRO_MAX)
        return max(least, QUANTITY_MAX if worth is None else worth)
    # A part of the share, so that a grant that gets lost does not use it up.
    wanted = max(least, min(STORAGE_LEASE_BYTES, quote.available // SHARE_LEASES))
    return min(wanted, quote.available, QUANTITY_MAX)


def has_room(quote: Quote, least: int) -> bool:
    """Return whether what a quote offers is enough: of compute for now, any rate is."""
    return quote.available >= (1 if quote.kind == "compute" else least)


def why(quote: Quote | None, price: int, *, renewed: bool = False) -> str:
    """Return why a lease has its price, as a sentence for people.

    Args:
        quote: the one that the lease carries; None of one on what a clearing granted.
        price: of the lease, micro-credits a GiB and hour, or a Gfuel.
        renewed: whether it is the price of a renewal.
    """
    if quote is None:
        return "a lease on an entitlement costs what was granted for it ahead of use"
    assert price >= quote.price, "a lease below its quote is none"
    if renewed:
        return "a renewal costs what the provider posts on that day to this customer"
    if quote.tier != "open":
        return "a provider that recognises its customer is paid what it has posted"
    if price == quote.price:
        return "it is what the provider asked: no next bid and no reserve was higher"
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
