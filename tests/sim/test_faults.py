"""Faults on whole nodes: hosts that die, lie, stall or are cut off while work runs."""

import asyncio
import copy
import random
from collections import Counter

import pytest

from tests.settle import settle
from tests.sim.fleet import held_against
from tests.sim.network import SEEDS, SkewedClock, content, get, put, run, stream
from tests.sim.test_contracts import DEAR
from xsc.base.clock import ManualClock
from xsc.base.errors import (
    DurabilityUnreachable,
    LedgerDamaged,
    ObjectUnknown,
    SpaceExhausted,
    XscError,
)
from xsc.base.limits import EPOCH_MS, MIB
from xsc.base.merkle import root_of
from xsc.storage.object.durability import Contract
from xsc.storage.object.erasure import StorageShard

POINTS = 24 if SEEDS > 1 else 6
"""Random moments at which a host or an owner is killed during a put."""


async def hosts_of(world, capability, owner=0):
    stat = await world.nodes[owner].storage.stat(capability)
    return [world.index_of(host.node) for host in stat.hosts]


def test_a_host_killed_at_any_point_of_a_put_is_replaced_and_nothing_acknowledged_is_lost():
    async def play(world):
        draw = random.Random(11)
        acknowledged = []
        for point in range(POINTS):
            data = content(5 * MIB + point, seed=point)
            putting = asyncio.ensure_future(put(world.nodes[0], data))
            await world.clock.sleep_ms(draw.randrange(1, 120))
            victim = draw.randrange(1, 8)
            await world.crash(victim)
            try:
                capability = await putting
            except XscError as fault:
                # Eight nodes, one dead: six hosts are left, so no put may fail.
                raise AssertionError(f"the put at point {point} failed: {fault}") from fault
            await world.restart(victim)
            await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
            stat = await world.nodes[0].storage.stat(capability)
            assert {host.state for host in stat.hosts} == {"ok"}, point
            assert len({host.node for host in stat.hosts}) == 6
            acknowledged.append((capability, data))
        for capability, data in acknowledged:
            assert await get(world.nodes[draw.randrange(8)], capability) == data

    run(21, 8, play)


def test_an_owner_killed_at_any_point_keeps_every_object_it_acknowledged():
    async def play(world):
        draw = random.Random(12)
        acknowledged = []
        for point in range(POINTS):
            data = content(MIB + point, seed=point)
            putting = asyncio.ensure_future(put(world.nodes[0], data))
            await world.clock.sleep_ms(draw.randrange(1, 200))
            if putting.done():
                acknowledged.append((putting.result(), data))
            else:
                putting.cancel()
                await asyncio.gather(putting, return_exceptions=True)
            await world.crash(0)
            await world.restart(0)
            await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
            await world.nodes[0].ledger.verify()
        assert acknowledged
        listed = {row.capability for row in world.nodes[0].storage.ls()}
        for capability, data in acknowledged:
            assert capability in listed
            assert await get(world.nodes[0], capability) == data
            assert await get(world.nodes[5], capability) == data

    run(22, 7, play)


def test_a_host_that_just_died_is_no_spare_though_its_last_probe_was_answered():
    async def play(world):
        capability = await put(world.nodes[0], content(MIB))
        assert (await world.nodes[0].storage.stat(capability)).healable
        for victim in (await hosts_of(world, capability))[:2]:
            await world.crash(victim)
        stat = await world.nodes[0].storage.stat(capability)
        assert (stat.readable, stat.margin) == (True, 0)
        assert not stat.healable, "one spare node cannot take two columns"

    run(35, 7, play)


def test_a_host_that_returns_corrupt_bytes_is_skipped_and_reported():
    async def play(world):
        data = content(5 * MIB)
        capability = await put(world.nodes[0], data)
        liars = {f"node-{index}" for index in (await hosts_of(world, capability))[:2]}
        flipped = []

        def corrupt(source, target, request, response):
            if liars & {source, target} and "storage.get" in request.path and response.body:
                raw = bytearray(b"".join(response.body))
                raw[-1] ^= 1
                flipped.append(request.path)
                return type(response)(response.status, response.headers, [bytes(raw)])
            return response

        world.net.corrupt = corrupt
        reader = world.nodes[0]
        assert await get(reader, capability) == data
        assert flipped
        world.net.corrupt = None

    run(23, 7, play)


def test_messages_lost_and_delayed_change_nothing_but_the_time():
    async def play(world):
        world.net.loss_ppm = 20_000
        world.net.delay_ms = (1, 80)
        data = content(3 * MIB)
        capability = await put(world.nodes[0], data)
        assert await get(world.nodes[2], capability) == data
        world.net.loss_ppm = 0
        await world.nodes[0].market.settlement.settle_all()
        for node in world.nodes:
            await node.ledger.retry_pending()
            await node.ledger.verify()
        total = sum(
            node.ledger.balance(other.key.node_id)
            for node in world.nodes
            for other in world.nodes
            if other is not node
        )
        assert total == 0

    for seed in range(31, 34)[:SEEDS]:
        run(seed, 8, play)


def test_a_node_cut_off_from_the_others_is_seen_down_and_comes_back():
    async def play(world):
        for other in range(1, 7):
            world.net.partition("node-0", f"node-{other}")
        peer = world.nodes[1]
        lost = world.nodes[0].key.node_id
        await world.until(lambda: not peer.health.is_up(lost))
        assert not peer.health.is_absent(lost)
        await world.until(lambda: peer.health.is_absent(lost))
        world.net.heal()
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        assert held_against(peer.health, lost)
        # The others were silent to it as well, but all at once.
        for each in world.nodes[1:]:
            assert not held_against(world.nodes[0].health, each.key.node_id)
        assert not any(row.state == "absent" for row in world.nodes[0].health.table())

    run(24, 7, play)


def test_a_lone_node_stores_all_shards_and_says_what_that_is_worth():
    async def play(world):
        node = world.nodes[0]
        data = content(MIB)
        done = await node.storage.put(stream(data), name="alone", size_hint=None)
        assert done.survives.nodes == 0
        assert any("does not survive" in warning for warning in done.warnings)
        assert set(done.hosts) == {node.key.node_id}
        assert await get(node, done.capability) == data
        used = node.shards.used_bytes
        with pytest.raises(DurabilityUnreachable):
            await put(node, data, contract=Contract(2))
        assert node.shards.used_bytes == used
        assert node.market.leases() == []

    run(25, 1, play)


@pytest.mark.parametrize(("count", "survives"), [(2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)])
def test_small_networks_spread_the_shards_as_evenly_as_they_can(count, survives):
    async def play(world):
        done = await world.nodes[0].storage.put(stream(content(MIB)), name="small", size_hint=MIB)
        assert done.survives.nodes == survives
        assert len(set(done.hosts)) == min(count, 6)
        if survives < 2:
            with pytest.raises(DurabilityUnreachable):
                await put(world.nodes[0], b"x" * MIB, contract=Contract(2))

    run(26, count, play)


@pytest.mark.parametrize("victim", [1, 2, 3, 4])
def test_in_a_circle_of_five_any_host_may_go_silent_in_the_middle_of_a_put(victim):
    """Also the one with two columns: each goes to another node, so that none has three."""

    async def play(world):
        world.net.delay_ms = (20, 40)
        data = content(5 * MIB)
        putting = asyncio.ensure_future(put(world.nodes[0], data))
        await world.clock.sleep_ms(100)
        assert not putting.done()
        await world.crash(victim)
        capability = await putting
        await world.restart(victim)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        assert await get(world.nodes[0], capability) == data
        assert max(Counter(await hosts_of(world, capability)).values()) == 2

    run(26, 5, play)


def test_a_full_network_refuses_before_a_byte_is_written():
    async def play(world):
        before = [node.shards.used_bytes for node in world.nodes]
        with pytest.raises(SpaceExhausted):
            await world.nodes[0].storage.put(
                stream(content(5 * MIB)), name="x", size_hint=600 * MIB
            )
        assert [node.shards.used_bytes for node in world.nodes] == before

    run(27, 7, play, {"storage_capacity": "64MiB"})


def test_a_removed_object_is_gone_everywhere_and_its_space_is_free():
    async def play(world):
        capability = await put(world.nodes[0], content(5 * MIB))
        assert sum(node.shards.used_bytes for node in world.nodes) > 5 * MIB
        done = await world.nodes[0].storage.rm(capability)
        assert not done.unreachable
        assert all(node.shards.used_bytes == 0 for node in world.nodes)
        with pytest.raises(ObjectUnknown):
            await get(world.nodes[3], capability)

    run(28, 7, play)


def test_an_order_of_a_spent_lease_is_answered_by_a_new_lease():
    async def play(world):
        from tests.sim.test_story import wasm
        from xsc.base.jobs import JobSpec

        node = world.nodes[0]
        for _ in range(60):
            done = await node.compute.run(
                JobSpec.invoke(wasm("fib"), "fib", ["12"], fuel=200_000_000)
            )
            assert list(done.results) == ["144"]
        await world.skip(90_000, 30_000)
        done = await node.compute.run(JobSpec.invoke(wasm("fib"), "fib", ["10"], fuel=200_000_000))
        assert list(done.results) == ["55"]
        await world.skip(90_000, 30_000)
        await node.market.settlement.settle_all()
        assert all(lease.due_micro == lease.settled_micro for lease in node.market.leases())
        await node.ledger.verify()

    run(29, 7, play)


def test_a_home_restored_from_an_old_copy_stops_instead_of_forking_its_ledger():
    async def play(world):
        provider = world.nodes[1]
        old = copy.deepcopy(world.disks[0])
        await put(world.nodes[0], content(8 * MIB))
        await world.skip(EPOCH_MS, EPOCH_MS)
        await world.nodes[0].market.settlement.settle_all()
        assert provider.ledger.balance(world.nodes[0].key.node_id)
        await world.crash(0)
        world.disks[0] = old
        with pytest.raises(LedgerDamaged, match="old copy"):
            await world.restart(0)

    run(30, 7, play, DEAR)


def test_bytes_keep_their_lease_through_a_power_loss():
    async def play(world):
        capability = await put(world.nodes[0], content(5 * MIB))
        host = (await hosts_of(world, capability))[0]
        held = world.nodes[host].shards.used_bytes
        await world.crash(host)
        node = await world.restart(host)
        (lease,) = [lease for lease in node.market.leases() if lease.entry.role == "provider"]
        assert lease.use.held_bytes == held == node.shards.used_bytes
        await world.until(lambda: world.sees_all(node))
        await world.skip(EPOCH_MS, EPOCH_MS)
        await world.nodes[0].market.settlement.settle_all()
        assert node.ledger.balance(world.nodes[0].key.node_id) > 0

    run(36, 7, play, DEAR)


def test_a_limit_that_was_raised_lets_debt_go_on():
    async def play(world):
        customer, peers = world.nodes[0], world.nodes[1:]
        for node in peers:
            await node.ledger.set_limit(customer.key.node_id, 0)
        with pytest.raises(XscError) as caught:
            await put(customer, content(5 * MIB), contract=Contract(2))
        assert caught.value.code in {"credit_exceeded", "durability_unreachable"}
        for node in peers:
            await node.ledger.set_limit(customer.key.node_id, 10_000_000)
        await put(customer, content(5 * MIB), contract=Contract(2))

    run(37, 7, play, DEAR)


def test_an_old_copy_that_comes_back_to_silent_peers_stops_once_one_answers():
    async def play(world):
        old = copy.deepcopy(world.disks[0])
        await put(world.nodes[0], content(8 * MIB))
        await world.skip(EPOCH_MS, EPOCH_MS)
        await world.nodes[0].market.settlement.settle_all()
        await world.crash(0)
        world.disks[0] = old
        for other in range(1, 7):
            world.net.partition("node-0", f"node-{other}")
        node = await world.restart(0)
        world.net.heal()
        await world.until(node.ended.done)
        assert "old copy" in node.ended.result().message

    run(38, 7, play, DEAR)


def test_what_is_left_of_a_put_is_dropped_and_half_deletions_are_completed():
    async def play(world):
        node = world.nodes[0]
        kept = content(2 * MIB, seed=1)
        capability = await put(node, kept)
        doomed = await put(node, content(2 * MIB, seed=2))
        # The owner dies before the object record of a put is sent, and never comes back to it.
        (lease,) = (await node.market.buyer.lease_hosts(size_bytes=MIB, count=1)).leases
        data = content(MIB, seed=3)
        shards = [(0, StorageShard(0, data, root_of(data)))]
        await node.storage._client.store(lease, b"l" * 32, 0, shards=shards, record=None)
        await world.crash(0)
        node = await world.restart(0)
        await world.until(lambda: all(world.sees_all(other) for other in world.nodes))
        # And a host is away while an object is deleted.
        silent = (await hosts_of(world, doomed))[0] or (await hosts_of(world, doomed))[1]
        await world.crash(silent)
        assert (await node.storage.rm(doomed)).partly
        await world.restart(silent)
        await world.until(lambda: all(world.sees_all(other) for other in world.nodes))
        done = await node.collect_garbage()
        assert (done.deletions_confirmed, done.deletions_open) == (1, 0)
        assert (await node.collect_garbage()).deletions_confirmed == 0
        held = sum(other.shards.used_bytes for other in world.nodes)
        assert held > 4 * MIB
        for other in world.nodes:
            await other.sweeper.round()
        for other in world.nodes:
            clock = other.sweeper._clock
            other.sweeper._clock = Later(clock, 25 * 3_600_000)
            await other.sweeper.round(everything=True)
            other.sweeper._clock = clock
        held = sum(other.shards.used_bytes for other in world.nodes)
        assert 3 * MIB <= held < 3 * MIB + 100_000
        assert await get(node, capability) == kept
        for other in world.nodes:
            assert (await other.shards.audit(deep=True)).whole

    run(41, 7, play)


class Later:
    """The same clock, hours ahead."""

    def __init__(self, clock, ahead_ms):
        self._clock = clock
        self._ahead_ms = ahead_ms

    def now_ms(self):
        return self._clock.now_ms() + self._ahead_ms

    async def sleep_ms(self, duration_ms):
        await self._clock.sleep_ms(duration_ms)


async def test_a_skewed_clock_tells_another_time_and_runs_as_fast():
    clock = ManualClock()
    ahead, behind = SkewedClock(clock, 90_000), SkewedClock(clock)
    behind.ahead_ms = -5_000
    for passed_ms in (0, 1, 60_000):
        clock.advance_to(clock.now_ms() + passed_ms)
        assert ahead.now_ms() == clock.now_ms() + 90_000
        assert behind.now_ms() == clock.now_ms() - 5_000
        assert ahead.monotonic_ms() == behind.monotonic_ms() == clock.monotonic_ms()
    sleeping = [asyncio.create_task(each.sleep_ms(1_000)) for each in (ahead, behind)]
    await asyncio.sleep(0)
    clock.advance_to(clock.now_ms() + 999)
    await settle()
    assert not any(task.done() for task in sleeping)
    clock.advance_to(clock.now_ms() + 1)
    await settle()
    assert all(task.done() for task in sleeping)


def test_each_node_of_a_world_has_a_clock_of_its_own():
    async def play(world):
        world.clocks[1].ahead_ms = 7_000
        first, second = world.nodes
        assert second.clock.now_ms() - first.clock.now_ms() == 7_000
        await second.space.put("a", b"1")
        written_ms = second.space.get("a").signed.record.written_ms
        assert written_ms == world.clock.now_ms() + 7_000

    run(77, 2, play)
