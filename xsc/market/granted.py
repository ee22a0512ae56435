"""The leases that this node granted: admits work under them and counts what is used.

The shard store and the job executor ask before they take anything, and report what
became of it. Use is kept unsynced; after a power loss the shard store says what is held.
"""

from __future__ import annotations

from collections.abc import Mapping

from xsc.base.errors import CreditExceeded, LeaseExhausted
from xsc.base.ids import short
from xsc.base.limits import JOBS_QUEUED_A_PEER_MAX, JOBS_QUEUED_MAX
from xsc.base.units import format_credits
from xsc.market import lease as rules
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry
from xsc.market.market_node import MarketNode
from xsc.market.waiting import WaitingLines
from xsc.terms.lease import RunTerms
from xsc.terms.pricing import compute_amount
from xsc.terms.quote import Kind


class GrantedLeases:
    """Implements the ports of providers: storage's `Leases`, compute's `ServiceBook`."""

    def __init__(self, node: MarketNode, headroom: Headroom) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._headroom = headroom
        self._lines: WaitingLines[bytes] = WaitingLines(
            node.clock, most=JOBS_QUEUED_MAX, each=JOBS_QUEUED_A_PEER_MAX
        )

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
                (old.terms, old.use), (new.terms, new.use), size_bytes, now_ms
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
        entry = self._store.get("provider", lease_id)
        if entry is None:
            return
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
