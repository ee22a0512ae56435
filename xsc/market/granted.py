"""The leases that this node granted: admits work under them and counts what is used.

The shard store and the job executor ask before they take anything, and report what
became of it. Use is kept unsynced; after a power loss the shard store says what is held.
"""

from __future__ import annotations

from collections.abc import Mapping

from xsc.base.errors import LeaseExhausted, SpaceExhausted
from xsc.base.ids import short
from xsc.identity.context import Context
from xsc.market import lease as rules
from xsc.market.credit_limits import CreditLimits
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import LeaseStore
from xsc.terms.lease import OWN_LEASE
from xsc.terms.pricing import compute_amount
from xsc.terms.quote import Kind


class GrantedLeases:
    """Implements the ports of providers: storage's `Leases`, compute's `ServiceBook`."""

    def __init__(
        self, context: Context, store: LeaseStore, limits: CreditLimits, headroom: Headroom
    ) -> None:
        self._own = context.key.node_id
        self._clock = context.clock
        self._log = context.log
        self._store = store
        self._limits = limits
        self._headroom = headroom

    def reconcile(self, held: Mapping[bytes, int]) -> None:
        """Take over what the shard store holds under each lease, once it has started.

        Bodies are synced and uses are not: after a power loss, what is held decides.
        """
        for entry in self._store.all("provider"):
            if entry.terms.kind != "storage":
                continue
            delta = held.get(entry.terms.lease_id, 0) - entry.use.held_bytes
            if delta:
                self._log.warning(
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
            SpaceExhausted: the own node has promised its room to others.
        """
        if lease_id == OWN_LEASE:
            if customer != self._own:
                raise LeaseExhausted("only the node itself stores without a lease")
            if size_bytes > self._headroom.free("storage"):
                raise SpaceExhausted("this node has no room left that is not promised")
            return
        entry = self._open(lease_id, customer, "storage")
        self._limits.check(customer)
        now_ms = self._clock.now_ms()
        if size_bytes > rules.room(entry.terms, entry.use, now_ms) - entry.reserved:
            raise LeaseExhausted("the lease has no room for that", hint="take a further lease")
        reserved = rules.reserved(entry.terms, entry.use, now_ms)
        if not reserved and size_bytes > self._headroom.free("storage"):
            raise LeaseExhausted(
                "the room of this lease was not used in time and is no longer free",
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
        if lease_id == OWN_LEASE or not delta_bytes:
            return
        entry = self._store.get("provider", lease_id)
        if entry is None:
            self._log.warning(
                "market.use_of_unknown_lease", lease=short(lease_id), delta=delta_bytes
            )
            return
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._store.keep(entry)

    def admit_compute(self, lease_id: bytes, customer: bytes, fuel_steps: int) -> int:
        """Reserve steps under a lease and return its price a Gfuel; 0 for the own node.

        Raises:
            LeaseExhausted: no such lease of that customer, over, or without those steps.
            CreditExceeded: the customer has reached its limit.
        """
        if lease_id == OWN_LEASE:
            if customer != self._own:
                raise LeaseExhausted("only the node itself runs without a lease")
            return 0
        entry = self._open(lease_id, customer, "compute")
        self._limits.check(customer)
        room = rules.room(entry.terms, entry.use, self._clock.now_ms())
        if fuel_steps > room - entry.reserved:
            raise LeaseExhausted("the lease has no fuel left for that", hint="take a new lease")
        entry.reserved += fuel_steps
        return rules.run_price(entry.terms)

    def used_compute(self, lease_id: bytes, reserved_steps: int, used_steps: int) -> None:
        """Release reserved steps, and bill those that were used as their receipt does."""
        if lease_id == OWN_LEASE:
            return
        entry = self._store.get("provider", lease_id)
        if entry is None:
            self._log.warning(
                "market.use_of_unknown_lease", lease=short(lease_id), steps=used_steps
            )
            return
        entry.reserved = max(0, entry.reserved - reserved_steps)
        amount = compute_amount(entry.terms.price, used_steps)
        now_ms = self._clock.now_ms()
        entry.use = rules.spend(entry.terms, entry.use, used_steps, amount, now_ms)
        self._store.keep(entry)

    def _open(self, lease_id: bytes, customer: bytes, kind: Kind) -> LeaseEntry:
        entry = self._store.get("provider", lease_id)
        if entry is None or entry.terms.customer != customer or entry.terms.kind != kind:
            raise LeaseExhausted("this customer has no such lease here")
        if rules.is_over(entry.terms, entry.use, self._clock.now_ms()):
            raise LeaseExhausted("the lease is over", hint="take a new lease")
        return entry
