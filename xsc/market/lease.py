"""The life of a lease: what it allows, what is used of it, and what that comes to.

Customer and provider run the same steps over what each of them saw; the provider signs its count,
and the customer takes it over as far as it follows from what it ordered itself (`follow`). Only
these move a lease:

- storage: bytes are *held*. By the millisecond it is billed for what is held or for its *level*,
  whichever is more: the level is what is kept free for the customer. Where a clearing granted the
  lease, the customer lowers it. Of a lease for now it is the whole quantity, and ends once nothing
  came for ten minutes; bytes still come after that where there is room.
- compute: a *cleared* lease is a rate, billed by time; runs within it cost nothing more. Of a lease
  for now the fuel steps that ran are billed.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import (
    AMOUNT_MAX,
    CLEARED_COMPUTE_MS,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    LATE_MS,
    LEASE_TIMEOUT_MS,
    MFUEL,
    MIB,
    OFFER_MS,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.base.units import ceil_div, format_duration
from xsc.identity.envelope import Count
from xsc.terms.count import CountLine, number_of, wide
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import amount
from xsc.terms.pricing import worth as worth_of
from xsc.terms.quote import Kind

_EPOCH_MS: Final[dict[Kind, int]] = {"storage": EPOCH_MS, "compute": COMPUTE_LEASE_MS}
LEVEL_UNIT: Final[dict[Kind, int]] = {"storage": MIB, "compute": MFUEL}
"""Levels of cleared leases are whole MiB, or millions of fuel steps a minute."""
SPREAD: Final = 8
"""Renewals are spread over so great a part of the term, one eighth, from its half on."""
WideNumber = Annotated[int, BeforeValidator(number_of), PlainSerializer(wide)]
"""A number that passes 2^64: it is kept as `wide` bytes."""


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
    """The lease whose bytes it keeps."""


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """What became of it so far, as one side saw it."""

    touched_ms: Count
    """When bytes were last held or given back, or the lease was granted."""
    held_bytes: Count = 0
    level: Count = 0
    """What is kept free and billed: bytes, or fuel steps a minute. It only falls."""
    used: WideNumber = 0
    """What is billed: byte-milliseconds, of a cleared rate its level times milliseconds, of compute
    for now fuel steps."""
    counted_ms: Count = 0
    """Up to when time is counted in that."""
    leeway: WideNumber = 0
    """By how much `used` may differ at the customer: a minute of each change since the last count,
    as the clocks of both sides may."""
    minute: int = 0
    """Of a cleared rate: the minute, counted from the start, in which `spent` fuel steps ran."""
    spent: Count = 0
    given_back: bool = False
    lapsed: bool = False
    """Provider: the level is no longer kept free, though billed: its customer reached its limit."""
    known: bool = False
    """Provider: the customer has asked for a count since the lease was granted, or used it."""
    denial: bytes | None = None
    """Customer: the provider's signed count, in which it is not, or over."""


Side: TypeAlias = tuple[LeaseTerms, LeaseUse]
"""A lease of two: the one that is kept from, or the one that renews it."""


def terms_of(request: LeaseRequest, lease: Lease) -> LeaseTerms:
    """Return the terms of a request that was granted."""
    return LeaseTerms(
        request.lease_id,
        request.kind,
        request.provider,
        request.customer,
        request.price,
        lease.quantity,
        request.start_ms,
        request.end_ms,
        cleared=request.draw is not None,
        renews=request.renews,
    )


def longest_ms(kind: Kind, storage_ms: int, *, cleared: bool) -> int:
    """Return how long a lease lasts at most.

    Args:
        kind: of the lease.
        storage_ms: how long leases of storage last at most, as this node has it.
        cleared: whether a clearing granted it.
    """
    if kind == "storage":
        return storage_ms
    return CLEARED_COMPUTE_MS if cleared else COMPUTE_LEASE_MS


def new_use(terms: LeaseTerms, now_ms: int) -> LeaseUse:
    """Return the use of a lease that begins.

    One that renews another keeps nothing free yet: it is for bytes that lie there.
    """
    keeps = terms.renews is None and (terms.cleared or terms.kind == "storage")
    level = terms.quantity if keeps else 0
    use = LeaseUse(touched_ms=now_ms, level=level, counted_ms=terms.start_ms)
    # The room of one for now lapses by two clocks.
    return use if terms.cleared else widened(use, terms.quantity)


def widened(use: LeaseUse, quantity: int, ms: int = REQUEST_WINDOW_MS) -> LeaseUse:
    """Return the use with leeway for so much more or less, at a moment that two clocks tell."""
    return replace(use, leeway=use.leeway + abs(quantity) * ms)


def agreed(terms: LeaseTerms, use: LeaseUse) -> LeaseUse:
    """Return a use that a count says, from which the next one follows."""
    use = replace(use, leeway=0)
    return use if terms.cleared else widened(use, use.level)


def check_request(
    request: LeaseRequest, price: int, now_ms: int, storage_ms: int = STORAGE_LEASE_MS
) -> str | None:
    """Return what is wrong with a request at its provider.

    Args:
        request: the customer's.
        price: that was quoted or granted.
        now_ms: the present.
        storage_ms: how long leases of storage last here at most.
    """
    if request.lease_id == bytes(len(request.lease_id)):
        return "the lease id is the one of a node's own capacity"
    if request.price < price:
        return f"the price {request.price} is below the {price} that was quoted or granted"
    if abs(request.start_ms - now_ms) > REQUEST_WINDOW_MS:
        return "the lease does not begin now"
    length_ms, cleared = request.end_ms - request.start_ms, request.draw is not None
    unit = LEVEL_UNIT[request.kind]
    if cleared and (request.quantity % unit or request.quantity_min % unit):
        return "the level is not one of whole units"
    if cleared and request.kind == "compute" and length_ms < COMPUTE_LEASE_MS:
        # A rate is full again each minute, so a shorter one would give more than it costs.
        return "the lease is shorter than a minute"
    longest = longest_ms(request.kind, storage_ms, cleared=cleared)
    if length_ms > longest:
        return f"the lease is longer than {format_duration(longest)}, the longest here"
    epochs = ceil_div(request.end_ms - request.start_ms, _EPOCH_MS[request.kind])
    if amount(request.kind, request.price, request.quantity * epochs) > AMOUNT_MAX:
        return "the lease is worth more than an amount can be"
    return None


def check_grant(request: LeaseRequest, lease: Lease) -> str | None:
    """Return what is wrong with a lease that a provider granted on a request."""
    if not request.quantity_min <= lease.quantity <= request.quantity:
        return "the lease grants more or less than was asked for"
    if abs(lease.granted_ms - request.start_ms) > REQUEST_WINDOW_MS:
        return "the lease was granted at another time than it begins"
    return None


def advance(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> LeaseUse:
    """Return the use after the time that has passed.

    After the end what is held is counted, for LATE_MS at most: the host keeps it for a while.
    """
    if use.given_back or not has_time(terms):
        return use
    until_ms = min(now_ms, terms.end_ms)
    lapse_ms = use.touched_ms + STORAGE_LEASE_IDLE_MS
    if not terms.cleared and use.level and until_ms >= lapse_ms:
        use = replace(_counted(use, lapse_ms, use.level), level=0)
    use = _counted(use, until_ms, use.level)
    return _counted(use, min(now_ms, terms.end_ms + LATE_MS), 0) if use.held_bytes else use


def _counted(use: LeaseUse, until_ms: int, level: int) -> LeaseUse:
    passed_ms = until_ms - use.counted_ms
    if passed_ms <= 0:
        return use
    billed = max(use.held_bytes, level)
    return replace(use, used=use.used + billed * passed_ms, counted_ms=until_ms)


def has_time(terms: LeaseTerms) -> bool:
    """Return whether time alone adds to what is owed; else each run does."""
    return terms.kind == "storage" or terms.cleared


def hold(terms: LeaseTerms, use: LeaseUse, delta_bytes: int, now_ms: int) -> LeaseUse:
    """Return the use after bytes came (+) or went (-).

    No more goes than was held: one side may have missed what the other saw.
    """
    assert terms.kind == "storage", "only storage holds bytes"
    use = advance(terms, use, now_ms)
    held = max(0, use.held_bytes + delta_bytes)
    return widened(replace(use, touched_ms=now_ms, held_bytes=held, known=True), delta_bytes)


def spent(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return the fuel steps that ran under a lease; under a cleared rate, in this minute."""
    if not has_time(terms):
        return use.used
    return use.spent if use.minute == (now_ms - terms.start_ms) // COMPUTE_LEASE_MS else 0


def spend(terms: LeaseTerms, use: LeaseUse, steps: int, now_ms: int) -> LeaseUse:
    """Return the use after a run that was billed; under a cleared lease it is paid by time."""
    assert terms.kind == "compute", "only compute is spent"
    if not terms.cleared:
        return replace(use, used=use.used + steps)
    minute = (now_ms - terms.start_ms) // COMPUTE_LEASE_MS
    return replace(use, minute=minute, known=True, spent=spent(terms, use, now_ms) + steps)


def least_level(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return below which level a cleared lease is not lowered now.

    Of its first minute nothing is given up, or taking leases and giving them up would hold room
    for nothing. Fuel that was spent is billed to the end of its minute.
    """
    if now_ms < terms.start_ms + OFFER_MS:
        return use.level
    return use.held_bytes if terms.kind == "storage" else spent(terms, use, now_ms)


def lowered(terms: LeaseTerms, use: LeaseUse, level: int, now_ms: int) -> LeaseUse:
    """Return the use of a cleared lease once its customer gave up room; without any it is over.

    It is billed up to `now_ms`, by the customer's clock on both sides, also where it was counted
    further; but for its first minute, from which nothing is given up.
    """
    now_ms = max(now_ms, terms.start_ms + OFFER_MS)
    use, unit = advance(terms, use, now_ms), LEVEL_UNIT[terms.kind]
    level = min(use.level, ceil_div(max(level, use.held_bytes), unit) * unit)
    if level == use.level:
        return use
    back = (use.level - level) * max(0, min(use.counted_ms, terms.end_ms) - now_ms)
    use = replace(use, level=level, given_back=not level, used=max(0, use.used - back))
    # By its own clock the provider may count of an earlier moment than it was lowered at.
    return widened(use, level)


def ended(use: LeaseUse) -> LeaseUse:
    """Return the use of a lease that its provider has ended."""
    return replace(use, given_back=True, level=0)


def run_price(terms: LeaseTerms) -> int:
    """Return the price of a run under a lease of compute, a Gfuel."""
    return 0 if terms.cleared else terms.price


def worth(terms: LeaseTerms, used: int) -> int:
    """Return what so much use comes to, in WORTHths of a micro-credit."""
    return worth_of(terms.kind, terms.price, used, cleared=terms.cleared)


def follow(
    terms: LeaseTerms, use: LeaseUse, line: CountLine, counted_ms: int, *, stood: bool
) -> tuple[LeaseUse, int, bool]:
    """Return a customer's use once its provider counted, what of that it pays, and if it follows.

    What a provider counts can be less than the customer's own count, where an answer was lost, and
    more by what two clocks explain. What is more than that is not paid.

    Args:
        terms: of the lease.
        use: as this node counted it up to now.
        line: what the provider signed.
        counted_ms: when, by its clock.
        stood: whether nothing has changed here since it was asked.
    """
    theirs = number_of(line.used)
    if not has_time(terms):
        return use, min(use.used, theirs), theirs <= use.used
    most = terms.quantity * (max(counted_ms, use.counted_ms) - terms.start_ms)
    counted_ms = min(counted_ms, terms.end_ms + (LATE_MS if use.held_bytes else 0))
    own = advance(terms, use, counted_ms).used
    if theirs > max(own, min(own + use.leeway, most)):
        return use, use.used, False
    late = max(use.held_bytes, use.level) * max(0, use.counted_ms - max(counted_ms, terms.start_ms))
    if theirs > own - late + use.leeway:
        # What it counts is of now, whatever it says: a minute is paid once.
        counted_ms = max(counted_ms, use.counted_ms)
    use = replace(use, used=theirs, counted_ms=counted_ms)
    if stood:
        held, level = min(use.held_bytes, line.held_bytes), min(use.level, line.level)
        use = replace(use, held_bytes=held, level=level)
    return use, theirs, True


def room(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return what is left: bytes that can still be held, or steps that can still be spent now."""
    if not terms.cleared:
        return max(0, terms.quantity - (use.held_bytes if terms.kind == "storage" else use.used))
    if terms.kind == "storage":
        return max(0, use.level - use.held_bytes)
    if now_ms < terms.start_ms:
        return 0  # Nothing is billed before the start, which another clock may have set.
    # The last minute can be shorter, and costs and gives as much less.
    minute_ms = (now_ms - terms.start_ms) // COMPUTE_LEASE_MS * COMPUTE_LEASE_MS
    left_ms = min(COMPUTE_LEASE_MS, terms.end_ms - terms.start_ms - minute_ms)
    return max(0, use.level * left_ms // COMPUTE_LEASE_MS - spent(terms, use, now_ms))


def reserved(terms: LeaseTerms, use: LeaseUse, now_ms: int) -> int:
    """Return the part of what is left that the provider keeps free for the customer."""
    if use.lapsed or is_over(terms, use, now_ms):
        return 0
    return max(0, advance(terms, use, now_ms).level - use.held_bytes)


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


# Renewal: a new lease keeps what lies under an old one, at its own price and term. Its request
# names the old one (`renews`). What lies there goes over in pieces, and room is not counted twice:
# the new lease keeps nothing free at first; a cleared one takes its level with the first bytes.


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


def moved(
    kept: Side, keeping: Side, size_bytes: int, now_ms: int, *, free: int | None = None
) -> tuple[LeaseUse, LeaseUse]:
    """Return the uses of a lease and of the one that renews it, once bytes went over.

    The old one keeps nothing free for them.

    Args:
        kept: the old one.
        keeping: the one that renews it.
        size_bytes: how much went over.
        now_ms: the present.
        free: what no lease has at the provider; its customer does not know.
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
    if not new.level:
        brings = new_terms.quantity - rest
        if free is not None:
            # What the old one gave up, or keeps no more, others may have by now.
            is_kept = not old.lapsed and now_ms < old_terms.end_ms
            had = max(0, old.level - rest) if is_kept else more
            brings = min(brings, had + free // unit * unit)
        more = max(more, brings)
    level = max(rest, old.level - more)
    return replace(old, level=level), replace(new, level=new.level + more)
