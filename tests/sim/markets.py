"""A market of whole nodes: each knows and recognises its neighbours, offers and needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from tests.sim.network import World, run
from xsc.allocation.declaring import Statement
from xsc.base.limits import PPM
from xsc.node.build import Node
from xsc.terms.slot import AvailabilitySlot, NeedSlot

SETTINGS = {
    "offer": "none",
    "settle_interval": "1h",
    "starter_credit": "1000",
    "storage_capacity": "16GiB",
}
REST_MS = 10_000
LOOK_MS = 200


class Circle(World):
    """Nodes in a circle, each of which knows as many on either side."""

    degree = 0

    def neighbours(self, index: int) -> list[int]:
        steps = range(1, self.degree // 2 + 1)
        return sorted({(index + side * step) % self.count for step in steps for side in (1, -1)})

    async def meet(self) -> None:
        for index, node in enumerate(self.nodes):
            for other in self.neighbours(index):
                if other > index:
                    joiner = self.nodes[other].peers
                    await joiner.join(node.peers.invite(60_000), None)

    def sees_all(self, node: Node) -> bool:
        known = node.peers.peers()
        expected = len(self.neighbours(self.index_of(node.key.node_id)))
        return len(known) == expected and all(node.health.is_up(peer) for peer in known)


@dataclass(frozen=True)
class Settled:
    """What came of it."""

    messages: int
    """That a node sent on average, until nothing changed any more."""
    time_ms: int
    """Until then, on the clock of the nodes."""
    needed: int
    served: int
    """At most what is needed, of each need."""
    over: int
    """Needs that were granted more than they ask for."""


async def state(node: Node, slot: int, need: int) -> None:
    await node.commitments.declare(AvailabilitySlot, "storage", Statement(quantity=slot, price=10))
    await node.commitments.declare(NeedSlot, "storage", Statement(quantity=need, price=40))


def settle(count: int, degree: int, seed: int = 13) -> Settled:
    """Let all nodes state a slot and a need at once; return what leases they took.

    They offer as much as they need in all. They have settled when nothing changed for REST_MS:
    neither grants, nor what is taken of them, nor caps.
    """
    random = Random(seed)
    needs = [random.randint(20, 180) for _ in range(count)]
    slots = random.sample(needs, count)
    kind = type("Circle", (Circle,), {"degree": degree})

    async def play(world: Circle) -> Settled:
        world.net.delay_ms = (5, 40)
        for index, node in enumerate(world.nodes):
            for other in world.neighbours(index):
                weight = PPM // degree - random.randint(0, PPM // (2 * degree))
                await node.commitments.recognise(world.nodes[other].key.node_id, weight)
        await world.clock.sleep_ms(REST_MS)
        start_ms, start = world.clock.now_ms(), len(world.net.trace)
        await asyncio.gather(*map(state, world.nodes, slots, needs))
        last, at_ms, end = None, world.clock.now_ms(), start
        while world.clock.now_ms() < at_ms + REST_MS:
            now = [
                (node.allocator.granted, node.allocator.received(), node.commitments.own)
                for node in world.nodes
            ]
            if now != last:
                last, at_ms, end = now, world.clock.now_ms(), len(world.net.trace)
            await world.clock.sleep_ms(LOOK_MS)
        given = [sum(node.market.signing.held_steps().values()) for node in world.nodes]
        return Settled(
            messages=sum(each.what == "sent" for each in world.net.trace[start:end]) // count,
            time_ms=at_ms - start_ms,
            needed=sum(needs),
            served=sum(map(min, given, needs)),
            over=sum(got > need for got, need in zip(given, needs, strict=True)),
        )

    settled, _ = run(seed, count, play, SETTINGS, kind=kind)
    return settled
