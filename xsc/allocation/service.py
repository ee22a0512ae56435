"""Keeps this node's recognition of peers in its space, and reads theirs out of their spaces.

The weights of a node are the value at `allocation/recognition` of its space. Every node follows
that path of each peer (docs/design/space.md, S11), so nothing is sent from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.allocation.recognition import read_weights, tier_of, value_of, with_weight
from xsc.base.errors import ArgumentInvalid, NotFound
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
        peers: Peers,
        log: Log,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._space = space
        self._peers = peers
        self._log = log
        self._on_change = on_change
        self._weights: dict[bytes, int] = {}
        self._theirs: dict[bytes, int] = {}
        """What each owner gives to this node."""
        self._setting = asyncio.Lock()
        space.register_schema(UserSpacePaths.RECOGNITION, read_weights)
        space.on_change(self._changed)

    async def start(self) -> None:
        """Read what the space has.

        Raises:
            StoreDamaged: the store fails its checksums.
            RecordInvalid: a kept value is not what was written.
        """
        for owner in self._space.owners():
            try:
                value = self._space.get(UserSpacePaths.RECOGNITION, owner).value
            except NotFound:
                continue
            self._take(owner, value)

    def _changed(self, change: Change) -> None:
        if change.path != UserSpacePaths.RECOGNITION:
            return
        before = self._theirs.get(change.owner)
        self._take(change.owner, change.value)
        if change.owner != self._space.owner:
            theirs = self._theirs[change.owner]
            if theirs == before:
                return
            self._log.info(
                "allocation.recognised", peer=short(change.owner), their_weight_ppm=theirs
            )
        self._on_change()

    def _take(self, owner: bytes, value: bytes | None) -> None:
        """Read the weights of an owner; without a value it recognises nobody."""
        weights = {} if value is None else read_weights(owner, value)
        if owner == self._space.owner:
            self._weights = weights
        else:
            self._theirs[owner] = weights.get(self._space.owner, 0)

    def weight_ppm(self, peer: bytes) -> int:
        """Return this node's recognition of a peer; 0 of one that is blocked or not known."""
        return self._weights.get(peer, 0) if self._peers.is_peer(peer) else 0

    def their_weight_ppm(self, peer: bytes) -> int:
        """Return a peer's recognition of this node as its space has it; else as `weight_ppm`."""
        return self._theirs.get(peer, 0) if self._peers.is_peer(peer) else 0

    def tier(self, peer: bytes) -> Tier:
        """Return the tier on which the peer is served here."""
        return tier_of(self.weight_ppm(peer), self.their_weight_ppm(peer))

    def weights_of(self, peer: bytes) -> tuple[int, int]:
        """Return what this node gives to a peer, and what that gives to this one, in ppm."""
        return self.weight_ppm(peer), self.their_weight_ppm(peer)

    def weights(self) -> dict[bytes, int]:
        """Return this node's weights by peer."""
        return dict(self._weights)

    async def recognise(self, peer: bytes, ppm: int) -> None:
        """Set the weight of a peer; return once that is on the disk.

        Raises:
            ArgumentInvalid: this node itself, out of range, or more than is left to give.
        """
        if peer == self._space.owner:
            raise ArgumentInvalid("a node does not recognise itself")
        async with self._setting:
            weights = with_weight(self._weights, peer, ppm)
            if weights != self._weights:
                await self._space.put(UserSpacePaths.RECOGNITION, value_of(weights))
