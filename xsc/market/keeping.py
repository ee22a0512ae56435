"""The rules of renewal: a new lease keeps what lies under an old one, at its own price and term.

The request for the new lease names the old one (`renews`). What lies there then goes over in
pieces. Room is not counted twice: the new lease keeps nothing free at first, and one that a
clearing granted takes its level with the first bytes.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import EPOCH_MS, REQUEST_WINDOW_MS
from xsc.base.units import ceil_div
from xsc.market.lease import (
    LEVEL_UNIT,
    LeaseTerms,
    LeaseUse,
    half_ms,
    hold,
)
from xsc.terms.lease import LeaseRequest

Side: TypeAlias = tuple[LeaseTerms, LeaseUse]
"""A lease of two: the one that is kept from, or the one that renews it."""
SPREAD = 8
"""Renewals are spread over so great a part of the term, one eighth, from its half on."""


def eighth_ms(terms: LeaseTerms) -> int:
    """Return the part of a term after its half within which it is renewed."""
    return max(1, (terms.end_ms - terms.start_ms) // SPREAD)


def due_ms(terms: LeaseTerms) -> int:
    """Return when a customer renews: soon after half-life, spread by what the lease is.

    By then its provider has cleared what it has again. Every lease has its own moment, the same
    after each restart.
    """
    spread_ms = eighth_ms(terms)
    number = int.from_bytes(tagged_sha256("renewal/due", terms.lease_id)[:8], "big")
    first_ms = spread_ms // 4
    return half_ms(terms) + first_ms + number % (spread_ms - first_ms)


def is_renewable(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> bool:
    """Return whether a lease can be renewed by its time: bytes held, second half begun.

    A lease that is over can still be renewed while its bytes are kept; what was kept
    since is paid then.
    """
    return (
        terms.kind == "storage"
        and not use.given_back
        and use.held_bytes > 0
        and now_ms >= half_ms(terms)
    )


def wanted(terms: LeaseTerms, use: LeaseUse) -> int:
    """Return the bytes for which a lease is renewed at most."""
    return max(use.level if terms.cleared else terms.quantity, use.held_bytes)


def check_renewal(
    request: LeaseRequest, terms: LeaseTerms, use: LeaseUse, now_ms: int
) -> str | None:
    """Return what is wrong with a request for a lease that renews this one, at its provider."""
    if (request.customer, request.kind) != (terms.customer, terms.kind):
        return "the lease that it renews is another customer's, or of another kind"
    if terms.kind != "storage":
        return "only leases of storage are renewed"
    if use.given_back or not use.held_bytes:
        return "nothing is held under the lease that it renews"
    if now_ms + REQUEST_WINDOW_MS < half_ms(terms):
        return "the lease that it renews is in the first half of its term"
    if request.end_ms - max(now_ms, terms.end_ms) < min(EPOCH_MS, eighth_ms(terms)):
        return "the lease ends too soon after the one that it renews"
    if request.quantity > wanted(terms, use):
        return "the lease is for more than the one that it renews"
    return None


def room_left(terms: LeaseTerms, use: LeaseUse) -> int:
    """Return the bytes that can still come over to a lease from the one that it renews.

    The level of one that a clearing granted grows with them, so that both have no more than one.
    """
    return max(0, terms.quantity - use.held_bytes)


def moved(kept: Side, keeping: Side, size_bytes: int, now_ms: int) -> tuple[LeaseUse, LeaseUse]:
    """Return the uses of a lease and of the one that renews it, once bytes went over.

    The old one keeps nothing free for them.
    """
    (old_terms, old), (new_terms, new) = kept, keeping
    size = min(size_bytes, old.held_bytes)
    if size <= 0:
        return old, new
    old, new = hold(old_terms, old, -size, now_ms), hold(new_terms, new, size, now_ms)
    unit = LEVEL_UNIT["storage"]
    rest = ceil_div(old.held_bytes, unit) * unit
    if not new_terms.cleared:
        return replace(old, level=min(old.level, rest)), new
    # The first bytes bring the level along that is not needed for the rest; later ones their own.
    more = ceil_div(max(0, new.held_bytes - new.level), unit) * unit
    if new.held_bytes == size:
        more = max(more, new_terms.quantity - rest)
    level = max(rest, old.level - more)
    return replace(old, level=level), replace(new, level=new.level + more)
