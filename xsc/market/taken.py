"""The leases that this node took: counts what is used of them, as hosts and receipts say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from xsc.base.errors import LeaseExhausted
from xsc.base.ids import short
from xsc.base.limits import EPOCH_MS, LEASE_REFUSED_MS
from xsc.identity.context import Context
from xsc.market import keeping
from xsc.market import lease as rules
from xsc.market.denials import Denials
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import LeaseStore
from xsc.market.waiting import WaitingLines
from xsc.terms.lease import OWN_LEASE


class TakenLeases:
    """What storage and compute report of leases that they use."""

    def __init__(
        self,
        context: Context,
        store: LeaseStore,
        denials: Denials,
        lines: WaitingLines[bytes | None],
    ) -> None:
        self._lines = lines
        self._clock = context.clock
        self._log = context.log
        self._store = store
        self._denials = denials

    def reconcile(self, held: Mapping[bytes, int], doubts: Mapping[bytes, int]) -> None:
        """Take over what the own records name under each lease, after a power loss.

        Uses are kept unsynced, the records are synced. They decide where a transfer was
        under way: the host says at the next look what it holds (`recounted`). Elsewhere
        they only raise a count, because it can include what has no record yet.

        Args:
            held: bytes by lease.
            doubts: by lease, how many transfers were under way.
        """
        now_ms = self._clock.now_ms()
        left = dict(held)
        for old, new in self._store.pairs("customer"):
            # The count of what went over to another lease is on the disk before its records.
            ahead = max(0, new.use.held_bytes - held.get(new.terms.lease_id, 0))
            old_id = old.terms.lease_id
            left[old_id] = max(0, left.get(old_id, 0) - ahead)
        for entry in self._store.all("customer"):
            terms, use = entry.terms, entry.use
            if terms.kind != "storage" or use.given_back:
                continue
            entry.doubts = doubts.get(terms.lease_id, 0)
            delta = left.get(terms.lease_id, 0) - use.held_bytes
            if not delta or (delta < 0 and not entry.doubts):
                continue
            self._log.warning("market.count_restored", lease=short(terms.lease_id), delta=delta)
            # It was held since then, and is due for the time that the node was down.
            use = rules.hold(terms, use, delta, terms.start_ms + use.epoch * EPOCH_MS)
            entry.use = replace(use, touched_ms=now_ms)
            self._store.save(entry)

    async def used(self, lease_id: bytes, delta_bytes: int) -> None:
        """Count bytes that a host confirmed to hold (+) or to have deleted (-).

        Raises:
            LeaseExhausted: no such lease.
        """
        if lease_id == OWN_LEASE:
            return
        entry = self._known(lease_id)
        entry.keep_promise(delta_bytes)
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._store.keep(entry)

    async def recounted(self, lease_id: bytes, delta_bytes: int) -> None:
        """Correct the count: the host has held more (+) or less (-) than was counted.

        Raises:
            LeaseExhausted: no such lease.
        """
        entry, now_ms = self._known(lease_id), self._clock.now_ms()
        if delta_bytes > 0 and entry.doubts:
            entry.doubts -= 1
            since = entry.kept_epoch
            entry.use = rules.hold_since(entry.terms, entry.use, delta_bytes, since, now_ms)
        else:
            entry.use = rules.hold(entry.terms, entry.use, delta_bytes, now_ms)
        self._store.keep(entry)

    def renewed(self, old_id: bytes, new_id: bytes, size_bytes: int, used: int) -> None:
        """Count bytes that went over to the lease that renews theirs, as the host said.

        It is written before the records of objects, which are synced: so it is never behind them.

        Args:
            old_id: the lease that they lay under.
            new_id: the one that they lie under now.
            size_bytes: how many.
            used: what the host counts under the old lease.
        """
        old, new = self._known(old_id), self._known(new_id)
        now_ms = self._clock.now_ms()
        sides = (old.terms, old.use), (new.terms, new.use)
        uses = keeping.moved(*sides, size_bytes, now_ms)
        old.use, new.use = keeping.agreed((old.terms, uses[0]), (new.terms, uses[1]), used)
        self._store.save(old, new)

    def renewal_ended(self, lease_id: bytes) -> None:
        """Give back a lease that renews another: its host took it back before anything came."""
        entry = self._known(lease_id)
        entry.use = replace(entry.use, given_back=True)
        self._store.save(entry)

    async def spent(self, lease_id: bytes, fuel_steps: int, amount_micro: int) -> None:
        """Count what a verified receipt bills.

        Raises:
            LeaseExhausted: no such lease.
        """
        if lease_id == OWN_LEASE:
            return
        entry = self._known(lease_id)
        entry.end_promise(fuel_steps)
        entry.use = rules.spend(
            entry.terms, entry.use, fuel_steps, amount_micro, self._clock.now_ms()
        )
        self._store.keep(entry)
        self._lines.wake()
        await asyncio.sleep(0)  # it is kept before the result is returned

    def unused(self, lease_id: bytes, fuel_steps: int) -> None:
        """Take back what was handed out for a run that its provider refused, or could not end."""
        entry = self._store.get("customer", lease_id)
        if entry is not None:
            entry.end_promise(fuel_steps)
            self._lines.wake()

    async def refused(self, lease_id: bytes) -> None:
        """Prefer other leases for LEASE_REFUSED_MS, because a host takes no more under this one.

        The host is asked whether it knows the lease at all. Where it signs that it does not,
        its other leases are ended too.
        """
        entry = self._store.get("customer", lease_id)
        if entry is not None:
            entry.avoided_until_ms = self._clock.now_ms() + LEASE_REFUSED_MS
            if entry.denial is None:
                await self._denials.ask(entry.peer)

    def is_denied(self, lease_id: bytes) -> bool:
        """Return whether the host of a lease has signed that it does not know it."""
        entry = self._store.get("customer", lease_id)
        return entry is not None and entry.denial is not None

    def price_and_room(self, lease_id: bytes, provider: bytes) -> tuple[int, int] | None:
        """Return the price a Gfuel of a compute lease taken there, and the steps left under it.

        None where no such lease is known.
        """
        entry = self._store.get("customer", lease_id)
        if entry is None or entry.peer != provider or entry.terms.kind != "compute":
            return None
        room = rules.room(entry.terms, entry.use, self._clock.now_ms())
        return rules.run_price(entry.terms), room

    def _known(self, lease_id: bytes) -> LeaseEntry:
        entry = self._store.get("customer", lease_id)
        if entry is None:
            raise LeaseExhausted("this node has no such lease")
        return entry
