"""Asks providers for quotes and for leases.

Quotes are kept while they hold, and tell the labels of nodes. Where the answer to a request was
lost, that is remembered until the provider has counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias

from xsc.base.bounded import Bounded
from xsc.base.encoding import Value
from xsc.base.errors import PeerSilent, RecordInvalid, XscError
from xsc.base.fields import take_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import (
    LEASE_TIMEOUT_MS,
    LEASES_REFUSED_MAX,
    QUOTE_TIMEOUT_MS,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
)
from xsc.identity.envelope import Signed, sign
from xsc.market import lease as rules
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import MarketNode
from xsc.market.pricing import domain, has_room, is_valid, open_quote
from xsc.terms.lease import Draw, LeaseRequest
from xsc.terms.quote import Kind, Quote
from xsc.terms.slot import Entitlement, EntitlementKey

QUOTE: Final = "market.quote"
LEASE: Final = "market.lease"
_Asked: TypeAlias = tuple[Kind, bytes, Draw | None, bytes | None]


class Providers:
    """The providers of this node: their quotes, and its requests for leases there."""

    def __init__(self, node: MarketNode) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._kept: dict[tuple[Kind, bytes], tuple[Signed[Quote], tuple[int, int]]] = {}
        """By kind and peer the newest quote, and how both recognised each other when it came."""
        self._labels: dict[bytes, tuple[str, str]] = {self._node.id: node.settings.labels}
        self.refused: Bounded[bytes, None] = Bounded(LEASES_REFUSED_MAX)
        """The newest requests that were refused: nothing is owed under them."""
        self._unheard: dict[_Asked, Signed[LeaseRequest]] = {}
        """By kind, provider, draw and the lease that is renewed, the newest request whose answer
        was lost."""

    # Quotes

    def up(self, peers: Collection[bytes] | None = None) -> list[bytes]:
        """Return those of `peers`, or of all peers, that answered lately."""
        known = self._ports.peers.peers() if peers is None else peers
        return [peer for peer in known if self._ports.quality.is_up(peer)]

    async def offers(self, kind: Kind) -> list[Quote]:
        """Return the quotes of all peers that are up, cheapest first; kept ones while they hold."""
        answers = await self.ask(kind, self.up(), 0)
        quotes = [each.record for each in answers.values() if isinstance(each, Signed)]
        return sorted(quotes, key=lambda quote: (quote.price, quote.provider))

    def labels(self, node: bytes) -> tuple[str, str, str]:
        """Return the site and owner in a node's newest quote, and the peer that introduced it."""
        return *self._labels.get(node, ("", "")), self._ports.peers.introducer_of(node)

    def domain(self, node: bytes) -> bytes:
        """Return the failure domain of a node, by its newest quote."""
        site, owner, _ = self.labels(node)
        return domain(site, owner, node)

    def learn(self, node: bytes, quote: Quote) -> None:
        """Remember the labels of a node's quote."""
        self._labels[node] = quote.site, quote.owner

    async def learn_labels(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        """Ask nodes of unknown labels that are up for a quote; return those of known labels."""
        await self.ask("storage", self.up([node for node in nodes if node not in self._labels]), 0)
        return frozenset(node for node in nodes if node in self._labels)

    async def ask(
        self, kind: Kind, peers: Sequence[bytes], quantity: int
    ) -> dict[bytes, Signed[Quote] | XscError]:
        """Return a valid quote of each peer, or why it gives none.

        A kept quote is used while it is valid, offers at least `quantity`, and both nodes
        recognise each other as they did.
        """
        answers = await asyncio.gather(*(self._quote(kind, peer, quantity) for peer in peers))
        return dict(zip(peers, answers, strict=True))

    async def _quote(self, kind: Kind, peer: bytes, quantity: int) -> Signed[Quote] | XscError:
        weights = (
            self._ports.standing.weight_ppm(peer),
            self._ports.standing.their_weight_ppm(peer),
        )
        if (kind, peer) in self._kept:
            kept, kept_weights = self._kept[kind, peer]
            holds = is_valid(kept.record, self._clock.now_ms(), margin_ms=LEASE_TIMEOUT_MS)
            if holds and kept_weights == weights and has_room(kept.record, quantity):
                return kept
        answer = await self.fresh(kind, peer)
        if isinstance(answer, XscError):
            self._node.log.warning("market.no_quote", peer=short(peer), kind=kind, code=answer.code)
            self._kept.pop((kind, peer), None)
        else:
            self._kept[kind, peer] = answer, weights
            self.learn(peer, answer.record)
        return answer

    async def fresh(self, kind: Kind, peer: bytes) -> Signed[Quote] | XscError:
        """Return a peer's quote as of now, or why there is none."""
        asked: dict[str, Value] = {"kind": kind}
        try:
            reply = await self._node.caller.call(peer, QUOTE, asked, timeout_ms=QUOTE_TIMEOUT_MS)
            return open_quote(
                take_bytes(reply.header, "quote"),
                network=self._node.network,
                provider=peer,
                customer=self._node.id,
                kind=kind,
                now_ms=self._clock.now_ms(),
            )
        except XscError as fault:
            return fault

    # Leases

    def unheard(self) -> Iterator[tuple[EntitlementKey, int]]:
        """Yield on what leases may have been granted whose answers were lost, and how much."""
        for (_, provider, draw, renews), asked in self._unheard.items():
            if draw is not None and renews is None:
                key = EntitlementKey(provider, draw.slot, draw.start_ms, self._node.id, draw.need)
                yield key, asked.record.quantity

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
        end_ms = now_ms + rules.longest_ms(
            kind, self._node.settings.storage_lease_ms, cleared=draw is not None
        )
        if isinstance(offer, Entitlement) and kind == "compute":
            end_ms = min(end_ms, offer.window[1])
        renews = None if renewed is None else renewed.terms.lease_id
        request = LeaseRequest(
            lease_id=self._node.entropy.token(ID_BYTES),
            provider=provider,
            customer=self._node.id,
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
        asked = sign(request, self._node.key, self._node.network)
        at = (kind, provider, draw, renews)
        # Whatever the answer, the next quote is to say what is left afterwards.
        self._kept.pop((kind, provider), None)
        try:
            return await self._granted(asked)
        except asyncio.CancelledError:
            self._unheard[at] = asked
            raise
        except XscError as fault:
            if isinstance(fault, PeerSilent):
                self._unheard[at] = asked
            else:
                self.refused.put(request.lease_id, None)
            self._node.log.warning(
                "market.no_lease", peer=short(provider), kind=kind, code=fault.code
            )
            return fault

    def unheard_at(self) -> set[bytes]:
        """Return the providers that may have granted a lease whose answer was lost."""
        return {each.record.provider for each in self._unheard.values()}

    def heard(self, provider: bytes, counted_ms: int) -> None:
        """Forget what a provider has counted since, or can grant no more."""
        for at, asked in list(self._unheard.items()):
            request = asked.record
            is_late = counted_ms - request.start_ms > QUOTE_TTL_MS + REQUEST_WINDOW_MS
            is_known = self._store.get("customer", request.lease_id) is not None
            if request.provider == provider and (is_late or is_known):
                del self._unheard[at]

    async def _granted(self, asked: Signed[LeaseRequest]) -> LeaseEntry:
        """Return the lease that a provider grants on a request, kept; the same one each time.

        Raises:
            XscError: it refuses, does not answer, or grants what was not asked for.
        """
        request = asked.record
        reply = await self._node.caller.call(
            request.provider, LEASE, {"request": asked.raw}, timeout_ms=LEASE_TIMEOUT_MS
        )
        raw = take_bytes(reply.header, "lease")
        entry = self._store.entry_of("customer", raw, request.start_ms)
        if entry.request_id != asked.id:
            raise RecordInvalid("the lease is on another request")
        self._store.add([entry])
        return entry
