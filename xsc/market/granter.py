"""The provider's side of leases: grants them, admits work under them and counts what is used.

A request is granted when it comes: on the entitlement that it names, or for now at what this node's
published slots ask. A lease is on the disk before it is answered. The rules are in `lease`.

The shard store and the job executor ask before they take anything, and report what became of it.
Use is kept unsynced; after a power loss the shard store says what is held.
"""

from __future__ import annotations

from collections.abc import Mapping

from xsc.base import fields, limits, units
from xsc.base.errors import LeaseExhausted, NoOffers, NotAllowed, RateLimited, RecordInvalid
from xsc.base.ids import short
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.envelope import open_signed, sign
from xsc.market import lease as rules
from xsc.market import lease_store, proof, waiting
from xsc.market.headroom import Headroom, is_named
from xsc.market.lease import LeaseEntry, ahead_micro, is_done, kept_free
from xsc.market.ports import EXHAUSTED
from xsc.terms import pricing, slot
from xsc.terms.lease import Lease, LeaseRequest, RunTerms
from xsc.terms.pricing import Quote
from xsc.terms.quote import Kind


class LeaseGranter(lease_store.MarketPart):
    """Grants leases to customers, and counts what is used under them.

    Implements the ports of providers: storage's `Leases`, compute's `ServiceBook`.
    """

    def __init__(self, node: lease_store.MarketNode, headroom: Headroom) -> None:
        super().__init__(node)
        self._headroom = headroom
        self._lines = waiting.WaitingLines(
            node.clock, most=limits.JOBS_QUEUED_MAX, each=limits.JOBS_QUEUED_A_PEER_MAX
        )

    async def on_lease(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Grant a request; the same request gets the same lease.

        A request with the id of a lease renews that. Before it is time to, the answer is the
        present lease: one that renewed it may have been lost.
        """
        network, now_ms = self._node.network, self._clock.now_ms()
        raw, least = fields.take_bytes(header, "request"), fields.take_int(header, "least")
        request = open_signed(raw, LeaseRequest, network=network, author=caller).record
        if (request.provider, request.customer) != (self._node.id, caller):
            raise RecordInvalid("the request is between other nodes")
        if not request.cleared and self._offer(request) is None:
            # It may have recognised this node a moment ago, and know so before this node does.
            await self._ports.standing.learn([caller], anew=True)
        known = self._store.get("provider", request.lease_id)
        if known is not None and known.terms.customer == caller:
            is_early = rules.is_young(known.terms, now_ms + limits.REQUEST_WINDOW_MS)
            if known.terms == request or is_early:
                return {"lease": known.raw}, ()
        if known is None and request.renews:
            raise LeaseExhausted("this node does not know the lease that is to be renewed")
        if known is None:
            level, clearing = self._granted(request, least)
        else:
            level, clearing = self._renewal(request, known)
        lease = Lease(request=raw, level=level, clearing=clearing)
        signed_lease = sign(lease, self._node.key, network).raw
        self._store.add(self._store.entry_of("provider", signed_lease))
        self._node.log.info(
            "market.lease_granted",
            kind=request.kind,
            customer=short(caller),
            granted=level,
            price=request.price,
            renewed=known is not None,
        )
        return {"lease": signed_lease}, ()

    def _granted(self, request: LeaseRequest, least: int) -> tuple[int, bytes | None]:
        """Return the level that a request for a new lease is granted, and by which clearing.

        Raises:
            XscError: the first thing that is wrong with it, or nothing useful can be granted.
        """
        kind, customer, now_ms = request.kind, request.customer, self._clock.now_ms()
        if self._store.get("customer", request.lease_id) is not None:
            raise RecordInvalid("the lease id was used before")
        # Who shares a credit shares these bounds, too: each look at that credit goes over all.
        leases = self._headroom.sold_to(customer)
        done = [entry for entry in leases if is_done(entry, now_ms)]
        for entry in done[: -limits.LEASES_DONE_A_CUSTOMER_MAX]:
            entry.use = rules.advance(entry.terms, entry.use, now_ms)
            self._store.forget(entry)
        if len(leases) - len(done) >= limits.LEASES_A_CUSTOMER_MAX:
            raise RateLimited(
                f"one customer may have {limits.LEASES_A_CUSTOMER_MAX} leases that are in use",
                hint="give back what is not needed: `xsc market leases`",
            )
        grades = map(self._ports.quality.grade, self._ports.credit.shares_with(customer))
        if "barred" in grades:
            raise NotAllowed(
                "this node has two entries that contradict each other, of your ledger or of one "
                "that shares its credit with you",
                hint="its operator sees them with `xsc health why`, and may lift that",
            )
        if self._is_demanded(customer):
            raise NotAllowed(
                "for a day this node has waited for a challenge, or to be paid for its answer: "
                "until then it grants nothing new",
                hint="have it prove what it holds: `xsc health challenge PEER`",
            )
        if not request.cleared:
            self._check_terms(request, self._asks(request))
            # Calls are bounded when they come, and bytes as well; some must fit now.
            some = max(1, least) if kind == "storage" else 1
            beside = self._headroom.calls_micro(customer) if kind == "compute" else 0
            self._check_credit(request, some, beside)
            if self._headroom.free(kind) < some:
                raise EXHAUSTED[kind](f"too little {kind} is left for this lease")
            return 0, None
        each, left = self._headroom.entitled(request)
        self._check_terms(request, each.price)
        if kind == "compute" and request.end_ms > each.window[1]:
            raise RecordInvalid("the lease ends after what was granted")
        level = min(request.level, left)
        if not level:
            raise EXHAUSTED[kind]("others still hold what was granted", hint="try again later")
        self._check_credit(request, level * pricing.SLOT_UNIT[kind] // slot.STEP[kind])
        return level, each.clearing

    def _renewal(self, request: LeaseRequest, known: LeaseEntry) -> tuple[int, bytes | None]:
        """Return the same for the next term of a lease: all that is held, or nothing.

        Raises:
            XscError: the first thing that is wrong with the request, or its room is others'.
        """
        now_ms, held = self._clock.now_ms(), known.use.held_bytes
        refusal = rules.check_renewal(request, known.terms, known.use, now_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)
        if self._node.id in self._ports.leaving():
            raise LeaseExhausted("this node is leaving the network and renews no lease")
        most, grant = self._headroom.renewable(known)
        if most < held:
            raise LeaseExhausted("a clearing granted its room to others: its data has to move")
        if grant is not None and not is_named(grant, request):
            raise NoOffers("this node has granted something else for what is held")
        self._check_terms(request, self._asks(request) if grant is None else grant.price)
        level = min(request.level, held if self._is_demanded(request.customer) else most)
        # What may still come to be owed under it goes over to its next term.
        self._check_credit(request, max(level, held), ahead_micro(known, now_ms))
        return level, None if grant is None else grant.clearing

    def _is_demanded(self, customer: bytes) -> bool:
        account = self._store.account("provider", customer)
        return proof.is_demanded(account, self._clock.monotonic_ms())

    def _check_credit(self, request: LeaseRequest, quantity: int, beside_micro: int = 0) -> None:
        """Refuse a request where an hour of so many bytes, or such fuel, is beyond the credit.

        Whatever has a price needs some credit.
        """
        cost = pricing.amount(request.kind, request.price, quantity)
        more_micro = max(1, cost) if request.price else 0
        self._headroom.check_credit(request.customer, more_micro, beside_micro)

    def _check_terms(self, request: LeaseRequest, price: int) -> None:
        if request.price < price:
            raise NoOffers(f"this node asks {price} now, and not {request.price}")
        longest_ms = self._node.settings.storage_lease_ms
        refusal = rules.check_request(request, self._clock.now_ms(), longest_ms)
        if refusal is not None:
            raise RecordInvalid(refusal)

    def _offer(self, request: LeaseRequest) -> Quote | None:
        """Return what this node offers a customer now, if that is what the request names."""
        offer = self._ports.standing.quote(request.kind, self._node.id, request.customer)
        named = request.slot, request.window, request.tier
        return offer if offer and (offer.slot, offer.window, offer.tier) == named else None

    def _asks(self, request: LeaseRequest) -> int:
        """Return what this node asks of a customer now for what it names.

        Raises:
            NoOffers: it offers it nothing, or another slot, or on another tier.
        """
        offer = self._offer(request)
        if offer is None:
            raise NoOffers(
                f"this node offers it no {request.kind} now, or another slot, or on another tier"
            )
        return offer.price

    # What comes under leases: storage asks before it writes, compute before it runs

    def reconcile(self, held: Mapping[bytes, int]) -> None:
        """Take over what the shard store holds under each lease, once it has started.

        Bodies are synced and uses are not: after a power loss, what is held decides.
        """
        for entry in self._store.all("provider"):
            delta = held.get(entry.id, 0) - entry.use.held_bytes
            if entry.terms.kind == "storage" and delta:
                self._node.log.warning("market.use_reconciled", lease=short(entry.id), delta=delta)
                self.settle_use(entry.id, delta)

    def end_ms(self, lease_id: bytes) -> int | None:
        """Return when a lease ends; None where it is not known."""
        entry = self._store.get("provider", lease_id)
        return None if entry is None else entry.terms.end_ms

    def price(self, lease_id: bytes) -> int:
        """Return the price under a lease; 0 where it is not known."""
        return self._store.price("provider", lease_id)

    def admit(self, lease_id: bytes, customer: bytes, size_bytes: int) -> None:
        """Keep room under a lease for bytes that are being written, until `stored` is called.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without that room.
            SpaceExhausted: none is kept for it, and none is free.
            CreditExceeded: the customer has reached its limit.
        """
        entry = self._open(lease_id, customer, "storage")
        cost = units.ceil_div(entry.terms.price * size_bytes, limits.PRICE_BYTES)
        self._headroom.check_credit(customer, cost)
        if size_bytes > rules.room(entry.terms, entry.use, self._clock.now_ms()) - entry.reserved:
            raise LeaseExhausted("the lease has no room for that", hint="take a further lease")
        if not kept_free(entry) and size_bytes > self._headroom.free("storage"):
            raise EXHAUSTED["storage"]("no room is kept for this lease, and none is free")
        entry.reserved += size_bytes

    def stored(self, lease_id: bytes, admitted_bytes: int, held_bytes: int) -> None:
        """Release the room for admitted bytes, and count those that are held now."""
        entry = self._store.get("provider", lease_id)
        if entry is not None:
            entry.reserved = max(0, entry.reserved - admitted_bytes)
        self.settle_use(lease_id, held_bytes)

    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        """Change the bytes held: more (+) that were stored, fewer (-) that were deleted."""
        entry = self._used(lease_id) if delta_bytes else None
        if entry is not None:
            entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
            self._store.keep(entry)

    def compute_terms(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> RunTerms:
        """Return the terms of a run that may be billed so much; `admit_compute` comes next.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or never of so many steps.
            CreditExceeded: the customer has reached its limit, or has not so much credit.
        """
        terms = self._open(lease_id, customer, "compute").terms
        self._has_room(lease_id, customer, fuel_steps)
        tier = "mutual" if customer == self._node.id else self._ports.standing.tier(customer)
        return RunTerms(rules.run_price(terms), tier, cleared=terms.cleared)

    async def admit_compute(
        self, lease_id: bytes, customer: bytes, fuel_steps: int, wait_ms: int
    ) -> None:
        """Reserve steps under a lease; `compute_terms` has named its terms.

        It waits until what the run may cost is within the customer's credit, beside its other
        calls, and its steps within the lease: within the rate where that is cleared.

        Raises:
            LeaseExhausted: the lease is over, or was settled and forgotten meanwhile.
            CreditExceeded: the customer has reached its limit, or has not so much credit.
            RateLimited: its other calls did not end in time, or too many of them wait, or of all.
        """
        entry = self._known(lease_id, customer, "compute")
        await self._lines.enter(
            customer,
            lambda: self._has_room(lease_id, customer, fuel_steps),
            wait_ms,
            line=lease_id if entry.terms.cleared else b"",
        )
        entry.reserved += fuel_steps

    def _has_room(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> bool:
        """Return whether a run fits beside those of its customer that wait or are under way.

        Raises:
            LeaseExhausted, CreditExceeded: it can never be admitted.
        """
        entry = self._known(lease_id, customer, "compute")
        if entry.terms.cleared:
            self._open(lease_id, customer, "compute")
            if fuel_steps > rules.run_most(entry.use):
                raise LeaseExhausted("the lease is not for so much fuel", hint="take a new lease")
        cost = pricing.compute_amount(rules.run_price(entry.terms), fuel_steps)
        calls_micro = self._headroom.calls_micro(customer)
        left = self._headroom.check_credit(customer, cost, calls_micro)
        room = rules.room(entry.terms, entry.use, self._clock.now_ms()) - entry.reserved
        return fuel_steps <= room and (not cost or calls_micro <= left)

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Release reserved steps, and bill those that were used as their receipt does."""
        entry = self._used(lease_id)
        if entry is not None:
            entry.reserved = max(0, entry.reserved - reserved_steps)
            entry.use = rules.spend(entry.terms, entry.use, used_steps, self._clock.now_ms())
            self._store.keep(entry)
            self._lines.wake()

    def _used(self, lease_id: bytes) -> LeaseEntry | None:
        entry = self._store.get("provider", lease_id)
        if entry is None:
            self._node.log.warning("market.use_of_unknown_lease", lease=short(lease_id))
        return entry

    def _known(self, lease_id: bytes, customer: bytes, kind: Kind) -> LeaseEntry:
        entry = self._store.get("provider", lease_id)
        if entry is None or entry.terms.customer != customer or entry.terms.kind != kind:
            raise LeaseExhausted("this customer has no such lease here", hint="take a new lease")
        return entry

    def _open(self, lease_id: bytes, customer: bytes, kind: Kind) -> LeaseEntry:
        entry = self._known(lease_id, customer, kind)
        if entry.is_over(self._clock.now_ms()):
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        return entry
