"""A node that leaves: everything moves, nobody notices, and it can prove it."""

import asyncio

import pytest

from tests.sim.network import content, get, put, run, stream
from tests.sim.test_repair import QUICK, agree, custodians_of, nodes_of, whole
from xsc.base.errors import ComputeExhausted, NotAllowed, SpaceExhausted
from xsc.base.limits import EPOCH_MS, MIB
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.inventory import Wanted
from xsc.storage.repair.drain_proof import check_proof
from xsc.storage.shardstore import bodies

SIZES = (1, MIB, 4 * MIB + 3)


async def drained(world, index, within_ms=900_000):
    """Wait until a node that leaves has nothing left; return its proof, checked."""
    drain = world.nodes[index].storage.drain
    end_ms = world.clock.now_ms() + within_ms
    await drain.counted(1_000)
    while drain.status().state != "done":
        assert world.clock.now_ms() < end_ms, drain.status()
        await drain.counted(1_000)
    return check_proof(await drain.proof())


def objects_of(orders):
    return len({order.record.locate for order in orders})


async def read_on(world, kept, readers, until):
    """Read every object again and again, from one node after the other; return how often."""
    done = 0
    while not until.is_set():
        for capability, data in kept:
            reader = world.nodes[readers[done % len(readers)]]
            assert await get(reader, capability) == data
            done += 1
        await world.clock.sleep_ms(3_000)
    return done


def alone(world, index):
    """Cut a node off from all others, until the network heals."""
    for other in range(world.count):
        if other != index:
            world.net.partition(world.name(index), world.name(other))


async def held_by(world, index):
    return [key for key, _ in await world.nodes[index].shards.entries(b"", 10_000)]


async def refuses_to_keep(world, leaver):
    """Not even for another customer does it keep what it has."""
    key, entry = next(
        (key, entry)
        for key, entry in await leaver.shards.entries(b"", 10_000)
        if key.startswith(bodies.SHARDS)
    )
    segment, column, _ = bodies.column_of_key(key)
    wanted = [Wanted(segment, column, entry.proof)]
    header = messages.keep_message(b"l" * 32, key[1:33], 0, wanted)
    with pytest.raises(SpaceExhausted, match="leaving"):
        await world.nodes[5].peers.call(leaver.key.node_id, messages.KEEP, header)


def test_all_that_a_node_holds_moves_and_reads_meanwhile_never_fail():
    async def play(world):
        kept = []
        for owner in (0, 3):
            for size in SIZES:
                data = content(size, seed=owner)
                kept.append((await put(world.nodes[owner], data), data))
        leaver = 3
        entries = await world.nodes[leaver].shards.entries(b"", 10_000)
        own = world.nodes[leaver].key.node_id
        others = {key: entry.held_bytes for key, entry in entries if not key.endswith(own)}
        assert others
        until = asyncio.Event()
        reading = asyncio.create_task(read_on(world, kept, [0, 3, 4, 5, 6], until))
        await world.nodes[leaver].storage.drain.begin()
        proof, orders = await drained(world, leaver)
        until.set()
        assert await reading > len(kept) * 15
        assert await held_by(world, leaver) == []
        assert world.nodes[leaver].shards.used_bytes == 0
        assert proof.author == world.nodes[leaver].key.node_id
        assert proof.record.left_objects == 0
        assert objects_of(orders) == len({key[1:33] for key in others})
        assert proof.record.released_bytes == sum(others.values())
        assert len({order.author for order in orders}) == 1
        await world.nodes[leaver].stop()
        for capability, data in kept:
            await whole(world, capability, without=[leaver])
            assert await get(world.nodes[7], capability) == data, "its own objects, too"

    run(71, 8, play, QUICK | {"storage_capacity": "4GiB"})


@pytest.mark.parametrize(("moved_kept", "kept_ms"), [("2s", 2_000), ("40s", 40_000)])
def test_what_moved_stays_for_as_long_as_the_operator_says(moved_kept, kept_ms):
    async def play(world):
        capability = await put(world.nodes[0], content(100_000))
        leaver = next(index for index, _ in await nodes_of(world, capability) if index)
        drain, shards = world.nodes[leaver].storage.drain, world.nodes[leaver].shards
        await drain.begin()
        while leaver in {index for index, _ in await nodes_of(world, capability)}:
            await world.clock.sleep_ms(100)
        moved_ms = world.clock.now_ms()
        while shards.used_bytes:
            await world.clock.sleep_ms(500)
        waited_ms = world.clock.now_ms() - moved_ms
        assert kept_ms - 1_000 <= waited_ms <= kept_ms + 5_000

    run(84, 8, play, QUICK | {"moved_kept": moved_kept})


def test_what_a_node_was_owed_is_settled_to_the_micro_credit():
    async def play(world):
        capability = await put(world.nodes[0], content(9 * MIB))
        leaver = next(index for index, _ in await nodes_of(world, capability) if index)
        await world.skip(2 * EPOCH_MS, EPOCH_MS)
        await world.nodes[leaver].storage.drain.begin()
        await drained(world, leaver)
        await agree(world)
        for node in world.nodes:
            await node.market.settlement.settle_all()
        given = [v for v in world.nodes[leaver].market.leases() if v.entry.role == "provider"]
        storage = [view for view in given if view.entry.terms.kind == "storage"]
        assert all(view.use.held_bytes == 0 for view in storage)
        assert all(view.due_micro == view.settled_micro > 0 for view in storage)

    run(72, 8, play, QUICK | {"storage_price_gib_hour": "1024"})


def test_a_node_that_leaves_takes_nothing_new():
    async def play(world):
        await put(world.nodes[0], content(MIB))
        await put(world.nodes[2], content(MIB))
        leaver = world.nodes[1]
        before = {view.entry.id for view in leaver.market.leases()}
        # Nobody hears of it: the leases at hand must not help either.
        alone(world, 1)
        await leaver.storage.drain.begin()
        await world.clock.sleep_ms(5_000)
        world.net.heal()
        held = await held_by(world, 1)
        for seed in range(3):
            data = content(MIB, seed=seed)
            done = await put(world.nodes[0], data)
            assert 1 not in {index for index, _ in await nodes_of(world, done)}
            assert await get(world.nodes[5], done) == data
        own = await leaver.storage.put(stream(content(MIB)), name="own", size_hint=MIB)
        assert leaver.key.node_id not in own.hosts, "it still stores elsewhere"
        assert set(await held_by(world, 1)) <= set(held)
        await refuses_to_keep(world, leaver)
        assert {
            view.entry.id for view in leaver.market.leases() if view.entry.role == "provider"
        } <= (before)
        with pytest.raises(ComputeExhausted):
            await world.nodes[0].market.buyer.lease_compute(fuel_steps=1, on=leaver.key.node_id)

    run(73, 7, play, QUICK | {"storage_capacity": "4GiB"})


@pytest.mark.parametrize("moment_ms", [10, 2_000])
def test_a_drain_survives_kills_of_both_sides_and_goes_on(moment_ms):
    async def play(world):
        kept = []
        for seed in range(4):
            data = content(4 * MIB + 9, seed=seed)
            kept.append((await put(world.nodes[0], data), data))
        leaver = next(index for index, _ in await nodes_of(world, kept[0][0]) if index)
        held = [key for key in await held_by(world, leaver) if key.startswith(b"s")]
        await world.nodes[leaver].storage.drain.begin()
        for index in (leaver, 0):
            await world.clock.sleep_ms(moment_ms)
            await world.crash(index)
            await world.restart(index)
        _, orders = await drained(world, leaver)
        objects = {key[1:33] for key in held}
        assert objects_of(orders) == len(objects), "each once, whatever was done twice"
        assert await held_by(world, leaver) == []
        for capability, data in kept:
            assert await get(world.nodes[6], capability) == data

    run(74, 8, play, QUICK | {"repair_bandwidth": "16MiB"})


def test_with_six_nodes_a_drain_says_why_it_cannot_end_and_goes_on_with_a_seventh():
    async def play(world):
        alone(world, 6)
        data = content(MIB)
        capability = await put(world.nodes[0], data)
        drain = world.nodes[2].storage.drain
        await drain.begin()
        await world.until(lambda: bool(drain.status().stuck))
        status = drain.status()
        (stuck,) = status.stuck
        assert (status.state, status.stuck_objects) == ("leaving", 1)
        assert "no node" in stuck.reason
        assert stuck.owner == world.nodes[0].key.node_id
        assert check_proof(await drain.proof())[0].record.left_objects == 1
        world.net.heal()
        proof, _ = await drained(world, 2)
        assert proof.record.left_objects == 0
        await whole(world, capability, without=[2])
        assert await get(world.nodes[6], capability) == data

    run(75, 7, play, QUICK)


def test_only_the_owner_releases_what_custodians_have_stored_elsewhere_meanwhile():
    async def play(world):
        data = content(MIB)
        capability = await put(world.nodes[0], data)
        ((first, second),) = await custodians_of(world)
        hosts = {index for index, _ in await nodes_of(world, capability)}
        leaver = min(hosts - {0, first, second})
        held = set(await held_by(world, leaver))
        await world.crash(0)
        drain = world.nodes[leaver].storage.drain
        await drain.begin()
        await world.skip_until(lambda: bool(drain.status().stuck), 400_000, 30_000)
        assert set(await held_by(world, leaver)) == held, "a custodian releases nothing of another"
        await world.crash(leaver)
        verify = parse_verify(capability).to_text()
        await whole(world, verify, without=[0, leaver], reader=first)
        assert await get(world.nodes[second], capability) == data
        # The owner takes over where its columns are now, and lets the leaving node go.
        await world.restart(0)
        await world.restart(leaver)
        _, orders = await drained(world, leaver)
        assert len({order.author for order in orders}) == objects_of(orders) == 1
        await whole(world, capability, without=[leaver])
        assert await get(world.nodes[0], capability) == data

    run(76, 10, play, QUICK | {"storage_capacity": "1GiB"})


def test_an_owner_that_is_away_without_custodians_is_said():
    async def play(world):
        await put(world.nodes[0], content(MIB))
        leaver = next(index for index in range(1, 7) if world.nodes[index].shards.used_bytes)
        await world.crash(0)
        drain = world.nodes[leaver].storage.drain
        await drain.begin()
        await world.skip_until(lambda: bool(drain.status().stuck), 400_000, 30_000)
        assert "is away" in drain.status().stuck[0].reason

    run(77, 7, play, QUICK)


def test_a_cancelled_drain_is_told_and_the_node_is_trusted_again():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        leaver = world.nodes[4]
        await leaver.storage.drain.begin()
        await world.until(
            lambda: all(leaver.key.node_id in node.departures.leaving() for node in world.nodes)
        )
        world.net.partition("node-4", "node-0")
        await leaver.storage.drain.cancel()
        assert leaver.storage.drain.status().state == "staying"
        with pytest.raises(NotAllowed, match="not leaving"):
            await leaver.storage.drain.proof()
        await world.crash(4)
        leaver = await world.restart(4)
        world.net.heal()
        await world.until(lambda: not any(node.departures.leaving() for node in world.nodes))
        hosts = {
            index
            for seed in range(4)
            for index, _ in await nodes_of(world, await put(world.nodes[1], content(1, seed=seed)))
        }
        assert await get(world.nodes[4], capability) == content(MIB)
        assert leaver.market.headroom.free("storage") > 0
        assert hosts

    run(78, 7, play, QUICK | {"storage_capacity": "4GiB"})


def test_what_an_owner_deletes_meanwhile_is_released_too():
    async def play(world):
        alone(world, 6)
        capability = await put(world.nodes[0], content(MIB))
        drain = world.nodes[2].storage.drain
        await drain.begin()
        await world.until(lambda: bool(drain.status().stuck))
        await world.nodes[0].storage.rm(capability)
        proof, _ = await drained(world, 2)
        assert proof.record.released_bytes > MIB // 4

    run(79, 7, play, QUICK)


def test_an_owner_waits_with_deleting_until_it_has_read_all_that_remains():
    async def play(world):
        data = content(MIB)
        capability = await put(world.nodes[0], data)
        before = {index for index, _ in await nodes_of(world, capability)}
        leaver = min(before - {0})
        new = world.name(min({*range(8)} - before - {0}))
        asked = []

        def corrupt(source, target, request, response):
            if request.path.endswith("storage.get") and world.name(leaver) not in (source, target):
                asked.append(target)
                return type(response)(500, {}, [b"{}"])
            return response

        world.net.corrupt = corrupt
        await world.nodes[leaver].storage.drain.begin()
        await world.until(lambda: new in asked or len(asked) > 2)
        await world.clock.sleep_ms(180_000)
        assert await held_by(world, leaver), "nothing goes before all else was read"
        world.net.corrupt = None
        await drained(world, leaver)
        assert await get(world.nodes[5], capability) == data

    run(80, 8, play, QUICK)
