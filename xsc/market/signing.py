"""Takes leases on what clearings offer to needs of this node, and gives up what these need no more.

A clearing offers and the customer signs: a lease begins when its provider has confirmed the request
(docs/design/market.md). A request is signed only while all leases under the need, over every
provider, slot and window, stay within its level and its price. So the need bounds what is owed,
whatever providers offer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from xsc.base.clock import rest
from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.fields import take_int
from xsc.base.ids import short
from xsc.base.limits import (
    LEASE_TIMEOUT_MS,
    LOWER_MS,
    OFFER_SETTLE_MS,
    TIDY_MS,
)
from xsc.market import lease as rules
from xsc.market.choosing import to_lower, to_take
from xsc.market.granter import LOWER
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import MarketNode
from xsc.market.providers import Providers
from xsc.market.room import LEASE_UNIT
from xsc.terms.slot import Entitlement, NeedSlot


class Signing:
    """Keeps the leases of this node in step with what it is offered and what it needs."""

    def __init__(self, node: MarketNode, providers: Providers) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._providers = providers
        self._woken = asyncio.Event()
        self._later_ms: dict[bytes, int] = {}
        """By provider that had no room for what it offered, or did not answer: when its offers
        are tried again. Meanwhile those of others are taken."""
        self._unlowered_ms: dict[bytes, int] = {}
        """By lease that its provider has not lowered: when it was asked first."""

    def wake(self) -> None:
        """Look again soon: something is offered, or a need has changed."""
        self._woken.set()

    def held_steps(self) -> dict[tuple[bytes, bytes], int]:
        """Return by need and provider the steps that leases have, rounded up."""
        found = Counter[tuple[bytes, bytes]]()
        for key, steps in self._store.drawn_steps("customer", self._clock.now_ms()).items():
            found[key.need, key.provider] += steps
        return found

    async def run(self) -> None:
        """Look whenever it is woken, and every TIDY_MS, until cancelled."""
        while True:
            await self.look()
            await rest(self._clock, self._woken, TIDY_MS)

    async def look(self) -> None:
        """Take what is offered, and give up what is not needed."""
        now_ms = self._clock.now_ms()
        needs = {need.slot_id: need for need in self._ports.needs()}
        entries = list(self._store.all("customer"))
        for entry in entries:
            self._set_apart(entry, needs)
        less = list(to_lower(entries, needs, self._store.counts_for, now_ms))
        asked = {entry.terms.lease_id for entry, _ in less}
        self._unlowered_ms = {id_: at for id_, at in self._unlowered_ms.items() if id_ in asked}
        await asyncio.gather(
            *(
                self._lower(entry, level)
                for entry, level in less
                if self._ports.quality.is_up(entry.peer)
            )
        )
        taken = Counter(self._store.drawn("customer", now_ms))
        taken.update(dict(self._providers.unheard()))
        self._later_ms = {node: at_ms for node, at_ms in self._later_ms.items() if at_ms > now_ms}
        open_offers = [
            each for each in self._ports.received() if each.provider not in self._later_ms
        ]
        offers = list(to_take(open_offers, needs, taken, now_ms))
        await asyncio.gather(*(self._take(each, needs[each.need], level) for each, level in offers))

    async def _take(self, offer: Entitlement, need: NeedSlot, level: int) -> None:
        least = LEASE_UNIT[offer.kind]
        answer = await self._providers.lease(offer, offer.price, level, least, number=need.number)
        if isinstance(answer, XscError):
            self._node.log.info("market.no_offer", peer=short(offer.provider), code=answer.code)
            self._later_ms[offer.provider] = self._clock.now_ms() + OFFER_SETTLE_MS
        else:
            self._set_apart(answer, {need.slot_id: need})

    @staticmethod
    def _set_apart(entry: LeaseEntry, needs: Mapping[bytes, NeedSlot]) -> None:
        """Keep what is needed of compute by default for deployments, and not for other runs."""
        if entry.terms.kind == "compute" and entry.draw is not None and entry.draw.need in needs:
            entry.is_apart = needs[entry.draw.need].standing

    async def _lower(self, entry: LeaseEntry, level: int) -> None:
        """Give up room; what the provider confirms is no longer billed.

        A provider that does not confirm it for LOWER_MS is paid nothing more for it either: whoever
        needs nothing any more owes nothing more.
        """
        lease_id = entry.terms.lease_id
        now_ms = self._clock.now_ms()
        asked: dict[str, Value] = {"lease_id": lease_id, "level": level, "at_ms": now_ms}
        first_ms = self._unlowered_ms.setdefault(lease_id, now_ms)
        try:
            reply = await self._node.caller.call(
                entry.peer, LOWER, asked, timeout_ms=LEASE_TIMEOUT_MS
            )
            left = take_int(reply.header, "level", most=entry.use.level)
        except XscError as fault:
            self._node.log.info("market.not_lowered", peer=short(entry.peer), code=fault.code)
            left = entry.use.level
        if left <= level or now_ms - first_ms >= LOWER_MS:
            left = level
            self._unlowered_ms.pop(lease_id, None)
        entry.use = rules.lowered(entry.terms, entry.use, left, now_ms)
        self._store.save(entry)
