"""Whoever is stopped, nobody waits for it: reads, puts and runs while hosts stand still."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from tests.sim.network import SEEDS, content, get, put, run
from xsc.base.ids import from_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import KIB, MIB, SEGMENT_BYTES
from xsc.storage.transfer.latency import HEDGE_BYTES_A_SECOND_MIN, HEDGE_CEILING_MS

DELAY_MS = 10
RATE = 100 * MIB
LATE_MS = 150
"""More than what any host is waited for here, and far less than a ceiling."""
STOPPED_MS = 2_000
OWNER, STRANGER = 0, 7
HOSTS = range(1, 7)
ADD = Path("fixtures/wasm/add.wasm").read_bytes()
PAIRS = list(combinations(HOSTS, 2))
ROUNDS = int(os.environ.get("TEST_STOPPED_ROUNDS", "1"))
"""How often all pairs of hosts are stopped one after the other, and hosts' histories are played."""


async def timed(world, work):
    begun = world.clock.now_ms()
    return await work, world.clock.now_ms() - begun


def asked(world, reader, seen):
    """Return how many shards a reader has asked each node for, needed or not."""
    return Counter(
        event.target
        for event in world.net.trace[seen:]
        if (event.source, event.what) == (world.name(reader), "sent")
        and event.path.endswith("storage.get")
    )


async def spread(world, size):
    """Store an object of which every node but owner and stranger holds a column."""
    for index in range(world.count):
        world.net.set_rate(world.name(index), DELAY_MS, RATE)
    data = content(size)
    capability = await put(world.nodes[OWNER], data)
    stat = await world.nodes[OWNER].storage.stat(capability)
    assert {world.index_of(host.node) for host in stat.hosts} == set(HOSTS)
    return capability, data


def roomless(world):
    """Nobody but the six has room for anything."""
    for index in (OWNER, STRANGER):
        world.settings_of[index] = {"storage_capacity": "4KiB"}


@pytest.mark.parametrize("reader", [OWNER, STRANGER])
@pytest.mark.parametrize(("size", "rounds"), [(64 * KIB, ROUNDS), (3 * MIB, 1), (12 * MIB, 1)])
def test_reads_do_not_wait_for_stopped_hosts(size, rounds, reader):
    async def play(world):
        capability, data = await spread(world, size)
        node = world.nodes[reader]

        async def read():
            seen = len(world.net.trace)
            got, took = await timed(world, get(node, capability))
            assert got == data
            return took, asked(world, reader, seen).total()

        healthy = [await read() for _ in range(3)]
        first, later = [], []
        for _ in range(rounds):
            for pair in PAIRS:
                for index in pair:
                    world.net.pause(world.name(index))
                first.append(await read())
                later.append(await read())
                await world.clock.sleep_ms(700)
                for index in pair:
                    world.net.wake(world.name(index))
                await world.clock.sleep_ms(300)
        return healthy, first, later

    (healthy, first, later), _ = run(81, 8, play, prepare=roomless)
    usual_ms, usual = max(healthy)
    segments = -(-size // SEGMENT_BYTES)
    assert usual == 4 * segments
    # The two that stand still are found out together, in the first segment.
    assert max(took for took, _ in [*first, *later]) <= usual_ms + 2 * LATE_MS
    # Beside them, as many shards are asked for as were given up, and one on trial of each host.
    assert max(count for _, count in [*first, *later]) <= usual + 2 * 2 + 2


@pytest.mark.parametrize("seed", range(2)[:SEEDS])
def test_no_history_makes_a_read_longer(seed):
    """Hosts crawl, stop and go on as chance has it; then four are well, and two stand still."""
    chance = random.Random(seed)

    async def play(world):
        capability, data = await spread(world, 64 * KIB)
        node = world.nodes[OWNER]
        _, usual_ms = await timed(world, get(node, capability))
        times = []
        for _ in range(2 * ROUNDS):
            stopped = chance.sample(HOSTS, chance.randrange(7))
            for index in HOSTS:
                delay_ms = chance.choice((DELAY_MS, DELAY_MS, 300, 4_000))
                world.net.set_rate(world.name(index), delay_ms, RATE)
            for index in stopped:
                world.net.pause(world.name(index))
            reads = [asyncio.create_task(get(node, capability)) for _ in range(3)]
            await world.clock.sleep_ms(chance.randrange(10_000))
            for index in stopped:
                world.net.wake(world.name(index))
            await asyncio.gather(*reads, return_exceptions=True)
            for index in HOSTS:
                world.net.set_rate(world.name(index), DELAY_MS, RATE)
            # What is under way from before is answered.
            await world.clock.sleep_ms(4_000)
            pair = chance.choice(PAIRS)
            for index in pair:
                world.net.pause(world.name(index))
            got, took = await timed(world, get(node, capability))
            assert got == data
            times.append(took)
            for index in pair:
                world.net.wake(world.name(index))
        return usual_ms, times

    (usual_ms, times), _ = run(82 + seed, 8, play, prepare=roomless)
    ceiling_ms = HEDGE_CEILING_MS + 16 * KIB * 1000 // HEDGE_BYTES_A_SECOND_MIN
    assert max(times) <= usual_ms + 2 * ceiling_ms


@pytest.mark.parametrize("size", [KIB, 9 * MIB])
def test_a_put_replaces_hosts_that_stand_still(size):
    """Nine nodes, so that there are others for two of six hosts."""

    async def play(world):
        owner = world.nodes[OWNER]
        for index in range(world.count):
            world.net.set_rate(world.name(index), DELAY_MS, RATE)
        data = content(size)
        _, usual = await timed(world, put(owner, data))
        for stopped in [(1,), (3, 8)]:
            for index in stopped:
                world.net.pause(world.name(index))
            capability, took = await timed(world, put(owner, data))
            stat = await owner.storage.stat(capability)
            assert stat.margin == 2
            assert took <= usual + STOPPED_MS * len(stopped)
            for index in stopped:
                world.net.wake(world.name(index))
            await world.until(lambda: world.sees_all(owner))
            await world.clock.sleep_ms(30_000)

    run(90, 9, play)


def test_an_invoke_goes_to_another_provider_where_one_stands_still():
    async def play(world):
        owner = world.nodes[OWNER]
        for index in range(world.count):
            world.net.set_rate(world.name(index), DELAY_MS, RATE)

        async def add():
            done, took = await timed(
                world, owner.compute.run(JobSpec.invoke(ADD, "add", ["1", "2"]))
            )
            assert list(done.results) == ["3"]
            return world.index_of(from_text(done.provider)), took

        provider, _ = await add()
        world.net.pause(world.name(provider))
        other, took = await add()
        world.net.wake(world.name(provider))
        return provider, other, took

    (provider, other, took), _ = run(91, 7, play)
    assert other != provider
    assert took <= STOPPED_MS
