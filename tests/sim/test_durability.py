"""Failure domains on whole nodes: sites are planned for, said, checked and survived."""

import itertools
from contextlib import contextmanager

import pytest

from tests.sim.network import content, get, put, run
from xsc.api.endpoint import Nothing
from xsc.api.home import Fsck
from xsc.api.objects import Check
from xsc.api.serial import document
from xsc.base.errors import DurabilityUnreachable
from xsc.base.limits import MIB
from xsc.node.config import load
from xsc.node.routes import home, monitor, objects
from xsc.storage.object.durability import Contract

YEAR_MS = 365 * 86_400_000
LIVES_MS, REPAIR_MS = (3 * YEAR_MS, 30 * YEAR_MS, 10 * YEAR_MS), 86_400_000
SITES = ["attic", "attic", "attic", "attic", "barn", "barn", "shed", "shed", "shed"]


def at_sites(world, sites=SITES):
    def config(index):
        settings = {**world.settings, "name": world.name(index)}
        if index < len(sites) and sites[index]:
            settings["site"] = sites[index]
        return load(world.nowhere, {}, settings)

    world.config = config


async def check(node, capability, *, deep=False):
    return await node.storage.check(capability, deep=deep, lives_ms=LIVES_MS, repair_ms=REPAIR_MS)


def test_six_shards_on_two_nodes_are_worth_what_two_nodes_are():
    """Either node takes three shards with it: a half is lost within a year, not 0.002 %."""

    async def play(world):
        alone, six = world.nodes[0], await put(world.nodes[1], content(MIB))
        for other in range(2, 7):
            world.net.partition("node-0", world.name(other))
        await world.until(
            lambda: sum(alone.health.is_up(peer) for peer in alone.peers.peers()) == 1
        )
        two = await put(alone, content(MIB), contract=Contract())
        found = await check(alone, two)
        assert (found.survives, found.margin) == ("0nodes", 2)
        said = document(await objects.check(alone, Check(capability=two)))
        assert said["domains"]["node"] == {"known": 2, "unknown": 0}
        assert found.yearly_loss_ppb == 486_582_881
        world.net.heal()
        assert (await check(world.nodes[1], six)).yearly_loss_ppb < 30_000

    run(46, 7, play)


def test_a_contract_over_sites_is_kept_through_every_loss_that_it_names():
    async def play(world):
        owner = world.nodes[0]
        data = content(MIB)
        capability = await put(owner, data, contract=Contract(2, 1))
        stat = await owner.storage.stat(capability)
        by_site = [SITES[world.index_of(host.node)] for host in stat.hosts]
        assert max(by_site.count(site) for site in set(by_site)) == 2
        found = await check(owner, capability, deep=True)
        assert found.contract == "2nodes,1site"
        assert found.contract_kept
        assert (found.bad, found.read_bytes > MIB) == ([], True)
        assert 0 < found.yearly_loss_ppb < 1_000_000
        for site in set(SITES):
            gone = [index for index, where in enumerate(SITES) if where == site]
            for index in gone:
                await world.crash(index)
            reader = next(index for index in range(9) if index not in gone)
            assert await get(world.nodes[reader], capability) == data
            for index in gone:
                await world.restart(index)
            await world.until(lambda: all(world.sees_all(node) for node in world.nodes))

    run(41, 9, play, prepare=at_sites)


def test_a_contract_that_no_placement_keeps_is_refused_and_costs_nothing():
    async def play(world):
        for asked in (Contract(2, 2), Contract(3), Contract(0, 3)):
            with pytest.raises(DurabilityUnreachable) as caught:
                await put(world.nodes[0], content(MIB), contract=asked)
            assert caught.value.hint
        assert all(node.shards.used_bytes == 0 for node in world.nodes)

    run(42, 9, play, prepare=at_sites)


def test_nodes_that_do_not_say_where_they_are_keep_no_contract_over_sites():
    async def play(world):
        with pytest.raises(DurabilityUnreachable) as caught:
            await put(world.nodes[0], content(MIB), contract=Contract(1, 1))
        assert "`site`" in caught.value.hint

    run(43, 7, play)


def test_a_check_tells_damage_from_silence_and_deep_finds_what_shallow_does_not():
    async def play(world):
        owner = world.nodes[0]
        capability = await put(owner, content(5 * MIB))
        hosts = [world.index_of(h.node) for h in (await owner.storage.stat(capability)).hosts]
        liar = f"node-{hosts[3]}"

        def corrupt(source, target, request, response):
            if liar in (source, target) and "storage.get" in request.path and response.body:
                raw = bytearray(b"".join(response.body))
                raw[-1] ^= 1
                return type(response)(response.status, response.headers, [bytes(raw)])
            return response

        world.net.corrupt = corrupt
        shallow = await check(owner, capability)
        assert [host.state for host in shallow.hosts] == ["ok"] * 6
        deep = await check(owner, capability, deep=True)
        assert {fault.shard for fault in deep.bad} == {3}
        assert deep.hosts[3].state == "corrupt"
        assert deep.margin == 1
        world.net.corrupt = None
        await world.crash(hosts[0])
        silent = await check(owner, capability)
        assert [host.state for host in silent.hosts].count("unreachable") == 1
        assert silent.survives.startswith("1node")
        assert silent.yearly_loss_ppb > shallow.yearly_loss_ppb

    run(44, 7, play)


@pytest.mark.parametrize("lost", [1, 2])
def test_the_estimate_rises_with_every_column_that_is_lost(lost):
    async def play(world):
        owner = world.nodes[0]
        capability = await put(owner, content(MIB))
        before = (await check(owner, capability)).yearly_loss_ppb
        hosts = [world.index_of(h.node) for h in (await owner.storage.stat(capability)).hosts]
        for index in itertools.islice(hosts, lost):
            await world.crash(index)
        assert (await check(owner, capability)).yearly_loss_ppb > 10 * before

    run(45, 7, play)


def test_repair_heals_where_the_contract_cannot_be_kept_and_moves_back_when_a_peer_joins():
    """Columns of the contract 2nodes,1site: two at each of three sites, of which one shrinks."""
    sites = ["attic", "attic", "attic", "barn", "barn", "shed", "shed", "shed", "attic"]

    def prepare(world):
        at_sites(world, sites)

    async def play(world):
        owner = world.nodes[0]
        for other in range(9):
            if other != 7:
                world.net.partition("node-7", world.name(other))
        await world.until(lambda: not owner.health.is_up(world.nodes[7].key.node_id))
        capability = await put(owner, content(MIB), contract=Contract(2, 1))

        async def at():
            stat = await owner.storage.stat(capability)
            assert all(host.state == "ok" for host in stat.hosts) == (stat.margin == 2)
            return [world.index_of(host.node) for host in stat.hosts]

        assert sorted(sites[index] for index in await at()) == sorted([*set(sites)] * 2)
        await world.crash(6)
        await world.clock.sleep_ms(200_000)
        healed = await at()
        assert 6 not in healed
        assert len(set(healed)) == 6
        found = await check(owner, capability)
        assert found.margin == 2, "it heals all the same"
        said = document(await objects.check(owner, Check(capability=capability)))
        assert (said["contract"], said["contract_kept"]) == ("2nodes,1site", False)
        moved = [item for *_, done in owner.storage.repairer.recent for item in done.moved]
        assert len(moved) == 1, "what is well moves only where that helps"
        world.net.heal()
        await world.clock.sleep_ms(200_000)
        said = document(await objects.check(owner, Check(capability=capability)))
        assert said["contract_kept"] is True
        assert 7 in await at()
        moved = [item for *_, done in owner.storage.repairer.recent for item in done.moved]
        assert len(moved) == 2
        await world.clock.sleep_ms(120_000)
        assert await get(world.nodes[3], capability) == content(MIB)

    quick = {"repair_grace": "60s", "repair_interval": "30min", "probe_interval": "15s"}
    run(89, 9, play, quick, prepare)


def noted(works):
    """Note what is said of work whenever some of it is done; return the list of that."""
    seen, watch_of = [], works.watch_of

    def noting(name):
        @contextmanager
        def watch(total):
            with watch_of(name)(total) as told:
                yield lambda moved: told(moved) or seen.append(works.rows())

        return watch

    works.watch_of = noting
    return seen


def test_a_deep_check_that_is_named_says_how_far_it_is():
    async def play(world):
        owner = world.nodes[0]
        capability = await put(owner, content(9 * MIB))
        seen = noted(owner.works)
        found = await objects.check(owner, Check(capability=capability, deep=True, work="mine"))
        rows = [(row.id, row.total_bytes) for (row,) in seen]
        assert set(rows) == {("mine", found.read_bytes)}
        done = [row.done_bytes for (row,) in seen]
        assert done == sorted(done)
        assert 0 < done[0] < done[-1] == found.read_bytes
        assert await monitor.work(owner, Nothing()) == []

    run(47, 7, play)


def test_a_check_of_the_node_that_is_named_says_how_far_it_is():
    async def play(world):
        owner = world.nodes[0]
        await put(owner, content(MIB), code=(1, 1))
        with owner.works.watch_of("another")(7) as progress:
            progress(3)
            seen = noted(owner.works)
            assert (await home.fsck(owner, Fsck(work="mine"))).whole
            another, mine = seen[-1]
            assert (another.id, another.done_bytes, another.total_bytes) == ("another", 3, 7)
            assert (mine.id, mine.total_bytes) == ("mine", owner.shards.used_bytes)
            assert mine.done_bytes > MIB
            assert await monitor.work(owner, Nothing()) == [another]

    run(48, 2, play)
