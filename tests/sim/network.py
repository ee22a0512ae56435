"""Whole nodes in one process, built by the daemon's own `build` on memory parts.

Everything follows from one seed: keys, nonces, delays, losses. `crash` takes a
node down where it stands and drops what it had not synced; `restart` builds it
again on what is left, as a process would.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.sim.loop import simulate
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.keyvalue import Stores
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.compute.worker.local import LocalSandbox
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import KeyPair
from xsc.monitor.events import CountedLog
from xsc.net.transport.memory import MemoryNetwork
from xsc.node.build import Node, Parts
from xsc.node.config import Config, load
from xsc.storage.object.erasure import StorageShard
from xsc.terms.lease import LeaseHandle

SEEDS = int(os.environ.get("TEST_SIM_SEEDS", "1"))
"""With how many seeds a story that draws its faults is played; with all kill points where more."""

T = TypeVar("T")
NO_HOME = Path("/nonexistent")


def points(every: Sequence[T]) -> Sequence[T]:
    """Return all kill points of a story; of a long row the first, the middle and the last."""
    few = len(every) <= 3 or SEEDS > 1
    return every if few else [every[0], every[len(every) // 2], every[-1]]


class SkewedClock:
    """A clock that tells another time than the world's, and runs as fast."""

    def __init__(self, clock: ManualClock, ahead_ms: int = 0) -> None:
        self._clock = clock
        self.ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def monotonic_ms(self) -> int:
        return self._clock.monotonic_ms()

    async def sleep_ms(self, duration_ms: int) -> None:
        await self._clock.sleep_ms(duration_ms)


@dataclass
class Disk:
    """The four stores of one node, which outlive its process."""

    bodies: MemoryKeyValue
    index: MemoryKeyValue
    state: MemoryKeyValue
    space: MemoryKeyValue

    def after_crash(self) -> Disk:
        """Return what the disk has kept; what still runs of the old process writes elsewhere."""
        stores = (self.bodies, self.index, self.state, self.space)
        return Disk(*(store.after_crash() for store in stores))


def empty_disk() -> Disk:
    """Return the disk of a new node."""
    return Disk(*(MemoryKeyValue() for _ in range(4)))


class World:
    """A network of nodes named node-0, node-1, …"""

    def __init__(self, seed: int, count: int, settings: dict[str, str] | None = None) -> None:
        self.clock = ManualClock()
        self.seed = hashlib.sha256(f"world {seed}".encode()).digest()
        self.net = MemoryNetwork(self.clock, self.seed)
        self.count = count
        self.settings = {"storage_capacity": "256MiB", **(settings or {})}
        self.disks = [empty_disk() for _ in range(count)]
        self.nodes: list[Node] = []
        self.settings_of: dict[int, dict[str, str]] = {}
        """What a node has otherwise than the others."""
        self.lives = [0] * count
        self.clocks = [SkewedClock(self.clock) for _ in range(count)]
        """Of each node; `ahead_ms` sets one."""
        self.places: dict[int, str] = {}
        """Where a node that moved is now."""
        self.full: set[int] = set()
        """Nodes whose disk has no room left."""

    nowhere = NO_HOME

    def name(self, index: int) -> str:
        return f"node-{index}"

    def place(self, index: int) -> str:
        """Return where a node is on the network."""
        return self.places.get(index, self.name(index))

    def config(self, index: int) -> Config:
        settings = {
            # Nobody recognises anybody here unless a story says so.
            "guard": "all",
            # Nor is anybody introduced: each pair meets by an invitation of its own.
            "accept_peers": "invited",
            **self.settings,
            **self.settings_of.get(index, {}),
            "name": self.name(index),
        }
        return load(NO_HOME, {}, settings)

    def make(self, index: int, *, recovering: bool = False) -> Node:
        self.lives[index] += 1
        seed = self.seed + bytes([index, self.lives[index]])
        return Node(
            self.config(index),
            self.key(index),
            "simulation",
            self.parts(index, seed),
            recovering=recovering,
        )

    def key(self, index: int) -> KeyPair:
        return KeyPair(hashlib.sha256(self.seed + bytes([index])).digest())

    def parts(self, index: int, seed: bytes) -> Parts:
        disk = self.disks[index]
        executor = InlineExecutor()
        return Parts(
            clock=self.clocks[index],
            entropy=SeededEntropy(seed),
            executor=executor,
            transport=self.net.transport(self.place(index)),
            stores=Stores(disk.bodies, disk.index, disk.state, disk.space),
            sandbox=LocalSandbox(executor),
            log=CountedLog(SilentLog(), self.clocks[index]),
            disk_free_bytes=lambda: 0 if index in self.full else 2**40,
        )

    async def start(self) -> None:
        for index in range(self.count):
            self.nodes.append(self.make(index))
        for node in self.nodes:
            await node.start()
        await self.meet()
        await self.until(lambda: all(self.sees_all(node) for node in self.nodes))

    async def meet(self) -> None:
        """Make the nodes peers of each other."""
        for index, node in enumerate(self.nodes):
            for other in self.nodes[index + 1 :]:
                await other.peers.join(node.peers.invite(60_000), None)

    def sees_all(self, node: Node) -> bool:
        known = node.peers.peers()
        return len(known) == self.count - 1 and all(node.health.is_up(peer) for peer in known)

    async def until(self, holds: Callable[[], bool], within_ms: int = 120_000) -> None:
        """Let time pass until something holds."""
        end_ms = self.clock.now_ms() + within_ms
        while not holds():
            assert self.clock.now_ms() < end_ms, "it did not come to hold in time"
            await self.clock.sleep_ms(100)

    async def skip(self, duration_ms: int, step_ms: int, awake_ms: int = 3_000) -> None:
        """Let a long time pass in jumps, after each of which every loop runs as often as is due.

        To a node it is as if its machine had slept: a year costs as much as some hours.
        """
        end_ms = self.clock.now_ms() + duration_ms
        while self.clock.now_ms() < end_ms:
            self.clock.advance_to(min(end_ms, self.clock.now_ms() + step_ms))
            await self.clock.sleep_ms(awake_ms)

    async def skip_until(
        self, holds: Callable[[], bool], within_ms: int, step_ms: int, awake_ms: int = 3_000
    ) -> None:
        """Let a long time pass in jumps until something holds."""
        end_ms = self.clock.now_ms() + within_ms
        while not holds():
            assert self.clock.now_ms() < end_ms, "it did not come to hold in time"
            await self.skip(step_ms, step_ms, awake_ms)

    async def crash(self, index: int) -> None:
        """Kill a node where it stands; what it had not synced is lost."""
        self.net.kill(self.place(index))
        self.disks[index] = self.disks[index].after_crash()
        # What still runs of the process writes elsewhere.
        await self.nodes[index].tasks.stop()

    async def lose(self, index: int) -> None:
        """Kill a node, and its disk with it."""
        await self.crash(index)
        self.disks[index] = empty_disk()

    async def join(self) -> int:
        """Add a node that knows all that are up; return its number."""
        index = await self.add()
        for other in range(index):
            if self.net.is_up(self.place(other)):
                await self.nodes[index].peers.join(self.nodes[other].peers.invite(60_000))
        return index

    async def add(self) -> int:
        """Add a node that knows nobody; return its number."""
        index = self.count
        self.count += 1
        self.lives.append(0)
        self.clocks.append(SkewedClock(self.clock))
        self.disks.append(empty_disk())
        self.nodes.append(self.make(index))
        await self.nodes[index].start()
        return index

    async def restart(self, index: int) -> Node:
        self.nodes[index] = self.make(index)
        await self.nodes[index].start()
        return self.nodes[index]

    def index_of(self, node_id: bytes) -> int:
        return [node.key.node_id for node in self.nodes].index(node_id)

    def trace(self) -> str:
        """Return a hash of everything that happened on the network."""
        return hashlib.sha256(repr(self.net.trace).encode()).hexdigest()


async def stream(data: bytes, block_bytes: int = MIB) -> AsyncIterator[bytes]:
    for start in range(0, len(data), block_bytes):
        yield data[start : start + block_bytes]


async def put(node: Node, data: bytes, **options: object) -> str:
    done = await node.storage.put(stream(data), name="object", size_hint=len(data), **options)
    return done.capability


async def store(node: Node, lease: LeaseHandle, number: int, data: bytes) -> None:
    """Have a host hold bytes under a lease, as a segment of that number."""
    shard = StorageShard(0, data, root_of(data))
    await node.storage._client.store(lease, b"l" * 32, 0, shards=[(number, shard)], record=None)


async def get(node: Node, capability: str) -> bytes:
    reader = await node.storage.open(capability)
    return b"".join([bytes(chunk) async for chunk in reader.stream()])


def run(
    seed: int,
    count: int,
    play: Callable[[World], Awaitable[T]],
    settings: dict[str, str] | None = None,
    prepare: Callable[[World], None] = lambda world: None,
    *,
    kind: type[World] = World,
) -> tuple[T, World]:
    """Play a story in a world of that many nodes; return what it gives, and the world."""
    world = kind(seed, count, settings)
    prepare(world)

    async def main() -> T:
        await world.start()
        try:
            return await play(world)
        finally:
            await asyncio.gather(*(node.tasks.stop() for node in world.nodes))

    return simulate(world.clock, main()), world


def exposure(node: Node, customer: bytes) -> int:
    """Return what a node may lose to a customer and those that share its credit."""
    return node.ledger.credit_left(customer) - node.market.headroom.credit_left(customer)


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(f"content {seed} {size}".encode()).digest(size)
