"""What this node has left to lease, what it asks for that, and what its customers may still owe.

A customer counts together with the peers that share its credit. The rules are in `room` and
`account`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from xsc.base.errors import CreditExceeded, NoOffers
from xsc.base.ids import short
from xsc.base.limits import PRICES_POSTED_MS
from xsc.base.units import format_credits
from xsc.market import lease as rules
from xsc.market import room
from xsc.market.account import owed_micro
from xsc.market.lease import LEVEL_UNIT
from xsc.market.lease_entry import LeaseEntry, ahead_micro, calls_micro
from xsc.market.lease_store import MarketNode
from xsc.market.pricing import MarketPricing, utilisation_ppm
from xsc.market.room import LEASE_UNIT, is_present, slot_left, undrawn
from xsc.terms.lease import Draw
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Kind
from xsc.terms.slot import Entitlement, EntitlementKey


class Headroom:
    """Measures what is neither used nor reserved, in all and for one customer, and its credit."""

    def __init__(self, node: MarketNode) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._posted: tuple[MarketPricing, int] | None = None
        """The posted prices, and since when."""
        self.at_limit: frozenset[bytes] = frozenset()
        """Customers that may come to owe nothing more, as of the last `refresh`."""

    def free(self, kind: Kind) -> int:
        """Return what is neither used nor under leases, nor offered now by a clearing."""
        present = self._present(kind)
        drawn = self._drawn() if present else {}
        return max(0, self.unreserved(kind) - sum(undrawn(each, drawn) for each in present))

    def pricing(self) -> MarketPricing:
        """Return this node's posted prices: at a utilisation of within PRICES_POSTED_MS.

        They stand for so long, so that what a customer was told is what it is asked.
        """
        now_ms = self._clock.monotonic_ms()
        if self._posted is None or now_ms - self._posted[1] >= PRICES_POSTED_MS:
            free_bytes, free_steps = self.free("storage"), self.free("compute")
            pricing = MarketPricing(
                self._node.settings.prices,
                utilisation_ppm(free_bytes, self._ports.capacity.storage_capacity_bytes()),
                utilisation_ppm(free_steps, self._ports.capacity.compute_capacity_steps()),
            )
            self._posted = pricing, now_ms
        return self._posted[0]

    def asked(self, kind: Kind) -> Ladder:
        """Return the prices that this node asks now.

        While needs compete for a slot, strangers are asked for now what its clearing costs.
        """
        posted, now_ms = self.pricing().ladder(kind), self._clock.now_ms()
        cleared = [
            each.price
            for each in self._ports.granted()
            if each.kind == kind and each.window[0] <= now_ms < each.window[1]
        ]
        return replace(posted, reserve=max([posted.reserve, *cleared]))

    def entitled(self, kind: Kind, customer: bytes, draw: Draw) -> Entitlement:
        """Return what a customer was granted and names.

        Raises:
            NoOffers: the customer has none of that name, kind and time.
        """
        for each in self._present(kind):
            if (each.customer, each.draw(draw.number)) == (customer, draw):
                return each
        raise NoOffers("this node has no such entitlement here, or none any more")

    def left_of(self, each: Entitlement, renewed: LeaseEntry | None) -> int:
        """Return what can be drawn of an entitlement now, in whole steps of slots.

        What a lease has that is renewed by the one that draws counts as free, and goes over in
        whole units of leases.
        """
        drawn, has = self._drawn(), 0
        if renewed is not None:
            has = self._goes_over(renewed)
            if (key := self._store.counts_for(renewed)) in drawn:
                drawn[key] = max(0, drawn[key] - has)
        # It is kept free; others can still hold some of it, or the disk have less.
        room = self.unreserved(each.kind) + has
        left = min(undrawn(each, drawn), slot_left(each, drawn), room)
        return left - left % (LEASE_UNIT if renewed is None else LEVEL_UNIT)[each.kind]

    def offered(self, kind: Kind, customer: bytes) -> int:
        """Return what a customer may still reserve of its share; of compute, the rate that is left.

        Of a rate nothing is reserved for now: calls wait for each other.
        """
        if kind == "compute":
            return self.free("compute")
        reserved, _ = self._store.reserved.at(kind, self._clock.now_ms())
        tier = self._ports.standing.tier
        strangers = frozenset(other for other in reserved if tier(other) == "open")
        free_room = room.FreeRoom(self.free(kind), reserved, strangers)
        return room.left(free_room, customer, tier(customer))

    def cleared_workers(self, workers: int) -> int:
        """Return how many whole workers the cleared rates come to, of so many."""
        capacity = self._ports.capacity.compute_capacity_steps()
        _, cleared = self._store.reserved.at("compute", self._clock.now_ms())
        return min(workers, cleared * workers // capacity) if capacity else 0

    def unreserved(self, kind: Kind) -> int:
        """Return what is neither used nor under leases: slots can grant it."""
        reserved, cleared = self._store.reserved.at(kind, self._clock.now_ms())
        capacity = self._ports.capacity
        free = capacity.storage_free_bytes if kind == "storage" else capacity.compute_steps_free
        return max(0, free() - cleared - sum(reserved.values()))

    def drawn_steps(self, *, young: bool = False) -> dict[EntitlementKey, int]:
        """Return the steps that leases have of each entitlement, rounded up.

        Args:
            young: only of leases that are not cleared again yet.
        """
        return self._store.drawn_steps("provider", self._clock.now_ms(), young=young)

    def _drawn(self) -> dict[EntitlementKey, int]:
        return self._store.drawn("provider", self._clock.now_ms())

    def _present(self, kind: Kind) -> list[Entitlement]:
        """Return the offers of a kind that hold their room now."""
        now_ms = self._clock.now_ms()
        return [e for e in self._ports.granted() if e.kind == kind and is_present(e, now_ms)]

    def renewable(self, entry: LeaseEntry) -> int:
        """Return the bytes for which a lease is renewed for now: nobody else was granted them.

        That is what its need is granted now beside its young leases and what others renew; or all
        of it, where no grant waits for room. Never more than it has: what it gave up others may
        have.
        """
        now_ms, drawn = self._clock.now_ms(), self._drawn()
        terms, use = entry.terms, entry.use
        has = use.held_bytes
        if not entry.is_over(now_ms) and not (terms.cleared and use.lapsed):
            has = max(has, use.level if terms.cleared else terms.quantity)
        # An offer of room that others still hold is made again each minute, until it lapses.
        granted = [
            each
            for each in self._ports.granted()
            if each.kind == "storage" and each.window[0] <= now_ms
        ]
        waiting = sum(undrawn(each, drawn) for each in granted)
        if waiting <= self.unreserved("storage") and all(
            undrawn(each, drawn) <= slot_left(each, drawn) for each in granted
        ):
            return has
        key, young = self._store.counts_for(entry), self.drawn_steps(young=True)
        steps = sum(each.quantity for each in granted if each.key == key) - young.get(key, 0)
        renewals = self._renewals(entry.terms.customer)
        to_come = sum(size for new, size in renewals if self._store.counts_for(new) == key)
        return max(0, min(has, steps * LEASE_UNIT["storage"] - to_come))

    def _goes_over(self, renewed: LeaseEntry) -> int:
        """Return what a lease has that can go over to another one beside those that renew it."""
        promised = sum(
            size
            for new, size in self._renewals(renewed.terms.customer)
            if new.terms.renews == renewed.terms.lease_id and new.terms.cleared
        )
        kept = rules.reserved(renewed.terms, renewed.use, self._clock.now_ms())
        return max(0, renewed.use.held_bytes + kept - promised)

    def _renewals(self, customer: bytes) -> Iterator[tuple[LeaseEntry, int]]:
        """Yield a customer's open leases that renew others, and what is still to go over."""
        for entry in self._store.of("provider", customer):
            if entry.terms.renews is not None and not entry.is_over(self._clock.now_ms()):
                yield entry, max(0, entry.terms.quantity - entry.use.held_bytes)

    # What customers may owe

    def exposure(self, customer: bytes) -> int:
        """Return what this node may lose to a customer and those that share its credit."""
        sold, now_ms = self._sold_to(customer), self._clock.now_ms()
        ahead = sum(ahead_micro(entry, now_ms) for entry in sold)
        return self._owed(customer) + ahead + calls_micro(sold)

    def credit_left(self, customer: bytes) -> int:
        """Return the micro-credits that a customer may still come to owe, its leases counted."""
        return self._ports.credit.credit_left(customer) - self.exposure(customer)

    def calls_micro(self, customer: bytes) -> int:
        """Return the part of it that is of calls, which wait or are under way."""
        return calls_micro(self._sold_to(customer))

    def shares_with(self, customer: bytes) -> Sequence[bytes]:
        """Return the customers that share one credit with a customer, itself among them."""
        return self._ports.credit.shares_with(customer)

    def check_credit(self, customer: bytes) -> None:
        """Refuse new work to a customer that had reached its limit at the last `refresh`.

        Raises:
            CreditExceeded: it had.
        """
        if customer in self.at_limit:
            owed = self._owed(customer)
            left = self._ports.credit.credit_left(customer)
            raise CreditExceeded(
                f"this node serves nothing more on credit: {format_credits(owed)} are not settled, "
                f"and {format_credits(max(0, left))} may still be owed here",
                hint="settle what is owed, or ask the provider for a higher limit",
            )

    def _owed(self, customer: bytes) -> int:
        """Return what a customer, and those that share its credit, owe and have not settled."""
        now_ms = self._clock.now_ms()
        return sum(
            owed_micro(
                self._store.account("provider", other),
                self._store.of("provider", other),
                now_ms,
            )
            for other in self._ports.credit.shares_with(customer)
        )

    def _sold_to(self, customer: bytes) -> Sequence[LeaseEntry]:
        """Return the leases whose debts count together with a customer's."""
        return [
            entry
            for other in self._ports.credit.shares_with(customer)
            for entry in self._store.of("provider", other)
        ]

    def refresh(self) -> None:
        """Find the customers that have reached their limit, and log which are new or gone.

        Nothing is kept free for these. Once they paid, a level is again that has room: meanwhile
        it may have been leased to others, and does not come back by itself.
        """
        before = self.at_limit
        self.at_limit = frozenset(
            account.peer
            for account in self._store.accounts("provider")
            if any(entry.terms.price for entry in self._sold_to(account.peer))
            and self._owed(account.peer) >= self._ports.credit.credit_left(account.peer)
        )
        for customer in sorted(self.at_limit - before):
            self._node.log.warning(
                "market.customer_at_limit",
                customer=short(customer),
                owed_micro=self._owed(customer),
                credit_left_micro=self._ports.credit.credit_left(customer),
            )
        for customer in sorted(before - self.at_limit):
            self._node.log.info("market.customer_within_limit", customer=short(customer))
        now_ms = self._clock.now_ms()
        for entry in self._store.all("provider"):
            terms, use = entry.terms, entry.use
            at_limit = entry.peer in self.at_limit
            if at_limit == use.lapsed or not (at_limit or terms.cleared):
                continue
            kept = rules.reserved(terms, replace(use, lapsed=False), now_ms)
            if kept if at_limit else kept <= self.free(terms.kind):
                entry.use = replace(use, lapsed=at_limit)
                self._store.save(entry)
