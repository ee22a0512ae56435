"""The main job on seven whole nodes, with two crashes, from one seed."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.sim.network import SEEDS, content, get, put, run
from xsc.base.errors import FuelExhausted, ShardsInsufficient
from xsc.base.jobs import JobSpec
from xsc.base.limits import MIB

SIZE = 9 * MIB + 1


def wasm(name):
    return Path(f"fixtures/wasm/{name}.wasm").read_bytes()


async def story(world):
    owner = world.nodes[0]
    data = content(SIZE)
    capability = await put(owner, data)
    stat = await owner.storage.stat(capability)
    hosts = [host.node for host in stat.hosts]
    assert len(set(hosts)) == 6
    assert {host.state for host in stat.hosts} == {"ok"}
    added = await owner.compute.run(JobSpec.invoke(wasm("add"), "add", ["1", "2"]))
    assert list(added.results) == ["3"]
    looped = await owner.compute.run(JobSpec.invoke(wasm("endless"), "spin", fuel=1_000_000))
    assert isinstance(looped.trap, FuelExhausted)
    await owner.market.settlement.settle_all()
    victims = [world.index_of(host) for host in hosts[:2]]
    for victim in victims:
        await world.crash(victim)
    survivor = next(i for i in range(1, 7) if i not in victims)
    assert await get(world.nodes[survivor], capability) == data
    assert await get(owner, capability) == data
    await world.until(
        lambda: not any(owner.health.is_up(world.nodes[v].key.node_id) for v in victims)
    )
    for victim in victims:
        await world.restart(victim)
    await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
    stat = await owner.storage.stat(capability)
    assert {host.state for host in stat.hosts} == {"ok"}, "a receipt outlives the crash"
    for node in world.nodes:
        await node.ledger.verify()
    balances = [
        node.ledger.balance(other.key.node_id)
        for node in world.nodes
        for other in world.nodes
        if other is not node
    ]
    assert sum(balances) == 0
    assert any(balances)
    return capability


async def hosts_of(world, capability):
    stat = await world.nodes[0].storage.stat(capability)
    return [world.index_of(host.node) for host in stat.hosts]


def test_the_main_job_holds_and_the_same_seed_gives_the_same_trace():
    first, one = run(1, 7, story)
    second, two = run(1, 7, story)
    assert first == second
    assert one.trace() == two.trace()
    assert one.net.trace


@pytest.mark.parametrize("seed", range(2, 5)[:SEEDS])
def test_other_seeds_hold_too(seed):
    run(seed, 7, story)


def test_every_loss_of_two_hosts_is_survived():
    """All fifteen pairs: this is where XSC's ancestor lost data in ten."""

    async def play(world):
        data = content(4 * MIB + 17)
        capability = await put(world.nodes[0], data)
        hosts = await hosts_of(world, capability)
        seen = 0
        for pair in combinations(hosts, 2):
            for victim in pair:
                await world.crash(victim)
            reader = next(i for i in range(7) if i not in pair)
            assert await get(world.nodes[reader], capability) == data
            seen += 1
            for victim in pair:
                await world.restart(victim)
        return seen

    assert run(7, 7, play)[0] == 15


def test_three_losses_are_named_and_never_a_wrong_byte():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        hosts = await hosts_of(world, capability)
        for victim in hosts[:3]:
            await world.crash(victim)
        reader = next(i for i in range(7) if i not in hosts[:3])
        with pytest.raises(ShardsInsufficient):
            await get(world.nodes[reader], capability)

    run(8, 7, play)


HASHED = """
from tests.sim.network import content, put, run
print(run(91, 7, lambda world: put(world.nodes[0], content(5 * 2**20)))[1].trace())
"""


def test_a_put_goes_the_same_way_whatever_the_order_of_sets():
    traces = {
        subprocess.run(
            [sys.executable, "-c", HASHED],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")[: 3 if SEEDS > 1 else 2]
    }
    assert len(traces) == 1
