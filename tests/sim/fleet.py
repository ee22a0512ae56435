"""Many nodes that do nothing but probe each other, on virtual time.

Each is the daemon's own `HealthService`. Between them is a network that loses messages, cuts
paths and counts calls; everything follows from a seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.sim.loop import simulate
from tests.sim.network import content
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import PeerSilent, PeerUnknown
from xsc.base.limits import PPM
from xsc.base.log import SilentLog
from xsc.db.memory import MemoryKeyValue
from xsc.health.score import DIMENSIONS
from xsc.health.scoring import Scores
from xsc.health.service import PROBE_INTERVAL_MS, HealthService
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair, network_id
from xsc.node.tasks import Tasks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    header: dict
    parts: list = field(default_factory=list)


def held_against(health: HealthService, peer: bytes) -> dict[str, int]:
    """Return what a node holds against a peer, by dimension, in ppm of an hour."""
    bad = {each: health.scores.tally(peer, each).bad for each in DIMENSIONS}
    return {each: amount for each, amount in bad.items() if amount}


class Member:
    """One node of a fleet, which is also its caller and its list of peers."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.key = KeyPair(content(32, fleet.seed * 1_000 + number))
        self.id = self.key.node_id
        self.tasks = Tasks(fleet.clock, SilentLog())
        self.sent = Counter()
        self.others: list[bytes] = []
        context = Context(
            self.key,
            network_id("fleet"),
            fleet.clock,
            SeededEntropy(self.key.node_id),
            InlineExecutor(),
            self,
            SilentLog(),
            MemoryKeyValue(),
            None,
        )
        self.health = HealthService(
            context,
            scores=Scores(
                context,
                self,
                recognition_ppm=lambda _: 0,
                fork=lambda _: None,
            ),
            peers=self,
            once=self.tasks.once,
            domain_of=lambda peer: peer,
        )

    def peers(self):
        return self.others

    def is_peer(self, node):
        return node in self.fleet.members and node != self.id

    def introducer_of(self, node):
        return node.hex()

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        if not self.is_peer(peer):
            raise PeerUnknown("no such peer")
        self.sent[method] += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self.fleet.exchange(self.id, peer, method, header)
        except TimeoutError:
            raise PeerSilent("no answer in time") from None

    def start(self) -> None:
        for peer in self.others:
            self.health.watch(peer)
        self.tasks.start("health", self.health.run)


class Fleet:
    """Nodes that all know each other."""

    def __init__(self, seed: int, count: int, *, loss_ppm: int = 0) -> None:
        self.seed = seed
        self.clock = ManualClock()
        self.random = random.Random(seed)
        self.loss_ppm = loss_ppm
        """The share of messages that are lost, each way."""
        self.dead: set[bytes] = set()
        """Nodes whose machine is off: nothing comes back from there."""
        self.cut: Callable[[bytes, bytes], bool] = lambda _source, _target: False
        self.members = {each.id: each for each in (Member(self, n) for n in range(count))}
        self.nodes = list(self.members.values())
        for node in self.nodes:
            node.others = [each.id for each in self.nodes if each is not node]

    async def _travel(self, source: bytes, target: bytes) -> None:
        await self.clock.sleep_ms(self.random.randrange(1, 40))
        lost = self.random.randrange(PPM) < self.loss_ppm
        if lost or {source, target} & self.dead or self.cut(source, target):
            await asyncio.get_running_loop().create_future()

    async def exchange(self, source, target, method, header):
        await self._travel(source, target)
        answer, _ = await self.members[target].health.handlers()[method](source, header, ())
        await self._travel(target, source)
        return Answer(answer)

    async def kill(self, node: Member) -> None:
        self.dead.add(node.id)
        await node.tasks.stop()

    async def until(self, holds: Callable[[], bool], within_ms: int) -> int:
        """Let time pass until something holds; return how much."""
        begun_ms = self.clock.now_ms()
        while not holds():
            assert self.clock.now_ms() - begun_ms < within_ms, "it did not come to hold in time"
            await self.clock.sleep_ms(50)
        return self.clock.now_ms() - begun_ms

    def scores(self):
        """Return what each node holds against each other."""
        return {
            (node.id, peer): held_against(node.health, peer)
            for node in self.nodes
            for peer in node.others
        }

    def sent(self) -> list[Counter]:
        """Return what each node has sent since the last look, by method."""
        found = [node.sent for node in self.nodes]
        for node in self.nodes:
            node.sent = Counter()
        return found


def sail(fleet: Fleet, play: Callable[[Fleet], Awaitable[T]]) -> T:
    """Start a fleet, and play a story once all have met."""

    async def main() -> T:
        for node in fleet.nodes:
            node.start()
        # Until each has answers enough for its own timeout.
        await fleet.clock.sleep_ms(11 * PROBE_INTERVAL_MS)
        fleet.sent()
        try:
            return await play(fleet)
        finally:
            await asyncio.gather(*(node.tasks.stop() for node in fleet.nodes))

    return simulate(fleet.clock, main())
