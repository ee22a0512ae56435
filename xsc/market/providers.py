"""Knows the providers of this node, and asks them for leases.

What they ask is published: nobody is called for a quote. A request for a cleared lease or a renewal
is on the disk before it is sent, and is sent again until the provider has answered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from xsc.base.errors import PeerSilent, RecordInvalid, XscError
from xsc.base.fields import take_bytes
from xsc.base.grade import UNTRUSTED
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import LEASE_TIMEOUT_MS
from xsc.identity.envelope import Signed, sign
from xsc.market import lease as rules
from xsc.market.lease import LeaseEntry
from xsc.market.lease_store import MarketPart
from xsc.market.pricing import domain
from xsc.terms import pricing, slot
from xsc.terms.lease import LeaseRequest

LEASE: Final = "market.lease"


class Providers(MarketPart):
    """The providers of this node, and its requests for leases there."""

    def up(self, peers: Collection[bytes] | None = None) -> list[bytes]:
        """Return those of `peers`, or of all peers that do not leave, that answered lately."""
        known = self._ports.peers.peers() if peers is None else peers
        leaving = self._ports.leaving() if peers is None else ()
        return [peer for peer in known if self._ports.quality.is_up(peer) and peer not in leaving]

    def is_trusted(self, peer: bytes) -> bool:
        """Return whether a peer is neither suspended nor barred."""
        return self._ports.quality.grade(peer) not in UNTRUSTED

    def labels(self, node: bytes) -> tuple[str, str, str]:
        """Return the site and owner that a node names, and the peer that introduced it."""
        found = self._ports.standing.labels(node) or ("", "")
        if node == self._node.id:
            found = self._node.settings.site, self._node.settings.owner
        return *found, self._ports.peers.introducer_of(node)

    def domain(self, node: bytes) -> bytes:
        """Return the failure domain of a node."""
        site, owner, _ = self.labels(node)
        return domain(site, owner, node)

    async def learn_labels(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        """Fetch what nodes have published that is not here; return those of known labels."""
        await self._ports.standing.learn(self.up(nodes))
        known = (node for node in nodes if self._ports.standing.labels(node) is not None)
        return frozenset({*known, self._node.id} & {*nodes})

    async def lease(
        self,
        offer: pricing.Quote | slot.Entitlement,
        price: int,
        *,
        least: int = 0,
        level: int = 0,
        need: slot.NeedSlot | None = None,
        renewed: LeaseEntry | None = None,
    ) -> LeaseEntry | XscError:
        """Ask for a lease and keep it; a refusal is returned.

        Args:
            offer: what the provider asks, or what a clearing granted.
            price: that is paid.
            least: bytes or fuel steps that are needed for now.
            level: of a cleared lease.
            need: to which it was granted; None: for now.
            renewed: the lease that it is the next term of.
        """
        now_ms, longest_ms = self._clock.now_ms(), self._node.settings.storage_lease_ms
        end_ms = now_ms + rules.longest_ms(offer.kind, longest_ms, cleared=need is not None)
        if need is not None and offer.kind == "compute":
            end_ms = min(end_ms, offer.window[1])
        request = LeaseRequest(
            lease_id=self._node.entropy.token(ID_BYTES) if renewed is None else renewed.id,
            provider=offer.provider,
            customer=self._node.id,
            kind=offer.kind,
            slot=offer.slot,
            window=offer.window,
            tier=offer.tier,
            need=None if need is None else need.slot_id,
            number=0 if need is None else need.number,
            renews=renewed is not None,
            level=level,
            price=price,
            start_ms=now_ms,
            end_ms=end_ms,
        )
        return await self.ask(sign(request, self._node.key, self._node.network), least)

    async def ask(self, asked: Signed[LeaseRequest], least: int = 0) -> LeaseEntry | XscError:
        """Send a request, also once more, and keep the lease; a refusal is returned."""
        request = asked.record
        try:
            if (request.cleared or request.renews) and request.lease_id not in self._store.asked:
                self._store.ask(asked)
            return await self._granted(asked, least)
        except XscError as fault:
            if not isinstance(fault, PeerSilent):
                self._store.refused(request.lease_id)
            self._node.log.warning(
                "market.no_lease", peer=short(request.provider), kind=request.kind, code=fault.code
            )
            return fault

    async def _granted(self, asked: Signed[LeaseRequest], least: int) -> LeaseEntry:
        """Return the lease that a provider grants on a request, kept.

        Raises:
            XscError: it refuses, does not answer, or grants what was not asked for.
        """
        provider, lease_id = asked.record.provider, asked.record.lease_id
        reply = await self._node.caller.call(
            provider, LEASE, {"request": asked.raw, "least": least}, timeout_ms=LEASE_TIMEOUT_MS
        )
        entry = self._store.entry_of("customer", take_bytes(reply.header, "lease"))
        known = self._store.get("customer", lease_id)
        if known is None and (asked.record.renews or entry.terms != asked.record):
            raise RecordInvalid("the lease is on another request, or is known no more")
        # A renewal may be one whose answer was lost; this node has signed that, too.
        named = entry.id, entry.terms.provider, entry.terms.customer
        if named != (lease_id, provider, self._node.id) or (
            known is not None
            and (entry.terms.end_ms <= known.terms.end_ms or entry.terms.price > asked.record.price)
        ):
            raise RecordInvalid("the provider gives another lease than the one that it renews")
        return self._store.add(entry)
