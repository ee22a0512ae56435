"""The rules of renewal: when a lease of storage is renewed, for how long and at what price.

A renewed lease keeps its id, and so the bytes stored under it. A renewal closes the
account so far (`base_quantity` byte-epochs for `base_micro`, signed by both) and counts on
at the provider's present price. So one sequence of cumulative vouchers covers all terms,
and nothing is paid twice. Renewals are numbered, and each is granted in the second half of
the term before only: the same request, or a late one, extends nothing.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from dataclasses import replace

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import AMOUNT_MAX, EPOCH_MS, REQUEST_WINDOW_MS
from xsc.base.units import ceil_div
from xsc.market.lease import (
    LENGTH_MS,
    LeaseTerms,
    LeaseUse,
    advance,
    counted,
    due_for,
    due_micro,
    half_ms,
    tolerance,
)
from xsc.terms.pricing import storage_amount
from xsc.terms.quote import Quote
from xsc.terms.renewal import Renewal, RenewalRequest

SPREAD = 8
"""Renewals are spread over so great a part of the term, one eighth, from its half on."""


def due_ms(terms: LeaseTerms) -> int:
    """Return when a customer asks for renewal: at half-life, spread by what the lease is.

    Every lease has its own moment, the same after each restart.
    """
    spread = max(1, (terms.end_ms - terms.term_ms) // SPREAD)
    number = terms.renewals.to_bytes(8, "big")
    return (
        half_ms(terms)
        + int.from_bytes(tagged_sha256("renewal/due", terms.lease_id, number)[:8], "big") % spread
    )


def is_renewable(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> bool:
    """Return whether a renewal would be granted by its time: bytes held, second half begun.

    A lease that is over can still be renewed while its bytes are kept; what was kept
    since is paid then.
    """
    return (
        terms.kind == "storage"
        and not use.given_back
        and use.held_bytes > 0
        and now_ms >= half_ms(terms)
    )


def make_request(
    terms: LeaseTerms, use: LeaseUse, quote: Quote, quote_raw: bytes, now_ms: int
) -> RenewalRequest:
    """Return the request for the next term, at the quote's price. `use` is advanced to now."""
    return RenewalRequest(
        lease_id=terms.lease_id,
        provider=terms.provider,
        customer=terms.customer,
        number=terms.renewals + 1,
        quote=quote_raw,
        quantity=max(use.level if terms.cleared else terms.quantity, use.held_bytes),
        quantity_min=max(1, use.held_bytes),
        price=quote.price,
        base_quantity=counted(terms, use),
        base_amount_micro=due_micro(terms, use),
        start_ms=now_ms,
        end_ms=now_ms + LENGTH_MS["storage"],
    )


def check_renewal(
    terms: LeaseTerms, use: LeaseUse, request: RenewalRequest, quote: Quote, now_ms: int
) -> str | None:
    """Return what is wrong with a request, at its provider. `use` is advanced to now."""
    if (request.lease_id, request.provider, request.customer) != (
        terms.lease_id,
        terms.provider,
        terms.customer,
    ):
        return "the renewal is of another lease"
    if terms.kind != "storage":
        return "only leases of storage are renewed"
    if request.number != terms.renewals + 1:
        return f"the lease was renewed {terms.renewals} times, not {request.number - 1}"
    if use.given_back or not use.held_bytes:
        return "nothing is held under the lease"
    if quote.draw is not None:
        return "the quote is for a lease on an entitlement, and not for a renewal"
    if request.price < quote.price:
        return f"the price {request.price} is below the quote's {quote.price}"
    if abs(request.start_ms - now_ms) > REQUEST_WINDOW_MS:
        return "the renewal does not begin now"
    if now_ms + REQUEST_WINDOW_MS < half_ms(terms):
        return "the lease is in the first half of its term"
    if request.end_ms - request.start_ms > LENGTH_MS["storage"]:
        return "the renewal is longer than any may be"
    if request.end_ms - terms.end_ms < EPOCH_MS:
        return "the renewal extends the lease by less than an hour"
    if request.base_quantity < use.voucher_quantity:
        return "the account falls behind the last voucher"
    if request.base_quantity > counted(terms, use) + tolerance(terms):
        return "the account is over more than was held"
    if request.base_amount_micro != due_for(terms, request.base_quantity):
        return "the account's amount is not the price of its quantity"
    if request.quantity < use.held_bytes:
        return "the renewal is for less than is held"
    epochs = ceil_div(request.end_ms - terms.start_ms, EPOCH_MS)
    more = storage_amount(request.price, request.quantity * epochs)
    if request.base_amount_micro + more > AMOUNT_MAX:
        return "the lease is worth more than an amount can be"
    return None


def check_answer(terms: LeaseTerms, request: RenewalRequest, renewal: Renewal) -> str | None:
    """Return what is wrong with a renewal that a provider answered with.

    The request inside is this customer's own by its signature; it can be an earlier one
    than was sent now, whose answer got lost.
    """
    if (request.lease_id, request.provider, request.customer) != (
        terms.lease_id,
        terms.provider,
        terms.customer,
    ):
        return "the renewal is of another lease"
    if request.number <= terms.renewals:
        return "the renewal is one that is known"
    if not request.quantity_min <= renewal.quantity <= request.quantity:
        return "the renewal grants more or less than was asked for"
    return None


def renewed(
    terms: LeaseTerms, use: LeaseUse, request: RenewalRequest, quantity: int, now_ms: int
) -> tuple[LeaseTerms, LeaseUse]:
    """Return terms and use after a renewal, on either side.

    Both go on from their own count: a customer may have counted on since it signed, and
    what a provider counted beyond the account it is still owed. No room is reserved again.
    """
    use = advance(terms, use, now_ms)
    level = quantity if terms.cleared else 0
    used = max(use.used, request.base_quantity)
    use = replace(use, used=used, lapsed=not terms.cleared, level=level)
    return restored(terms, request, quantity), use


def reconciled(
    terms: LeaseTerms, use: LeaseUse, held_bytes: int, used: int, now_ms: int
) -> LeaseUse:
    """Return a customer's use once its provider said that it counts less.

    A deletion whose answer got lost leaves the customer's count too high, and then no
    voucher and no account of it fits. A provider that counts less for itself is believed.
    """
    use = advance(terms, use, now_ms)
    if used + tolerance(terms) >= use.used and held_bytes >= use.held_bytes:
        return use
    held, lower = min(use.held_bytes, held_bytes), min(use.used, used)
    # What stays counted of this epoch is not counted a second time when bytes come again.
    peak = max(held, use.peak_bytes - (use.used - lower))
    use = replace(use, held_bytes=held, peak_bytes=peak, used=lower)
    # A voucher that said more was refused; the next one says what is right.
    return replace(
        use,
        voucher_micro=min(use.voucher_micro, max(use.settled_micro, due_micro(terms, use))),
        voucher_quantity=min(use.voucher_quantity, counted(terms, use)),
    )


def restored(terms: LeaseTerms, request: RenewalRequest, quantity: int) -> LeaseTerms:
    """Return the terms of a lease that was renewed so; no others before it need be known."""
    return replace(
        terms,
        price=request.price,
        quantity=quantity,
        end_ms=request.end_ms,
        renewals=request.number,
        renewed_ms=request.start_ms,
        base_quantity=request.base_quantity,
        base_micro=request.base_amount_micro,
    )
