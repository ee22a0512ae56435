"""What this node has left to lease, what it asks for that, and what its customers may still owe.

Levels add up over any moment: free is the capacity less what is held, what is kept free for leases,
and what clearings offer while it can be taken. A lease for now keeps nothing free: its customer is
served while there is room, and what its calls may cost is bounded when they come (`granter`).

A customer counts together with the peers that share its credit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from xsc.base import errors, ids, units
from xsc.market.account import owed_micro
from xsc.market.lease import LeaseEntry, advance, ahead_micro, drawn, key_of, least_level, run_price
from xsc.market.lease_store import MarketNode, MarketPart
from xsc.market.pricing import MarketPricing, utilisation_ppm
from xsc.terms import lease, quote
from xsc.terms.pricing import compute_amount
from xsc.terms.slot import STEP, Entitlement, EntitlementKey


def is_present(offer: Entitlement, now_ms: int) -> bool:
    """Return whether a lease can be taken on an offer now: only then it holds its room."""
    return offer.window[0] <= now_ms < offer.until_ms


def undrawn(offer: Entitlement, drawn: Mapping[EntitlementKey, int]) -> int:
    """Return what can still be leased of an offer: bytes, or fuel steps a second."""
    return max(0, offer.quantity * STEP[offer.kind] - drawn.get(offer.key, 0))


def slot_left(offer: Entitlement, drawn: Mapping[EntitlementKey, int]) -> int:
    """Return what no lease has of the slot."""
    taken = sum(level for key, level in drawn.items() if key[:2] == offer.key[:2])
    return max(0, offer.slot_quantity * STEP[offer.kind] - taken)


def is_named(offer: Entitlement, request: lease.LeaseRequest) -> bool:
    """Return whether a request is for what a clearing granted."""
    named = key_of(request, request.need or b""), request.window, request.tier
    return (offer.key, offer.window, offer.tier) == named


class Headroom(MarketPart):
    """Measures what is neither used nor reserved, in all and for one customer, and its credit."""

    def __init__(self, node: MarketNode) -> None:
        super().__init__(node)
        self.at_limit: frozenset[bytes] = frozenset()
        """Customers that may come to owe nothing more, as of the last `refresh`."""

    def unreserved(self, kind: quote.Kind) -> int:
        """Return what is neither used nor kept for leases: slots can grant it."""
        return max(0, self._ports.capacity.free(kind) - self._store.kept(kind))

    def free(self, kind: quote.Kind) -> int:
        """Return what of that no clearing offers now."""
        present, now_ms = self._present(kind), self._clock.now_ms()
        taken = Counter[EntitlementKey]()
        for customer in {each.customer for each in present}:
            for entry in self._store.of("provider", customer):
                taken[self._store.key(entry)] += drawn(entry, now_ms)
        waiting = sum(undrawn(each, taken) for each in present)
        return max(0, self.unreserved(kind) - waiting)

    def pricing(self) -> MarketPricing:
        """Return what this node asks at its present utilisation; what it has posted stands."""
        level = self._ports.capacity.level
        used = (utilisation_ppm(self.unreserved(kind), level(kind)) for kind in quote.KINDS)
        return MarketPricing(self._node.settings.prices, *used)

    def entitled(self, request: lease.LeaseRequest) -> tuple[Entitlement, int]:
        """Return what a clearing offers that a request names, and what can be leased of it now.

        That is in whole steps of slots.

        Raises:
            NoOffers: nothing of that name, kind and tier.
        """
        for each in self._present(request.kind):
            if is_named(each, request):
                levels = self._store.drawn("provider", self._clock.now_ms())
                # It is kept free; others can still hold some of it, or the disk have less.
                room = min(slot_left(each, levels), self.unreserved(each.kind))
                left = min(undrawn(each, levels), room)
                return each, left - left % STEP[each.kind]
        raise errors.NoOffers("this node has no such entitlement here, or none any more")

    def cleared_workers(self, workers: int) -> int:
        """Return how many whole workers the cleared rates come to, of so many."""
        capacity = self._ports.capacity.level("compute")
        return min(workers, self._store.kept("compute") * workers // capacity) if capacity else 0

    def drawn_steps(self, *, young: bool = False) -> dict[EntitlementKey, int]:
        """Return the steps that leases have of each entitlement, rounded up.

        Args:
            young: only of leases that are not cleared again yet.
        """
        return self._store.drawn_steps("provider", self._clock.now_ms(), young=young)

    def _present(self, kind: quote.Kind) -> list[Entitlement]:
        """Return the offers of a kind that hold their room now."""
        now_ms = self._clock.now_ms()
        return [e for e in self._ports.granted() if e.kind == kind and is_present(e, now_ms)]

    def renewable(self, entry: LeaseEntry) -> tuple[int, Entitlement | None]:
        """Return the bytes for which a lease of storage is renewed, and what was granted for them.

        That is what a clearing grants its need beside the need's young leases; or all that it has,
        where no grant waits for room. Never more than it has: what it gave up others may have.
        """
        now_ms, key = self._clock.now_ms(), self._store.key(entry)
        levels = self._store.drawn("provider", now_ms)
        granted = [
            each
            for each in self._ports.granted()
            if each.kind == "storage" and each.window[0] <= now_ms < each.window[1]
        ]
        mine = [each for each in granted if each.key == key]
        grant = mine[0] if mine and entry.terms.cleared else None
        has = max(entry.use.held_bytes, entry.use.level)
        waiting = sum(undrawn(each, levels) for each in granted)
        # An offer of room that others still hold is made again each minute, until it lapses.
        if waiting <= self.unreserved("storage") and all(
            undrawn(each, levels) <= slot_left(each, levels) for each in granted
        ):
            return has, grant
        steps = sum(each.quantity for each in mine) - self.drawn_steps(young=True).get(key, 0)
        return max(0, min(has, steps * STEP["storage"])), grant

    # What customers may owe

    def credit_left(self, customer: bytes) -> int:
        """Return the micro-credits that a customer may still come to owe, its leases counted.

        What this node may lose to those that share its credit counts as well.
        """
        used = self._owed(customer) + self._ahead(customer) + self.calls_micro(customer)
        return self._ports.credit.credit_left(customer) - used

    def credit_among(self, customer: bytes, takers: set[bytes]) -> int:
        """Return an equal part of `credit_left` for each of the takers that share that credit.

        Args:
            customer: whose part, one of the takers.
            takers: all that take part.
        """
        sharing = takers.intersection(self._ports.credit.shares_with(customer))
        return self.credit_left(customer) // len(sharing)

    def calls_micro(self, customer: bytes) -> int:
        """Return what the runs that wait or are under way may cost at most: their limits."""
        return sum(
            compute_amount(run_price(entry.terms), entry.reserved)
            for entry in self.sold_to(customer)
            if entry.terms.kind == "compute"
        )

    def check_credit(self, customer: bytes, more_micro: int, beside_micro: int = 0) -> int:
        """Return what a customer may still come to owe beside new work, or refuse that work.

        Args:
            customer: whose work it is.
            more_micro: what it adds to what may come to be owed.
            beside_micro: what it can wait for of that: the limits of other calls.

        Raises:
            CreditExceeded: the customer has reached its limit, or would pass it.
        """
        left = max(0, self.credit_left(customer) + beside_micro)
        if customer in self.at_limit or more_micro > left:
            credit = max(0, self._ports.credit.credit_left(customer))
            ahead = self._ahead(customer) + self.calls_micro(customer) - beside_micro
            raise errors.CreditExceeded(
                f"this may cost {units.format_credits(more_micro)}, and no more than "
                f"{units.format_credits(left)} may still come to be owed here: of "
                f"{units.format_credits(credit)}, {units.format_credits(self._owed(customer))} are "
                f"not settled, and {units.format_credits(ahead)} are kept for leases and runs",
                hint="settle what is owed, ask the provider for a higher limit, or give a call "
                "less with --fuel and --memory",
            )
        return left - more_micro

    def _ahead(self, customer: bytes) -> int:
        """Return what leases of a customer, and of those that share its credit, may cost yet."""
        now_ms = self._clock.now_ms()
        return sum(ahead_micro(entry, now_ms) for entry in self.sold_to(customer))

    def _owed(self, customer: bytes) -> int:
        """Return what a customer, and those that share its credit, owe and have not settled."""
        store, now_ms = self._store, self._clock.now_ms()
        return sum(
            owed_micro(store.account("provider", other), store.of("provider", other), now_ms)
            for other in self._ports.credit.shares_with(customer)
        )

    def sold_to(self, customer: bytes) -> Sequence[LeaseEntry]:
        """Return the leases whose debts count together with a customer's."""
        return [
            entry
            for other in self._ports.credit.shares_with(customer)
            for entry in self._store.of("provider", other)
        ]

    def refresh(self) -> None:
        """Find the customers that have reached their limit, and log which are new or gone.

        What they do not use of cleared leases is taken back for good, and billed no further: once
        they paid, clearings grant them room anew.
        """
        before, store, credit = self.at_limit, self._store, self._ports.credit
        now_ms, owed = self._clock.now_ms(), Counter[bytes]()
        for account in store.accounts("provider"):
            owed[account.peer] = owed_micro(account, store.of("provider", account.peer), now_ms)
        paying = {entry.peer for entry in store.all("provider") if entry.terms.price}
        self.at_limit = frozenset(
            peer
            for peer in owed
            if not paying.isdisjoint(sharing := credit.shares_with(peer))
            and sum(owed[each] for each in sharing) >= credit.credit_left(peer)
        )
        for customer in sorted(self.at_limit - before):
            self._node.log.warning(
                "market.customer_at_limit",
                customer=ids.short(customer),
                owed_micro=self._owed(customer),
                credit_left_micro=self._ports.credit.credit_left(customer),
            )
        for customer in sorted(before - self.at_limit):
            self._node.log.info("market.customer_within_limit", customer=ids.short(customer))
        changed = []
        for entry in store.all("provider"):
            least = least_level(entry.terms, entry.use, entry.reserved, now_ms)
            if entry.peer in self.at_limit and entry.use.level > least:
                entry.use = replace(advance(entry.terms, entry.use, now_ms), level=least)
                changed.append(entry)
        store.save(*changed)
