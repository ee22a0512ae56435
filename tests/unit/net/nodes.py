"""Nodes for tests: peers on a memory network or on loopback, with every part of them real."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import limits
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import Value
from xsc.base.merkle import Part, root_of
from xsc.base.room import Room
from xsc.base.tally import Rate
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import KeyPair
from xsc.net.calls import quota as quotas
from xsc.net.calls.quota import Quota
from xsc.net.service import PeerNet
from xsc.net.transport.memory import MemoryNetwork, MemoryTransport
from xsc.net.transport.port import Buffer, Transport

HOUR_MS = 3_600_000


def take_all(piece: Buffer) -> None:
    """Let any body come."""
    del piece


class RecordingLog:
    """Keeps the names and fields of events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    warning = error = info

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def quota_of(
    *,
    rate: int = limits.PEER_REQUESTS_A_SECOND_MAX,
    share: int = limits.PEER_REQUESTS_IN_FLIGHT_MAX,
    most: int = quotas.REQUESTS_IN_FLIGHT_MAX,
    unknown: int = quotas.UNKNOWN_REQUESTS_A_SECOND_MAX,
) -> Quota:
    """Return a quota with other bounds; a source has what all unknown callers have."""
    quota = Quota()
    quota.units = Rate(rate * limits.REQUEST_UNITS, 1000)
    quota.places = Room(most, share)
    quota.sources, quota.unknown = Rate(unknown, 1000), Rate(unknown, 1000)
    return quota


class Node:
    """One node with its own clock, store and log; `restart` keeps only the store."""

    def __init__(
        self,
        network: MemoryNetwork,
        name: str,
        *,
        clock: ManualClock | None = None,
        network_name: str = "test",
        transport: Transport | None = None,
        quota: Quota | None = None,
        accepts: bool = False,
        store: MemoryKeyValue | None = None,
    ) -> None:
        self.accepts = accepts
        self.memory = network
        self.name = name
        self.clock = clock or ManualClock()
        self.store = store or MemoryKeyValue()
        self.log = RecordingLog()
        self.key = KeyPair(name.encode().ljust(32, b"\0"))
        self.id = self.key.node_id
        self.calls: list[tuple[bytes, dict[str, Value], list[bytes]]] = []
        self.changes: list[tuple[bytes, str]] = []
        self._network_name = network_name
        self._boots = 0
        self.net = self._build(transport, quota)

    def _build(self, transport: Transport | None, quota: Quota | None) -> PeerNet:
        self._boots += 1
        self.transport: Transport = transport or self.memory.transport(self.name)
        net = PeerNet(
            key=self.key,
            network_name=self._network_name,
            clock=self.clock,
            entropy=SeededEntropy(f"{self.name} {self._boots}".encode()),
            executor=InlineExecutor(),
            transport=self.transport,
            log=self.log,
            state=self.store,
            commit=None,
            name=self.name,
            accepts=self.accepts,
        )
        net.server.quota = quota or net.server.quota
        net.server.register({"test.echo": self._echo})
        net.roster.on_change(lambda peer, what: self.changes.append((peer, what)))
        return net

    async def _echo(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        self.calls.append((caller, header, [bytes(part.data) for part in parts]))
        return header, [part.data for part in parts]

    async def restart(self) -> None:
        """Lose the power, and start again under the same name."""
        if isinstance(self.transport, MemoryTransport):
            self.memory.kill(self.name)
        await self.net.stop()
        self.store.crash()
        self.net = self._build(None, None)
        await self.net.start()


async def acquainted(*nodes: Node) -> None:
    """Start nodes and make each pair of them peers."""
    for node in nodes:
        await node.net.start()
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            await other.net.join(node.net.invite(HOUR_MS))


def part(data: bytes) -> Part:
    return Part(data, root_of(data))
