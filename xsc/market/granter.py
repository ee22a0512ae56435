"""The provider's side of leases: quotes, grants, admits work under them and counts what is used.

A request is granted when it comes: of the entitlement that it names, or of what is left for
all. A lease is on the disk before it is answered. The rules are in `pricing`, `lease` and `room`.

The shard store and the job executor ask before they take anything, and report what became of it.
Use is kept unsynced; after a power loss the shard store says what is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    LeaseExhausted,
    NoOffers,
    NotAllowed,
    RateLimited,
    RecordInvalid,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_str
from xsc.base.ids import short
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    JOBS_QUEUED_A_PEER_MAX,
    JOBS_QUEUED_MAX,
    LEASE_REQUESTS_A_CUSTOMER_MAX,
    LEASE_REQUESTS_MS,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    NONCE_BYTES,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
)
from xsc.base.merkle import Part
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.base.units import format_credits
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as rules
from xsc.market import room
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry, ahead_micro, is_done
from xsc.market.lease_store import MarketNode
from xsc.market.ports import EXHAUSTED
from xsc.market.pricing import KINDS, open_quote
from xsc.market.waiting import WaitingLines
from xsc.terms.lease import Lease, LeaseRequest, RunTerms
from xsc.terms.pricing import compute_amount
from xsc.terms.quote import Kind, Quote
from xsc.terms.slot import Entitlement

LOWER: Final = "market.lower"


class LeaseGranter:
    """Quotes to customers, grants leases, and counts what is used under them.

    Implements the ports of providers: storage's `Leases`, compute's `ServiceBook`.
    """

    def __init__(self, node: MarketNode, headroom: Headroom) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._headroom = headroom
        self._asked = Tally(LEASE_REQUESTS_A_CUSTOMER_MAX, LEASE_REQUESTS_MS)
        self._lowered = Tally(LEASE_REQUESTS_A_CUSTOMER_MAX, LEASE_REQUESTS_MS)
        self._lowering = Turns[bytes]()
        """By lease: who fails to write puts back the level that it found, and no later one."""
        self._lines: WaitingLines[bytes] = WaitingLines(
            node.clock, most=JOBS_QUEUED_MAX, each=JOBS_QUEUED_A_PEER_MAX
        )

    async def on_quote(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Quote the caller's price and what it may still reserve."""
        kind = _kind(header)
        if not self._ports.standing.serves(kind, caller):
            raise NoOffers(f"this node offers no {kind} to this one now")
        ladder, tier = self._headroom.asked(kind), self._ports.standing.tier(caller)
        now_ms, (site, owner) = self._clock.now_ms(), self._node.settings.labels
        quote = Quote(
            provider=self._node.id,
            customer=caller,
            kind=kind,
            tier=tier,
            price_mutual=ladder.mutual,
            price_one_way=ladder.one_way,
            reserve=ladder.reserve,
            price=ladder.rung(tier),
            available=self._headroom.offered(kind, caller),
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + QUOTE_TTL_MS,
            nonce=self._node.entropy.token(NONCE_BYTES),
            site=site,
            owner=owner,
        )
        return {"quote": sign(quote, self._node.key, self._node.network).raw}, ()

    async def on_lease(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Grant a request; the same request gets the same lease."""
        raw = take_bytes(header, "request")
        request = open_signed(raw, LeaseRequest, network=self._node.network, author=caller)
        known = self._store.get("provider", request.record.lease_id)
        if known is not None:
            if known.request_id != request.id:
                raise RecordInvalid("another lease has the same id")
            return {"lease": known.raw}, ()
        self._asked.count(caller, self._clock.monotonic_ms(), "leases")
        return {"lease": self._grant(request, self._granting(request.record, caller))}, ()

    async def on_lower(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Give up room of a cleared lease that its customer does not use; it is no more billed.

        The answer says what is left, 0 where the lease is over.
        """
        entry = self._store.get("provider", take_bytes(header, "lease_id"))
        if entry is None or entry.terms.customer != caller or not entry.terms.cleared:
            raise NotAllowed("this customer has no such lease here")
        level, at_ms = take_int(header, "level"), take_int(header, "at_ms")
        if abs(at_ms - self._clock.now_ms()) > REQUEST_WINDOW_MS:
            raise RecordInvalid("the level is not given up now")
        self._lowered.count(caller, self._clock.monotonic_ms(), "lowered leases")
        async with self._lowering.of(entry.terms.lease_id):
            terms, before = entry.terms, entry.use
            if before.spent:  # Fuel that ran is billed to the end of its minute.
                at_ms = max(at_ms, terms.start_ms + before.minute * COMPUTE_LEASE_MS)
            least = entry.reserved + max(
                rules.least_level(terms, before, when) for when in (at_ms, self._clock.now_ms())
            )
            use = rules.lowered(terms, before, max(level, least), at_ms)
            if use.level == before.level:
                return {"level": use.level}, ()
            entry.use = use
            try:
                await self._store.sync(entry)
            except XscError:
                entry.use = replace(
                    entry.use,
                    level=before.level,
                    given_back=before.given_back,
                    used=entry.use.used + rules.advance(terms, before, at_ms).used - use.used,
                )
                raise
            return {"level": entry.use.level}, ()

    def _granting(self, request: LeaseRequest, caller: bytes) -> Entitlement | None:
        """Return what a request draws on, once it was checked; None for now.

        Raises:
            XscError: the first thing that is wrong with it.
        """
        own, now_ms, granting = self._node.id, self._clock.now_ms(), None
        if (request.provider, request.customer) != (own, caller):
            raise RecordInvalid("the request is between other nodes")
        if request.draw is not None:
            granting = self._headroom.entitled(request.kind, caller, request.draw)
            price = granting.price
            if request.kind == "compute" and request.end_ms > granting.window[1]:
                raise RecordInvalid("the lease ends after what was granted")
        else:
            price = open_quote(
                request.quote or b"",
                network=self._node.network,
                provider=own,
                customer=caller,
                kind=request.kind,
                now_ms=now_ms,
            ).record.price
        refusal = rules.check_request(request, price, now_ms, self._node.settings.storage_lease_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)
        if self._store.get("customer", request.lease_id) is not None:
            raise RecordInvalid("the lease id was used before")
        self._check_renewal(request, now_ms)
        in_use = sum(
            not is_done(entry, now_ms) for entry in self._store.of("provider", request.customer)
        )
        # Each lease can be renewed, however many there are.
        if in_use >= LEASES_A_CUSTOMER_MAX * (1 if request.renews is None else 2):
            raise RateLimited(
                f"one customer may have {LEASES_A_CUSTOMER_MAX} leases that are in use",
                hint="give back what is not needed: `xsc market leases`",
            )
        return granting

    def _check_renewal(self, request: LeaseRequest, now_ms: int) -> None:
        if request.renews is None:
            return
        old = self._store.get("provider", request.renews)
        if old is None:
            raise LeaseExhausted("this customer has no such lease here")
        if self._node.id in self._ports.leaving():
            raise LeaseExhausted("this node is leaving the network and renews no lease")
        refusal = rules.check_renewal(request, old.terms, old.use, now_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)

    def _grant(self, signed: Signed[LeaseRequest], granting: Entitlement | None) -> bytes:
        """Return the signed lease on a request that was checked, on the disk.

        Raises:
            CreditExceeded, SpaceExhausted, ComputeExhausted: nothing useful can be granted.
            NoOffers: it cannot be kept.
        """
        request, now_ms = signed.record, self._clock.now_ms()
        customer = request.customer
        credit = self._headroom.credit_left(customer)
        old = None if request.renews is None else self._store.get("provider", request.renews)
        if old is not None:
            # What may still come to be owed under it goes over with the bytes.
            credit += ahead_micro(old, now_ms)
        quantity = self._granted(request, granting, credit, old)
        if isinstance(quantity, str):
            if old is not None and quantity != "credit":
                raise LeaseExhausted("a clearing granted its room to others: its data has to move")
            raise _refusal(request.kind, quantity, credit)
        clearing = None if granting is None else granting.clearing
        lease = Lease(request=signed.raw, quantity=quantity, granted_ms=now_ms, clearing=clearing)
        entry = self._store.entry_of(
            "provider", sign(lease, self._node.key, self._node.network).raw, now_ms
        )
        try:
            self._store.add([entry])
        except XscError as fault:
            self._node.log.error("market.lease_not_kept", fault=repr(fault))
            raise NoOffers("the provider could not grant the lease") from fault
        self._forget_done(customer, now_ms)
        self._node.log.info(
            "market.lease_granted",
            kind=request.kind,
            customer=short(customer),
            quantity=quantity,
            price=request.price,
        )
        return entry.raw

    def _granted(
        self,
        request: LeaseRequest,
        granting: Entitlement | None,
        credit: int,
        renewed: LeaseEntry | None,
    ) -> int | room.Reason:
        """Return the quantity that a request is granted, or why it is refused."""
        kind, customer = request.kind, request.customer
        if granting is not None:
            free = left = self._headroom.left_of(granting, renewed)
        elif kind == "compute":
            if (
                request.price
                and self._headroom.credit_left(customer) + self._headroom.calls_micro(customer) <= 0
            ):
                return "credit"
            return request.quantity if self._headroom.free("compute") else "capacity"
        elif renewed is not None:
            free = left = self._headroom.renewable(renewed)
        else:
            free, left = self._headroom.free(kind), self._headroom.offered(kind, customer)
        return room.grant(request, credit, free=free, left=left)

    def _forget_done(self, customer: bytes, now_ms: int) -> None:
        """Forget a customer's oldest leases that are done, beyond LEASES_DONE_A_CUSTOMER_MAX."""
        done = [e for e in self._store.of("provider", customer) if is_done(e, now_ms)]
        for entry in done[: max(0, len(done) - LEASES_DONE_A_CUSTOMER_MAX)]:
            entry.use = rules.advance(entry.terms, entry.use, now_ms)
            self._store.forget(entry)

    # What comes under leases: storage asks before it writes, compute before it runs

    def reconcile(self, held: Mapping[bytes, int]) -> None:
        """Take over what the shard store holds under each lease, once it has started.

        Bodies are synced and uses are not: after a power loss, what is held decides.
        """
        for old, new in self._store.pairs("provider"):
            gone = old.use.held_bytes - held.get(old.terms.lease_id, 0)
            come = held.get(new.terms.lease_id, 0) - new.use.held_bytes
            self._move(old, new, min(gone, come))
        for entry in self._store.all("provider"):
            if entry.terms.kind != "storage":
                continue
            delta = held.get(entry.terms.lease_id, 0) - entry.use.held_bytes
            if delta:
                self._node.log.warning(
                    "market.use_reconciled", lease=short(entry.terms.lease_id), delta=delta
                )
                entry.use = rules.hold(entry.terms, entry.use, delta, self._clock.now_ms())
                self._store.save(entry)

    def end_ms(self, lease_id: bytes) -> int | None:
        """Return when a lease ends; None where it is not known."""
        entry = self._store.get("provider", lease_id)
        return None if entry is None else entry.terms.end_ms

    def admit(self, lease_id: bytes, customer: bytes, size_bytes: int) -> None:
        """Keep room under a lease for bytes that are being written, until `stored` is called.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without that room.
            CreditExceeded: the customer has reached its limit.
        """
        entry = self._open(lease_id, customer, "storage")
        self._headroom.check_credit(customer)
        now_ms = self._clock.now_ms()
        if size_bytes > rules.room(entry.terms, entry.use, now_ms) - entry.reserved:
            raise LeaseExhausted("the lease has no room for that", hint="take a further lease")
        reserved = rules.reserved(entry.terms, entry.use, now_ms)
        if not reserved and size_bytes > self._headroom.free("storage"):
            raise LeaseExhausted(
                "no room is kept for this lease any more, and none is free",
                hint="take a further lease, here or at another node",
            )
        entry.reserved += size_bytes

    def stored(self, lease_id: bytes, admitted_bytes: int, held_bytes: int) -> None:
        """Release the room for admitted bytes, and count those that are held now."""
        entry = self._store.get("provider", lease_id)
        if entry is not None:
            entry.reserved = max(0, entry.reserved - admitted_bytes)
        self.settle_use(lease_id, held_bytes)

    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        """Change the bytes held: more (+) that were stored, fewer (-) that were deleted."""
        if not delta_bytes:
            return
        entry = self._store.get("provider", lease_id)
        if entry is None:
            self._node.log.warning(
                "market.use_of_unknown_lease", lease=short(lease_id), delta=delta_bytes
            )
            return
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._store.keep(entry)

    def admit_renewal(self, old_id: bytes, new_id: bytes, customer: bytes, size_bytes: int) -> int:
        """Keep room for bytes that go over to the lease that renews theirs, until `renewed`.

        Returns:
            What of them has room there.

        Raises:
            LeaseExhausted: no such leases of that customer, or the second is over.
        """
        new = self._open(new_id, customer, "storage")
        if new.terms.renews != old_id:
            raise LeaseExhausted("that lease does not renew the other")
        size = max(0, min(size_bytes, rules.room_left(new.terms, new.use) - new.reserved))
        new.reserved += size
        return size

    def renewed(self, old_id: bytes, new_id: bytes, admitted_bytes: int, moved_bytes: int) -> None:
        """Release the room for admitted bytes, and count those that went over."""
        old, new = (
            self._store.get("provider", old_id),
            self._store.get("provider", new_id),
        )
        if old is None or new is None:
            return
        new.reserved = max(0, new.reserved - admitted_bytes)
        self._move(old, new, moved_bytes)

    def _move(self, old: LeaseEntry, new: LeaseEntry, size_bytes: int) -> None:
        now_ms = self._clock.now_ms()
        if size_bytes > 0:
            old.use, new.use = rules.moved(
                (old.terms, old.use),
                (new.terms, new.use),
                size_bytes,
                now_ms,
                free=self._headroom.unreserved("storage"),
            )
            self._store.keep(old, new)

    async def keep_renewal(self, old_id: bytes, new_id: bytes) -> None:
        """Have what went over on the disk: the customer is told of it, and counts by that."""
        found = [self._store.get("provider", lease_id) for lease_id in (old_id, new_id)]
        await self._store.sync(*(entry for entry in found if entry is not None))

    def compute_terms(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> RunTerms:
        """Return the terms of a run that may be billed so much; `admit_compute` comes next.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or never of so many steps.
            CreditExceeded: the customer has reached its limit, or has not so much credit.
        """
        entry = self._open(lease_id, customer, "compute")
        self._check(entry, fuel_steps)
        terms = entry.terms
        tier = "mutual" if customer == self._node.id else self._ports.standing.tier(customer)
        return RunTerms(rules.run_price(terms), tier, cleared=terms.cleared)

    async def admit_compute(
        self, lease_id: bytes, customer: bytes, fuel_steps: int, wait_ms: int
    ) -> None:
        """Reserve steps under a lease; `compute_terms` has named its terms.

        It waits until what the run may cost is within the customer's credit, beside its other
        calls, and its steps within the lease: within the rate where that is cleared.

        Raises:
            LeaseExhausted: others have used what the lease was for.
            CreditExceeded: the customer has reached its limit, or has not so much credit.
            RateLimited: its other calls did not end in time, or too many of them wait, or of all.
        """
        entry = self._still(lease_id)
        await self._lines.enter(
            customer,
            lambda: self._has_room(lease_id, fuel_steps),
            wait_ms,
            line=lease_id if entry.terms.cleared else b"",
        )
        self._still(lease_id).reserved += fuel_steps

    def _still(self, lease_id: bytes) -> LeaseEntry:
        """Return a lease under which a call has waited.

        Raises:
            LeaseExhausted: it was settled and forgotten meanwhile, so nothing can be billed.
        """
        entry = self._store.get("provider", lease_id)
        if entry is None:
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        return entry

    def _has_room(self, lease_id: bytes, fuel_steps: int) -> bool:
        """Return whether a run fits beside those of its customer that wait or are under way."""
        entry = self._still(lease_id)
        others_micro = self._check(entry, fuel_steps)
        room = rules.room(entry.terms, entry.use, self._clock.now_ms())
        if fuel_steps > room - entry.reserved:
            return False
        return (
            others_micro is None or self._headroom.calls_micro(entry.terms.customer) <= others_micro
        )

    def _check(self, entry: LeaseEntry, fuel_steps: int) -> int | None:
        """Return what other calls may cost beside a run; None where it costs nothing itself.

        Raises:
            LeaseExhausted, CreditExceeded: it can never be admitted.
        """
        customer, terms, now_ms = entry.terms.customer, entry.terms, self._clock.now_ms()
        self._headroom.check_credit(customer)
        if terms.cleared and now_ms < terms.start_ms:
            raise LeaseExhausted("the lease has not begun")
        if terms.cleared and rules.is_over(terms, entry.use, now_ms):
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        if terms.cleared and entry.use.lapsed:
            raise LeaseExhausted("its rate was released while debts were at their limit")
        most = entry.use.level if terms.cleared else rules.room(terms, entry.use, now_ms)
        if fuel_steps > most:
            raise LeaseExhausted("the lease is not for so much fuel", hint="take a new lease")
        cost = compute_amount(rules.run_price(terms), fuel_steps)
        if not cost:
            return None
        left = self._headroom.credit_left(customer) + self._headroom.calls_micro(customer)
        if cost > left:
            raise CreditExceeded(
                f"this call may cost {format_credits(cost)}, and no more than "
                f"{format_credits(max(0, left))} may still be owed here",
                hint="give it less with --fuel and --memory, or settle what is owed",
            )
        return left - cost

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Release reserved steps, and bill those that were used as their receipt does."""
        entry = self._store.get("provider", lease_id)
        if entry is None:
            self._node.log.warning(
                "market.use_of_unknown_lease", lease=short(lease_id), steps=used_steps
            )
            return
        entry.reserved = max(0, entry.reserved - reserved_steps)
        entry.use = rules.spend(entry.terms, entry.use, used_steps, self._clock.now_ms())
        self._store.keep(entry)
        self._lines.wake()

    def _open(self, lease_id: bytes, customer: bytes, kind: Kind) -> LeaseEntry:
        entry = self._store.get("provider", lease_id)
        if entry is None or entry.terms.customer != customer or entry.terms.kind != kind:
            raise LeaseExhausted("this customer has no such lease here")
        if rules.is_over(entry.terms, entry.use, self._clock.now_ms()):
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        return entry


def _kind(header: dict[str, Value]) -> Kind:
    text = take_str(header, "kind")
    for kind in KINDS:
        if text == kind:
            return kind
    raise RecordInvalid("the field 'kind' must be 'storage' or 'compute'")


def _refusal(kind: Kind, reason: room.Reason, credit_left_micro: int) -> XscError:
    """Return why a request was not granted, as its customer is told."""
    if reason == "credit":
        return CreditExceeded(
            f"the lease could come to cost more than {format_credits(max(0, credit_left_micro))}, "
            "which is what this node may still owe there, its leases counted",
            hint="settle what is owed, or ask the provider for a higher limit",
        )
    if reason == "share":
        return EXHAUSTED[kind](
            f"the lease would pass the share of free {kind} that this node may reserve there",
            hint="use what is reserved, ask for less at a time, or ask the provider's operator "
            "to recognise this node: `xsc peer recognise`",
        )
    return EXHAUSTED[kind](f"too little {kind} is left for this lease")
