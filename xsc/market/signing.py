"""Keeps the leases of this node in step with its needs: takes, gives up and renews.

A clearing offers and the customer signs: a lease begins when its provider has confirmed the request
(docs/design/market.md). A request is signed only while all leases under the need, over every
provider, slot and window, stay within its level and its price. So the need bounds what is owed,
whatever providers offer.

At half-life, each at a moment of its own, a lease of storage that holds bytes is renewed: it gets a
new term at the present price, or its provider says why not. Refusals are tried again; the last
reason is kept and shown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from xsc.base import clock, errors, ids, limits, units
from xsc.market import lease as rules
from xsc.market.choosing import to_lower, to_take
from xsc.market.lease import SPREAD, LeaseEntry
from xsc.market.lease_store import MarketNode, MarketPart
from xsc.market.providers import Providers
from xsc.terms.pricing import Quote
from xsc.terms.slot import Entitlement, NeedSlot

RENEWAL_RETRY_MS = 6 * 3_600_000
"""After a refusal; silent hosts are asked at the first look at which they are up."""
LOWER_MS = 2 * limits.OFFER_MS
"""A provider that confirms no longer that room was given up is owed nothing for that room."""

DAY_MS = 86_400_000
SILENT = "the host is silent"
DENIED = "the host has signed that it does not know the lease"


@dataclass(frozen=True, slots=True)
class LeaseExpiry:
    """The present end of a lease that this node took."""

    node: bytes
    end_ms: int
    reason: str
    """Why it was not renewed although it is time to; empty while all is well."""


class Signing(MarketPart):
    """Takes, gives up and renews the leases of this node."""

    def __init__(
        self, node: MarketNode, providers: Providers, agree: Callable[[bytes], Awaitable[None]]
    ) -> None:
        super().__init__(node)
        self._providers = providers
        self._agree = agree
        self._woken = asyncio.Event()
        self._later_ms: dict[bytes, int] = {}
        """By provider that had no room for what it offered, or did not answer: when its offers
        are tried again. Meanwhile those of others are taken."""
        self._retry_ms = min(RENEWAL_RETRY_MS, node.settings.storage_lease_ms // (2 * SPREAD))
        self._tried: dict[bytes, tuple[str, int]] = {}
        """By lease that is not renewed: why, and when it is tried again."""
        self._warned_ms = -DAY_MS

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
            await clock.rest(self._clock, self._woken, limits.TIDY_MS)

    async def look(self) -> None:
        """Give up what is not needed, take what is offered, and renew what is due."""
        await self._ask_again()
        needs = {need.slot_id: need for need in self._ports.needs()}
        entries = self._store.all("customer")
        await self._lower(entries, needs)
        now_ms = self._clock.now_ms()
        taken = self._store.drawn("customer", now_ms)
        later_ms, received = self._later_ms, self._ports.received()
        open_offers = [
            each
            for each in received
            if later_ms.get(each.provider, 0) <= now_ms
            and self._providers.is_trusted(each.provider)
        ]
        offers = list(to_take(open_offers, needs, taken, now_ms))
        await asyncio.gather(*(self._take(each, needs[each.need], level) for each, level in offers))
        self._tried = {e.id: self._tried[e.id] for e in entries if e.id in self._tried}
        await asyncio.gather(*(self._renew(entry, needs) for entry in entries))
        self._warn()

    async def _take(self, offer: Entitlement, need: NeedSlot, level: int) -> None:
        if len(self._store.of("customer", offer.provider)) >= limits.LEASES_A_CUSTOMER_MAX:
            return  # It grants crumbs, or ends what it grants.
        answer = await self._providers.lease(offer, offer.price, level=level, need=need)
        if isinstance(answer, errors.XscError):
            self._later_ms[offer.provider] = self._clock.now_ms() + limits.OFFER_SETTLE_MS

    async def _ask_again(self) -> None:
        """Send the requests again that were not answered: the same one gets the same lease."""
        for each in list(self._store.asked.values()):
            late_ms = self._clock.now_ms() - each.record.start_ms
            if late_ms > limits.REQUEST_WINDOW_MS + LOWER_MS and not each.record.renews:
                self._store.refused(each.record.lease_id)  # It blocks its need no longer.
        is_up, asked = self._ports.quality.is_up, self._store.asked.values()
        up = [each for each in asked if is_up(each.record.provider)]
        await asyncio.gather(*map(self._providers.ask, up))

    # What is not needed

    async def _lower(self, entries: Sequence[LeaseEntry], needs: Mapping[bytes, NeedSlot]) -> None:
        """Give up room; what the provider confirms in its count is no longer billed.

        A provider that does not confirm it for LOWER_MS is paid nothing more for it either: whoever
        needs nothing any more owes nothing more.
        """
        now_ms = self._clock.now_ms()
        wanted = {
            entry.id: level for entry, level in to_lower(entries, needs, self._store.key, now_ms)
        }
        asked = []
        for entry in entries:
            level = wanted.get(entry.id)
            if level is not None:
                if entry.less is None or entry.less[0] != level:
                    entry.less = level, now_ms
                asked.append(entry.peer)
            elif entry.less is not None and entry.use.level > entry.less[0]:
                entry.less = None  # It is needed again. Else its provider may not have heard yet.
        # One that stalls must not keep the others waiting.
        await asyncio.gather(*map(self._agree, self._providers.up(sorted({*asked}))))
        for entry in entries:
            if entry.less is None or entry.use.level <= entry.less[0]:
                continue
            if self._clock.now_ms() - entry.less[1] >= LOWER_MS:
                entry.use = rules.lowered(entry.terms, entry.use, *entry.less)
                self._store.save(entry)

    # Renewal

    async def _renew(self, entry: LeaseEntry, needs: Mapping[bytes, NeedSlot]) -> None:
        """Renew a lease that is due; where that fails, note why."""
        now_ms = self._clock.now_ms()
        said, next_ms = self._tried.get(entry.id, ("", 0))
        if not rules.is_due(entry, now_ms):
            self._tried.pop(entry.id, None)
            return
        if entry.id in self._store.asked or now_ms < next_ms:
            return
        fault = await self._next_term(entry, needs)
        if fault is None:
            self._tried.pop(entry.id, None)
            return
        is_silent = isinstance(fault, errors.PeerSilent)
        reason = SILENT if is_silent else fault.message
        if reason != said:
            self._node.log.warning(
                "market.lease_not_renewed",
                peer=ids.short(entry.peer),
                lease=ids.short(entry.id),
                reason=reason,
            )
        # A silent host costs no call: it is looked at each time.
        self._tried[entry.id] = reason, now_ms + (0 if is_silent else self._retry_ms)
        if isinstance(fault, errors.LeaseExhausted):
            await self._agree(entry.peer)  # It may not know the lease any more.

    async def _next_term(
        self, entry: LeaseEntry, needs: Mapping[bytes, NeedSlot]
    ) -> errors.XscError | None:
        """Renew a lease: at what a clearing grants its need, else at what its provider asks.

        Returns:
            Why it is not renewed.
        """
        if not self._ports.quality.is_up(entry.peer):
            return errors.PeerSilent(SILENT)
        need, most = None, self._node.settings.price_max["storage"]
        offer: Quote | Entitlement | None
        offer = self._ports.standing.quote("storage", entry.peer, self._node.id)
        if entry.terms.cleared:
            need = needs.get(entry.terms.need or b"")
            if need is None:
                return errors.NoOffers("its need is no more")
            most, key = need.price_max, self._store.key(entry)
            offer = next((each for each in self._ports.received() if each.key == key), offer)
        if offer is None:
            return errors.NoOffers("the host offers nothing to this node")
        if offer.price > most:
            return errors.NoOffers(
                f"its price of {units.format_credits(offer.price)} is above what is paid, "
                f"{units.format_credits(most)}"
            )
        level = max(entry.use.level, entry.use.held_bytes) if entry.terms.cleared else 0
        answer = await self._providers.lease(
            offer, offer.price, level=level, need=need, renewed=entry
        )
        return answer if isinstance(answer, errors.XscError) else None

    def end_of(self, lease_id: bytes) -> LeaseExpiry | None:
        """Return when a lease that this node took ends, and why it was not renewed."""
        entry = self._store.get("customer", lease_id)
        if entry is None:
            return None
        if entry.use.denial is not None:
            return LeaseExpiry(entry.peer, entry.use.counted_ms, DENIED)
        reason, _ = self._tried.get(lease_id, ("", 0))
        return LeaseExpiry(entry.peer, entry.terms.end_ms, reason)

    def ending(self, within_ms: int) -> list[LeaseExpiry]:
        """Return the leases with something under them that end so soon, the first one first."""
        until_ms = self._clock.now_ms() + within_ms
        found = [
            LeaseExpiry(entry.peer, entry.terms.end_ms, self._tried.get(entry.id, ("", 0))[0])
            for entry in self._store.all("customer")
            if entry.use.held_bytes and not entry.use.denial and entry.terms.end_ms <= until_ms
        ]
        return sorted(found, key=lambda item: (item.end_ms, item.node))

    def _warn(self) -> None:
        """Log once a day what ends soon."""
        now_ms, soon = self._clock.now_ms(), self.ending(self._node.settings.lease_warning_ms)
        if not soon or now_ms - self._warned_ms < DAY_MS:
            return
        self._warned_ms = now_ms
        left_ms = soon[0].end_ms - now_ms
        self._node.log.warning(
            "market.leases_end_soon",
            peers=sorted({ids.short(item.node) for item in soon}),
            leases=len(soon),
            first="over" if left_ms <= 0 else f"in {units.format_duration(left_ms)}",
            reasons=sorted({item.reason or "not asked yet" for item in soon}),
        )
