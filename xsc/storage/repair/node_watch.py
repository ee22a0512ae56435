"""Observes which nodes are there, gone for good, or steady enough to be given columns.

Own probes say whom to ask. That a node is silent counts once its absence is confirmed.
The decisions are in `repair_rules`; this keeps the history of each node.
"""

from __future__ import annotations

from collections.abc import Iterable

from xsc.base.clock import Clock
from xsc.storage.repair.repair_rules import NodeHistory, is_gone, is_steady, observed
from xsc.storage.transfer.host_client import HostClient

WATCHES_MAX = 4_096
"""Nodes of which it is remembered since when they are silent: peers, and what placements name."""


class NodeWatch:
    """Keeps the history of every peer, and of nodes that are asked about."""

    def __init__(self, clock: Clock, client: HostClient, grace_ms: int) -> None:
        self._clock = clock
        self._client = client
        self.grace_ms = grace_ms
        self.look_ms = max(1_000, min(30_000, grace_ms // 4))
        """How often to look what a change of the nodes calls for."""
        self._nodes: dict[bytes, NodeHistory] = {}
        self._stays: dict[bytes, NodeHistory] = {}
        """Of each peer, how it left the network and stayed: whoever does so is not steady."""

    def __len__(self) -> int:
        return len(self._nodes)

    def look(self) -> None:
        """Note which nodes are absent."""
        now_ms = self._clock.monotonic_ms()
        hosts = self._client.hosts
        leaving = self._client.leaving()
        self._stays = {
            node: observed(self._stays.get(node), up=node not in leaving, now_ms=now_ms, grace_ms=0)
            for node in hosts.peers()
        }
        for node in {*hosts.peers(), *self._nodes}:
            self._nodes[node] = observed(
                self._nodes.get(node),
                up=not hosts.is_absent(node),
                now_ms=now_ms,
                grace_ms=self.grace_ms,
            )

    def gone(self, nodes: Iterable[bytes]) -> frozenset[bytes]:
        """Return those of the nodes that have been absent for the grace."""
        now_ms = self._clock.monotonic_ms()
        nodes = list(nodes)
        unknown = [node for node in nodes if node != self._client.own and node not in self._nodes]
        for node in unknown:
            if len(self._nodes) < WATCHES_MAX:
                # It is no peer any more: its grace begins now.
                down_since_ms = now_ms if self._client.hosts.is_absent(node) else None
                self._nodes[node] = NodeHistory(down_since_ms, now_ms)
        # Objects in custody can name more nodes than can exist: those never were there.
        over = {node for node in unknown if node not in self._nodes}
        return frozenset(
            node
            for node in nodes
            if node in over or is_gone(self._nodes.get(node), now_ms, self.grace_ms)
        )

    def all_gone(self) -> frozenset[bytes]:
        """Return all known nodes that have been absent for the grace."""
        return self.gone([*self._nodes])

    def silent_ms(self, node: bytes) -> int:
        """Return for how long a node has been absent; 0 while it is not."""
        self.gone([node])
        history = self._nodes.get(node)
        if history is None or history.down_since_ms is None:
            return 0
        return self._clock.monotonic_ms() - history.down_since_ms

    def available(self, *, also_unsteady: bool = False) -> frozenset[bytes]:
        """Return those of this node and the peers that are up that may be given columns."""
        up = {node for node in self._client.hosts.peers() if self._client.is_up(node)}
        if not also_unsteady:
            now_ms = self._clock.monotonic_ms()
            up = {
                node
                for node in up
                if is_steady(self._nodes.get(node), now_ms, self.grace_ms)
                and (node not in self._stays or is_steady(self._stays[node], now_ms, self.grace_ms))
            }
        return frozenset(up | {self._client.own}) - self._client.leaving()


class Bandwidth:
    """Lets transfers wait so that their rate stays below a limit."""

    def __init__(self, clock: Clock, bytes_a_second: int) -> None:
        self._clock = clock
        self._bytes_a_second = bytes_a_second
        """0: no limit."""
        self._free_ms = 0

    async def take(self, size_bytes: int) -> None:
        """Wait until that many bytes may be transferred."""
        if not self._bytes_a_second:
            return
        now_ms = self._clock.monotonic_ms()
        start_ms = max(now_ms, self._free_ms)
        self._free_ms = start_ms + size_bytes * 1000 // self._bytes_a_second
        if start_ms > now_ms:
            await self._clock.sleep_ms(start_ms - now_ms)
