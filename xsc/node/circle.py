"""Carries addresses and introductions between the net and the space.

A node publishes where it is and whom it introduces, and takes the same of its peers as the space
brings it. What it may take is decided in `xsc.net.peers`. docs/design/net.md, C4 and C7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

from xsc.base import errors, limits
from xsc.net.peers import circle
from xsc.net.peers.circle import Introduction
from xsc.net.service import PeerNet
from xsc.space.paths import UserSpacePaths, below, is_under
from xsc.space.record import Change
from xsc.space.store import SpaceStore
from xsc.space.sync import SpaceSync

SEEK_INTERVAL_MS = 5_000
"""Between two questions where silent peers are."""
SEEK_FRIENDS = 8
"""Asked at a time; the next ones the next time."""

ADDRESS = UserSpacePaths.ADDRESS
MEMBERS = [below(UserSpacePaths.MEMBERS, number) for number in range(limits.INTRODUCED_A_PEER_MAX)]


class CircleSync:
    """What one node and its peers publish of where they are and of whom they know.

    Args:
        net: knows the peers, and what of their word counts.
        space: has what they publish.
        sync: brings it.
        before_write: done before each write, which needs an interval of causality.
        blame: told of peers whose records are not what they must be.
    """

    def __init__(
        self,
        net: PeerNet,
        space: SpaceStore,
        sync: SpaceSync,
        *,
        before_write: Callable[[], Awaitable[None]],
        blame: Callable[[bytes, errors.XscError], None],
    ) -> None:
        self._net = net
        self._space = space
        self._sync = sync
        self._clock = net.context.clock
        self._before_write = before_write
        self._blame = blame
        self._some_news = asyncio.Event()
        self._some_due = asyncio.Event()
        self._news: set[bytes] = set()
        """Peers of which there may be something to take."""
        self._later: set[bytes] = set()
        """Those that were heard too often."""
        self._left_out: set[bytes] = set()
        """Those that introduce nodes for which there was no place."""
        self._published = False
        """Whether the published introductions are those that this node makes now."""
        space.on_change(self._space_changed)
        net.roster.on_change(self._peer_changed)

    def _space_changed(self, change: Change) -> None:
        if change.owner != self._space.owner and is_under(change.path, UserSpacePaths.NODES):
            self._look_at({change.owner})

    def _peer_changed(self, peer: bytes, what: str) -> None:
        if what != "renamed":
            self._look_at({peer} | self._left_out)
            self._publish_again()

    def _look_at(self, peers: set[bytes]) -> None:
        self._news |= peers
        self._some_news.set()

    def _publish_again(self) -> None:
        self._published = False
        self._some_due.set()

    async def take(self) -> None:
        """Take what peers publish, as it comes, until cancelled."""
        self._look_at(set(self._net.peers()))
        while True:
            await self._some_news.wait()
            self._some_news.clear()
            while self._news:
                self._take(self._news.pop())
                await asyncio.sleep(0)

    async def publish(self) -> None:
        """Publish what this node says, whenever it changes, until cancelled."""
        self._publish_again()
        while True:
            await self._some_due.wait()
            self._some_due.clear()
            await self._publish()

    async def seek(self) -> None:
        """Ask some peers that answer where those are that do not, others each time; never returns.

        Those whom the space asks for a peer that is silent may not know it.
        """
        for turn in count():
            await self._clock.sleep_ms(SEEK_INTERVAL_MS)
            silent = circle.in_turn(self._sync.followed(answering=False), turn, limits.SOUGHT_MAX)
            friends = circle.in_turn(self._sync.followed(answering=True), turn, SEEK_FRIENDS)
            for friend in friends if silent else []:
                try:
                    await self._sync.seek(friend, silent)
                except errors.XscError as fault:
                    self._blame(friend, fault)
            self._look_at(self._later)
            self._later.clear()
            self._some_due.set()  # the own addresses may have changed

    # What peers say

    def _value(self, owner: bytes, path: str) -> bytes | None:
        try:
            return self._space.get(path, owner).value
        except errors.NotFound:
            return None

    def _take(self, peer: bytes) -> None:
        """Take what a peer has published, as far as it counts."""
        self._left_out.discard(peer)
        if peer not in self._net.peers():
            return
        try:
            address = self._value(peer, ADDRESS)
            if address is not None and self._net.introductions.learn(peer, address):
                self._publish_again()
            places = MEMBERS if self._net.introductions.counts(peer) else []
            found = [self._value(peer, path) for path in places]
            said = [Introduction.from_bytes(raw) for raw in found if raw is not None]
            if not self._net.introductions.take(peer, said):
                self._left_out.add(peer)
        except errors.RateLimited:
            self._later.add(peer)
        except errors.PeerError as fault:
            self._blame(peer, fault)

    # What this node says

    async def _publish(self) -> None:
        """Write what is not published yet; a node without peers has nobody to tell."""
        if not self._net.peers():
            return
        own = self._space.owner
        address = self._net.own_address.record().raw
        values: dict[str, bytes | None] = {}
        if self._value(own, ADDRESS) != address:
            values[ADDRESS] = address
        if not self._published:
            self._published = True  # what changes from here on is published after this
            values |= self._changed_members()
        if values:
            await self._before_write()
            await self._space.put_all(values)

    def _changed_members(self) -> dict[str, bytes | None]:
        """Return what to write so that exactly those are published that this node introduces.

        One that is published already stays as it is: its later address is in its own space.
        """
        held = {}
        for number, path in enumerate(MEMBERS):
            raw = self._value(self._space.owner, path)
            if raw is not None:
                held[number] = Introduction.from_bytes(raw).member
        made = {said.member: said.to_bytes() for said in self._net.introductions.made()}
        return {
            MEMBERS[number]: None if member is None else made[member]
            for number, member in circle.slots(held, made).items()
        }
