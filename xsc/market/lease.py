"""The life of a lease: what it allows, what is used of it, and what is owed for that.

Customer and provider run the same steps over what each of them saw; the
customer's cumulative vouchers bring both together. Only these move a lease:

- storage: bytes are *held*. An epoch that has begun counts whole, with the most
  bytes held in it; the first is due as soon as bytes are held. So the use, in
  byte-epochs, never falls. What is leased and not held is *reserved* while the lease
  fills, and lapses for good where it does not; for that a part is billed at least.
- compute: fuel steps are *spent*, each run billed as its receipt says. A lease for now fixes their
  price; it keeps nothing free.
- a lease that a clearing granted is *cleared*: its level is kept free and billed by the
  millisecond. Bytes and runs within it cost nothing more. Of compute it is a rate a minute.

What a lease is at a moment follows from its use and the time: `open` until its
end, or until it is given back; then `closing` while something is owed,
`settled` once it is paid, and `expired` where nothing ever was owed.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from xsc.base.limits import (
    AMOUNT_MAX,
    CLEARED_COMPUTE_MS,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    LEASE_TIMEOUT_MS,
    MFUEL,
    MIB,
    OFFER_MS,
    REFUSED_RETRY_MS,
    REFUSED_RETRY_MS_MAX,
    REQUEST_WINDOW_MS,
    RESERVED_EPOCHS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.base.units import ceil_div
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import PRICE_UNIT, amount, compute_amount
from xsc.terms.quote import Kind, Quote
from xsc.terms.voucher import Voucher, off_books_lease

Status: TypeAlias = Literal["open", "closing", "settled", "expired"]
LENGTH_MS: Final[dict[Kind, int]] = {"storage": STORAGE_LEASE_MS, "compute": COMPUTE_LEASE_MS}
CLEARED_MS: Final[dict[Kind, int]] = {"storage": STORAGE_LEASE_MS, "compute": CLEARED_COMPUTE_MS}
"""How long a lease lasts at most that a clearing granted."""
_EPOCH_MS: Final[dict[Kind, int]] = {"storage": EPOCH_MS, "compute": COMPUTE_LEASE_MS}
LEVEL_UNIT: Final[dict[Kind, int]] = {"storage": MIB, "compute": MFUEL}
"""Levels are whole MiB, or millions of fuel steps a minute: so billing them by time is exact."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What was agreed; it never changes."""

    lease_id: bytes
    kind: Kind
    provider: bytes
    customer: bytes
    price: int
    """Micro-credits a GiB and hour, or a Gfuel."""
    quantity: int
    """Storage: bytes held at any one time. Compute: fuel steps a minute if cleared; else those that
    may be billed under it, of which none is kept free."""
    start_ms: int
    end_ms: int
    cleared: bool = False
    """Whether a clearing granted it."""
    renews: bytes | None = None
    """The lease whose bytes it keeps (`keeping`)."""


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """What became of it so far, as one side saw it."""

    touched_ms: int
    """When bytes were last held or given back, or the lease was granted."""
    held_bytes: int = 0
    epoch: int = 0
    """The epoch, counted from the start, up to which `used` is counted."""
    peak_bytes: int = 0
    """The most bytes held in that epoch; of cleared compute, the fuel steps spent in it."""
    used: int = 0
    """Byte-epochs begun, or fuel steps spent; where it is cleared, level times milliseconds."""
    billed_micro: int = 0
    """Compute: the sum of the bills."""
    voucher_number: int = 0
    voucher_micro: int = 0
    voucher_quantity: int = 0
    settled_micro: int = 0
    """Of the vouchers, what the ledger has booked."""
    given_back: bool = False
    lapsed: bool = False
    """Storage: what is leased and not held is no longer reserved."""
    edge: int = 0
    """Storage: bytes carried into the present epoch, or, once all went, into the one in which they
    did, where it had just begun: another clock may not count it."""
    level: int = 0
    """Of a cleared lease: what is kept free and billed. It only falls."""
    counted_ms: int = 0
    """Of a cleared lease: up to when that is counted."""


def terms_of(request: LeaseRequest, quantity: int, *, cleared: bool = False) -> LeaseTerms:
    """Return the terms of a request that was granted that quantity."""
    return LeaseTerms(
        request.lease_id,
        request.kind,
        request.provider,
        request.customer,
        request.price,
        quantity,
        request.start_ms,
        request.end_ms,
        cleared=cleared,
        renews=request.renews,
    )


def end_of(quote: Quote, until_ms: int | None, now_ms: int) -> int:
    """Return when a lease ends that begins now: what a clearing grants ends with its window.

    What is stored does not go then, so storage goes on.

    Args:
        quote: that it is taken under.
        until_ms: when the need can no longer use it, where a clearing granted it.
        now_ms: the present.
    """
    if until_ms is None:
        return now_ms + LENGTH_MS[quote.kind]
    end_ms = now_ms + CLEARED_MS[quote.kind]
    return end_ms if quote.kind == "storage" else min(end_ms, until_ms)


def new_use(terms: LeaseTerms, now_ms: int) -> LeaseUse:
    """Return the use of a lease that begins.

    One that renews another keeps nothing free for now: it is for bytes that lie there.
    """
    if terms.renews is not None:
        lapsed, counted_ms = not terms.cleared, terms.start_ms if terms.cleared else 0
        return LeaseUse(touched_ms=now_ms, lapsed=lapsed, counted_ms=counted_ms)
    if not terms.cleared:
        return LeaseUse(touched_ms=now_ms)
    return LeaseUse(touched_ms=now_ms, level=terms.quantity, counted_ms=terms.start_ms)


def check_request(request: LeaseRequest, quote: Quote, now_ms: int) -> str | None:
    """Return what is wrong with a request under this provider's own valid quote."""
    if request.lease_id == bytes(len(request.lease_id)):
        return "the lease id is the one of a node's own capacity"
    if request.lease_id in (
        off_books_lease(request.provider, request.customer),
        off_books_lease(request.customer, request.provider),
    ):
        return "the lease id is reserved for payments off the books"
    if request.provider != quote.provider or request.customer != quote.customer:
        return "the request is between other nodes than its quote"
    if request.kind != quote.kind:
        return "the request is for another kind than its quote"
    if request.price < quote.price:
        return f"the price {request.price} is below the quote's {quote.price}"
    if request.renews is None and abs(request.start_ms - now_ms) > REQUEST_WINDOW_MS:
        return "the lease does not begin now"
    longest = LENGTH_MS
    if quote.draw is not None:
        longest = CLEARED_MS
        if request.quantity % LEVEL_UNIT[request.kind] or request.quantity_min != request.quantity:
            return "the level is not one of whole units"
        if request.end_ms - request.start_ms < COMPUTE_LEASE_MS:
            # A rate is full again each minute, so a shorter one would give more than it costs.
            return "the lease is shorter than a minute"
    if request.end_ms - request.start_ms > longest[request.kind]:
        return "the lease is longer than any may be"
    epochs = ceil_div(request.end_ms - request.start_ms, _EPOCH_MS[request.kind])
    if amount(request.kind, request.price, request.quantity * epochs) > AMOUNT_MAX:
        return "the lease is worth more than an amount can be"
    return None


def check_grant(request_raw: bytes, request: LeaseRequest, lease: Lease) -> str | None:
    """Return what is wrong with a lease that a provider granted on a request."""
    if lease.request != request_raw:
        return "the lease is on another request"
    if not request.quantity_min <= lease.quantity <= request.quantity:
        return "the lease grants more or less than was asked for"
    return None


def advance(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> LeaseUse:
    """Return the use after the time that has passed; nothing is counted after the end."""
    if terms.cleared:
        return _advance_level(terms, use, now_ms)
    if terms.kind != "storage":
        return use
    last = ceil_div(terms.end_ms - terms.start_ms, EPOCH_MS) - 1
    epoch = min(max((now_ms - terms.start_ms) // EPOCH_MS, 0), last)
    if epoch <= use.epoch:
        return use
    begun = (epoch - use.epoch) * use.held_bytes
    return replace(
        use,
        epoch=epoch,
        peak_bytes=use.held_bytes,
        used=use.used + begun,
        edge=use.held_bytes or use.edge,
        lapsed=use.lapsed or use.held_bytes * RESERVED_EPOCHS < epoch * terms.quantity,
    )


def _advance_level(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> LeaseUse:
    until_ms = min(now_ms, terms.end_ms)
    if use.given_back or until_ms <= use.counted_ms:
        return use
    epoch = (until_ms - terms.start_ms) // _EPOCH_MS[terms.kind]
    passed = use.level // LEVEL_UNIT[terms.kind] * (until_ms - use.counted_ms)
    return replace(
        use,
        epoch=epoch,
        peak_bytes=use.peak_bytes if epoch == use.epoch else use.held_bytes,
        used=use.used + passed,
        counted_ms=until_ms,
    )


def _has_time(terms: LeaseTerms) -> bool:
    """Return whether time alone adds to what is owed; else each run does."""
    return terms.kind == "storage" or terms.cleared


def hold(terms: LeaseTerms, use: LeaseUse, delta_bytes: int, now_ms: int) -> LeaseUse:
    """Return the use after bytes came (+) or went (-).

    No more goes than was held: one side may have missed what the other saw.
    """
    assert terms.kind == "storage", "only storage holds bytes"
    use = advance(terms, use, now_ms)
    held = max(0, use.held_bytes + delta_bytes)
    peak = max(use.peak_bytes, held)
    if terms.cleared:
        return replace(use, touched_ms=now_ms, held_bytes=held, peak_bytes=peak)
    edge = use.edge
    if not use.held_bytes:
        edge = 0 if held else edge
    elif not held and now_ms - terms.start_ms - use.epoch * EPOCH_MS >= REQUEST_WINDOW_MS:
        edge = 0
    return replace(
        use,
        touched_ms=now_ms,
        held_bytes=held,
        peak_bytes=peak,
        used=use.used + peak - use.peak_bytes,
        edge=edge,
    )


def least_level(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return below which level a cleared lease is not lowered now.

    Of its first minute nothing is given up, or taking leases and giving them up would hold room
    for nothing. Fuel that was spent is billed to the end of its minute.
    """
    if now_ms < terms.start_ms + OFFER_MS:
        return use.level
    return use.held_bytes if terms.kind == "storage" else advance(terms, use, now_ms).peak_bytes


def lowered(terms: LeaseTerms, use: LeaseUse, level: int, now_ms: int) -> LeaseUse:
    """Return the use of a cleared lease once its customer gave up room; without any it is over."""
    use, unit = advance(terms, use, now_ms), LEVEL_UNIT[terms.kind]
    level = min(use.level, ceil_div(max(level, use.held_bytes), unit) * unit)
    if level:
        return replace(use, level=level)
    # Another clock may have ended it earlier.
    edge = use.level // unit * REQUEST_WINDOW_MS
    return replace(use, given_back=True, edge=edge, level=0)


def counted(terms: LeaseTerms, use: LeaseUse) -> int:
    """Return the byte-epochs or fuel steps that a lease is billed for.

    Of storage a part of what is leased at least, once bytes were held: that the rest is
    reserved costs something, too. A lease that renews another reserves nothing.
    """
    if terms.kind != "storage" or not use.used or terms.renews is not None or terms.cleared:
        return use.used
    return max(use.used, terms.quantity // RESERVED_EPOCHS)


def hold_since(
    terms: LeaseTerms, use: LeaseUse, delta_bytes: int, epoch: int, now_ms: int
) -> LeaseUse:
    """Return the use once it turned out that more (+) or less (-) is held, since an epoch.

    For what was held and not counted the epochs since are due as well. What was counted
    too high stays owed: when it went is not known.
    """
    use = hold(terms, use, delta_bytes, now_ms)
    missed = 0 if terms.cleared else max(0, delta_bytes) * max(0, use.epoch - epoch)
    return replace(use, used=use.used + missed)


def spend(terms: LeaseTerms, use: LeaseUse, steps: int, amount_micro: int, now_ms: int) -> LeaseUse:
    """Return the use after a run that was billed; under a cleared lease it is paid by time."""
    assert terms.kind == "compute", "only compute is spent"
    if terms.cleared:
        use = advance(terms, use, now_ms)
        return replace(use, peak_bytes=use.peak_bytes + steps)
    return replace(use, used=use.used + steps, billed_micro=use.billed_micro + amount_micro)


def run_price(terms: LeaseTerms) -> int:
    """Return the price of a run under a lease of compute, a Gfuel."""
    return 0 if terms.cleared else terms.price


def due_for(terms: LeaseTerms, count: int) -> int:
    """Return what so much use costs in all."""
    if terms.cleared:
        scale = PRICE_UNIT[terms.kind] // LEVEL_UNIT[terms.kind] * _EPOCH_MS[terms.kind]
        return terms.price * count // scale
    return amount(terms.kind, terms.price, count)


def due_micro(terms: LeaseTerms, use: LeaseUse) -> int:
    """Return what is owed in all for the use so far, settled or not."""
    return due_for(terms, counted(terms, use)) if _has_time(terms) else use.billed_micro


def room(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return what is left: bytes that can still be held, or steps that can still be spent now."""
    if terms.cleared:
        use = advance(terms, use, now_ms)
        if terms.kind == "storage":
            return max(0, use.level - use.held_bytes)
        # Nothing is billed before the start, which another clock may have set.
        return max(0, use.level - use.peak_bytes) if now_ms >= terms.start_ms else 0
    return max(0, terms.quantity - (use.held_bytes if terms.kind == "storage" else use.used))


def reserved(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return the part of what is left that the provider keeps free for the customer.

    Of storage nothing, once a lease for now has filled too slowly: bytes still come under it where
    there is room. A cleared rate is kept whole, and of compute for now nothing.
    """
    if is_over(terms, use, now_ms) or use.lapsed or advance(terms, use, now_ms).lapsed:
        return 0
    if terms.kind == "compute":
        return use.level
    return room(terms, use, now_ms)


def is_over(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> bool:
    """Return whether nothing new can be done under the lease."""
    return use.given_back or now_ms >= terms.end_ms


def is_idle(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> bool:
    """Return whether the provider may take an empty lease of storage back."""
    return (
        terms.kind == "storage"
        and not (terms.cleared and use.level)
        and use.held_bytes == 0
        and now_ms - use.touched_ms >= STORAGE_LEASE_IDLE_MS
    )


def is_useful(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> bool:
    """Return whether a customer should still begin something under the lease.

    Compute: while an order can still arrive in time. Storage: until half of its time, so
    that nothing new is put where it must soon move, and not once the provider might be
    about to take an empty lease back.
    """
    if is_over(terms, use, now_ms):
        return False
    if terms.kind == "compute":
        return now_ms + LEASE_TIMEOUT_MS < terms.end_ms
    idle_ms = 0 if terms.cleared or use.held_bytes else now_ms - use.touched_ms
    if idle_ms >= STORAGE_LEASE_IDLE_MS // 2:
        return False
    return now_ms < half_ms(terms)


def half_ms(terms: LeaseTerms) -> int:
    """Return when the second half of the term begins."""
    return terms.start_ms + (terms.end_ms - terms.start_ms) // 2


def tolerance(terms: LeaseTerms) -> int:
    """Return how far a customer's view of the use may be ahead of its provider's.

    One epoch of everything leased, for clocks that differ and writes that failed.
    """
    if terms.cleared:
        return terms.quantity // LEVEL_UNIT[terms.kind] * REQUEST_WINDOW_MS
    return terms.quantity if terms.kind == "storage" else 0


def owed_micro(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return what the customer has yet to settle.

    Once a lease is over and its last voucher is paid, an epoch that began just before the
    last bytes went is not owed for what was held when it began: two clocks explain it.
    """
    owed = max(0, due_micro(terms, use) - use.settled_micro)
    is_paid = is_over(terms, use, now_ms) and use.settled_micro >= use.voucher_micro > 0
    if is_paid and use.held_bytes == 0 and counted(terms, use) - use.voucher_quantity <= use.edge:
        return 0
    return owed


def exposure_micro(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return what the provider may come to lose beside runs: what is owed, and one more epoch.

    A lease of compute for now allows nothing by itself: what runs may cost is counted with them.
    """
    owed = owed_micro(terms, use, now_ms)
    if is_over(terms, use, now_ms) or not _has_time(terms):
        return owed
    return owed + amount(terms.kind, terms.price, terms.quantity)


def status(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> Status:
    """Return what the lease is now."""
    if not is_over(terms, use, now_ms):
        return "open"
    if owed_micro(terms, use, now_ms) > 0:
        return "closing"
    return "settled" if use.settled_micro > 0 else "expired"


def next_voucher(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> Voucher | None:
    """Return the voucher that the customer owes now; None where the last one says it all."""
    # The first says that the customer knows of a cleared lease, also where it costs nothing yet.
    is_first = terms.cleared and use.voucher_number == 0
    if due_micro(terms, use) <= use.voucher_micro and not is_first:
        return None
    return Voucher(
        lease_id=terms.lease_id,
        provider=terms.provider,
        customer=terms.customer,
        number=use.voucher_number + 1,
        amount_micro=due_micro(terms, use),
        quantity=counted(terms, use),
        until_ms=now_ms,
    )


def with_voucher(use: LeaseUse, voucher: Voucher) -> LeaseUse:
    """Return the use under its newest voucher."""
    return replace(
        use,
        voucher_number=voucher.number,
        voucher_micro=voucher.amount_micro,
        voucher_quantity=voucher.quantity,
    )


def retry_ms(refusals: int) -> int:
    """Return how long after so many refused bookings in a row the next one waits.

    Each try is kept in the ledger for ever, and a refusal costs its debtor nothing. The first
    can have been for what was settled meanwhile.
    """
    if refusals <= 1:
        return 0
    return min(REFUSED_RETRY_MS << min(refusals - 2, 16), REFUSED_RETRY_MS_MAX)


def check_voucher(terms: LeaseTerms, use: LeaseUse, voucher: Voucher) -> str | None:
    """Return what is wrong with a voucher that should follow the last one.

    Less than what is due is good: it pays a part. `use` must be advanced to now.
    """
    if (voucher.lease_id, voucher.provider, voucher.customer) != (
        terms.lease_id,
        terms.provider,
        terms.customer,
    ):
        return "the voucher is for another lease"
    if voucher.number <= use.voucher_number:
        return "the voucher does not follow the last one"
    if voucher.amount_micro < use.voucher_micro or voucher.quantity < use.voucher_quantity:
        return "the voucher falls behind the last one"
    if _has_time(terms):
        if voucher.amount_micro != due_for(terms, voucher.quantity):
            return "the voucher's amount is not the price of its quantity"
        if voucher.quantity > counted(terms, use) + tolerance(terms):
            return "the voucher is over more than was held"
    else:
        if voucher.amount_micro > compute_amount(terms.price, voucher.quantity):
            return "the voucher's amount is above the price of its quantity"
        # Not bound to what this side saw: after a crash it may know of less than was run.
        if voucher.quantity > terms.quantity:
            return "the voucher is over more than was leased"
    return None
