"""Keeps this node's recognition of peers, sends it to them, and keeps theirs.

Each node's weights are one signed record; the highest sequence is valid. It is sent to
every peer that it names or ever named, until the peer answers: on every change, on
start, and when a peer comes back. Tables in the state database:

    allocation/own            the signed recognition of this node
    allocation/told/<peer>    a peer that was ever sent one
    allocation/peer/<peer>    the signed recognition of a peer
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from xsc.allocation.recognition import Recognition, mutual_ppm, tier_of, with_weight
from xsc.base.encoding import Value
from xsc.base.errors import ArgumentInvalid, NotAllowed, RecordInvalid, XscError
from xsc.base.fields import take_bytes
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    PEER_CONNECT_TIMEOUT_MS,
    RECOGNITION_RESEND_MS,
    RECOGNITIONS_A_PEER_MAX,
    RECOGNITIONS_MS,
)
from xsc.base.merkle import Part
from xsc.base.peering import Handler, Peers
from xsc.base.tally import Tally
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.terms.quote import Tier

_OWN: Final = b"allocation/own"
_TOLD: Final = b"allocation/told/"
_PEER: Final = b"allocation/peer/"


def _is_newer(held: Signed[Recognition], own: Signed[Recognition]) -> bool:
    """Return whether a record that this node signed is later than its own one, or beside it."""
    return held.record.sequence > own.record.sequence or (
        held.record.sequence == own.record.sequence and held.id != own.id
    )


@dataclass(frozen=True, slots=True)
class PeerStanding:
    """How this node and a peer recognise each other."""

    peer: bytes
    weight_ppm: int
    their_weight_ppm: int
    mutual_ppm: int
    tier: Tier


class AllocationService:
    """The node's recognition: its own, and what peers say of theirs."""

    def __init__(
        self,
        context: Context,
        *,
        state: KeyValue,
        peers: Peers,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._state = state
        self._peers = peers
        self._on_change = on_change
        self._own: Signed[Recognition] | None = None
        self._weights: dict[bytes, int] = {}
        self._theirs: dict[bytes, Signed[Recognition]] = {}
        self._told: set[bytes] = set()
        self._answered: dict[bytes, int] = {}
        self._setting = asyncio.Lock()
        self._heard = Tally(RECOGNITIONS_A_PEER_MAX, RECOGNITIONS_MS)

    async def start(self) -> None:
        """Read what was kept; the peers are told by `run`, or by `tell`.

        Raises:
            StoreDamaged: the store fails its checksums.
            RecordInvalid, SignatureInvalid: a kept record is not what was written.
        """
        raw = self._state.get(_OWN)
        if raw is not None:
            self._own = self._open(raw, self._key.node_id)
            self._weights = dict(self._own.record.weights)
        for key, _ in self._state.scan(_TOLD, prefix_end(_TOLD)):
            self._told.add(key.removeprefix(_TOLD))
        for key, value in self._state.scan(_PEER, prefix_end(_PEER)):
            peer = key.removeprefix(_PEER)
            self._theirs[peer] = self._open(value, peer)

    async def run(self) -> None:
        """Send the record to peers that have not answered, again and again, until cancelled."""
        while True:
            await self.tell()
            await self._clock.sleep_ms(RECOGNITION_RESEND_MS)

    def weight_ppm(self, peer: bytes) -> int:
        """Return this node's recognition of a peer."""
        return self._weights.get(peer, 0)

    def their_weight_ppm(self, peer: bytes) -> int:
        """Return a peer's recognition of this node, as it last told; 0 where it never did."""
        theirs = self._theirs.get(peer)
        return 0 if theirs is None else theirs.record.weight_ppm(self._key.node_id)

    def mutual_ppm(self, peer: bytes) -> int:
        """Return the lesser of both."""
        return mutual_ppm(self.weight_ppm(peer), self.their_weight_ppm(peer))

    def tier(self, peer: bytes) -> Tier:
        """Return the tier on which the peer is served here."""
        return tier_of(self.weight_ppm(peer), self.their_weight_ppm(peer))

    def standing(self, peer: bytes) -> PeerStanding:
        """Return everything about one peer."""
        return PeerStanding(
            peer,
            self.weight_ppm(peer),
            self.their_weight_ppm(peer),
            self.mutual_ppm(peer),
            self.tier(peer),
        )

    def weights(self) -> dict[bytes, int]:
        """Return this node's weights by peer."""
        return dict(self._weights)

    async def recognise(self, peer: bytes, ppm: int) -> None:
        """Set the weight of a peer, keep it, and send the record to all peers concerned.

        The weight is valid here at once. A peer that does not answer is sent it later.

        Raises:
            ArgumentInvalid: this node itself, out of range, or more than is left to give.
        """
        if peer == self._key.node_id:
            raise ArgumentInvalid("a node does not recognise itself")
        async with self._setting:
            self._publish(with_weight(self._weights, peer, ppm))
        await self.tell()

    async def peer_back(self, peer: bytes) -> None:
        """Send the record to a peer that came back: it may have missed or lost it."""
        self._answered.pop(peer, None)
        await self.tell()

    async def tell(self) -> None:
        """Send the record to every reachable peer concerned that has not answered it."""
        if self._own is None:
            return
        sequence = self._own.record.sequence
        concerned = self._told | set(self._weights)
        waiting = [
            peer
            for peer in self._peers.peers()
            if peer in concerned and self._answered.get(peer, -1) < sequence
        ]
        await asyncio.gather(*(self._tell(peer, self._own) for peer in waiting))

    def handlers(self) -> dict[str, Handler]:
        """Return the methods that peers may call."""
        return {"market.recognise": self._on_recognise}

    def _open(self, raw: bytes, author: bytes) -> Signed[Recognition]:
        signed = open_signed(raw, Recognition, network=self._network, author=author)
        if signed.record.owner != author:
            raise RecordInvalid("a recognition is signed by another node than its owner")
        return signed

    def _publish(self, weights: dict[bytes, int], *, after: int = 0) -> None:
        """Sign and keep the weights under a sequence above `after` and every earlier one."""
        last = after if self._own is None else max(after, self._own.record.sequence)
        record = Recognition(
            owner=self._key.node_id,
            sequence=last + 1,
            weights=tuple(sorted(weights.items())),
            created_ms=self._clock.now_ms(),
        )
        signed = sign(record, self._key, self._network)
        # Synced before it is sent: a sequence must not be used twice, whatever happens.
        self._state.write(
            [
                (_OWN, signed.raw),
                *((_TOLD + peer, b"") for peer in weights if peer not in self._told),
            ],
            sync=True,
        )
        self._own = signed
        self._weights = weights
        self._told.update(weights)
        self._on_change()

    async def _tell(self, peer: bytes, own: Signed[Recognition]) -> None:
        try:
            reply = await self._caller.call(
                peer,
                "market.recognise",
                {"recognition": own.raw},
                timeout_ms=PEER_CONNECT_TIMEOUT_MS,
            )
            held = self._open(take_bytes(reply.header, "held"), self._key.node_id)
        except XscError as fault:
            # It is sent again after a while, whatever the error.
            self._log.warning("allocation.not_told", peer=short(peer), code=fault.code)
            return
        known = held.record.sequence
        self._answered[peer] = min(known, own.record.sequence)
        async with self._setting:
            if self._own is not None and _is_newer(held, self._own):
                # This node lost its newest record (a restored copy): go on above it.
                self._log.warning("allocation.sequence_behind", peer=short(peer), known=known)
                self._publish(dict(self._weights), after=known)

    async def _on_recognise(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        if caller not in self._peers.peers():
            raise NotAllowed("only known peers can send their recognition")
        self._heard.count(caller, self._clock.monotonic_ms(), "recognitions")
        signed = self._open(take_bytes(header, "recognition"), caller)
        kept = self._theirs.get(caller)
        if kept is not None and signed.record.sequence <= kept.record.sequence:
            # The first of two under one sequence holds; the answer shows it.
            return {"held": kept.raw}, ()
        self._state.write([(_PEER + caller, signed.raw)], sync=False)
        self._theirs[caller] = signed
        self._on_change()
        self._log.info(
            "allocation.recognised",
            peer=short(caller),
            their_weight_ppm=self.their_weight_ppm(caller),
            tier=self.tier(caller),
        )
        return {"held": signed.raw}, ()
