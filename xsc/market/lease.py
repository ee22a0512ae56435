"""The life of a lease: what it allows, what is used of it, and what that comes to.

Customer and provider run the same steps over what each of them saw; the provider signs its count,
and the customer takes it over as far as it follows from what it ordered itself (`follow`). The
terms of a lease are its signed request. Only these move it:

- storage: bytes are *held*. By the millisecond it is billed for what is held or for its *level*,
  whichever is more. The level is what is kept free for the customer: what a clearing granted, less
  what the customer gave up. A lease for now has none: it takes bytes while there is room.
- compute: a *cleared* lease is a rate, billed by time; runs within it cost nothing more. Of a lease
  for now the fuel steps that ran are billed.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

from xsc.base import encoding, limits, units
from xsc.identity.envelope import Count
from xsc.terms import pricing, quote, slot, voucher
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE, Lease, LeaseRequest
from xsc.terms.pricing import worth as worth_of

CLEARED_COMPUTE_MS = 24 * 3_600_000
"""How long a lease of compute lasts at most that a clearing granted."""
LATE_MS = 30 * 24 * 3_600_000
"""For so long after its end what is held under a lease of storage is paid."""
LEASE_KEPT_MS = 3_600_000
"""How long a lease that is over is remembered."""
PROMISE_MS = 600_000
"""How long a customer keeps room free for a write or a run that it never hears of again."""

Role: TypeAlias = Literal["customer", "provider"]
ROLES: Final[tuple[Role, Role]] = ("customer", "provider")
OWN: Final[dict[quote.Kind, bytes]] = {"storage": OWN_STORAGE, "compute": OWN_COMPUTE}
QUANTITY_MAX: Final = 2**63 - 1
SPREAD: Final = 8
"""Renewals are spread over so great a part of the term, one eighth, from its half on."""
NO_NEED: Final = bytes(16)
"""In the place of a need, for a customer that states none."""
WideNumber = Annotated[int, BeforeValidator(voucher.number_of), PlainSerializer(voucher.wide)]
"""A number that passes 2^64: it is kept as `wide` bytes."""


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """What became of a lease so far, as one side saw it."""

    touched_ms: Count
    """When bytes were last held or given back, or the lease was granted or renewed."""
    held_bytes: Count = 0
    missing_bytes: Count = 0
    """Customer: what the provider had confirmed to hold, and counted no more. What it confirms to
    have deleted is of this first: it can have counted between the deletion and its answer."""
    level: Count = 0
    """What is kept free and billed: bytes, or fuel steps a second. Within a term it only falls."""
    used: WideNumber = 0
    """What it comes to, of all its terms: in WORTHths of a micro-credit."""
    stored: WideNumber = 0
    """Of that, what is for bytes held: it is paid once it is proven (`xsc.market.proof`)."""
    counted_ms: Count = 0
    """Up to when time is counted in that."""
    leeway: WideNumber = 0
    """By how much `used` may differ at the customer: a minute of each change since the last count,
    as the clocks of both sides may."""
    busy_us: Count = 0
    """Of a cleared rate: up to which microsecond its time is taken by what ran."""
    given_back: bool = False
    denial: bytes | None = None
    """Customer: the provider's signed count, in which it is not, or over."""


@dataclass(slots=True)
class LeaseEntry:
    """One lease as this node keeps it, in either role, with what only this process knows."""

    role: Role
    terms: LeaseRequest
    use: LeaseUse
    raw: bytes
    """The signed lease, with the request inside; empty while its provider has not answered."""
    clearing: bytes | None = None
    """Id of the clearing record that granted it."""
    reserved: int = 0
    """Provider: steps of runs that wait or are under way, or bytes that are being written."""
    promised: list[tuple[int, int]] = field(default_factory=list)
    """Customer: (until ms, quantity) of what was handed out and not yet heard of."""
    is_apart: bool = False
    """Customer: services at the provider use it, and runs of this node do not."""
    avoided_until_ms: int = 0
    """Customer: until when others are preferred, because the host refused a write."""
    less: tuple[int, int] | None = None
    """Customer: the level down to which room is given up, and since when."""
    unnamed_bytes: int = 0
    """Customer: held bytes that no own record names: a transfer that a crash cut off may have left
    them there."""

    @property
    def id(self) -> bytes:
        """The lease's id."""
        return self.terms.lease_id

    @property
    def peer(self) -> bytes:
        """The other side."""
        return self.terms.provider if self.role == "customer" else self.terms.customer

    def is_over(self, now_ms: int) -> bool:
        """Return whether nothing more comes under it."""
        return self.use.given_back or now_ms >= self.terms.end_ms

    def counted(self, use: LeaseUse) -> None:
        """Take over the use that follows from a provider's count.

        Bytes that no own record names are not missing where it does not count them.
        """
        left = min(self.unnamed_bytes, use.missing_bytes - self.use.missing_bytes)
        self.unnamed_bytes -= left
        self.use = replace(use, missing_bytes=use.missing_bytes - left)

    def promised_at(self, now_ms: int) -> int:
        """Return the quantity handed out; what was never heard of is forgotten in time."""
        self.promised = [item for item in self.promised if item[0] > now_ms]
        return sum(quantity for _, quantity in self.promised)

    def promise(self, quantity: int, now_ms: int) -> None:
        """Record what was handed out; of storage within ten seconds as one."""
        until_ms = now_ms + PROMISE_MS
        if self.terms.kind == "storage" and self.promised:
            last_ms, before = self.promised[-1]
            if until_ms - last_ms < PROMISE_MS // 60:
                self.promised[-1] = (last_ms, before + quantity)
                return
        self.promised.append((until_ms, quantity))

    def heard(self, quantity: int) -> None:
        """Take so much out of what was handed out, the oldest first; of compute one whole run."""
        while self.promised and quantity > 0:
            until_ms, oldest = self.promised.pop(0)
            if self.terms.kind == "compute":
                return
            if oldest > quantity:
                self.promised.insert(0, (until_ms, oldest - quantity))
            quantity -= oldest


def own_leases(role: Role, node: bytes) -> dict[bytes, LeaseEntry]:
    """Return the leases of a node with itself: of no price and no end, under which it uses its own.

    Nothing is kept free for them or owed under them, so nobody signs them, and they are in no list
    of leases and on no disk.
    """
    return {
        lease_id: LeaseEntry(
            role,
            LeaseRequest(
                lease_id=lease_id,
                provider=node,
                customer=node,
                kind=kind,
                slot=NO_NEED,
                window=(0, QUANTITY_MAX),
                tier="mutual",
                price=0,
                start_ms=0,
                end_ms=QUANTITY_MAX,
            ),
            LeaseUse(touched_ms=0),
            raw=b"",
        )
        for kind, lease_id in OWN.items()
    }


def key_of(terms: LeaseRequest, need: bytes) -> slot.EntitlementKey:
    """Return what a lease counts for in clearings, as one of that need."""
    return slot.EntitlementKey(terms.provider, terms.slot, terms.customer, need)


# What is agreed


def longest_ms(kind: quote.Kind, storage_ms: int, *, cleared: bool) -> int:
    """Return how long a lease lasts at most.

    Args:
        kind: of the lease.
        storage_ms: how long leases of storage last at most, as this node has it.
        cleared: whether a clearing granted it.
    """
    if kind == "storage":
        return storage_ms
    return CLEARED_COMPUTE_MS if cleared else limits.COMPUTE_LEASE_MS


def check_request(request: LeaseRequest, now_ms: int, storage_ms: int) -> str | None:
    """Return what is wrong with a request at its provider, whatever its price.

    Args:
        request: the customer's.
        now_ms: the present.
        storage_ms: how long leases of storage last here at most.
    """
    if abs(request.start_ms - now_ms) > limits.REQUEST_WINDOW_MS:
        return "the lease does not begin now"
    length_ms = request.end_ms - request.start_ms
    if request.cleared and length_ms < min(limits.COMPUTE_LEASE_MS, storage_ms):
        # A minute of a rate can be used at once, and an offer that was taken is made again.
        return "the lease is shorter than a minute"
    longest = longest_ms(request.kind, storage_ms, cleared=request.cleared)
    if length_ms > longest:
        return f"the lease is longer than {units.format_duration(longest)}, the longest here"
    if worth(request, request.level * length_ms) > limits.AMOUNT_MAX * pricing.WORTH:
        return "the lease is worth more than an amount can be"
    return None


def check_grant(request: LeaseRequest, lease: Lease) -> str | None:
    """Return what is wrong with a lease that a provider granted on a request."""
    if lease.level > request.level or (request.cleared and not lease.level):
        return "the lease grants more than was asked for, or nothing"
    return None


# What is used


def new_use(terms: LeaseRequest, level: int) -> LeaseUse:
    """Return the use of a lease that begins."""
    return LeaseUse(touched_ms=terms.start_ms, level=level, counted_ms=terms.start_ms)


def worth(terms: LeaseRequest, used: int) -> int:
    """Return what use comes to, in WORTHths of a micro-credit.

    Args:
        terms: of the lease.
        used: byte-milliseconds; of a cleared rate its level times milliseconds, else fuel steps.
    """
    return worth_of(terms.kind, terms.price, used, cleared=terms.cleared)


def widened(terms: LeaseRequest, use: LeaseUse, quantity: int) -> LeaseUse:
    """Return the use with leeway for so much more or less, at a moment that two clocks tell."""
    return replace(use, leeway=use.leeway + worth(terms, abs(quantity) * limits.REQUEST_WINDOW_MS))


def has_time(terms: LeaseRequest) -> bool:
    """Return whether time alone adds to what is owed; else each run does."""
    return terms.kind == "storage" or terms.cleared


def advance(terms: LeaseRequest, use: LeaseUse, now_ms: int) -> LeaseUse:
    """Return the use after the time that has passed.

    After the end what is held is counted, for LATE_MS at most: the host keeps it for a while.
    """
    if use.given_back or not has_time(terms):
        return use
    use = _counted(terms, use, min(now_ms, terms.end_ms), use.level)
    late_ms = min(now_ms, terms.end_ms + LATE_MS)
    return _counted(terms, use, late_ms, 0) if use.held_bytes else use


def _counted(terms: LeaseRequest, use: LeaseUse, until_ms: int, level: int) -> LeaseUse:
    passed_ms = until_ms - use.counted_ms
    if passed_ms <= 0:
        return use
    more = worth(terms, max(use.held_bytes, level) * passed_ms)
    stored = use.stored + worth(terms, use.held_bytes * passed_ms)
    return replace(use, used=use.used + more, stored=stored, counted_ms=until_ms)


def hold(terms: LeaseRequest, use: LeaseUse, delta_bytes: int, now_ms: int) -> LeaseUse:
    """Return the use after bytes came (+) or went (-).

    No more goes than was held: one side may have missed what the other saw.
    """
    assert terms.kind == "storage", "only storage holds bytes"
    use = advance(terms, use, now_ms)
    missed = min(use.missing_bytes, max(0, -delta_bytes))
    held = max(0, use.held_bytes + delta_bytes + missed)
    # For now nothing is billed before something is held, which may be before the start.
    counted_ms = use.counted_ms if use.held_bytes or terms.cleared else now_ms
    use = replace(use, touched_ms=now_ms, held_bytes=held, counted_ms=counted_ms)
    use = replace(use, missing_bytes=use.missing_bytes - missed)
    return widened(terms, use, delta_bytes)


def ran(terms: LeaseRequest, use: LeaseUse, now_ms: int) -> int:
    """Return the fuel steps that ran, for people: under a cleared rate those whose time is to come.

    For now they follow from what they came to: what costs nothing is not counted.
    """
    if terms.kind == "storage":
        return 0
    if terms.cleared:
        return use.level * max(0, use.busy_us - now_ms * 1_000) // 1_000_000
    return use.used // worth(terms, 1) if terms.price else 0


def spend(terms: LeaseRequest, use: LeaseUse, steps: int, now_ms: int) -> LeaseUse:
    """Return the use after a run that was billed; under a cleared lease it is paid by time."""
    assert terms.kind == "compute", "only compute is spent"
    if not terms.cleared:
        return replace(use, used=use.used + worth(terms, steps))
    if not use.level:
        return use  # The run ended after its lease.
    begun_us = max(use.busy_us, now_ms * 1_000)
    return replace(use, busy_us=begun_us + units.ceil_div(steps * 1_000_000, use.level))


def least_level(terms: LeaseRequest, use: LeaseUse, more: int, now_ms: int) -> int:
    """Return below which level a cleared lease is not lowered now.

    Of its first minute nothing is given up, or taking leases and giving them up would hold room
    for nothing; nor while its time is taken by fuel that ran.

    Args:
        terms: of the lease.
        use: of the lease.
        more: bytes or fuel steps that were promised, or are under way.
        now_ms: the present.
    """
    if now_ms < terms.start_ms + limits.OFFER_MS or now_ms * 1_000 < use.busy_us:
        return use.level
    if terms.kind == "storage":
        return use.held_bytes + more
    left_ms = min(limits.COMPUTE_LEASE_MS, terms.end_ms - now_ms)
    return units.ceil_div(more * 1_000, max(1, left_ms))


def lowered(terms: LeaseRequest, use: LeaseUse, level: int, now_ms: int) -> LeaseUse:
    """Return the use of a cleared lease once its customer gave up room; without any it is over.

    It is billed up to `now_ms`, also where it was counted further.
    """
    level = min(use.level, max(level, use.held_bytes))
    if level == use.level:
        return use
    use = advance(terms, use, now_ms)
    back_ms = max(0, min(use.counted_ms, terms.end_ms) - now_ms)
    back = worth(terms, (use.level - level) * back_ms)
    touched_ms, used = max(use.touched_ms, now_ms), max(0, use.used - back)
    return replace(use, touched_ms=touched_ms, level=level, given_back=not level, used=used)


def ended(use: LeaseUse) -> LeaseUse:
    """Return the use of a lease that its provider has ended."""
    return replace(use, given_back=True, level=0)


def run_price(terms: LeaseRequest) -> int:
    """Return the price of a run under a lease of compute, a Gfuel."""
    return 0 if terms.cleared else terms.price


def follow(
    terms: LeaseRequest, use: LeaseUse, line: voucher.CountLine, counted_ms: int, *, stood: bool
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
    theirs = voucher.number_of(line.used)
    if not has_time(terms):
        return use, min(use.used, theirs), theirs <= use.used
    counted_ms = min(counted_ms, terms.end_ms + (LATE_MS if use.held_bytes else 0))
    at = advance(terms, use, counted_ms)
    own, stored = at.used, at.stored
    if theirs > own + use.leeway:
        return use, use.used, False
    since = replace(use, used=0, stored=0, counted_ms=max(counted_ms, terms.start_ms))
    late = advance(terms, since, use.counted_ms)
    if theirs > own - late.used + use.leeway:
        # What it counts is of now, whatever it says: a minute is paid once.
        counted_ms = max(counted_ms, use.counted_ms)
        stored += theirs - own
    else:
        stored += theirs - own + late.used - late.stored
    # A level only falls: what was given up is not taken off once more.
    # What explained a difference once explains no other.
    leeway = 0 if stood else use.leeway - max(0, theirs - own)
    level = min(use.level, line.level)
    held = min(use.held_bytes, line.held_bytes) if stood else use.held_bytes
    missing = use.missing_bytes + use.held_bytes - held
    use = replace(use, held_bytes=held, missing_bytes=missing, level=level, used=theirs)
    # What makes the difference between both counts has to be proven.
    use = replace(use, stored=min(theirs, max(0, stored)))
    return replace(use, counted_ms=counted_ms, leeway=leeway), theirs, True


# What is left


def room(terms: LeaseRequest, use: LeaseUse, now_ms: int) -> int:
    """Return what a lease allows still: bytes, or fuel steps now; one for now sets no bound."""
    if not terms.cleared:
        return QUANTITY_MAX
    if terms.kind == "storage":
        return max(0, use.level - use.held_bytes)
    if now_ms < terms.start_ms:
        return 0  # Nothing is billed before the start, which another clock may have set.
    # A minute ahead, and not past the end: so no more runs than is billed.
    until_ms = min(now_ms + limits.COMPUTE_LEASE_MS, terms.end_ms)
    left_us = until_ms * 1_000 - max(use.busy_us, now_ms * 1_000)
    return max(0, use.level * left_us // 1_000_000)


def run_most(use: LeaseUse) -> int:
    """Return the fuel steps that a cleared rate ever allows at once: those of a minute."""
    return use.level * limits.COMPUTE_LEASE_MS // 1_000


def kept_free(entry: LeaseEntry) -> int:
    """Return what a provider keeps free for a lease that is not over, as a level."""
    if entry.use.given_back:
        return 0
    kept = max(0, entry.use.level - entry.use.held_bytes)
    # Bytes that are being written have their room from the shard store already.
    return max(0, kept - entry.reserved) if entry.terms.kind == "storage" else kept


def drawn(entry: LeaseEntry, now_ms: int) -> int:
    """Return how much of a slot a lease takes: bytes, or fuel steps a second.

    A lease for now takes what it holds, and of compute nothing. One that its provider signed not to
    know takes nothing.
    """
    if entry.use.denial is not None:
        return 0
    if not entry.terms.cleared:
        return entry.use.held_bytes
    return entry.use.held_bytes if entry.is_over(now_ms) else entry.use.level


def ahead_micro(entry: LeaseEntry, now_ms: int) -> int:
    """Return what a provider may come to lose beside what is owed and beside runs: an hour more."""
    terms = entry.terms
    if entry.is_over(now_ms) or not has_time(terms):
        return 0
    held = entry.use.held_bytes + (entry.reserved if terms.kind == "storage" else 0)
    return worth(terms, max(entry.use.level, held) * limits.EPOCH_MS) // pricing.WORTH


# Its end


def is_useful(terms: LeaseRequest, use: LeaseUse, now_ms: int) -> bool:
    """Return whether a customer should still begin something under the lease.

    Compute: while an order can still arrive in time. Storage: until half of its time, so
    that nothing new is put where it may soon have to move.
    """
    until_ms = terms.end_ms - limits.LEASE_TIMEOUT_MS if terms.kind == "compute" else half_ms(terms)
    return not use.given_back and now_ms < until_ms


def is_done(entry: LeaseEntry, now_ms: int) -> bool:
    """Return whether a lease is over, and nothing is held or under way under it."""
    return entry.is_over(now_ms) and not entry.use.held_bytes and not entry.reserved


def tidied(entry: LeaseEntry, now_ms: int) -> tuple[LeaseUse, bool]:
    """Return the use as of now, and whether the lease can be forgotten.

    At its end nothing is kept free any more. A provider forgets a lease LEASE_KEPT_MS after its
    end; a customer once the provider names it no more, or much later.
    """
    terms, use = entry.terms, entry.use
    if not entry.is_over(now_ms):
        return use, False
    use = advance(terms, use, now_ms)
    if now_ms >= terms.end_ms:
        use = replace(use, level=0)
    # What was deleted after the end is counted once more with the customer.
    ended_ms = use.touched_ms if use.given_back else max(use.touched_ms, terms.end_ms)
    kept_ms = limits.STORAGE_LEASE_MS if entry.role == "customer" else LEASE_KEPT_MS
    is_kept = entry.reserved or (entry.role == "provider" and use.held_bytes > 0)
    return use, not is_kept and now_ms - ended_ms >= kept_ms


# Renewal: a request with the id of a lease of storage gives that a new term, at its own price. What
# is held stays where it is. At half-life a provider clears it anew (`is_young`).


def half_ms(terms: LeaseRequest) -> int:
    """Return when the second half of the term begins."""
    return terms.start_ms + (terms.end_ms - terms.start_ms) // 2


def is_young(terms: LeaseRequest, now_ms: int) -> bool:
    """Return whether a clearing leaves a lease what it has."""
    return terms.kind == "compute" or now_ms < half_ms(terms)


def eighth_ms(terms: LeaseRequest) -> int:
    """Return the part of a term after its half within which it is renewed."""
    return max(1, (terms.end_ms - terms.start_ms) // SPREAD)


def due_ms(terms: LeaseRequest) -> int:
    """Return when a customer renews: soon after half-life, spread by what the lease is.

    By then its provider has cleared what it has again. Every lease has its own moment, the same
    after each restart.
    """
    spread_ms = eighth_ms(terms)
    number = int.from_bytes(encoding.tagged_sha256("renewal/due", terms.lease_id)[:8], "big")
    first_ms = spread_ms // 4
    return half_ms(terms) + first_ms + number % (spread_ms - first_ms)


def is_due(entry: LeaseEntry, now_ms: int) -> bool:
    """Return whether a customer should renew a lease now: bytes are held, and it is time.

    One that is over can still be renewed while its bytes are kept.
    """
    terms, use = entry.terms, entry.use
    is_held = terms.kind == "storage" and use.held_bytes > 0 and not use.given_back
    return is_held and use.denial is None and now_ms >= due_ms(terms)


def check_renewal(
    request: LeaseRequest, terms: LeaseRequest, use: LeaseUse, now_ms: int
) -> str | None:
    """Return what is wrong with a request that renews a lease, at its provider."""
    if (request.customer, request.kind, request.need) != (terms.customer, terms.kind, terms.need):
        return "the lease is another customer's, of another kind, or for another need"
    if terms.kind != "storage" or use.given_back or not use.held_bytes:
        return "nothing is held under the lease"
    if now_ms + limits.REQUEST_WINDOW_MS < half_ms(terms):
        return "the lease is in the first half of its term"
    if request.end_ms - max(now_ms, terms.end_ms) < min(limits.EPOCH_MS, eighth_ms(terms)):
        return "the lease ends too soon after its present end"
    if request.level > max(use.level, use.held_bytes):
        return "the lease is for more than it has"
    if request.cleared and request.level < use.held_bytes:
        return "the lease is for less than is held under it"
    return None


def renewed(
    role: Role, old: LeaseRequest, use: LeaseUse, terms: LeaseRequest, level: int
) -> LeaseUse:
    """Return the use of a lease whose new term begins.

    What is counted beyond that moment stays as it is for the provider, who began the term by its
    own clock. The customer may hear of it late: it counts that time again at the new price and
    level. What was given up since it was asked for does not come back.
    """
    use = advance(old, use, terms.start_ms)
    level = min(level, max(use.level, use.held_bytes))
    most, used, stored = max(use.held_bytes, use.level, level), use.used, use.stored
    if role == "customer":
        ahead_ms = max(0, use.counted_ms - terms.start_ms)
        used -= worth(old, max(use.held_bytes, use.level) * ahead_ms)
        used = max(0, used + worth(terms, max(use.held_bytes, level) * ahead_ms))
        stored -= worth(old, use.held_bytes * ahead_ms)
        stored = max(0, stored + worth(terms, use.held_bytes * ahead_ms))
    touched_ms = max(use.touched_ms, terms.start_ms)
    use = replace(use, touched_ms=touched_ms, level=level, used=used, stored=stored)
    return widened(old, widened(terms, use, most), most)
