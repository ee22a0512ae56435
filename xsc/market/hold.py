"""What an undrawn entitlement costs: the account under which it is billed, and what bounds it.

The account is a lease of micro-credits, and time spends them: at the price of what is undrawn,
by the millisecond. A GiB of storage costs its price an epoch, a Gfuel a second its price a
second. So it costs the same in pieces or under another number of its need.

Vouchers, bookings and limits are those of leases. Both sides count by themselves, and the
customer's count is what is paid. All accounts of a need together are bounded by what the need
allows, whatever slots, windows and prices its providers make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from xsc.base.encoding import tagged_sha256
from xsc.base.limits import AMOUNT_MAX, COMPUTE_LEASE_MS, EPOCH_MS, PRICE_FUEL
from xsc.market.lease import HOLD_MARK, LeaseTerms, LeaseUse
from xsc.terms.pricing import PRICE_UNIT, SLOT_UNIT
from xsc.terms.quote import Kind
from xsc.terms.slot import Entitlement, EntitlementKey, NeedSlot

_LENGTH_MS: Final[dict[Kind, int]] = {"storage": EPOCH_MS, "compute": COMPUTE_LEASE_MS}
"""How long bytes, or the fuel steps of a lease, are held for their price."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held undrawn, up to when that is counted, and what of it is no micro-credit yet."""

    provider: bytes
    slot: bytes
    opens_ms: int
    """Start of the slot's window."""
    customer: bytes
    need: bytes
    kind: Kind
    clearing: bytes
    """The record that grants it."""
    price: int
    quantity: int
    """Held and not used: bytes, or fuel steps in the time of a lease; 0 where nothing is held."""
    until_ms: int
    """When it lapses."""
    counted_ms: int
    """Up to when it is counted."""
    rest: int = 0
    """What was counted and is no whole micro-credit yet."""
    is_used: bool = False
    """All of it is used: the time is its leases'."""

    @property
    def key(self) -> EntitlementKey:
        """What names the entitlement."""
        return EntitlementKey(self.provider, self.slot, self.opens_ms, self.customer, self.need)

    @property
    def scale(self) -> int:
        """How much of price, quantity and time is a micro-credit."""
        return PRICE_UNIT[self.kind] * _LENGTH_MS[self.kind]


def hold_id(key: EntitlementKey) -> bytes:
    """Return the id of the account of an entitlement; no lease may have it."""
    opens = key.opens_ms.to_bytes(8, "big")
    digest = tagged_sha256("hold/id", key.provider, key.customer, key.need, key.slot, opens)
    return HOLD_MARK + digest[: len(digest) - len(HOLD_MARK)]


def account_terms(key: EntitlementKey, start_ms: int, end_ms: int) -> LeaseTerms:
    """Return the terms of an account: micro-credits, as many as its customer signs."""
    return LeaseTerms(
        hold_id(key),
        "compute",
        key.provider,
        key.customer,
        PRICE_FUEL,
        AMOUNT_MAX,
        start_ms,
        end_ms,
    )


def opened(settled_micro: int, now_ms: int) -> LeaseUse:
    """Return the use of a new account under which so much was settled before it was forgotten.

    Amounts and numbers go on from there: an account that comes back pays what it adds.
    """
    return LeaseUse(
        touched_ms=now_ms,
        used=settled_micro,
        billed_micro=settled_micro,
        voucher_number=settled_micro,
        voucher_micro=settled_micro,
        voucher_quantity=settled_micro,
        settled_micro=settled_micro,
        given_back=True,
    )


def begun(entitlement: Entitlement, kind: Kind) -> Hold:
    """Return a hold of nothing, which was never counted."""
    return Hold(
        entitlement.provider,
        entitlement.slot,
        entitlement.opens_ms,
        entitlement.customer,
        entitlement.need,
        kind,
        entitlement.clearing,
        entitlement.price,
        0,
        entitlement.until_ms,
        0,
    )


def begins_ms(entitlement: Entitlement) -> int:
    """Return from when an entitlement costs something.

    Storage of an open slot is kept from all others from its grant on, also where its need begins
    later: else a need that moves ahead in time would keep it for nothing.
    """
    start = entitlement.opens_ms if entitlement.kind == "storage" else entitlement.window[0]
    return max(entitlement.granted_ms, start)


def counted(use: LeaseUse, hold: Hold, now_ms: int) -> tuple[Hold, LeaseUse]:
    """Return an account once it is counted up to now, or until what is held lapses."""
    until_ms = min(now_ms, hold.until_ms)
    if not hold.quantity or until_ms <= hold.counted_ms:
        return hold, use
    spent = hold.rest + hold.price * hold.quantity * (until_ms - hold.counted_ms)
    amount, rest = divmod(spent, hold.scale)
    amount = min(amount, AMOUNT_MAX - use.used)
    # It is kept: over a window of many months it could be more than a record takes.
    return replace(hold, counted_ms=until_ms, rest=min(rest, AMOUNT_MAX)), _spend(use, amount)


def changed(
    use: LeaseUse,
    hold: Hold,
    entitlement: Entitlement | None,
    quantity: int,
    now_ms: int,
) -> tuple[Hold, LeaseUse]:
    """Return an account under which that much is held and not used from now on.

    Args:
        use: what was counted.
        hold: what was held, at the last look.
        entitlement: as it is now; None where there is none.
        quantity: what of it is not used: bytes, or fuel steps.
        now_ms: the present.
    """
    if entitlement is not None and entitlement.until_ms > now_ms:
        # What was used since the last look, its lease bills from then on.
        hold = replace(hold, quantity=min(hold.quantity, quantity))
    hold, use = counted(use, hold, now_ms)
    use = replace(use, given_back=True)
    if entitlement is None or now_ms >= entitlement.until_ms:
        return replace(hold, quantity=0, is_used=False), use
    if not quantity:
        return replace(hold, quantity=0, is_used=True), use
    # A new grant costs from its beginning on; what was held before comes back from now on.
    begun_ms = begins_ms(entitlement)
    from_ms = now_ms if hold.is_used or begun_ms <= hold.counted_ms else begun_ms
    hold = replace(
        hold,
        clearing=entitlement.clearing,
        price=entitlement.price,
        quantity=quantity,
        until_ms=entitlement.until_ms,
        counted_ms=min(from_ms, now_ms),
        is_used=False,
    )
    return counted(replace(use, given_back=False), hold, now_ms)


def _spend(use: LeaseUse, amount_micro: int) -> LeaseUse:
    return replace(use, used=use.used + amount_micro, billed_micro=use.billed_micro + amount_micro)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a need of this node has allowed so far for all that is held for it.

    It only rises, whatever becomes of the need.
    """

    need: bytes
    kind: Kind
    counted_ms: int
    """Up to when."""
    allowed_micro: int = 0
    rate: int = 0
    """Steps times the highest price, as of the last look; an epoch allows its worth."""
    rest: int = 0
    """What of it is no whole micro-credit yet."""
    signed_micro: int = 0
    """What this node has signed for, under all accounts of the need that there ever were."""

    @property
    def left_micro(self) -> int:
        """What may still be signed."""
        return max(0, self.allowed_micro - self.signed_micro)


def new_allowance(need: NeedSlot, since_ms: int) -> Allowance:
    """Return what a need has allowed that was stated at a moment: nothing yet."""
    return Allowance(need.slot_id, need.kind, since_ms, rate=need.quantity * need.price_max)


def allowed(allowance: Allowance, need: NeedSlot | None, now_ms: int) -> Allowance:
    """Return what a need allows up to now: its level times its price, by the millisecond.

    None: the need is no more, and allows nothing further.
    """
    now_ms, kind = max(now_ms, allowance.counted_ms), allowance.kind
    passed = allowance.rate * SLOT_UNIT[kind] * (now_ms - allowance.counted_ms)
    more, rest = divmod(allowance.rest + passed, PRICE_UNIT[kind] * EPOCH_MS)
    return replace(
        allowance,
        counted_ms=now_ms,
        allowed_micro=min(allowance.allowed_micro + more, AMOUNT_MAX),
        rate=0 if need is None else need.quantity * need.price_max,
        rest=rest,
    )


def bounded(use: LeaseUse, left_micro: int) -> LeaseUse:
    """Return a customer's account that counts no more than it may still sign."""
    most = min(use.billed_micro, use.voucher_micro + left_micro)
    return replace(use, used=most, billed_micro=most)
