"""A customer that wants room only so that others have none, beside customers that use theirs."""

import asyncio
from dataclasses import replace

import pytest

from tests.sim.network import SEEDS, content, get, put, run
from xsc.base.errors import XscError
from xsc.base.limits import EPOCH_MS, GIB, MIB, STORAGE_LEASE_IDLE_MS

MINUTE_MS = 60_000
HOARDERS = (5, 6)
SIZE = 4 * MIB + 1


def greedy(node):
    """Make a node ask for all that a host offers, anew for each object."""
    lease = node.market.providers.lease
    node.market.providers.lease = lambda quote, price, _wanted, least: lease(
        quote, price, quote.record.available, least
    )
    choose = node.market.buyer._choose
    node.market.buyer._choose = lambda wish, *rest: choose(replace(wish, new=True), *rest)


async def hoard(node, seed):
    """Put one byte under a new lease of everything, at every host that grants one."""
    try:
        return await put(node, content(1, seed))
    except XscError:
        return None


async def hoard_for_ever(world):
    """Let all hoarders take what there is every ten minutes, until cancelled."""
    number = 0
    while True:
        for index in HOARDERS:
            number += 1
            await hoard(world.nodes[index], number)
        await world.clock.sleep_ms(10 * MINUTE_MS)


@pytest.mark.parametrize("seed", range(2)[:SEEDS])
def test_who_takes_all_room_for_a_byte_keeps_nobody_from_putting(seed):
    async def play(world):
        honest = world.nodes[:5]
        for index in HOARDERS:
            greedy(world.nodes[index])
        kept = {}
        for turn in range(6):
            for index in HOARDERS:
                await hoard(world.nodes[index], 10 * turn + index)
            node = honest[turn % len(honest)]
            data = content(SIZE, turn)
            kept[await put(node, data)] = data
            await world.skip(15 * MINUTE_MS, 15 * MINUTE_MS)
        for capability, data in kept.items():
            assert await get(honest[0], capability) == data
        # What is held for hoarders is next to nothing, and what they had is free again.
        for index in HOARDERS:
            await world.crash(index)
        await world.skip(2 * EPOCH_MS, EPOCH_MS)
        for node in honest:
            unheld = node.capacity.storage_free_bytes()
            assert node.capacity.storage_capacity_bytes() - unheld < 32 * MIB
            assert unheld - node.market.headroom.free("storage") < 32 * MIB

    run(seed, 7, play)


def test_a_put_that_takes_more_than_an_hour_keeps_its_hosts():
    """It fills its leases slowly, and others take what they can meanwhile."""

    async def play(world):
        owner = world.nodes[0]
        for index in HOARDERS:
            greedy(world.nodes[index])
        data = content(32 * MIB)

        async def slowly():
            for start in range(0, len(data), 4 * MIB):
                yield data[start : start + 4 * MIB]
                await world.clock.sleep_ms(9 * MINUTE_MS)

        def taken():
            return {view.peer for view in owner.market.leases() if view.role == "customer"}

        putting = asyncio.create_task(owner.storage.put(slowly(), name="slow", size_hint=len(data)))
        await world.until(lambda: len(taken()) == 6, 10 * MINUTE_MS)
        hosts = taken()
        hoarding = asyncio.create_task(hoard_for_ever(world))
        done = await putting
        hoarding.cancel()
        stat = await owner.storage.stat(done.capability)
        assert {host.node for host in stat.hosts} == hosts, "nobody was replaced"
        assert await get(owner, done.capability) == data

    run(9, 7, play, {"probe_interval": "1m", "settle_interval": "10m"})


def test_room_that_is_kept_for_a_byte_is_paid():
    """All the room, until it lapses; both sides come to the same bill."""

    async def play(world):
        hoarder = world.nodes[6]
        greedy(hoarder)
        for index in range(3):
            await hoard(hoarder, index)
        await world.clock.sleep_ms(STORAGE_LEASE_IDLE_MS)
        await hoarder.market.settlement.settle_all()
        for host in world.nodes[:6]:
            views = [view for view in host.market.leases() if view.role == "provider"]
            used = [view for view in views if view.held_bytes]
            for view in used:
                lapsed = view.price * view.quantity * STORAGE_LEASE_IDLE_MS // EPOCH_MS // GIB
                assert view.due_micro >= lapsed > 0
                assert view.due_micro - view.settled_micro <= 1
        return len(used)

    assert run(4, 7, play)[0]
