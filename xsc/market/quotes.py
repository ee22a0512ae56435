"""Asks providers for quotes and keeps those that hold; learns the labels of nodes from them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from xsc.base.encoding import Value
from xsc.base.errors import XscError
from xsc.base.fields import take_bytes
from xsc.base.ids import short
from xsc.base.limits import LEASE_TIMEOUT_MS, QUOTE_TIMEOUT_MS
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.quote import has_room, is_valid, open_quote
from xsc.terms.quote import Kind, Quote

QUOTE: Final = "market.quote"


@dataclass(frozen=True, slots=True)
class _KeptQuote:
    """A quote, and how both nodes recognised each other when it was given."""

    quote: Signed[Quote]
    weights_ppm: tuple[int, int]


class Quotes:
    """The quotes of peers, and the labels in the newest of each."""

    def __init__(self, context: Context, ports: MarketPorts, settings: MarketSettings) -> None:
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._peers = ports.peers
        self._quality = ports.quality
        self._standing = ports.standing
        self._kept: dict[tuple[Kind, bytes], _KeptQuote] = {}
        self._labels: dict[bytes, tuple[str, str]] = {self._own: settings.labels}

    def up(self, peers: Collection[bytes] | None = None) -> list[bytes]:
        """Return those of `peers`, or of all peers, that answered lately."""
        known = self._peers.peers() if peers is None else peers
        return [peer for peer in known if self._quality.is_up(peer)]

    async def offers(self, kind: Kind) -> list[Quote]:
        """Return the quotes of all peers that are up, cheapest first; kept ones while they hold."""
        quotes, _ = await self.ask(kind, self.up(), 0)
        return sorted(
            (quote.record for quote in quotes.values()),
            key=lambda quote: (quote.price, quote.provider),
        )

    def labels(self, node: bytes) -> tuple[str, str, str]:
        """Return the site and owner in a node's newest quote, and the peer that introduced it."""
        return *self._labels.get(node, ("", "")), self._peers.introducer_of(node)

    def learn(self, node: bytes, quote: Quote) -> None:
        """Remember the labels of a node's quote."""
        self._labels[node] = quote.site, quote.owner

    async def learn_labels(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        """Ask nodes of unknown labels that are up for a quote; return those of known labels."""
        await self.ask("storage", self.up([node for node in nodes if node not in self._labels]), 0)
        return frozenset(node for node in nodes if node in self._labels)

    async def ask(
        self, kind: Kind, peers: Sequence[bytes], quantity: int
    ) -> tuple[dict[bytes, Signed[Quote]], dict[bytes, XscError]]:
        """Return a valid quote of each peer that gives one, and the errors of the others.

        A kept quote is used while it is valid, offers at least `quantity`, and both nodes
        recognise each other as they did.
        """
        now_ms = self._clock.now_ms()
        quotes: dict[bytes, Signed[Quote]] = {}
        missing = []
        for peer in peers:
            kept = self._kept.get((kind, peer))
            if (
                kept is not None
                and kept.weights_ppm == self._weights_ppm(peer)
                and is_valid(kept.quote.record, now_ms, margin_ms=LEASE_TIMEOUT_MS)
                and has_room(kept.quote.record, quantity)
            ):
                quotes[peer] = kept.quote
            else:
                missing.append(peer)
        faults: dict[bytes, XscError] = {}
        answers = await asyncio.gather(*(self.fresh(kind, peer) for peer in missing))
        for peer, answer in zip(missing, answers, strict=True):
            if isinstance(answer, XscError):
                self._log.warning("market.no_quote", peer=short(peer), kind=kind, code=answer.code)
                self.drop(kind, peer)
                faults[peer] = answer
            else:
                quotes[peer] = answer
                self._kept[kind, peer] = _KeptQuote(answer, self._weights_ppm(peer))
                self.learn(peer, answer.record)
        return quotes, faults

    async def fresh(self, kind: Kind, peer: bytes) -> Signed[Quote] | XscError:
        """Return a peer's quote as of now, or why there is none."""
        asked: dict[str, Value] = {"kind": kind}
        try:
            reply = await self._caller.call(peer, QUOTE, asked, timeout_ms=QUOTE_TIMEOUT_MS)
            return open_quote(
                take_bytes(reply.header, "quote"),
                network=self._network,
                provider=peer,
                customer=self._own,
                kind=kind,
                now_ms=self._clock.now_ms(),
            )
        except XscError as fault:
            return fault

    def drop(self, kind: Kind, peer: bytes) -> None:
        """Forget the kept quote of a peer."""
        self._kept.pop((kind, peer), None)

    def _weights_ppm(self, peer: bytes) -> tuple[int, int]:
        return self._standing.weight_ppm(peer), self._standing.their_weight_ppm(peer)
