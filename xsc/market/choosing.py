"""Chooses providers by auction, and the leases there that are used or taken.

Providers are chosen as if this node had no leases: by price for quality, one a failure domain; at
one price those where room is paid in any case, then those that hold least. So what is stored
spreads, and a lease that has become dear keeps nothing. At a provider that is chosen a lease at
hand is used, if it costs about as much as a new one; else a new one is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from xsc.base.bounded import Bounded
from xsc.base.errors import NoOffers, XscError
from xsc.base.ids import short
from xsc.base.limits import (
    DEAR_PPM,
    NEAR_PRICE_PPM,
    NONCE_BYTES,
    PASSED_OVER_MAX,
    PPM,
    QUALITY_STEP_PPM,
)
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.market.auction import QUALITY_PPM_LEAST, Bid, Winner, near, place, reserve
from xsc.market.headroom import Headroom
from xsc.market.lease import is_useful
from xsc.market.lease_entry import LeaseEntry, room_at_hand, usable
from xsc.market.lease_requests import LeaseRequests
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import EXHAUSTED, MarketPorts, MarketSettings
from xsc.market.quote import domain_of, has_room, wanted_quantity
from xsc.market.quotes import Quotes
from xsc.terms.quote import Kind, Quote


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A provider, or a lease there, that was not used."""

    node: bytes
    lease_id: bytes | None
    """None: no lease there in particular."""
    reason: str


@dataclass(slots=True)
class Chosen:
    """What came of a choice."""

    leases: list[LeaseEntry] = field(default_factory=list)
    """At distinct nodes, the preferred first."""
    faults: dict[bytes, XscError] = field(default_factory=dict)
    """Why nodes gave none."""
    passed_over: list[PassedOver] = field(default_factory=list)


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
        self.passed_over: Bounded[bytes, PassedOver] = Bounded(PASSED_OVER_MAX)
        """What the last choices passed over, by lease or node, for `market why`."""

    async def choose(
        self,
        kind: Kind,
        nodes: Collection[bytes],
        quantity: int,
        count: int,
        *,
        new: bool = False,
        saved: Mapping[bytes, int] | None = None,
        absent: Mapping[bytes, XscError] | None = None,
    ) -> Chosen:
        """Return leases with that room at up to `count` distinct nodes.

        They are in distinct failure domains as far as there are such; then domains do not matter.

        Args:
            kind: of the leases.
            nodes: where.
            quantity: bytes, or fuel steps, that each has room for.
            count: how many.
            new: whether only new leases do.
            saved: by node, the bytes that need not be sent to it.
            absent: nodes that cannot be asked, and why.
        """
        outcome = Chosen(faults=dict(absent or {}))
        chosen, faults = outcome.leases, outcome.faults
        asked: dict[bytes, _Candidate] = {}
        tried: set[bytes] = set()
        for by_domain in (True, False):
            while len(chosen) < count:
                tried.update(entry.terms.provider for entry in chosen)
                rest = [node for node in nodes if node not in tried]
                found, refused = await self._candidates(kind, rest, quantity, new=new)
                faults |= refused
                tried |= refused.keys()
                taken = {entry.domain for entry in chosen} if by_domain else set()
                asked |= {each.node: each for each in found}
                fitting = {each.node: each for each in found if each.domain not in taken}
                bids = [
                    self._bid(each, each.domain if by_domain else each.node, saved)
                    for each in fitting.values()
                ]
                winners = self.won(kind, bids, count - len(chosen), near_data=bool(saved))
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
        self.explain(kind, nodes, quantity, outcome, asked)
        return outcome

    def explain(
        self,
        kind: Kind,
        nodes: Collection[bytes],
        quantity: int,
        outcome: Chosen,
        asked: Mapping[bytes, _Candidate] | None = None,
    ) -> None:
        """Add to an outcome what it passed over and why, and log it."""
        now_ms = self._clock.now_ms()
        chosen = {entry.terms.provider: entry for entry in outcome.leases}
        domains = {entry.domain: short(node) for node, entry in chosen.items()}
        passed = outcome.passed_over
        for node, candidate in (asked or {}).items():
            reason = "others ask less for their quality, or hold less"
            if candidate.domain in domains:
                reason = f"{domains[candidate.domain]} is in its failure domain, and was chosen"
            if node not in chosen and node not in outcome.faults:
                passed.append(PassedOver(node, None, reason))
        passed += [
            PassedOver(node, None, fault.message)
            for node, fault in outcome.faults.items()
            if node not in chosen
        ]
        used = {entry.terms.lease_id for entry in outcome.leases}
        for entry in self._store.all("customer"):
            terms = entry.terms
            if terms.kind != kind or terms.provider not in nodes or terms.lease_id in used:
                continue
            winner = chosen.get(terms.provider)
            if winner is not None and winner.terms.cleared and terms.cleared:
                continue  # They are used together.
            unfit = why_unfit(entry, quantity, now_ms)
            if unfit is None and winner is not None:
                unfit = f"it costs {terms.price}, and the one that is used {winner.terms.price}"
            if unfit:
                passed.append(PassedOver(terms.provider, terms.lease_id, unfit))
        for each in passed:
            self.passed_over.put(each.lease_id or each.node, each)
        if passed:
            self._log.info(
                "market.passed_over",
                kind=kind,
                chosen=[short(node) for node in chosen],
                passed_over=[
                    f"{short(each.node)} {short(each.lease_id or b'')}: {each.reason}"
                    for each in passed
                ],
            )

    def passed(self) -> list[PassedOver]:
        """Return what was passed over of late: of each lease or provider, the newest reason."""
        return [each for key in list(self.passed_over) if (each := self.passed_over.get(key))]

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
            for entry in usable(entries, kind, quantity, set(nodes), now_ms)
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
        wanted = wanted_quantity(quote.record, price, quantity)
        answer = await self._requests.lease(quote, price, wanted, quantity)
        return lease if isinstance(answer, XscError) and lease is not None else answer

    def won(
        self, kind: Kind, bids: Sequence[Bid], count: int, *, near_data: bool = False
    ) -> list[Winner]:
        """Return the winners of an auction of this node, and what they are paid.

        Nearness to data is worth something above the own price, too.
        """
        own_price = self._headroom.pricing().unit_price(kind)
        if near_data:
            own_price = own_price * NEAR_PRICE_PPM // PPM
        price_max = reserve(bids, count, own_price, self._price_max(kind))
        return place(bids, count, price_max, seed=self._entropy.token(NONCE_BYTES))

    def rank(self, node: bytes) -> int:
        """Return the quality of a node, in ppm: in steps, so that those alike are."""
        quality = self._quality.quality_ppm(node)
        return max(QUALITY_PPM_LEAST, quality - quality % QUALITY_STEP_PPM)

    def _bid(
        self, candidate: _Candidate, domain: bytes, saved: Mapping[bytes, int] | None = None
    ) -> Bid:
        """Return what a candidate asks; what was posted or agreed is what is paid."""
        quote, lease, node = candidate.quote, candidate.lease, candidate.node
        rank, tie = near(self.rank(node), node, saved or {}), candidate.tie
        if quote is not None:
            asked, posted = quote.record.price, quote.record.tier != "open"
            if lease is None or asked <= self._price_max(quote.record.kind):
                return Bid(node, asked, rank, domain, posted, tie)
        assert lease is not None, "a provider without a quote has a lease"
        return Bid(node, lease.terms.price, rank, domain, posted=True, tie=tie)


def why_unfit(entry: LeaseEntry, quantity: int, now_ms: int) -> str | None:
    """Return why a lease taken is not used for so much; None where it could be, or empty if over.

    Args:
        entry: of a customer.
        quantity: bytes, or fuel steps.
        now_ms: the present.
    """
    if entry.is_over(now_ms) or entry.is_apart:
        return ""
    if entry.denial is not None:
        return "its provider has signed that it does not know it"
    if entry.avoided_until_ms > now_ms:
        return "its provider refused work under it a moment ago"
    if not is_useful(entry.terms, entry.use, now_ms):
        return "it is in the second half of its term, or was empty for long"
    left = room_at_hand(entry, now_ms)
    if left < quantity:
        return f"{left} of the {quantity} that are needed are left in it"
    return None


def _too_small(kind: Kind, node: bytes) -> XscError:
    return EXHAUSTED[kind](
        f"{short(node)} has not so much {kind} left for this node, beyond the share of a node",
        hint=f"`xsc market quote {kind}` shows what it offers to this node; nodes "
        "that it recognises have a larger share",
    )
