"""Keeps this node's recognition of peers in its space, and says what peers give to this node.

The weights of a node are the value at `allocation/recognition` of its space. Every node follows
that path of each peer (docs/design/space.md, S11), so nothing is sent from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.allocation.heard import Heard
from xsc.allocation.recognition import read_weights, tier_of, value_of, with_weight
from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import short
from xsc.base.log import Log
from xsc.base.peering import Peers
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change
from xsc.terms.quote import Tier


class AllocationService:
    """The node's recognition: its own, and what peers say of theirs."""

    def __init__(
        self,
        space: Space,
        heard: Heard,
        peers: Peers,
        log: Log,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._space = space
        self._heard = heard
        self._peers = peers
        self._log = log
        self._on_change = on_change
        self._told: dict[bytes, int] = {}
        """What each owner gave to this node when that was last told."""
        self._setting = asyncio.Lock()
        space.register_schema(UserSpacePaths.RECOGNITION, read_weights)
        space.on_change(self._changed)

    def start(self) -> None:
        """Read what the space has.

        Raises:
            StoreDamaged: the store fails its checksums.
            RecordInvalid: a kept value is not what was written.
        """
        for owner in self._space.owners():
            self._told[owner] = self._given(owner, self._space.owner)

    def _changed(self, change: Change) -> None:
        owner = change.owner
        if change.path != UserSpacePaths.RECOGNITION:
            return
        if owner != self._space.owner:
            theirs = self._given(owner, self._space.owner)
            if theirs == self._told.get(owner):
                return
            self._told[owner] = theirs
            self._log.info("allocation.recognised", peer=short(owner), their_weight_ppm=theirs)
        self._on_change()

    def _given(self, owner: bytes, node: bytes) -> int:
        """Return what an owner gives to a node."""
        return self._heard.of(owner).weights.get(node, 0)

    def weight_ppm(self, peer: bytes) -> int:
        """Return this node's recognition of a peer; 0 of one that is blocked or not known."""
        return self._given(self._space.owner, peer) if self._peers.is_peer(peer) else 0

    def their_weight_ppm(self, peer: bytes) -> int:
        """Return a peer's recognition of this node as its space has it; else as `weight_ppm`."""
        return self._given(peer, self._space.owner) if self._peers.is_peer(peer) else 0

    def tier(self, peer: bytes) -> Tier:
        """Return the tier on which the peer is served here."""
        return tier_of(self.weight_ppm(peer), self.their_weight_ppm(peer))

    async def recognise(self, peer: bytes, ppm: int) -> None:
        """Set the weight of a peer; return once that is on the disk.

        Raises:
            ArgumentInvalid: this node itself, out of range, or more than is left to give.
        """
        if peer == self._space.owner:
            raise ArgumentInvalid("a node does not recognise itself")
        async with self._setting:
            before = self._heard.of(self._space.owner).weights
            weights = with_weight(before, peer, ppm)
            if weights != before:
                await self._space.put(UserSpacePaths.RECOGNITION, value_of(weights))
