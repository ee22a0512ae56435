"""The leases that this node took: counts what is used of them, as hosts and receipts say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

from xsc.base.errors import LeaseExhausted
from xsc.base.ids import short
from xsc.base.limits import LEASE_REFUSED_MS
from xsc.market import lease as rules
from xsc.market.lease_entry import LeaseEntry
from xsc.market.market_node import MarketNode
from xsc.market.waiting import WaitingLines


class TakenLeases:
    """What storage and compute report of leases that they use."""

    def __init__(
        self,
        node: MarketNode,
        agree: Callable[[bytes], Awaitable[None]],
        lines: WaitingLines[bytes | None],
    ) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._lines = lines
        self._agree = agree

    def reconcile(self, held: Mapping[bytes, int], doubts: Collection[bytes]) -> None:
        """Take over what the own records name under each lease, after a power loss.

        Uses are kept unsynced, the records are synced. They only raise a count: the provider's next
        one lowers it to what is there. Where a transfer was under way, all that was leased may be
        there.

        Args:
            held: bytes by lease.
            doubts: leases under which a transfer was under way.
        """
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
            most = terms.quantity if terms.lease_id in doubts else left.get(terms.lease_id, 0)
            if most > use.held_bytes:
                self._node.log.warning(
                    "market.count_raised", lease=short(terms.lease_id), most=most
                )
                # It was held since then: what follows from that is believed.
                use = replace(use, held_bytes=most, touched_ms=use.counted_ms)
                entry.use = rules.widened(use, terms.quantity)
                self._store.save(entry)

    async def used(self, lease_id: bytes, delta_bytes: int) -> None:
        """Count bytes that a host confirmed to hold (+) or to have deleted (-).

        Raises:
            LeaseExhausted: no such lease.
        """
        entry = self._known(lease_id)
        entry.keep_promise(delta_bytes)
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes, self._clock.now_ms())
        self._store.keep(entry)

    def renewed(self, old_id: bytes, new_id: bytes, size_bytes: int) -> None:
        """Count bytes that went over to the lease that renews theirs, as the host said.

        It is written before the records of objects, which are synced: so it is never behind them.

        Args:
            old_id: the lease that they lay under.
            new_id: the one that they lie under now.
            size_bytes: how many.
        """
        old, new = self._known(old_id), self._known(new_id)
        sides, now_ms = ((old.terms, old.use), (new.terms, new.use)), self._clock.now_ms()
        uses = rules.moved(*sides, size_bytes, now_ms)
        for entry, use in zip((old, new), uses, strict=True):
            held, level = use.held_bytes - entry.use.held_bytes, use.level - entry.use.level
            entry.use = rules.widened(use, max(size_bytes, abs(level)) - abs(held))
        # Where an answer was lost, they lie there longer than this node knows.
        new.use = rules.widened(new.use, size_bytes, max(0, now_ms - new.terms.start_ms))
        self._store.save(old, new)

    def renewal_ended(self, lease_id: bytes) -> None:
        """Give back a lease that renews another: its host took it back before anything came."""
        entry = self._known(lease_id)
        entry.use = rules.ended(entry.use)
        self._store.save(entry)

    async def spent(self, lease_id: bytes, fuel_steps: int) -> None:
        """Count what a verified receipt bills.

        Raises:
            LeaseExhausted: no such lease.
        """
        entry = self._known(lease_id)
        entry.end_promise(fuel_steps)
        entry.use = rules.spend(entry.terms, entry.use, fuel_steps, self._clock.now_ms())
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

        The host is asked what it counts: where the lease is not in that, it is over.
        """
        entry = self._store.get("customer", lease_id)
        if entry is not None:
            entry.avoided_until_ms = self._clock.now_ms() + LEASE_REFUSED_MS
            if entry.denial is None:
                await self._agree(entry.peer)

    def is_denied(self, lease_id: bytes) -> bool:
        """Return whether the host of a lease has signed a count without it."""
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
