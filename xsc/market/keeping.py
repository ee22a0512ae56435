"""The rules of renewal: a new lease keeps what lies under an old one, at its own price and term.

The request for the new lease names the old one (`renews`). What lies there then goes over in
pieces. Room is not counted twice: the new lease keeps nothing free for now, and one that a
clearing granted takes its level with the first bytes. Time is not counted twice either: the new
lease begins where the last begun epoch of the old one ends, so each byte-epoch is owed once,
under the lease that the bytes lay under.

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
    advance,
    counted,
    half_ms,
    hold,
    tolerance,
)
from xsc.terms.lease import LeaseRequest

Side: TypeAlias = tuple[LeaseTerms, LeaseUse]
"""A lease of two: the one that is kept from, or the one that renews it."""
SPREAD = 8
"""Renewals are spread over so great a part of the term, one eighth, from its half on."""


def due_ms(terms: LeaseTerms) -> int:
    """Return when a customer renews: at half-life, spread by what the lease is.

    Every lease has its own moment, the same after each restart.
    """
    spread = max(1, (terms.end_ms - terms.start_ms) // SPREAD)
    number = int.from_bytes(tagged_sha256("renewal/due", terms.lease_id)[:8], "big")
    return half_ms(terms) + number % spread


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


def begin_ms(terms: LeaseTerms, now_ms: int) -> int:
    """Return when a lease begins that renews this one now: until then this one is billed."""
    if terms.cleared:
        return min(now_ms, terms.end_ms)
    last = ceil_div(terms.end_ms - terms.start_ms, EPOCH_MS) - 1
    epoch = min(max((now_ms - terms.start_ms) // EPOCH_MS, 0), last)
    return terms.start_ms + (epoch + 1) * EPOCH_MS


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
    early_ms = begin_ms(terms, now_ms - REQUEST_WINDOW_MS)
    late_ms = begin_ms(terms, now_ms + REQUEST_WINDOW_MS)
    is_whole = terms.cleared or (request.start_ms - terms.start_ms) % EPOCH_MS == 0
    if not early_ms <= request.start_ms <= late_ms or not is_whole:
        return "the lease does not begin where what it renews is paid to"
    if request.end_ms - terms.end_ms < EPOCH_MS or request.end_ms - now_ms < EPOCH_MS:
        return "the lease ends less than an hour after the one that it renews"
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

    What the old lease has counted of the present epoch, the new one does not count. The old one
    keeps free for them neither their room nor their part of the epoch.
    """
    (old_terms, old), (new_terms, new) = kept, keeping
    old, new = advance(old_terms, old, now_ms), advance(new_terms, new, now_ms)
    size = min(size_bytes, old.held_bytes)
    if size <= 0:
        return old, new
    paid_ms = max(begin_ms(old_terms, now_ms), new_terms.start_ms)
    peak, level = old.peak_bytes - size, old.level
    old = hold(old_terms, old, -size, now_ms)
    unit = LEVEL_UNIT["storage"]
    rest = ceil_div(old.held_bytes, unit) * unit
    if new_terms.cleared and not new.given_back:
        if not new.level:
            new = replace(new, level=max(0, new_terms.quantity - rest), counted_ms=paid_ms)
            new = advance(new_terms, new, now_ms)
            level = max(rest, level - new_terms.quantity)
        # What comes over later brings its level along.
        more = ceil_div(max(0, new.held_bytes + size - new.level), unit) * unit
        new = replace(new, level=new.level + more)
        level = max(rest, level - more)
    elif not new_terms.cleared:
        level = min(level, rest)
    old = replace(old, peak_bytes=max(old.held_bytes, peak), level=level)
    begun = max(0, new.epoch + 1 - (paid_ms - new_terms.start_ms) // EPOCH_MS)
    return old, replace(
        new,
        touched_ms=now_ms,
        held_bytes=new.held_bytes + size,
        peak_bytes=new.peak_bytes + size,
        used=new.used + (0 if new_terms.cleared else begun * size),
    )


def agreed(kept: Side, keeping: Side, used: int) -> tuple[LeaseUse, LeaseUse]:
    """Return a customer's uses once the provider said what it counts under the old lease.

    An answer that was lost let the bytes go over earlier than the customer knew. What the
    provider counts less under the old lease, it counts under the new one.
    """
    (old_terms, old), (new_terms, new) = kept, keeping
    if old.voucher_quantity <= used + tolerance(old_terms):
        # The provider took that voucher.
        used = max(used, old.voucher_quantity)
    less = old.used - used
    if less <= 0:
        return old, new
    if not (old_terms.cleared or new_terms.cleared):
        # In all no more than if what is held had lain there from the start.
        more = max(0, min(less, new.held_bytes * (new.epoch + 1) - new.used))
        new = replace(new, used=new.used + more)
    return believed(old_terms, replace(old, used=used)), new


def believed(terms: LeaseTerms, use: LeaseUse) -> LeaseUse:
    """Return a customer's use after its count was lowered to the provider's.

    A voucher that said more was refused; the next one says what is right.
    """
    if use.voucher_quantity <= counted(terms, use):
        return use
    return replace(use, voucher_micro=use.settled_micro, voucher_quantity=counted(terms, use))


def reconciled(
    terms: LeaseTerms, use: LeaseUse, held_bytes: int, used: int, now_ms: int
) -> LeaseUse:
    """Return a customer's use once its provider said that it counts less.

    A deletion whose answer got lost leaves the customer's count too high, and then no
    voucher of it fits. A provider that counts less for itself is believed.
    """
    use = advance(terms, use, now_ms)
    if used + tolerance(terms) >= use.used and held_bytes >= use.held_bytes:
        return use
    held, lower = min(use.held_bytes, held_bytes), min(use.used, used)
    # What stays counted of this epoch is not counted a second time when bytes come again.
    peak = max(held, use.peak_bytes - (use.used - lower))
    return believed(terms, replace(use, held_bytes=held, peak_bytes=peak, used=lower))
