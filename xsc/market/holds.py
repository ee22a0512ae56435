"""Keeps the accounts of what is held undrawn, in both roles, as entitlements and leases change.

The provider counts what it grants, the customer what it was granted by a clearing record that it
has checked, and no more than its need allows. The arithmetic is in `hold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from xsc.base.limits import HOLD_TOLERANCE_MS, HOLDS_A_CUSTOMER_MAX
from xsc.identity.context import Context
from xsc.market import hold as holding
from xsc.market.entitlements import undrawn
from xsc.market.lease_entry import LeaseEntry, Role, is_done, tidied
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.terms.quote import Kind
from xsc.terms.slot import Entitlement


class Holds:
    """The accounts of undrawn entitlements of one node."""

    def __init__(self, context: Context, ports: MarketPorts, store: LeaseStore) -> None:
        self._clock = context.clock
        self._store = store
        self._settled: Callable[[bytes], int] = ports.credit.settled
        self._granted = ports.granted
        self._billed = ports.billed
        self._needs = ports.needs
        self._saved: dict[tuple[Role, bytes], int] = {}
        self._looked_ms = context.clock.now_ms()
        """When the customer last looked at what it was granted."""

    def start(self) -> None:
        """Leave out the time for which this node was down as a provider."""
        now_ms = self._clock.now_ms()
        for entry in self._store.holds("provider"):
            if entry.hold is not None:
                entry.hold = replace(entry.hold, counted_ms=max(now_ms, entry.hold.counted_ms))

    def tidy(self) -> None:
        """Count up to now, go on with what is unused now, and forget what is over and settled."""
        self._observe("provider", self._granted())
        now_ms = self._clock.now_ms()
        self._allow(now_ms)
        # Its provider signs when it granted: what the last look did not see was not held then.
        since_ms = max(self._looked_ms, now_ms - HOLD_TOLERANCE_MS)
        self._observe(
            "customer",
            [replace(e, granted_ms=max(e.granted_ms, since_ms)) for e in self._billed()],
        )
        self._looked_ms = now_ms
        self._bound()
        for entry in (*self._store.holds("customer"), *self._store.holds("provider")):
            if tidied(entry, now_ms)[1]:
                self._saved.pop((entry.role, entry.terms.lease_id), None)
                self._store.forget(entry)

    def is_full(self, customer: bytes) -> bool:
        """Return whether a customer has too many accounts that are not settled."""
        now_ms = self._clock.now_ms()
        return self._is_full("provider", customer, lambda entry: not is_done(entry, now_ms))

    def _is_full(self, role: Role, peer: bytes, counts: Callable[[LeaseEntry], bool]) -> bool:
        """Return whether the accounts with a peer that count are as many as there may be."""
        found = self._store.accounts_of(role, peer)
        held = sum(entry.hold is not None and counts(entry) for entry in found)
        return held >= HOLDS_A_CUSTOMER_MAX

    def _allow(self, now_ms: int) -> None:
        """Count what all needs allow up to now; a new one allows nothing before this look."""
        needs = {need.slot_id: need for need in self._needs()}
        held = {entry.hold.need for entry in self._store.holds("customer") if entry.hold}
        for gone in self._store.allowances.keys() - needs.keys() - held:
            self._store.forget_allowance(gone)
        for need in needs.values():
            if need.slot_id not in self._store.allowances:
                self._store.allow(holding.new_allowance(need, now_ms))
        for need_id, before in list(self._store.allowances.items()):
            self._store.allow(holding.allowed(before, needs.get(need_id), now_ms))

    def _bound(self) -> None:
        """Have the customer count no more than what its needs allow."""
        left = {need: each.left_micro for need, each in self._store.allowances.items()}
        for entry in self._store.holds("customer"):
            if entry.hold is None:
                continue
            need, before = entry.hold.need, entry.use
            entry.use = holding.bounded(before, left.get(need, 0))
            left[need] = left.get(need, 0) - (entry.use.billed_micro - before.voucher_micro)

    def _observe(self, role: Role, entitlements: Iterable[Entitlement]) -> None:
        now_ms = self._clock.now_ms()
        used = self._store.used(role, now_ms)
        seen: dict[bytes, Entitlement] = {}
        for each in entitlements:
            if not holding.begins_ms(each) <= now_ms < each.until_ms:
                continue
            account_id = holding.hold_id(each.key)
            seen[account_id] = each
            if each.price and self._store.account(role, account_id) is None:
                if role == "customer" and self._is_full(role, each.provider, lambda _: True):
                    continue  # a provider that does not settle is owed nothing further
                self._open(role, each, each.kind, account_id)
        for entry in self._store.holds(role):
            now = seen.get(entry.terms.lease_id)
            self._change(entry, now, 0 if now is None else undrawn(now, used), now_ms)

    def _open(self, role: Role, each: Entitlement, kind: Kind, account_id: bytes) -> None:
        terms = holding.account_terms(each.key, each.opens_ms, each.closes_ms)
        use = holding.opened(self._settled(account_id), self._clock.now_ms())
        hold = holding.begun(each, kind)
        self._store.open_hold(LeaseEntry(role, terms, use, b"", b"", hold=hold))

    def _change(self, entry: LeaseEntry, each: Entitlement | None, left: int, now_ms: int) -> None:
        before = entry.hold
        if before is None:
            return
        hold, entry.use = holding.changed(entry.use, before, each, left, now_ms)
        entry.hold = hold
        place = entry.role, entry.terms.lease_id
        changed = replace(hold, counted_ms=0, rest=0) != replace(before, counted_ms=0, rest=0)
        if changed or (
            hold.quantity and hold.counted_ms - self._saved.get(place, 0) >= HOLD_TOLERANCE_MS
        ):
            # A crash loses a minute of the count at most.
            self._saved[place] = hold.counted_ms
            self._store.save(entry)
