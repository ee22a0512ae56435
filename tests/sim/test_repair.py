"""Repair on whole nodes: what is lost comes back with no one asking, and nothing else moves."""

from collections import Counter
from itertools import pairwise

import pytest

from tests.sim.network import SEEDS, content, get, put, run, stream
from xsc.base.limits import MIB
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.durability import Contract

QUICK = {"repair_grace": "60s", "repair_interval": "5min", "probe_interval": "15s"}


async def nodes_of(world, capability, reader=0):
    stat = await world.nodes[reader].storage.stat(capability)
    return [
        (-1 if host.node is None else world.index_of(host.node), host.state) for host in stat.hosts
    ]


async def whole(world, capability, *, without=(), reader=0, within_ms=600_000):
    """Wait until six distinct nodes hold the object, none of them among those."""
    end_ms = world.clock.now_ms() + within_ms
    while True:
        found = await nodes_of(world, capability, reader)
        hosts = {index for index, state in found if state == "ok"}
        if len(hosts) == 6 and not hosts & set(without):
            return
        assert world.clock.now_ms() < end_ms, found
        await world.clock.sleep_ms(5_000)


def moves(world):
    return sum(
        len(done.moved)
        for node in world.nodes
        for repairer in (node.storage.repairer, node.storage.custody_repairer)
        for *_, done in repairer.recent
    )


def test_a_node_lost_for_good_is_healed_with_no_one_asking():
    async def play(world):
        sizes = (1, 4097, MIB, 5 * MIB + 3)
        kept = [(await put(world.nodes[0], content(size)), content(size)) for size in sizes]
        held = Counter()
        for capability, _ in kept:
            held.update(index for index, _ in await nodes_of(world, capability))
        victim = max((index for index in held if index), key=lambda index: held[index])
        await world.crash(victim)
        for capability, data in kept:
            await whole(world, capability, without=[victim])
            for reader in range(7):
                if reader != victim:
                    assert await get(world.nodes[reader], capability) == data

    run(41, 7, play, QUICK)


def test_two_nodes_lost_at_once_are_healed_and_the_old_hosts_give_their_room_back():
    async def play(world):
        data = content(5 * MIB)
        capability = await put(world.nodes[0], data)
        hosts = [index for index, _ in await nodes_of(world, capability) if index]
        victims = hosts[:2]
        for victim in victims:
            await world.crash(victim)
        await whole(world, capability, without=victims)
        assert moves(world) == 2
        before = moves(world)
        for victim in victims:
            await world.restart(victim)
        await world.skip_until(
            lambda: all(world.nodes[victim].shards.used_bytes == 0 for victim in victims),
            1_800_000,
            30_000,
        )
        assert moves(world) == before, "nothing moves because a node came back"
        await whole(world, capability, without=victims)
        assert await get(world.nodes[5], capability) == data
        await agree(world)

    run(42, 8, play, QUICK)


async def agree(world):
    """Customers and hosts count the same bytes under every lease."""
    for node in world.nodes:
        for lease in node.market.leases():
            if lease.entry.role != "customer":
                continue
            host = world.nodes[world.index_of(lease.entry.peer)]
            theirs = {view.entry.id: view for view in host.market.leases()}[lease.entry.id]
            assert (
                lease.use.held_bytes
                == theirs.use.held_bytes
                == host.shards.usage.get(lease.entry.id, 0)
            )


def test_where_nothing_can_be_deleted_hosts_are_asked_no_more_often_than_ever():
    """What moved away from a node that stays silent is no reason to ask the others again."""

    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        victim = next(index for index, _ in await nodes_of(world, capability) if index)
        await world.crash(victim)
        await whole(world, capability, without=[victim])
        await world.clock.sleep_ms(120_000)  # by then it may be deleted
        before = len(world.net.trace)
        await world.clock.sleep_ms(600_000)
        asked = sum(
            event.what == "sent" and event.path.endswith("storage.stat")
            for event in world.net.trace[before:]
        )
        assert asked <= 3 * 6, "its owner and two custodians, of six hosts"
        # But once that node is back.
        await world.restart(victim)
        await world.until(lambda: world.nodes[victim].shards.used_bytes == 0, 120_000)
        await agree(world)

    run(41, 7, play, QUICK | {"repair_interval": "1h"})


def test_the_weakest_object_is_repaired_first():
    async def play(world):
        owner = world.nodes[0]
        kept = []
        for seed, code in enumerate([(4, 2), (3, 3), (5, 1)] * 3):
            kept.append(await put(owner, content(MIB, seed=seed), code=code))
        placed = [{index for index, _ in await nodes_of(world, capability)} for capability in kept]
        victim = min(set.intersection(*placed) - {0})
        await world.crash(victim)
        for capability in kept:
            await whole(world, capability, without=[victim])
        margins = [done.margin for *_, done in owner.storage.repairer.recent]
        assert Counter(margins) == {0: 3, 1: 3, 2: 3}
        # Two are repaired at once, so the last of one kind may end beside the first of the next.
        assert all(later >= earlier - 1 for earlier, later in pairwise(margins))
        assert margins[:2] == [0, 0]
        assert margins[-2:] == [2, 2]

    run(43, 8, play, QUICK)


def test_a_flapping_node_starts_nothing():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        victim = next(index for index, _ in await nodes_of(world, capability) if index)
        for _ in range(3 if SEEDS == 1 else 8):
            await world.crash(victim)
            await world.clock.sleep_ms(40_000)
            await world.restart(victim)
            await world.clock.sleep_ms(20_000)
        assert moves(world) == 0
        await whole(world, capability)

    run(44, 7, play, QUICK)


def test_a_node_that_falls_again_and_again_is_trusted_less_each_time():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        victim = next(index for index, _ in await nodes_of(world, capability) if index)
        for _ in range(6):
            await world.crash(victim)
            await world.clock.sleep_ms(150_000)
            await world.restart(victim)
            await world.clock.sleep_ms(60_000)
        assert moves(world) == 1, "repaired once, and not placed there again"
        await whole(world, capability, without=[victim])

    run(45, 8, play, QUICK)


def test_a_node_that_leaves_and_stays_again_and_again_moves_columns_once():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        leaver = next(index for index, _ in await nodes_of(world, capability) if index)
        drain = world.nodes[leaver].storage.drain
        for _ in range(5):
            await drain.begin()
            await world.clock.sleep_ms(20_000)
            await drain.cancel()
            await world.clock.sleep_ms(20_000)
        assert moves(world) == 1, "moved away once, and not placed there again"
        await whole(world, capability)

    run(46, 7, play, QUICK)


def test_a_corrupt_source_is_skipped_and_blamed_and_the_object_heals():
    async def play(world):
        data = content(5 * MIB)
        capability = await put(world.nodes[0], data)
        hosts = [index for index, _ in await nodes_of(world, capability) if index]
        liar, victim = f"node-{hosts[0]}", hosts[1]

        def corrupt(source, target, request, response):
            if liar in (source, target) and "storage.get" in request.path and response.body:
                raw = bytearray(b"".join(response.body))
                raw[-1] ^= 1
                return type(response)(response.status, response.headers, [bytes(raw)])
            return response

        world.net.corrupt = corrupt
        await world.crash(victim)
        await whole(world, capability, without=[victim])
        world.net.corrupt = None
        assert await get(world.nodes[0], capability) == data

    run(46, 7, play, QUICK)


def test_what_a_host_admits_to_have_lost_is_built_again_at_once():
    async def play(world):
        data = content(5 * MIB)
        capability = await put(world.nodes[0], data)
        victim = next(index for index, _ in await nodes_of(world, capability) if index)
        await world.crash(victim)
        disk = world.disks[victim]
        for store in (disk.bodies, disk.index):
            store.write([(key, None) for key, _ in list(store.scan(b""))], sync=True)
        await world.restart(victim)
        await whole(world, capability, within_ms=700_000)
        assert await get(world.nodes[3], capability) == data

    run(47, 6, play, QUICK)


def test_six_nodes_cannot_heal_and_it_is_said():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        await world.crash(3)
        await world.clock.sleep_ms(200_000)
        done = await world.nodes[0].storage.repair(capability)
        assert (done.moved, len(done.left)) == ((), 1)
        assert "no node" in done.reason
        assert not (await world.nodes[0].storage.stat(capability)).healable
        assert moves(world) == 0

    run(48, 6, play, QUICK)


@pytest.mark.parametrize("moment_ms", [110] if SEEDS == 1 else [20, 110, 250])
def test_an_owner_killed_in_the_middle_of_a_repair_finishes_it_and_leaves_nothing(moment_ms):
    async def play(world):
        data = content(9 * MIB)
        capability = await put(world.nodes[0], data)
        victim = next(index for index, _ in await nodes_of(world, capability) if index)
        await world.crash(victim)
        repairer = world.nodes[0].storage.repairer
        await world.until(lambda: bool(repairer.watch.gone([world.nodes[victim].key.node_id])))
        await world.clock.sleep_ms(moment_ms)
        await world.crash(0)
        await world.restart(0)
        await whole(world, capability, without=[victim], within_ms=900_000)
        await world.skip(330_000, 30_000)
        assert await get(world.nodes[0], capability) == data
        shard_bytes = 9 * MIB // 4
        used = [node.shards.used_bytes for i, node in enumerate(world.nodes) if i != victim]
        assert sum(used) < 6 * (shard_bytes + 8_192), "nothing is left behind"

    run(49, 8, play, QUICK | {"repair_bandwidth": "64MiB"})


@pytest.mark.parametrize("count", [2, 3, 6, 8])
def test_the_objects_of_a_once_lone_node_spread_when_peers_join(count):
    async def play(world):
        owner = world.nodes[0]
        names = [world.name(index) for index in range(1, count)]
        for name in names:
            world.net.partition("node-0", name)
        await world.until(lambda: not any(owner.health.is_up(peer) for peer in owner.peers.peers()))
        data = content(5 * MIB)
        done = await owner.storage.put(
            stream(data), name="alone", size_hint=len(data), contract=Contract()
        )
        assert set(done.hosts) == {owner.key.node_id}
        world.net.heal()
        distinct = min(count, 6)
        end_ms = world.clock.now_ms() + 900_000
        while True:
            found = Counter(index for index, _ in await nodes_of(world, done.capability))
            if len(found) == distinct and max(found.values()) - min(found.values()) <= 1:
                break
            assert world.clock.now_ms() < end_ms, found
            await world.clock.sleep_ms(5_000)
        await world.skip(200_000, 30_000)
        if distinct == 6:
            assert owner.shards.used_bytes < 6 * MIB // 4 * 6 // distinct + MIB
        else:
            # Where others have several columns each, the own copies are worth more than room.
            assert owner.shards.used_bytes > 5 * MIB // 4 * 6
        assert await get(world.nodes[count - 1], done.capability) == data
        await agree(world)

    run(50, count, play, QUICK)


async def custodians_of(world, owner=0):
    """Wait until every object of a node has its custodians; return them by index."""
    node = world.nodes[owner].key.node_id

    def wards():
        found = {}
        for index, other in enumerate(world.nodes):
            for ref, ward in other.storage.custodian.store.objects():
                if ward.owner == node:
                    found.setdefault(ref, []).append((len(ward.before), index))
        return found

    count = len(world.nodes[owner].storage.ls())
    await world.until(
        lambda: len(wards()) == count and all(len(who) == 2 for who in wards().values())
    )
    return [[index for _, index in sorted(who)] for who in wards().values()]


@pytest.mark.parametrize("first_dies", [False, True])
def test_custodians_heal_while_the_owner_is_away_and_it_takes_over_when_it_is_back(first_dies):
    async def play(world):
        data = content(5 * MIB)
        capability = await put(world.nodes[0], data)
        ((first, second),) = await custodians_of(world)
        before = {index for index, _ in await nodes_of(world, capability)}
        victim = min(before - {0, first, second})
        dead = [0, victim, *([first] if first_dies else [])]
        for index in dead:
            await world.crash(index)
        reader = next(index for index in range(1, 10) if index not in dead)
        verify = parse_verify(capability).to_text()
        await whole(world, verify, without=dead, reader=reader, within_ms=1_200_000)
        assert await get(world.nodes[reader], capability) == data
        assert moves(world) == len(set(dead) & before)
        # The owner is back: it pays itself, and the custodian holds nothing any more.
        for index in dead:
            await world.restart(index)
        await world.skip_until(
            lambda: (
                not any(
                    ward.held
                    for node in world.nodes
                    for _, ward in node.storage.custodian.store.objects()
                )
            ),
            1_200_000,
            30_000,
        )
        await whole(world, capability)
        assert await get(world.nodes[0], capability) == data
        assert await get(world.nodes[reader], capability) == data
        await world.skip(330_000, 30_000)
        await agree(world)
        own = world.nodes[0].key.node_id
        for node in world.nodes:
            for lease in node.market.leases():
                if lease.entry.role == "provider" and lease.entry.peer != own:
                    assert lease.use.held_bytes == 0, "who is back pays"

    run(51, 10, play, QUICK | {"storage_capacity": "1GiB"})


def test_custodians_do_nothing_while_the_owner_answers():
    async def play(world):
        await put(world.nodes[0], content(MIB))
        ((first, second),) = await custodians_of(world)
        await world.crash(next(i for i in range(1, 8) if i not in (first, second)))
        await world.clock.sleep_ms(400_000)
        for index in (first, second):
            assert not world.nodes[index].storage.custody_repairer.recent

    run(52, 8, play, QUICK)


def test_a_deleted_object_is_in_custody_no_more():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        await custodians_of(world)
        await world.nodes[0].storage.rm(capability)
        assert not any(list(node.storage.custodian.store.objects()) for node in world.nodes)
        await world.crash(0)
        await world.clock.sleep_ms(400_000)
        assert moves(world) == 0

    run(53, 7, play, QUICK)
