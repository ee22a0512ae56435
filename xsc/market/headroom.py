"""What this node has left to lease, and what it asks for it."""

from __future__ import annotations

from xsc.identity.context import Context
from xsc.market import room
from xsc.market.credit_limits import CreditLimits
from xsc.market.lease_entry import reserved_by_customer
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import MarketPricing, utilisation_ppm
from xsc.terms.quote import Kind


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

    def free(self, kind: Kind) -> int:
        """Return what is neither used nor reserved: bytes, or fuel steps."""
        return self._unpromised(kind, self._reserved(kind))

    def pricing(self) -> MarketPricing:
        """Return this node's prices at its present utilisation."""
        return MarketPricing(
            self._prices,
            utilisation_ppm(self.free("storage"), self._capacity.storage_capacity_bytes()),
            utilisation_ppm(self.free("compute"), self._capacity.compute_capacity_steps()),
        )

    def room(self, kind: Kind) -> room.FreeRoom:
        """Return what is free and what each customer has reserved."""
        reserved = self._reserved(kind)
        tier = self._standing.tier
        strangers = frozenset(customer for customer in reserved if tier(customer) == "open")
        return room.FreeRoom(kind, self._unpromised(kind, reserved), reserved, strangers)

    def offered(self, kind: Kind, customer: bytes) -> int:
        """Return what a customer may still reserve."""
        return room.left(self.room(kind), customer, self._standing.tier(customer))

    def _reserved(self, kind: Kind) -> dict[bytes, int]:
        entries, now_ms = self._store.all("provider"), self._clock.now_ms()
        return reserved_by_customer(entries, kind, self._limits.at_limit, now_ms)

    def _unpromised(self, kind: Kind, reserved: dict[bytes, int]) -> int:
        if kind == "storage":
            free = self._capacity.storage_free_bytes()
        else:
            free = self._capacity.compute_steps_free()
        return max(0, free - sum(reserved.values()))
