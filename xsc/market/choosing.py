"""Chooses providers by auction, and the leases there that are used or taken.

Providers are chosen as if this node had no leases: by price for quality, one a failure domain; at
one price those where room is paid in any case, then those that hold least. So what is stored
spreads, and a lease that has become dear keeps nothing. At a provider that is chosen a lease at
hand is used, if it costs about as much as a new one; else a new one is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.errors import NoOffers, XscError
from xsc.base.ids import short
from xsc.base.limits import DEAR_PPM, NONCE_BYTES, PPM, QUALITY_STEP_PPM
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.market.auction import QUALITY_PPM_LEAST, Bid, Winner, place, reserve
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import LeaseEntry, joined, usable
from xsc.market.lease_requests import LeaseRequests
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import EXHAUSTED, MarketPorts, MarketSettings
from xsc.market.quote import domain_of, has_room, wanted_quantity
from xsc.market.quotes import Quotes
from xsc.terms.quote import Kind, Quote

Chosen: TypeAlias = tuple[list[LeaseEntry], dict[bytes, XscError]]
"""Leases at distinct nodes, and why others gave none."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A provider with room: under a lease at hand, by its quote, or both."""

    node: bytes
    lease: LeaseEntry | None
    quote: Signed[Quote] | None
    offers: bool
    """Whether the quote has the room."""
    tie: int
    """Of those of one score the least comes first: what it holds, or less where room is paid."""

    @property
    def domain(self) -> bytes:
        """The failure domain."""
        if self.quote is not None:
            return domain_of(self.quote.record)
        return b"" if self.lease is None else self.lease.domain


class LeaseChooser:
    """Finds leases for what this node stores and runs."""

    wanted = staticmethod(wanted_quantity)

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        settings: MarketSettings,
        store: LeaseStore,
        *,
        quotes: Quotes,
        requests: LeaseRequests,
        headroom: Headroom,
    ) -> None:
        self._clock = context.clock
        self._entropy = context.entropy
        self._log = context.log
        self._store = store
        self._quotes = quotes
        self._requests = requests
        self._quality = ports.quality
        self._headroom = headroom
        self._price_max = settings.price_max

    async def choose(
        self, kind: Kind, nodes: Collection[bytes], quantity: int, count: int, *, new: bool = False
    ) -> Chosen:
        """Return leases with that room at up to `count` distinct nodes.

        They are in distinct failure domains as far as there are such; then domains do not matter.

        Args:
            kind: of the leases.
            nodes: where.
            quantity: bytes, or fuel steps, that each has room for.
            count: how many.
            new: whether only new leases do.
        """
        chosen: list[LeaseEntry] = []
        faults: dict[bytes, XscError] = {}
        tried: set[bytes] = set()
        for by_domain in (True, False):
            while len(chosen) < count:
                tried.update(entry.terms.provider for entry in chosen)
                rest = [node for node in nodes if node not in tried]
                found, refused = await self._candidates(kind, rest, quantity, new=new)
                faults |= refused
                tried |= refused.keys()
                taken = {entry.domain for entry in chosen} if by_domain else set()
                fitting = {each.node: each for each in found if each.domain not in taken}
                bids = [
                    self._bid(each, each.domain if by_domain else each.node)
                    for each in fitting.values()
                ]
                winners = self.won(kind, bids, count - len(chosen))
                if not winners:
                    if not by_domain:
                        faults |= {
                            bid.node: NoOffers(
                                f"{short(bid.node)} asks {bid.price}, which is too much"
                            )
                            for bid in bids
                        }
                    break
                answers = await asyncio.gather(
                    *(self._take(fitting[each.node], each.price, quantity) for each in winners)
                )
                for winner, answer in zip(winners, answers, strict=True):
                    if isinstance(answer, XscError):
                        tried.add(winner.node)
                        faults[winner.node] = answer
                    else:
                        chosen.append(answer)
        return chosen, faults

    async def price(self, kind: Kind, count: int) -> int | None:
        """Return the most that one of so many providers would be paid now; None: none would win."""
        quotes, _ = await self._quotes.ask(kind, self._quotes.up(), 0)
        for by_domain in (True, False):
            bids = [
                self._bid(
                    _Candidate(node, None, quote, offers=True, tie=0),
                    domain_of(quote.record) if by_domain else node,
                )
                for node, quote in quotes.items()
            ]
            winners = self.won(kind, bids, count)
            if len(winners) == count:
                break
        return max((winner.price for winner in winners), default=None)

    async def _candidates(
        self, kind: Kind, nodes: Sequence[bytes], quantity: int, *, new: bool
    ) -> tuple[list[_Candidate], dict[bytes, XscError]]:
        """Return the nodes with room, and why others have none."""
        now_ms = self._clock.now_ms()
        entries = [] if new else list(self._store.all("customer"))
        at_hand = {
            entry.terms.provider: entry
            for entry in (
                *(joined(entries, quantity, set(nodes), now_ms) if kind == "storage" else ()),
                *usable(entries, kind, quantity, set(nodes), now_ms),
            )
        }
        held = Counter[bytes]()
        for entry in entries:
            held[entry.peer] += entry.use.held_bytes + entry.promised_at(now_ms)
        lacking = [node for node in nodes if node not in at_hand]
        (quotes, faults), (others, _) = await asyncio.gather(
            self._quotes.ask(kind, lacking, quantity), self._quotes.ask(kind, list(at_hand), 0)
        )
        found = []
        for node in nodes:
            quote, lease = (quotes | others).get(node), at_hand.get(node)
            offers = quote is not None and has_room(quote.record, quantity)
            if lease is None and not offers:
                faults.setdefault(node, _too_small(kind, node))
                continue
            paid = lease is not None and lease.terms.cleared
            found.append(_Candidate(node, lease, quote, offers, -1 if paid else held[node]))
        return found, faults

    async def _take(
        self, candidate: _Candidate, price: int, quantity: int
    ) -> LeaseEntry | XscError:
        """Return a lease at a provider that was chosen: the one at hand, if it is not dear."""
        lease, quote = candidate.lease, candidate.quote
        if lease is not None and (
            lease.terms.cleared
            or not candidate.offers
            or lease.terms.price * PPM <= price * DEAR_PPM
        ):
            return lease
        assert quote is not None, "a provider without a quote has a lease"
        wanted = self.wanted(quote.record, price, quantity)
        answer = await self._requests.lease(quote, price, wanted, quantity)
        if lease is None:
            return answer
        if isinstance(answer, XscError):
            return lease
        self._log.info(
            "market.lease_passed_over",
            peer=short(candidate.node),
            lease=short(lease.terms.lease_id),
            price=lease.terms.price,
            now=price,
        )
        return answer

    def won(self, kind: Kind, bids: Sequence[Bid], count: int) -> list[Winner]:
        """Return the winners of an auction of this node, and what they are paid."""
        own_price = self._headroom.pricing().unit_price(kind)
        price_max = reserve(bids, count, own_price, self._price_max(kind))
        return place(bids, count, price_max, seed=self._entropy.token(NONCE_BYTES))

    def rank(self, node: bytes) -> int:
        """Return the quality of a node, in ppm: in steps, so that those alike are."""
        quality = self._quality.quality_ppm(node)
        return max(QUALITY_PPM_LEAST, quality - quality % QUALITY_STEP_PPM)

    def _bid(self, candidate: _Candidate, domain: bytes) -> Bid:
        """Return what a candidate asks; what was posted or agreed is what is paid."""
        quote, lease, node = candidate.quote, candidate.lease, candidate.node
        rank, tie = self.rank(node), candidate.tie
        if quote is not None:
            asked, posted = quote.record.price, quote.record.tier != "open"
            if lease is None or asked <= self._price_max(quote.record.kind):
                return Bid(node, asked, rank, domain, posted, tie)
        assert lease is not None, "a provider without a quote has a lease"
        return Bid(node, lease.terms.price, rank, domain, posted=True, tie=tie)


def _too_small(kind: Kind, node: bytes) -> XscError:
    return EXHAUSTED[kind](
        f"{short(node)} has not so much {kind} left for this node, beyond the share of a node",
        hint=f"`xsc market quote {kind}` shows what it offers to this node; nodes "
        "that it recognises have a larger share",
    )
