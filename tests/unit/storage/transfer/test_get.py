"""Getting: any k shards, from anywhere, and never a wrong byte."""

import asyncio
import itertools

import pytest

from tests.unit.storage.world import Answer, World, content, finished, get, put
from xsc.base.errors import (
    ArgumentInvalid,
    CapabilityInvalid,
    ObjectUnknown,
    ShardsInsufficient,
)
from xsc.storage.object.capability import parse_read

MIB = 2**20
SMALL = [0, 1, 3, 4, 5, 4096, 4097, 100 * 1024]


@pytest.mark.parametrize("size", [*SMALL, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 1])
async def test_an_object_is_read_anywhere_with_any_two_hosts_gone(size):
    world = await World(8).start()
    data = content(size)
    capability = (await put(world[0], data)).capability
    for lost in itertools.combinations(range(1, 7), 2):
        for index in lost:
            world[index].up = False
        # Node 7 knows nothing but the capability; node 0 stored it.
        assert await get(world[7], capability) == data
        for index in lost:
            world[index].up = True
    assert await get(world[0], capability) == data
    assert world[0].reports == world[7].reports == []


@pytest.mark.parametrize("size", SMALL)
async def test_a_host_of_the_object_reads_it_too(size):
    world = await World(6).start()
    data = content(size)
    capability = (await put(world[0], data)).capability
    for host in world.hosts:
        assert await get(host, capability) == data


async def test_three_losses_are_named_and_nothing_is_delivered():
    world = await World(8).start()
    capability = (await put(world[0], content(5000))).capability
    for index in (1, 2, 5):
        world[index].up = False
    with pytest.raises(ShardsInsufficient, match="3 of the 4 shards needed of segment 0") as fault:
        await get(world[7], capability)
    assert fault.value.message.count("silent") == 1


async def test_the_hosts_that_are_up_are_asked_first():
    world = await World(8).start()
    capability = (await put(world[0], content(5000))).capability
    world[1].up = world[2].up = False
    world[7].calls.clear()
    await get(world[7], capability)
    fetched = {peer for peer, method in world[7].calls if method == "storage.get"}
    assert fetched == {world[index].id for index in (3, 4, 5, 6)}


async def test_all_being_well_only_data_shards_are_fetched():
    world = await World(8).start()
    done = await put(world[0], content(5000))
    await get(world[7], done.capability)
    fetched = [peer for peer, method in world[7].calls if method == "storage.get"]
    assert fetched == list(done.hosts[:4])


def flips_shards(host, place=7):
    def corrupt(method, answer):
        if method != "storage.get":
            return answer
        parts = []
        for part in answer.parts:
            bad = bytearray(part)
            bad[place] ^= 1
            parts.append(memoryview(bytes(bad)))
        return Answer(answer.header, parts)

    host.corrupt = corrupt


@pytest.mark.parametrize("liars", [(1,), (4, 6), (2, 3)])
async def test_a_wrong_shard_is_reported_and_never_decoded(liars):
    world = await World(8).start()
    data = content(9 * MIB + 1)
    capability = (await put(world[0], data)).capability
    for liar in liars:
        flips_shards(world[liar])
    assert await get(world[7], capability) == data
    # Column 5 is never asked for: column 4 is good.
    blamed = {node for node, what in world[7].reports if what == "shard_mismatch"}
    assert blamed == {world[liar].id for liar in liars if liar != 6}


async def test_with_three_liars_nothing_is_delivered():
    world = await World(8).start()
    capability = (await put(world[0], content(5000))).capability
    for liar in (1, 2, 3):
        flips_shards(world[liar])
    with pytest.raises(ShardsInsufficient, match="wrong bytes"):
        await get(world[7], capability)


@pytest.mark.parametrize("answer", [{}, {"states": []}, {"states": ["ok"]}, {"states": ["what"]}])
async def test_a_host_that_answers_nonsense_is_passed_over(answer):
    world = await World(8).start()
    data = content(5000)
    capability = (await put(world[0], data)).capability

    def corrupt(method, reply):
        return Answer(dict(answer), []) if method == "storage.get" else reply

    world[1].corrupt = corrupt
    assert await get(world[7], capability) == data
    assert (world[1].id, "record_invalid") in world[7].reports


async def test_a_host_that_damaged_its_shard_says_so_and_is_not_blamed():
    world = await World(8).start()
    data = content(5000)
    capability = (await put(world[0], data)).capability
    for key, value in list(world[1].bodies.scan(b"b")):
        world[1].bodies.write([(key, value[:-1] + bytes([value[-1] ^ 1]))], sync=True)
    assert await get(world[7], capability) == data
    assert world[7].reports == []
    stat = await world[7].service.stat(capability)
    assert [row.state for row in stat.hosts].count("corrupt") == 1


async def test_a_slow_host_is_raced_after_the_floor():
    world = await World(8).start()
    data = content(5000)
    done = await put(world[0], data)
    world[1].delay = lambda method: 10_000 if method == "storage.get" else 0
    begun = world.clock.now_ms()
    assert await finished(world, get(world[7], done.capability)) == data
    assert world.clock.now_ms() - begun == 50
    fetched = [peer for peer, method in world[7].calls if method == "storage.get"]
    assert fetched == list(done.hosts[:5])


async def test_a_read_goes_on_while_it_looks_for_other_holders():
    world = await World(7).start()
    data = content(5000)
    done = await put(world[0], data)
    for host in done.hosts[:2]:
        world.by_id[host].delay = lambda method: 10_000
    # Those asked beside them are late as well: then all peers are asked what they hold.
    for host in done.hosts[4:]:
        world.by_id[host].delay = lambda method: 200 if method == "storage.get" else 0
    begun = world.clock.now_ms()
    assert await finished(world, get(world[0], done.capability)) == data
    assert "storage.holds" in [method for _, method in world[0].calls]
    assert world.clock.now_ms() - begun == 50 + 200


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 0),
        (0, 1),
        (4 * MIB - 1, 4 * MIB),
        (4 * MIB - 1, 4 * MIB + 1),
        (4 * MIB, 4 * MIB + 5),
        (5 * MIB, None),
        (9 * MIB + 1, None),
        (9 * MIB, 9 * MIB + 1),
        (3, 8 * MIB + 3),
    ],
)
async def test_any_range_is_the_slice(start, stop):
    world = await World(6).start()
    data = content(9 * MIB + 1)
    capability = (await put(world[0], data)).capability
    assert await get(world[3], capability, start=start, stop=stop) == data[start:stop]


async def test_a_range_fetches_only_its_segments():
    world = await World(8).start()
    capability = (await put(world[0], content(9 * MIB + 1))).capability
    await get(world[7], capability, start=4 * MIB, stop=8 * MIB)
    assert [method for _, method in world[7].calls].count("storage.get") == 4
    await get(world[7], capability, start=4 * MIB, stop=4 * MIB + 1)
    assert [method for _, method in world[7].calls].count("storage.get") == 5


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5001), (5001, None)])
async def test_a_range_outside_is_refused(start, stop):
    world = await World(6).start()
    capability = (await put(world[0], content(5000))).capability
    with pytest.raises(ArgumentInvalid):
        await get(world[0], capability, start=start, stop=stop)


async def test_a_reader_that_stops_early_leaves_no_work_behind():
    world = await World(8).start()
    capability = (await put(world[0], content(13 * MIB))).capability
    reader = await world[7].service.open(capability)
    stream = reader.stream()
    assert len(await anext(stream)) == MIB
    await stream.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_a_verify_capability_does_not_open():
    world = await World(6).start()
    capability = (await put(world[0], content(5000))).capability
    with pytest.raises(CapabilityInvalid):
        await world[0].service.open(parse_read(capability).verify.to_text())


async def test_an_object_that_nobody_has_is_unknown_and_the_silent_are_named():
    world = await World(8).start()
    other = await World(6).start()
    capability = (await put(other[0], content(5000))).capability
    with pytest.raises(ObjectUnknown) as fault:
        await get(world[0], capability)
    assert "silent" not in fault.value.message
    world[3].up = False
    with pytest.raises(ObjectUnknown, match="silent"):
        await get(world[0], capability)
