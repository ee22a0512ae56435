"""The peers that this node calls and answers, and what the operator says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from xsc.base.clock import Clock
from xsc.base.ids import short, to_text
from xsc.base.log import Log
from xsc.net.peers.registry import PeerInfo, PeerRegistry

OnChange: TypeAlias = Callable[[bytes, str], None]
"""Called with a peer that was "added", "removed", "blocked", "renamed" or "confirmed"."""


class Roster:
    """Adds, renames, confirms, blocks and removes peers, and tells listeners of each change.

    Args:
        own: this node's id.
        registry: the stored peers.
        clock, log: the node's.
    """

    def __init__(self, own: bytes, registry: PeerRegistry, clock: Clock, log: Log) -> None:
        self._own = own
        self._registry = registry
        self._clock = clock
        self._log = log
        self._listeners: list[OnChange] = []

    def on_change(self, listener: OnChange) -> None:
        """Tell a listener of every peer of which something changes from now on."""
        self._listeners.append(listener)

    def tell(self, peer: bytes, what: str) -> None:
        """Log a change of a peer and tell the listeners."""
        self._log.info(f"peer.{what}", peer=short(peer))
        for listener in self._listeners:
            listener(peer, what)

    def peers(self) -> list[bytes]:
        """Return every known peer that is not blocked, never this node."""
        return [info.node_id for info in self._registry.all() if not info.blocked]

    def is_peer(self, node: bytes) -> bool:
        """Say whether a node is one of `peers`."""
        info = self._registry.get(node)
        return info is not None and not info.blocked

    def all_peers(self) -> list[bytes]:
        """Return every known peer, blocked ones too, by name."""
        return [info.node_id for info in self._registry.all()]

    def rename(self, peer: bytes, name: str) -> None:
        """Call a peer otherwise here; what it calls itself stays.

        Raises:
            PeerUnknown: no such peer. ArgumentInvalid: the name is taken, or none.
        """
        self._registry.put(self._registry.renamed(peer, name))
        self.tell(peer, "renamed")

    def confirm(self, peer: bytes) -> None:
        """Answer for an introduced peer as for an invited one: it may introduce others, too.

        Raises:
            PeerUnknown: no such peer.
        """
        self._registry.put(self._registry.info(peer).model_copy(update={"confirmed": True}))
        self.tell(peer, "confirmed")

    def block(self, peer: bytes) -> None:
        """Answer a peer no more, and call it no more, until it is removed and invited anew.

        Raises:
            PeerUnknown: no such peer.
        """
        self._registry.put(self._registry.info(peer).model_copy(update={"blocked": True}))
        self.tell(peer, "blocked")

    def remove(self, peer: bytes) -> None:
        """Forget a peer; it must be invited again to come back.

        Raises:
            PeerUnknown: no such peer.
        """
        self._registry.info(peer)
        self._registry.remove(peer)
        self.tell(peer, "removed")

    def restore(self, told: PeerInfo) -> None:
        """Take a peer as the directory tells of it: blocked or not, confirmed or not.

        Of its addresses, the newer ones stay.

        Raises:
            SpaceExhausted: PEERS_MAX are known.
        """
        peer = told.node_id
        if peer == self._own:
            return
        before = self._registry.get(peer)
        info = self._registry.restored(told, self._clock.now_ms())
        if info == before:
            return
        self._registry.put(info)
        was_called = before is not None and not before.blocked
        if was_called and info.blocked:
            self.tell(peer, "blocked")
        elif not was_called and not info.blocked:
            self.tell(peer, "added")

    def removed(self) -> list[bytes]:
        """Return whom the operator removed and no invitation brought back, the newest first."""
        return self._registry.removed()

    def restore_removed(self, peers: Sequence[bytes]) -> None:
        """Remove again whom the operator had removed, the newest first."""
        for peer in reversed(peers):
            if self._registry.was_removed(peer):
                continue
            known = self._registry.get(peer) is not None
            self._registry.remove(peer)
            if known:
                self.tell(peer, "removed")

    def shares_with(self, peer: bytes) -> list[bytes]:
        """Return the peers with which one shares its credit, itself among them.

        These are all that came through the same introducer and are not confirmed. Who was
        removed stays one of them: what it owes is still owed.
        """
        through = self._registry.through(peer)
        return [peer] if through is None else self._registry.came_through(through)

    def is_direct(self, node: bytes) -> bool:
        """Say whether a peer is known directly, and not by the word of another."""
        return self.introducer_of(node) == to_text(node)

    def introducer_of(self, node: bytes) -> str:
        """Return the id of whose word there is for a node: its own where it is known directly.

        Empty of a node that is not known.
        """
        if node == self._own:
            return to_text(node)
        info = self._registry.get(node)
        return "" if info is None else to_text(info.through or node)
