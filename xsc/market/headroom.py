"""What this node has left to lease, and what it asks for it."""

from __future__ import annotations

from dataclasses import replace

from xsc.base.errors import NoOffers
from xsc.base.limits import COMPUTE_LEASE_MS, PRICES_POSTED_MS
from xsc.identity.context import Context
from xsc.market import room
from xsc.market.calendar import EVER_MS, free_over
from xsc.market.credit_limits import CreditLimits
from xsc.market.entitlements import LEASE_UNIT, is_present, promises, slot_left, undrawn
from xsc.market.keeping import room_left
from xsc.market.lease_entry import LeaseEntry, held_or_kept
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import Ladder, MarketPricing, utilisation_ppm
from xsc.terms.quote import Draw, Kind
from xsc.terms.slot import Entitlement, EntitlementKey


class Headroom:
    """Measures what is neither used nor reserved, in all and for one customer."""

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        settings: MarketSettings,
        store: LeaseStore,
        limits: CreditLimits,
    ) -> None:
        self._clock = context.clock
        self._store = store
        self._capacity = ports.capacity
        self._standing = ports.standing
        self._limits = limits
        self._prices = settings.prices
        self._entitlements = ports.granted
        self._posted: tuple[MarketPricing, int] | None = None
        """The posted prices, and since when."""

    def free(self, kind: Kind) -> int:
        """Return what is neither used nor promised, for as long as new use can last."""
        return self._free(kind, None)[0]

    def pricing(self) -> MarketPricing:
        """Return this node's posted prices: at a utilisation of within PRICES_POSTED_MS.

        They stand for so long, so that what a customer was told is what it is asked.
        """
        now_ms = self._clock.monotonic_ms()
        if self._posted is None or now_ms - self._posted[1] >= PRICES_POSTED_MS:
            free_bytes, free_steps = self.free("storage"), self.free("compute")
            pricing = MarketPricing(
                self._prices,
                utilisation_ppm(free_bytes, self._capacity.storage_capacity_bytes()),
                utilisation_ppm(free_steps, self._capacity.compute_capacity_steps()),
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
            for each in self._entitlements()
            if each.kind == kind and each.window[0] <= now_ms < each.window[1]
        ]
        return replace(posted, reserve=max([posted.reserve, *cleared]))

    def room(self) -> room.FreeRoom:
        """Return what storage is free and what each customer has reserved."""
        free, reserved = self._free("storage", None)
        tier = self._standing.tier
        strangers = frozenset(customer for customer in reserved if tier(customer) == "open")
        return room.FreeRoom(free, reserved, strangers)

    def entitled(
        self, kind: Kind, customer: bytes, draw: Draw, renewed: LeaseEntry | None = None
    ) -> tuple[Entitlement, int]:
        """Return the entitlement that a customer names, and what it can draw of it now.

        What a lease has that is renewed by the one that draws counts as free.

        Raises:
            NoOffers: the customer has none of that name, kind and time.
        """
        now_ms = self._clock.now_ms()
        for each in self._entitlements():
            if (each.customer, each.kind, each.draw) == (customer, kind, draw) and is_present(
                each, now_ms
            ):
                drawn, has = self._drawn(), 0 if renewed is None else self._goes_over(renewed)
                if renewed is not None and (key := self._store.counts_for(renewed)) in drawn:
                    drawn[key] = max(0, drawn[key] - has)
                left = min(undrawn(each, drawn), slot_left(each, drawn))
                # It is kept free; the disk can have less than was promised all the same.
                return each, min(left, self._free(kind, each)[0] + has)
        raise NoOffers("this node has no such entitlement here, or none any more")

    def _goes_over(self, renewed: LeaseEntry) -> int:
        """Return what a lease has that can go over to another one beside those that renew it."""
        now_ms = self._clock.now_ms()
        promised = sum(
            room_left(entry.terms, entry.use)
            for entry in self._store.of("provider", renewed.terms.customer)
            if entry.terms.renews == renewed.terms.lease_id
            and entry.terms.cleared
            and not entry.is_over(now_ms)
        )
        return max(0, held_or_kept(renewed, now_ms) - promised)

    def offered(self, kind: Kind, customer: bytes) -> int:
        """Return what a customer may still reserve of its share; of compute, the rate that is left.

        Of a rate nothing is reserved for now: calls wait for each other.
        """
        if kind == "compute":
            return self.free("compute")
        return room.left(self.room(), customer, self._standing.tier(customer))

    def cleared_workers(self, workers: int) -> int:
        """Return how many whole workers the cleared rates come to, of so many."""
        capacity = self._capacity.compute_capacity_steps()
        now_ms = self._clock.now_ms()
        _, cleared = self._store.reserved.at("compute", self._limits.at_limit, now_ms)
        return min(workers, cleared * workers // capacity) if capacity else 0

    def unreserved(self) -> dict[Kind, int]:
        """Return what slots can grant, beside what was drawn of them."""
        return {
            "storage": self._unreserved("storage")[0],
            "compute": self._unreserved("compute")[0],
        }

    def drawn_steps(self, *, young: bool = False) -> dict[EntitlementKey, int]:
        """Return the steps that leases have of each entitlement, rounded up.

        Args:
            young: only of leases that are not cleared again yet.
        """
        now_ms, at_limit = self._clock.now_ms(), self._limits.at_limit
        return self._store.drawn_steps("provider", now_ms, at_limit=at_limit, young=young)

    def _drawn(self) -> dict[EntitlementKey, int]:
        now_ms, at_limit = self._clock.now_ms(), self._limits.at_limit
        return self._store.drawn("provider", now_ms, at_limit=at_limit)

    def renewable(self, entry: LeaseEntry) -> int:
        """Return the bytes for which a lease is renewed for now: nobody else was granted them.

        That is what its need is granted now beside its young leases; or all of it, where no grant
        waits for room. Never more than it has: what it gave up others may have.
        """
        now_ms = self._clock.now_ms()
        has = held_or_kept(entry, now_ms)
        drawn, granted = self._drawn(), self._entitlements()
        waiting = promises(granted, "storage", drawn, now_ms)
        is_free = sum(promise.quantity for promise in waiting) <= self._unreserved("storage")[0]
        if is_free and all(undrawn(each, drawn) <= slot_left(each, drawn) for each in granted):
            return has
        young = self.drawn_steps(young=True)
        granted_bytes = sum(
            (each.quantity - young.get(each.key, 0)) * LEASE_UNIT["storage"]
            for each in granted
            if each.key == self._store.counts_for(entry)
        )
        return min(has, granted_bytes)

    def _free(self, kind: Kind, beside: Entitlement | None) -> tuple[int, dict[bytes, int]]:
        """Return what is neither used nor promised, and what customers reserved."""
        now_ms = self._clock.now_ms()
        free, reserved = self._unreserved(kind)
        granted = [each for each in self._entitlements() if each.until_ms > now_ms]
        if granted:
            drawn = self._drawn()
            kept = promises(granted, kind, drawn, now_ms, beside=beside)
            end_ms = EVER_MS if kind == "storage" else now_ms + COMPUTE_LEASE_MS
            free = free_over(free, kept, now_ms, end_ms)
        return free, reserved

    def _unreserved(self, kind: Kind) -> tuple[int, dict[bytes, int]]:
        """Return what is neither used nor reserved under leases, and what customers reserved."""
        reserved, entitled = self._store.reserved.at(
            kind, self._limits.at_limit, self._clock.now_ms()
        )
        if kind == "storage":
            free = self._capacity.storage_free_bytes()
        else:
            free = self._capacity.compute_steps_free()
        return max(0, free - entitled - sum(reserved.values())), reserved
