"""What is owed between a provider and a customer for all leases between them.

The provider counts and signs (`LeaseCount`), the customer signs what that comes to (`Voucher`).
Both are of a pair, cumulative, and rounded down once: one that is lost costs nothing.

A check returns the first rule that is broken, as a sentence, or None.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from xsc.base import limits
from xsc.identity.envelope import Count, Signed
from xsc.market import lease as rules
from xsc.market.lease import LeaseEntry, LeaseUse, Role, WideNumber
from xsc.terms.pricing import WORTH
from xsc.terms.voucher import CountLine, LeaseCount, Voucher, leases_account, number_of, wide

REFUSED_RETRY_MS = 60_000
"""After the second refusal of a booking by its debtor; each further one doubles it."""
REFUSED_RETRY_MS_MAX = 24 * 3_600_000
BOOKING_CREDIT_PPM = 250_000
"""What waits to be booked is booked at once when it is so much of the credit that is left."""

_UNKEPT: Final = Field(exclude=True)
"""Marks what only this process knows."""


@dataclass(slots=True)
class Account:
    """The account of one pair, as this node keeps it in one role."""

    role: Role
    provider: bytes
    customer: bytes
    closed: WideNumber = 0
    """What leases came to that are forgotten, in WORTHths of a micro-credit."""
    stored: WideNumber = 0
    """Of that, what was for bytes held."""
    proven: WideNumber = 0
    """Of all that is for bytes held, up to where challenges decided (`xsc.market.proof`)."""
    void: WideNumber = 0
    """Of that, what is never paid."""
    proven_ms: Count = 0
    """Up to when that is."""
    failed: bool = False
    """Whether the last challenge found a loss: what is deleted after it is not paid."""
    certified: bytes | None = None
    """Provider: what a custodian of the customer signed last, for the customer when it is back."""
    number: Count = 0
    """Of the newest voucher."""
    signed_micro: Count = 0
    """What that promises."""
    voucher: bytes | None = None
    count: bytes | None = None
    """Customer: the count that the newest voucher pays."""
    settled_micro: Count = 0
    """Of that, what the ledger has booked."""
    refusals: Count = 0
    """How many bookings in a row the ledger refused for good; each needs an id of its own."""
    disputed: bytes | None = None
    """Customer: the newest count of the provider that did not follow."""
    strange: Annotated[tuple[bytes, ...], _UNKEPT] = ()
    """Customer: leases of the last count that this node does not know: it wants none of them."""
    paid_until_ms: Annotated[int, _UNKEPT] = 0
    """Customer: up to when the voucher pays that it was given back after it lost its disk."""
    is_taken: Annotated[bool, _UNKEPT] = False
    """Customer: whether the provider has taken the newest voucher, as far as it is known."""
    lost: dict[str, Count] | None = None
    """Customer: what the directory knows to lie there, once this node lost its leases and until it
    has asked for them; by lease in hexadecimal digits, its bytes."""
    retry_ms: Annotated[int, _UNKEPT] = 0
    """Provider: until when the next booking waits, by a steady clock."""
    asked_micro: Annotated[int, _UNKEPT] = 0
    """Customer: what all came to, paid or not, when the provider was asked for a count last."""
    heard_ms: Annotated[int | None, _UNKEPT] = None
    """Provider: since when the customer is up and gives no challenge, by a steady clock."""
    unsigned_ms: Annotated[int | None, _UNKEPT] = None
    """Provider: since when it is up and has not signed for all that is proven."""

    @property
    def id(self) -> bytes:
        """The id under which the ledger books it."""
        return leases_account(self.provider, self.customer)

    @property
    def peer(self) -> bytes:
        """The other side."""
        return self.provider if self.role == "customer" else self.customer

    @property
    def unbooked_micro(self) -> int:
        """What is signed and not booked."""
        return max(0, self.signed_micro - self.settled_micro)


def held_bytes(entries: Iterable[LeaseEntry]) -> int:
    """Return the bytes that a customer stored and has not deleted, lost ones as well."""
    return sum(entry.use.held_bytes + entry.use.missing_bytes for entry in entries)


def unproven(account: Account, entries: Iterable[LeaseEntry], now_ms: int) -> int:
    """Return what bytes held came to since challenges decided last, in WORTHths."""
    uses = (rules.advance(entry.terms, entry.use, now_ms) for entry in entries)
    return max(0, account.stored + sum(use.stored for use in uses) - account.proven)


def total_micro(account: Account, entries: Iterable[LeaseEntry], now_ms: int) -> int:
    """Return what an account comes to by now, settled or not, proven or not."""
    uses = (rules.advance(entry.terms, entry.use, now_ms) for entry in entries)
    return max(0, account.closed + sum(use.used for use in uses) - account.void) // WORTH


def due_micro(account: Account, entries: Collection[LeaseEntry], now_ms: int) -> int:
    """Return what of that is to be paid by now: what was deleted, and else what is proven."""
    uses = (rules.advance(entry.terms, entry.use, now_ms) for entry in entries)
    due = account.closed + sum(use.used for use in uses) - account.void
    is_open = account.failed or held_bytes(entries)
    waits = unproven(account, entries, now_ms) if is_open else 0
    return max(0, due - waits) // WORTH


def owed_micro(account: Account, entries: Iterable[LeaseEntry], now_ms: int) -> int:
    """Return what the customer has yet to settle, proven or not."""
    return max(0, total_micro(account, entries, now_ms) - account.settled_micro)


def count_of(account: Account, entries: Collection[LeaseEntry], now_ms: int) -> LeaseCount:
    """Return what a provider has counted; the uses of `entries` are of now."""
    return LeaseCount(
        provider=account.provider,
        customer=account.customer,
        counted_ms=now_ms,
        closed=wide(account.closed),
        leases=tuple(
            CountLine(
                lease_id=entry.id,
                held_bytes=entry.use.held_bytes,
                level=entry.use.level,
                used=wide(entry.use.used),
                end_ms=now_ms if entry.use.given_back else entry.terms.end_ms,
            )
            for entry in entries
        ),
        amount_micro=due_micro(account, entries, now_ms),
    )


def check_count(account: Account, count: LeaseCount, now_ms: int) -> str | None:
    """Return what is wrong with a count that a provider gave, whatever it says of leases."""
    if (count.provider, count.customer) != (account.provider, account.customer):
        return "the count is between other nodes"
    if abs(count.counted_ms - now_ms) > limits.REQUEST_WINDOW_MS:
        return "the count is of another time"
    if len({line.lease_id for line in count.leases}) < len(count.leases):
        return "the count names a lease twice"
    return None


@dataclass(slots=True)
class Agreed:
    """What a customer makes of a count."""

    closed: int
    stored: int
    """Of that, what was for bytes held."""
    waits: int = 0
    """What is not proven yet, in WORTHths: of that nothing is paid."""
    amount_micro: int = 0
    """What it owes in all, by the count and by its own."""
    uses: list[tuple[LeaseEntry, LeaseUse]] = field(default_factory=list)
    gone: list[LeaseEntry] = field(default_factory=list)
    """Leases that the provider names no more, and that are over here, too."""
    denied: set[bytes] = field(default_factory=set)
    """Leases that are open here, and that it has signed not to have: they are over now."""
    disputed: set[bytes] = field(default_factory=set)
    """Those of which it counts more than follows; that is not paid."""
    broken: bool = False
    """Whether bytes of this node lay under one that it denies."""


def agree(
    account: Account,
    entries: Iterable[LeaseEntry],
    signed: Signed[LeaseCount],
    *,
    asked_ms: int,
    now_ms: int,
) -> Agreed:
    """Return what a customer makes of a count: what of it follows from its own orders there.

    Args:
        account: with the provider.
        entries: all leases there that were known when it was asked.
        signed: its count.
        asked_ms: when it was asked, by the own clock.
        now_ms: the present.
    """
    count = signed.record
    lines = {line.lease_id: line for line in count.leases}
    made, paid = Agreed(account.closed, account.stored), 0
    for entry in entries:
        terms, line, was_held = entry.terms, lines.get(entry.id), entry.use.held_bytes > 0
        use = rules.advance(terms, entry.use, now_ms)
        is_open = not entry.is_over(now_ms) and count.counted_ms < terms.end_ms
        is_denied, is_asked = False, entry.less is not None and not entry.less[0]
        if line is None:
            made.closed += use.used
            made.stored += use.stored
            use = replace(rules.ended(use), used=0, stored=0, held_bytes=0)
            is_denied = is_open and not is_asked
            if not is_open and use.denial is None:
                made.gone.append(entry)  # What was denied is kept as evidence.
        else:
            stood = use.touched_ms < asked_ms
            use, used, follows = rules.follow(terms, use, line, count.counted_ms, stood=stood)
            if is_open and line.end_ms <= count.counted_ms:
                use = rules.ended(use)
                is_denied = was_held
            paid += used
            # It may hold what this node was not told of, or not have heard of what was given up.
            # What ran can be told in an answer that is on its way: it is not paid before.
            knows = rules.has_time(terms) and entry.less is None and line.level <= entry.use.level
            if not follows and knows and line.held_bytes <= entry.use.held_bytes:
                made.disputed.add(entry.id)
        if is_denied:
            made.denied.add(entry.id)
            made.broken |= was_held
            use = replace(use, denial=signed.raw)
        made.uses.append((entry, use))
    made.closed = min(made.closed, number_of(count.closed))
    made.stored = min(made.stored, made.closed)
    uses = [use for _, use in made.uses]
    # A provider that denies bytes of this node has proven nothing of them.
    lies = any(use.held_bytes or use.missing_bytes for use in uses)
    if made.broken or account.failed or lies:
        made.waits = max(0, made.stored + sum(use.stored for use in uses) - account.proven)
    own = max(0, made.closed + paid - account.void - made.waits)
    made.amount_micro = min(own // WORTH, count.amount_micro)
    return made


def restore(account: Account, entries: Iterable[LeaseEntry], count: LeaseCount) -> None:
    """Believe what a provider counted, for a customer that has lost its disk.

    No more in all than the customer had signed, and what the present terms can have come to.
    """
    assert account.lost is not None, "the customer has lost its disk"
    lines = {line.lease_id: line for line in count.leases}
    # Not what it counts and does not want to be paid: it could ask for that later.
    signed = account.signed_micro * WORTH
    for entry in entries:
        line, size = lines[entry.id], account.lost.get(entry.id.hex(), 0)
        # One under which nothing lies may have been refused once: it keeps nothing.
        level = min(entry.use.level, line.level) if size else 0
        counted, begins_ms = number_of(line.used), max(entry.terms.start_ms, account.paid_until_ms)
        before = min(counted, signed)
        signed -= before
        most = max(size, level) * max(0, count.counted_ms - begins_ms)
        used = min(counted, before + rules.worth(entry.terms, most))
        entry.use = replace(
            entry.use,
            held_bytes=size,
            level=level,
            used=used,
            stored=used if entry.terms.kind == "storage" else 0,
            counted_ms=max(count.counted_ms, entry.terms.start_ms),
        )
    account.closed = account.stored = min(number_of(count.closed), signed)
    used = account.closed + sum(entry.use.used for entry in entries)
    stored = account.stored + sum(entry.use.stored for entry in entries)
    account.proven = max(0, stored - max(0, used - account.signed_micro * WORTH))
    account.proven_ms = account.paid_until_ms or count.counted_ms


def next_voucher(account: Account, amount_micro: int, count: LeaseCount) -> Voucher | None:
    """Return the voucher that a customer owes on a count; None where the last one says it all."""
    if amount_micro <= account.signed_micro:
        return None
    return Voucher(
        account=account.id,
        provider=account.provider,
        customer=account.customer,
        number=account.number + 1,
        amount_micro=amount_micro,
        until_ms=count.counted_ms,
        count=count.id,
    )


def check_voucher(account: Account, voucher: Voucher, raw: bytes) -> str | None:
    """Return what is wrong with a voucher that a customer sent; one that is known is right.

    Less than what is due is good: it pays a part. More is the customer's own word, as after the
    provider has lost its disk.
    """
    parties = account.id, account.provider, account.customer
    if (voucher.account, voucher.provider, voucher.customer) != parties:
        return "the voucher is of another account"
    if voucher.number == account.number and raw != account.voucher:
        return "two different vouchers bear the same number"
    if voucher.number > account.number and voucher.amount_micro < account.signed_micro:
        return "the voucher falls behind the last one"
    if voucher.number < account.number and voucher.amount_micro > account.signed_micro:
        return "the voucher promises more under an older number"
    return None


def with_voucher(account: Account, voucher: Voucher, raw: bytes) -> None:
    """Take the newest voucher over."""
    account.number, account.signed_micro = voucher.number, voucher.amount_micro
    account.voucher = raw


def is_booking_due(sharing: Iterable[Account], credit_left_micro: int) -> bool:
    """Return whether a provider books what customers signed before the hour is over.

    It does once that is a share of what they may still come to owe, as the ledger refuses what is
    more than that.

    Args:
        sharing: the accounts of all that share one credit.
        credit_left_micro: what they may still come to owe by the ledger.
    """
    waiting_micro = sum(account.unbooked_micro for account in sharing)
    return 0 < credit_left_micro * BOOKING_CREDIT_PPM <= waiting_micro * limits.PPM


def retry_ms(refusals: int) -> int:
    """Return how long after so many refused bookings in a row the next one waits.

    Each try is kept in the ledger for ever, and a refusal costs its debtor nothing. The first
    can have been for what was settled meanwhile.
    """
    if refusals <= 1:
        return 0
    return min(REFUSED_RETRY_MS << min(refusals - 2, 16), REFUSED_RETRY_MS_MAX)


Status: TypeAlias = Literal["open", "closing", "settled", "expired", "denied"]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease, for people, and what became of it."""

    entry: LeaseEntry
    use: LeaseUse
    """As of now."""
    status: Status
    """`closing`: over and not settled. `expired`: over, and nothing was owed. `denied`: this node
    is the customer, and the provider signed that it has no such lease."""
    due_micro: int
    settled_micro: int


def views(account: Account, entries: Iterable[LeaseEntry], now_ms: int) -> list[LeaseView]:
    """Return the leases of an account as people see them.

    What is settled of the account counts for those forgotten first, and then for those that end
    first: so both sides say the same, and of what is over and settled nothing goes to others.
    """
    found, left_micro = [], max(0, account.settled_micro - account.closed // WORTH)
    for entry in sorted(entries, key=lambda entry: (entry.terms.end_ms, entry.id)):
        use = rules.advance(entry.terms, entry.use, now_ms)
        due = use.used // WORTH
        settled = min(due, left_micro)
        left_micro -= settled
        status: Status = "open"
        if use.denial is not None:
            status = "denied"
        elif entry.is_over(now_ms):
            status = "closing" if settled < due else "settled" if due else "expired"
        found.append(LeaseView(entry, use, status, due, settled))
    return found
