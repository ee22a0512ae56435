"""Whom a node follows: a task for each peer, and what it subscribes to at whom.

Standing subscriptions follow from recognition. A watch adds its own for as long as it is open.
docs/design/space.md, S11 and S12.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from xsc.base import errors, ids, peering
from xsc.identity.context import Context
from xsc.space import limits, paths, port, record
from xsc.space.sync import SpaceSync, Subscription


class Standing(Protocol):
    """How this node and a peer recognise each other."""

    def weight_ppm(self, peer: bytes) -> int:
        """Return this node's recognition of a peer."""

    def their_weight_ppm(self, peer: bytes) -> int:
        """Return a peer's recognition of this node."""


def prefixes_of(weight_ppm: int, their_weight_ppm: int) -> set[str]:
    """Return what is always followed of a peer, by how it and this node recognise each other."""
    at = paths.UserSpacePaths
    prefixes = {at.NODES, at.INTERVAL, at.LEDGER}
    if weight_ppm and their_weight_ppm:
        return prefixes | {at.ALLOCATION}  # which is above the others
    return prefixes | {at.RECOGNITION, at.COMMITMENT, at.ALLOCATION_STATE}


class Following:
    """The peers that one node follows.

    Args:
        context: the node's values.
        space: has what is followed.
        sync: holds the requests.
        peers: those that are not blocked are followed.
        standing: decides what is always followed of each.
        start: runs a loop in the background until its task is cancelled.
        is_up: says whether a peer answers.
    """

    def __init__(
        self,
        context: Context,
        space: port.Space,
        sync: SpaceSync,
        peers: peering.Peers,
        standing: Standing,
        *,
        start: Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]],
        is_up: Callable[[bytes], bool],
    ) -> None:
        self._space = space
        self._sync = sync
        self._is_up = is_up
        self._peers = peers
        self._standing = standing
        self._start = start
        self._clock = context.clock
        self._log = context.log
        self._begun = False
        self._recognised = asyncio.Event()
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._ended: dict[bytes, asyncio.Task[None]] = {}
        """Cancelled ones: one of them may still run when its peer comes back."""
        self._watched: Counter[Subscription] = Counter()

    def begin(self) -> None:
        """Follow peers from now on; before this, only what is to be followed is noted."""
        self._begun = True
        self.update()
        self._start("following", self._settle)

    def recognised(self) -> None:
        """Follow soon what a changed recognition adds or ends.

        At once, and then every FOLLOWING_SETTLE_MS: each time requests are replaced, so that a
        peer must not cause it at will.
        """
        self._recognised.set()

    async def _settle(self) -> None:
        while True:
            await self._recognised.wait()
            self._recognised.clear()
            self.update()
            await self._clock.sleep_ms(limits.FOLLOWING_SETTLE_MS)

    def update(self) -> None:
        """Follow whom and what is to be followed now, and nothing else."""
        if not self._begun:
            return
        peers = self._peers.peers()
        for peer in set(self._tasks) - set(peers):
            ended = self._ended[peer] = self._tasks.pop(peer)
            ended.cancel()
        for peer in peers:
            if peer not in self._tasks:
                self._tasks[peer] = self._follow(peer)
        wanted = set(self._watched)
        for peer in peers:
            weights = self._standing.weight_ppm(peer), self._standing.their_weight_ppm(peer)
            wanted |= {(peer, prefix) for prefix in prefixes_of(*weights)}
        self._sync.subscribe(wanted)

    def _follow(self, peer: bytes) -> asyncio.Task[None]:
        earlier = self._ended.pop(peer, None)

        async def follow() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await self._sync.follow(peer)

        return self._start(f"space_of_{ids.short(peer)}", follow)

    async def read(self, owner: bytes, path: str, *, anew: bool = False) -> record.Entry:
        """Return the newest record at a path, fetched from its owner where that is needed.

        Args:
            owner: of the space.
            path: of the record.
            anew: fetch it although it is followed: what is new can be on its way.

        Raises:
            NotFound: nothing is there, or its value is not on this node and the owner is away.
        """
        if owner != self._space.owner and self._is_up(owner):
            try:
                followed = not anew and self._sync.is_followed(owner, path)
                if not followed and not await self._sync.fetch(owner, path):
                    raise paths.absent(path, owner)
                if self._space.get(path, owner).signed.record.digest is not None:
                    await self._sync.asking.load(owner, owner, path)
            except errors.UnavailableError:
                self._log.info("space.owner_silent", peer=ids.short(owner))
        return self._space.get(path, owner)

    def watch(self, owner: bytes, prefix: str) -> None:
        """Follow a prefix of an owner until `unwatch`."""
        self._watched[owner, prefix] += 1
        self.update()

    def unwatch(self, owner: bytes, prefix: str) -> None:
        """End one `watch`."""
        self._watched[owner, prefix] -= 1
        self._watched += Counter()  # drops what is at zero
        self.update()
