"""Asks providers for leases, and remembers where an answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xsc.base.errors import PeerSilent, RecordInvalid, XscError
from xsc.base.fields import take_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import LEASE_TIMEOUT_MS, QUOTE_TTL_MS, REQUEST_WINDOW_MS
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.market import lease as rules
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.quote import domain
from xsc.market.quotes import Quotes
from xsc.terms.lease import Draw, Lease, LeaseRequest
from xsc.terms.quote import Kind, Quote
from xsc.terms.slot import Entitlement, EntitlementKey

LEASE: Final = "market.lease"


@dataclass(frozen=True, slots=True)
class _SentRequest:
    """A lease that this node asked for."""

    request: LeaseRequest
    raw: bytes
    domain: bytes
    asked_ms: int


class LeaseRequests:
    """The requests of this node as a customer."""

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        settings: MarketSettings,
        store: LeaseStore,
        quotes: Quotes,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._quotes = quotes
        self._quality = ports.quality
        self._storage_ms = settings.storage_lease_ms
        self._unheard: dict[tuple[Kind, bytes, Draw | None, bytes | None], _SentRequest] = {}
        """By kind, provider, draw and the lease that is renewed, the newest request whose answer
        was lost."""

    def unheard(self) -> Iterator[tuple[EntitlementKey, int]]:
        """Yield on what leases may have been granted whose answers were lost, and how much."""
        for (_, provider, draw, renews), asked in self._unheard.items():
            if draw is not None and renews is None:
                key = EntitlementKey(
                    provider, draw.slot, draw.start_ms, self._key.node_id, draw.need
                )
                yield key, asked.request.quantity

    async def lease(
        self,
        offer: Signed[Quote] | Entitlement,
        price: int,
        quantity: int,
        quantity_min: int,
        *,
        number: int = 0,
        renewed: LeaseEntry | None = None,
    ) -> LeaseEntry | XscError:
        """Ask for a lease and keep it; a refusal is returned.

        Args:
            offer: the provider's quote, or what a clearing granted.
            price: that is paid.
            quantity: that is asked for.
            quantity_min: the least that is of use.
            number: of the need to which it was granted.
            renewed: the lease whose bytes it keeps.
        """
        terms: Quote | Entitlement
        if isinstance(offer, Entitlement):
            terms, quote, draw = offer, None, offer.draw(number)
        else:
            terms, quote, draw = offer.record, offer.raw, None
        kind, provider, now_ms = terms.kind, terms.provider, self._clock.now_ms()
        end_ms = now_ms + rules.longest_ms(kind, self._storage_ms, cleared=draw is not None)
        if isinstance(offer, Entitlement) and kind == "compute":
            end_ms = min(end_ms, offer.window[1])
        renews = None if renewed is None else renewed.terms.lease_id
        request = LeaseRequest(
            lease_id=self._entropy.token(ID_BYTES),
            provider=provider,
            customer=self._key.node_id,
            kind=kind,
            quote=quote,
            draw=draw,
            quantity=quantity,
            quantity_min=quantity_min,
            price=price,
            start_ms=now_ms,
            end_ms=end_ms,
            renews=renews,
        )
        raw = sign(request, self._key, self._network).raw
        asked = _SentRequest(request, raw, self.domain_of(provider), now_ms)
        at = (kind, provider, draw, renews)
        # Whatever the answer, the next quote is to say what is left afterwards.
        self._quotes.drop(kind, provider)
        try:
            return await self._granted(asked)
        except asyncio.CancelledError:
            self._unheard[at] = asked
            raise
        except XscError as fault:
            if isinstance(fault, PeerSilent):
                self._unheard[at] = asked
            self._log.warning("market.no_lease", peer=short(provider), kind=kind, code=fault.code)
            return fault

    def domain_of(self, provider: bytes) -> bytes:
        """Return the failure domain of a provider, by its newest quote."""
        site, owner, _ = self._quotes.labels(provider)
        return domain(site, owner, provider)

    def unheard_at(self) -> set[bytes]:
        """Return the providers that may have granted a lease whose answer was lost."""
        return {request.request.provider for request in self._unheard.values()}

    def heard(self, provider: bytes, counted_ms: int) -> None:
        """Forget what a provider has counted since, or can grant no more."""
        for at, asked in list(self._unheard.items()):
            request = asked.request
            is_late = counted_ms - asked.asked_ms > QUOTE_TTL_MS + REQUEST_WINDOW_MS
            is_known = self._store.get("customer", request.lease_id) is not None
            if request.provider == provider and (is_late or is_known):
                del self._unheard[at]

    async def _granted(self, asked: _SentRequest) -> LeaseEntry:
        """Return the lease that a provider grants on a request, kept; the same one each time.

        Raises:
            XscError: it refuses, does not answer, or grants what was not asked for.
        """
        request = asked.request
        reply = await self._caller.call(
            request.provider, LEASE, {"request": asked.raw}, timeout_ms=LEASE_TIMEOUT_MS
        )
        raw = take_bytes(reply.header, "lease")
        granted = open_signed(raw, Lease, network=self._network, author=request.provider)
        refusal = rules.check_grant(asked.raw, request, granted.record)
        if refusal is not None:
            raise RecordInvalid(refusal)
        entry = self._store.entry_of("customer", raw, asked.asked_ms, asked.domain)
        self._store.add([entry])
        return entry
