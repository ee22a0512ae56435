"""Renews the leases of storage that this node took: each by a new lease for what lies there.

At half-life, each lease at a moment of its own, the node takes a new lease at that provider by the
ordinary way. Then the host counts what lies under the old lease under the new one, piece by piece
(`MarketPorts.on_renewed`). Refused renewals are tried again; the last reason is kept and
shown. The rules are in `lease`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from xsc.base.errors import LeaseExhausted, XscError
from xsc.base.ids import short
from xsc.base.limits import (
    RENEWAL_FIRST_MS,
    RENEWAL_INTERVAL_MS,
    RENEWAL_RETRY_MS,
)
from xsc.base.units import format_credits, format_duration
from xsc.identity.envelope import open_signed
from xsc.market import lease as rules
from xsc.market.lease import LEVEL_UNIT
from xsc.market.lease_entry import LeaseEntry, drawn
from xsc.market.lease_store import MarketNode
from xsc.market.providers import Providers
from xsc.market.room import is_present, undrawn
from xsc.terms.count import LeaseCount
from xsc.terms.slot import NeedSlot

DAY_MS = 86_400_000
SILENT = "the host is silent"
DENIED = "the host has signed that it does not know the lease"
FULL = "only a part of it was renewed"


@dataclass(frozen=True, slots=True)
class LeaseExpiry:
    """The present end of a lease that this node took."""

    node: bytes
    end_ms: int
    reason: str
    """Why it was not renewed although it is time to; empty while all is well."""


@dataclass(frozen=True, slots=True)
class _Tried:
    reason: str
    at_ms: int


class Renewals:
    """Takes leases that renew others, and has what lies there counted under them."""

    def __init__(self, node: MarketNode, providers: Providers) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._providers = providers
        # Within the eighth of a term over which renewals are spread there are several looks.
        self._look_ms = min(
            RENEWAL_INTERVAL_MS, node.settings.storage_lease_ms // (4 * rules.SPREAD)
        )
        self._retry_ms = min(RENEWAL_RETRY_MS, node.settings.storage_lease_ms // (2 * rules.SPREAD))
        self._tried: dict[bytes, _Tried] = {}
        self._answered: set[bytes] = set()
        """Leases of which all went over that fits, since this process began."""
        self._warned: dict[bytes, int] = {}

    async def run(self) -> None:
        """Renew what is due, until cancelled."""
        await self._clock.sleep_ms(min(RENEWAL_FIRST_MS, self._look_ms))
        while True:
            await self.round()
            await self._clock.sleep_ms(self._look_ms)

    async def round(self) -> None:
        """Renew once all that is due, and warn of what ends soon."""
        now_ms = self._clock.now_ms()
        known = {entry.terms.lease_id for entry in self._store.all("customer")}
        self._tried = {id_: tried for id_, tried in self._tried.items() if id_ in known}
        self._answered &= known
        going_on = {old.terms.lease_id for old, _ in self._store.renewing(now_ms)}
        by_host: defaultdict[bytes, list[LeaseEntry]] = defaultdict(list)
        for entry in self._store.all("customer"):
            if entry.terms.lease_id not in going_on and self._is_due(entry, now_ms):
                by_host[entry.peer].append(entry)
        await asyncio.gather(*(self._renew_at(peer, due) for peer, due in sorted(by_host.items())))
        await self._move()
        self._warn(now_ms)

    def _is_due(self, entry: LeaseEntry, now_ms: int) -> bool:
        if (
            entry.denial is not None
            or not rules.is_renewable(entry.terms, entry.use, now_ms)
            or now_ms < rules.due_ms(entry.terms)
        ):
            return False
        tried = self._tried.get(entry.terms.lease_id)
        # A silent host costs no call: it is looked at each time.
        return tried is None or tried.reason == SILENT or now_ms - tried.at_ms >= self._retry_ms

    async def _move(self) -> None:
        """Have hosts count under the new leases what lies under those that they renew."""
        pairs = [
            (old, new)
            for old, new in self._store.renewing(self._clock.now_ms())
            if self._ports.quality.is_up(new.peer)
        ]
        if not pairs:
            return
        unheard = await self._ports.on_renewed(
            [(new.peer, old.terms.lease_id, new.terms.lease_id) for old, new in pairs]
        )
        self._answered |= {old.terms.lease_id for old, _ in pairs}.difference(unheard)
        for old, new in pairs:
            if old.use.held_bytes and not rules.room_left(new.terms, new.use):
                self._failed(old, FULL)

    def is_renewing(self, lease_id: bytes) -> bool:
        """Return whether its host may count under another what lies under a lease as known here."""
        return lease_id not in self._answered and any(
            old.terms.lease_id == lease_id for old, _ in self._store.renewing(self._clock.now_ms())
        )

    async def _renew_at(self, peer: bytes, entries: Sequence[LeaseEntry]) -> None:
        for entry in entries:
            answer = await self._renewed(peer, entry)
            if isinstance(answer, XscError):
                self._failed(entry, answer.message)
                continue
            self._tried.pop(entry.terms.lease_id, None)
            self._node.log.info(
                "market.lease_renewed",
                peer=short(peer),
                lease=short(entry.terms.lease_id),
                by=short(answer.terms.lease_id),
                price=answer.terms.price,
                days=(answer.terms.end_ms - self._clock.now_ms()) // DAY_MS,
            )

    async def _renewed(self, peer: bytes, entry: LeaseEntry) -> LeaseEntry | XscError:
        """Return the lease that renews one: on an entitlement of its need, else for now."""
        if not self._ports.quality.is_up(peer):
            return LeaseExhausted(SILENT)
        most = self._node.settings.storage_price_max
        if entry.draw is not None:
            stated = [need for need in self._ports.needs() if need.slot_id == entry.draw.need]
            if not stated:
                return LeaseExhausted("its need is no more, or pays less")
            most = stated[0].price_max
            drawing = await self._on_entitlement(entry, stated[0])
            if drawing is not None:
                return drawing
        quote = await self._providers.fresh("storage", peer)
        if isinstance(quote, XscError):
            return quote
        price = quote.record.price
        if price > most:
            if entry.draw is not None:
                return LeaseExhausted("its need is no more, or pays less")
            return LeaseExhausted(
                f"its price of {format_credits(price)} is above storage_price_max_gib_hour"
            )
        least = min(entry.use.held_bytes, LEVEL_UNIT["storage"])
        wanted = rules.wanted(entry.terms, entry.use)
        return await self._providers.lease(quote, price, wanted, least, renewed=entry)

    async def _on_entitlement(self, entry: LeaseEntry, need: NeedSlot) -> LeaseEntry | None:
        """Return a lease on what a clearing grants to the need of a lease; None: on nothing."""
        now_ms, unit = self._clock.now_ms(), LEVEL_UNIT["storage"]
        taken = dict(self._store.drawn("customer", now_ms))
        if (key := self._store.counts_for(entry)) in taken:
            taken[key] -= drawn(entry, now_ms)
        for offer in self._ports.received():
            level = min(rules.wanted(entry.terms, entry.use), undrawn(offer, taken))
            level -= level % unit
            if (
                (offer.provider, offer.need) == (entry.peer, need.slot_id)
                and is_present(offer, now_ms)
                and offer.price <= need.price_max
                and level
            ):
                answer = await self._providers.lease(
                    offer, offer.price, level, level, number=need.number, renewed=entry
                )
                if isinstance(answer, LeaseEntry):
                    return answer
        return None

    def _failed(self, entry: LeaseEntry, reason: str) -> None:
        lease_id = entry.terms.lease_id
        before = self._tried.get(lease_id)
        self._tried[lease_id] = _Tried(reason, self._clock.now_ms())
        if before is None or before.reason != reason:
            self._node.log.warning(
                "market.lease_not_renewed",
                peer=short(entry.peer),
                lease=short(lease_id),
                reason=reason,
            )

    def end_of(self, lease_id: bytes) -> LeaseExpiry | None:
        """Return when a lease that this node took ends, and why it was not renewed."""
        entry = self._store.get("customer", lease_id)
        if entry is None:
            return None
        if entry.denial is not None:
            count = open_signed(entry.denial, LeaseCount, network=self._node.network).record
            return LeaseExpiry(entry.peer, min(count.counted_ms, entry.terms.end_ms), DENIED)
        tried = self._tried.get(lease_id)
        return LeaseExpiry(entry.peer, entry.terms.end_ms, "" if tried is None else tried.reason)

    def ending(self, within_ms: int) -> list[LeaseExpiry]:
        """Return the leases with something under them that end so soon, the first one first."""
        until_ms = self._clock.now_ms() + within_ms
        found = [
            self.end_of(entry.terms.lease_id)
            for entry in self._store.all("customer")
            if entry.terms.kind == "storage"
            and entry.denial is None
            and entry.use.held_bytes
            and entry.terms.end_ms <= until_ms
        ]
        return sorted(
            (item for item in found if item is not None), key=lambda item: (item.end_ms, item.node)
        )

    def _warn(self, now_ms: int) -> None:
        """Log once a day what ends soon."""
        by_host: defaultdict[bytes, list[LeaseExpiry]] = defaultdict(list)
        for item in self.ending(self._node.settings.lease_warning_ms):
            by_host[item.node].append(item)
        self._warned = {node: at for node, at in self._warned.items() if node in by_host}
        for node, items in sorted(by_host.items()):
            if now_ms - self._warned.get(node, -DAY_MS) < DAY_MS:
                continue
            self._warned[node] = now_ms
            left_ms = items[0].end_ms - now_ms
            self._node.log.warning(
                "market.leases_end_soon",
                peer=short(node),
                leases=len(items),
                first="over" if left_ms <= 0 else f"in {format_duration(left_ms)}",
                reason=items[0].reason or "not asked yet",
            )
