"""The space under faults: once they stop, every subscriber has what every owner signed last."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.settle import settle
from tests.unit.net.nodes import Node, acquainted
from tests.unit.space.test_sync import Circle, Member
from xsc.base.clock import ManualClock
from xsc.base.errors import NotFound
from xsc.net.transport.memory import MemoryNetwork
from xsc.space.limits import HEAD_INTERVAL_MS, RETRY_MS

SEEDS = int(os.environ.get("XSC_SPACE_SEEDS", "200"))
A_TEST = 10
STEPS = 24
PATHS = ("a/x", "a/y", "a/z/1", "a/z/2", "b")


class Play(Circle):
    """Members that follow each other, and what befalls them."""

    def __init__(self, clock, members, rng):
        super().__init__(clock, members)
        self.rng = rng
        self.running = {}
        self.acknowledged = {member.id: {} for member in members}
        for member in members:
            self.start(member)

    def start(self, member):
        others = [other for other in self.members if other is not member]
        for other in others:
            member.sync.subscribe(other.id, "a")
        member.follow(*others)
        self.running[member.id] = asyncio.create_task(member.space.run())

    async def stop(self, member):
        self.running[member.id].cancel()
        await asyncio.gather(self.running[member.id], return_exceptions=True)
        await member.leave()

    async def step(self):
        act = self.rng.choice(["put", "put", "rm", "rm", "cut", "heal", "kill", "wait", "compact"])
        member, other = self.rng.sample(self.members, 2)
        if act == "put":
            values = {path: self.rng.randbytes(3) for path in self.rng.sample(PATHS, 2)}
            await member.store.put(values)
            member.sync._news(member.id)
            self.acknowledged[member.id].update(values)
        elif act == "rm":
            path = self.rng.choice(PATHS)
            try:
                await member.space.rm(path)
            except NotFound:
                assert path not in self.acknowledged[member.id]
            self.acknowledged[member.id].pop(path, None)
        elif act == "cut":
            member.cut.add(other.id)
            other.cut.add(member.id)
        elif act == "heal":
            member.cut.discard(other.id)
            other.cut.discard(member.id)
        elif act == "kill":
            await self.stop(member)
            member.db.crash()
            member.begin()
            self.start(member)
        elif act == "compact":
            await member.store.sign_head()
            await member.store.compact({member.id: 2**60})  # tombstones go that others lack
        else:
            await self.pass_ms(self.rng.choice([1_000, RETRY_MS, HEAD_INTERVAL_MS]))
        if self.rng.random() < 0.5:
            await settle()

    async def end(self):
        for member in self.members:
            member.cut.clear()
        for _ in range(2 * HEAD_INTERVAL_MS // RETRY_MS):
            await self.pass_ms(RETRY_MS)
        for owner in self.members:
            wanted = self.acknowledged[owner.id]
            last = await owner.store.cursor(owner.id, "")
            for member in self.members:
                found = {
                    record.path: member.has(owner, record.path)
                    for record in member.space.ls("a", owner.id)
                }
                assert found == {path: value for path, value in wanted.items() if path != "b"}
                if member is not owner:
                    assert member.has(owner, "b") is None
                    assert await member.store.cursor(owner.id, "a") == last
            assert owner.blamed == []
        for member in self.members:
            await self.stop(member)


@pytest.mark.parametrize("first", range(0, SEEDS, A_TEST))
async def test_after_faults_all_subscribers_converge(first):
    """Kills, cut wires, deletions and compactions in any order, over 200 seeds."""
    for seed in range(first, first + A_TEST):
        rng = random.Random(seed)
        clock = ManualClock()
        network = MemoryNetwork(clock)
        nodes = [Node(network, name, clock=clock) for name in ("ada", "bea", "cid")]
        await acquainted(*nodes)
        play = Play(clock, [Member(node) for node in nodes], rng)
        for _ in range(STEPS):
            await play.step()
        await play.end()
        for node in nodes:
            await node.net.stop()
