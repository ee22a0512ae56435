"""How a quote is made for one customer, and what makes a quote good.

A quote is the provider's word: signed, for one customer, for a minute. A lease
embeds it, so that a later price cannot touch the lease.
"""

from __future__ import annotations

from typing import Final

from xsc.base.errors import NoOffers, RecordInvalid
from xsc.base.limits import (
    COMPUTE_LEASE_MICRO_MAX,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
    SHARE_LEASES,
    STORAGE_LEASE_BYTES,
)
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.pricing import Ladder, affordable
from xsc.terms.quote import Kind, Quote, Tier

QUANTITY_MAX: Final = 2**63 - 1


def make_quote(
    *,
    provider: bytes,
    customer: bytes,
    kind: Kind,
    tier: Tier,
    ladder: Ladder,
    available: int,
    now_ms: int,
    nonce: bytes,
    site: str = "",
    owner: str = "",
) -> Quote:
    """Return the quote for a customer on its rung, good from now for QUOTE_TTL_MS."""
    return Quote(
        provider=provider,
        customer=customer,
        kind=kind,
        tier=tier,
        price_mutual=ladder.mutual,
        price_one_way=ladder.one_way,
        reserve=ladder.reserve,
        price=ladder.rung(tier),
        available=available,
        valid_from_ms=now_ms,
        valid_until_ms=now_ms + QUOTE_TTL_MS,
        nonce=nonce,
        site=site,
        owner=owner,
    )


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


def domain_of(quote: Quote) -> bytes:
    """Return the failure domain of a provider."""
    return domain(quote.site, quote.owner, quote.provider)


def domain(site: str, owner: str, node: bytes) -> bytes:
    """Return the failure domain: the site, else the owner, else the node by itself."""
    if site:
        return b"site/" + site.encode()
    if owner:
        return b"owner/" + owner.encode()
    return b"node/" + node
