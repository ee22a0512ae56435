"""What lies under a lease goes over to the one that renews it: at the host, and in the records."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from tests.unit.storage.shardstore.test_store import LOCATE, Disk, index_of, record, shard
from tests.unit.storage.world import World, content, finished, get, put
from xsc.base.errors import PeerSilent, XscError
from xsc.base.limits import KIB, RENEWAL_ROWS_MAX
from xsc.base.units import held_bytes
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.repair.renewer import over
from xsc.storage.shardstore.bodies import entry_of
from xsc.storage.shardstore.write_rules import fitting, plan_write
from xsc.storage.shardstore.writer import Write
from xsc.storage.transfer.put import Held

NEW = b"n" * 32
SIZES = (10, 70_000, 3_000_000)


class Pair(NamedTuple):
    node: bytes
    old_id: bytes
    new_id: bytes


async def stored(count=3):
    world = await World(count).start()
    kept = {}
    for seed, size in enumerate(SIZES, 1):
        done = await put(world[0], content(size, seed), code=(1, 1), name=f"object {seed}")
        kept[done.capability] = content(size, seed)
    return world, kept


def pairs_of(world, customer=0):
    """Return what renews each lease of a customer that has something under it."""
    owner = world[customer]
    return [
        Pair(host.id, old_id, bytes([index]) * 32)
        for index, host in enumerate(world.hosts)
        if (old_id := owner.lease_id(host.id)) in host.node.usage and host is not owner
    ]


def agree(world):
    """Hold the records against the market's counts, and these against the shard stores."""
    owner, sums = world[0], {}
    for _, entry in owner.service.catalogue.entries():
        for item in entry.held:
            if item.node != owner.id:
                sums[item.node, item.lease_id] = (
                    sums.get((item.node, item.lease_id), 0) + item.size_bytes
                )
    for host in world.hosts:
        there = {key: size for key, size in host.node.usage.items() if any(key)}
        assert there == {lease: size for (node, lease), size in sums.items() if node == host.id}
        assert there == {key: size for key, size in host.book.used.items() if size}
    counted = {key: size for key, size in owner.customer_used.items() if size}
    assert counted == {lease: size for (_, lease), size in sums.items() if size}


async def whole(host):
    audit = await host.node.audit(deep=True)
    assert audit.whole, audit


async def test_all_goes_over_and_can_be_read_and_nothing_is_sent():
    world, kept = await stored()
    pairs = pairs_of(world)
    before = {host.id: host.node.used_bytes for host in world.hosts}
    world[0].calls.clear()
    await world[0].service.leases_renewed(pairs)
    assert {method for _, method in world[0].calls} == {messages.RENEW}
    assert len(world[0].calls) == len(pairs), "all objects at a host share a call"
    assert {host.id: host.node.used_bytes for host in world.hosts} == before
    for host, pair in [(world.by_id[pair.node], pair) for pair in pairs]:
        assert pair.old_id not in host.node.usage
        assert host.node.usage[pair.new_id] == before[host.id]
        await whole(host)
    agree(world)
    await world[0].service.leases_renewed(pairs)
    agree(world)
    for capability, data in kept.items():
        assert await get(world[0], capability) == data
        assert not (await world[0].service.rm(capability)).partly
    assert not any(host.node.used_bytes for host in world.hosts)
    agree(world)


async def test_a_lost_answer_changes_nothing_and_the_next_says_the_same():
    world, _ = await stored()
    (pair, *_) = pairs = pairs_of(world)
    host = world.by_id[pair.node]

    def lost(method, answer):
        if method == messages.RENEW:
            raise PeerSilent("the answer was lost")
        return answer

    host.corrupt = lost
    await world[0].service.leases_renewed(pairs)
    assert pair.new_id in host.node.usage
    assert pair.new_id not in world[0].customer_used
    host.corrupt = lambda method, answer: answer
    await world[0].service.leases_renewed(pairs)
    agree(world)


async def test_a_look_before_the_next_answer_leaves_the_count_to_the_renewal():
    """Else it would find nothing under the old lease, and count nothing under the new one."""
    world, kept = await stored()
    (pair, *_) = pairs_of(world)
    await world[0].service._client.renew(
        pair.node, pair.old_id, pair.new_id, [entry_locate(entry) for entry in entries(world)]
    )
    world[0].renewing.add(pair.old_id)
    before = dict(world[0].customer_used)
    for capability in kept:
        await finished(world, world[0].service.repair(capability))
    assert world[0].customer_used == before
    world[0].renewing.clear()
    await world[0].service.leases_renewed([pair])
    agree(world)


def entries(world):
    return [entry for _, entry in world[0].service.catalogue.entries()]


def entry_locate(entry):
    return parse_verify(entry.capability).locate


@pytest.mark.parametrize("room", [0, 600, 80_000, 2_000_000])
async def test_what_does_not_fit_stays_under_the_old_lease(room):
    world, kept = await stored()
    (pair, *_) = pairs_of(world)
    host = world.by_id[pair.node]
    host.book.room[pair.new_id] = room
    await world[0].service.leases_renewed([pair])
    agree(world)
    gone = host.node.usage.get(pair.new_id, 0)
    assert gone <= room
    assert host.node.usage[pair.old_id] > 0
    host.book.room[pair.new_id] = 2**60
    await world[0].service.leases_renewed([pair])
    assert pair.old_id not in host.node.usage
    agree(world)
    for capability, data in kept.items():
        assert await get(world[0], capability) == data


async def test_a_full_host_renews_all_that_it_holds():
    world, _ = await stored()
    (pair, *_) = pairs_of(world)
    host = world.by_id[pair.node]
    host.node._writer.capacity_bytes = host.node.used_bytes
    assert host.node.free_bytes == 0
    await world[0].service.leases_renewed([pair])
    assert pair.old_id not in host.node.usage
    agree(world)


async def test_what_is_damaged_stays_and_is_said():
    world, _ = await stored()
    (pair, *_) = pairs_of(world)
    host = world.by_id[pair.node]
    key, value = max(host.bodies.scan(b"b"), key=lambda item: len(item[1]))
    host.bodies.write([(key, value[:-1] + bytes([value[-1] ^ 1]))], sync=True)
    await world[0].service.leases_renewed([pair])
    assert host.node.usage[pair.old_id] >= 500_000
    assert len(host.node.damaged) == 1
    agree(world)


async def test_many_bodies_of_one_object_take_several_calls():
    world = await World(2).start()
    host, customer = world[1], world[0]
    count = RENEWAL_ROWS_MAX + 3
    bodies = [
        shard(0, segment=number, customer=customer.id, lease=b"o" * 32) for number in range(count)
    ]
    await host.node.store(bodies)
    host.book.used[b"o" * 32] = held_bytes(4 * count, count)
    kept = await customer.service._client.renew(host.id, b"o" * 32, NEW, [LOCATE, b"x" * 32])
    assert kept == {LOCATE: held_bytes(4 * count, count), b"x" * 32: 0}
    again = await customer.service._client.renew(host.id, b"o" * 32, NEW, [LOCATE])
    assert again == {LOCATE: held_bytes(4 * count, count)}


async def test_a_host_that_comes_to_no_end_is_left():
    world, _ = await stored()
    (pair, *_) = pairs_of(world)
    host = world.by_id[pair.node]

    def endless(method, answer):
        if method == messages.RENEW:
            world.clock.advance_to(world.clock.now_ms() + 1_000)
            return replace(answer, header={"kept": [2**40], "after": b"again"})
        return answer

    host.corrupt = endless
    before = dict(world[0].customer_used)
    await world[0].service.leases_renewed([pair])
    assert sum(world[0].customer_used.values()) == sum(before.values()), "never more in all"


@pytest.mark.parametrize(
    "header",
    [
        {"from": b"", "to": NEW, "objects": [LOCATE], "after": b""},
        {"from": NEW, "to": NEW, "objects": [b"short"], "after": b""},
        {"from": NEW, "to": NEW, "objects": [LOCATE] * 257, "after": b""},
        {"from": NEW, "to": NEW, "objects": [LOCATE], "after": bytes(129)},
        {"from": NEW, "to": NEW, "objects": 7, "after": b""},
        {"from": NEW, "to": NEW, "objects": [], "after": b""},
    ],
)
async def test_a_question_that_breaks_a_rule_is_refused(header):
    world = await World(2).start()
    with pytest.raises(XscError):
        await world[0].call(world[1].id, messages.RENEW, header)


# The rules


def test_only_what_lies_under_the_old_lease_is_written_anew():
    old, gone = shard(0, lease=b"o" * 32), shard(1, lease=b"o" * 32)
    elsewhere = shard(2, lease=b"e" * 32)
    held = {
        body.index_key: entry_of(body, number) for number, body in enumerate((old, elsewhere), 1)
    }
    anew = [replace(body, lease_id=NEW) for body in (old, gone, elsewhere)]
    plan = plan_write(anew, held, (), free_bytes=0, capacity_bytes=0, renews=b"o" * 32)
    assert plan.fresh == [anew[0]]
    assert plan.growth == {NEW: held_bytes(4), b"o" * 32: -held_bytes(4)}
    other = [replace(old, lease_id=NEW, root=b"r" * 32)]
    assert not plan_write(other, held, (), free_bytes=0, capacity_bytes=0, renews=b"o" * 32).fresh


def test_what_fits_goes_over_up_to_the_bound_of_a_write():
    sizes = [100, 5 * KIB, 100, 100]
    held = [
        (bytes([number]), entry_of(shard(number, data=bytes(size)), number + 1))
        for number, size in enumerate(sizes)
    ]
    lease, small = held[0][1].lease_id, held_bytes(100)
    assert fitting(held, lease, 10**6, 10**6) == (held, 4)
    assert fitting(held, b"x" * 32, 10**6, 10**6) == ([], 4)
    assert fitting(held, lease, 2 * small, 10**6) == ([held[0], held[2]], 4), "the small ones"
    assert fitting(held, lease, 10**6, small) == ([held[0]], 1)
    assert fitting(held, lease, 10**6, small + 1) == (held[:2], 2), "one body always fits"


def test_the_records_never_say_more_in_all_than_before():
    pair = Pair(b"h", b"o", b"n")
    elsewhere = Held(b"i", b"o", 5)
    held = (Held(b"h", b"o", 10), elsewhere)
    assert over(held, pair, 10) == ((elsewhere, Held(b"h", b"n", 10)), 10)
    assert over(held, pair, 99) == ((elsewhere, Held(b"h", b"n", 10)), 10)
    assert over(held, pair, 4) == ((elsewhere, Held(b"h", b"o", 6), Held(b"h", b"n", 4)), 4)
    half = (Held(b"h", b"n", 4), Held(b"h", b"o", 6))
    assert over(half, pair, 0) == ((Held(b"h", b"o", 6), Held(b"h", b"n", 4)), 0)
    assert over(half, pair, 10) == ((Held(b"h", b"n", 10),), 6)


async def test_a_rebuilt_index_says_the_same_and_a_deletion_meanwhile_wins():
    disk = Disk()
    node = await disk.node()
    await node.store([shard(0), shard(1), record()])
    held = await node.page(LOCATE, b"a" * 32, b"", 10)
    anew = [replace(body, lease_id=NEW) for body in await node.bodies(held)]
    (moved,) = await node.store_together([Write(anew[:2], renews=shard().lease_id)])
    assert moved[NEW] == -moved[shard().lease_id]
    usage, index = dict(node.usage), index_of(disk)
    assert sum(usage.values()) == node.used_bytes
    again = await disk.node(rebuild=True)
    assert (dict(again.usage), index_of(disk)) == (usage, index)
    await again.delete(LOCATE, b"a" * 32)
    (moved,) = await again.store_together([Write(anew, renews=shard().lease_id)])
    assert not moved
    assert again.used_bytes == 0
