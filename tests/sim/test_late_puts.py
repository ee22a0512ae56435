"""Puts that arrive late, and puts that come together: no room is lost, and none is given twice."""

import asyncio

from tests.sim.network import content, run
from xsc.base.errors import ArgumentInvalid, LeaseExhausted
from xsc.base.limits import BODY_OVERHEAD_BYTES, MIB, SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.storage.object.erasure import StorageShard
from xsc.terms.lease import OWN_STORAGE


def test_nothing_is_left_of_a_put_whose_undoing_overtook_its_bodies():
    """A host still receives or hashes a body while the deletion that follows it passes by."""

    async def play(world):
        exchange = world.net.exchange
        late: set[asyncio.Task] = set()

        async def delivered(source, target, request):
            if "storage.put" not in request.path:
                return await exchange(source, target, request)

            async def come_late():
                await world.clock.sleep_ms(500)
                return await exchange(source, target, request)

            task = asyncio.ensure_future(come_late())
            late.add(task)
            return await asyncio.shield(task)

        world.net.exchange = delivered

        async def breaks_off():
            yield content(SEGMENT_BYTES + 1)
            await world.clock.sleep_ms(300)
            raise ArgumentInvalid("the source broke off")

        node = world.nodes[0]
        try:
            await node.storage.put(breaks_off(), name="x", size_hint=None)
        except ArgumentInvalid:
            pass
        else:
            raise AssertionError("the put did not break off")
        assert any(not task.done() for task in late)
        await asyncio.gather(*late, return_exceptions=True)
        assert [other.shards.used_bytes for other in world.nodes] == [0] * 7
        for other in world.nodes:
            assert all(lease.use.held_bytes == 0 for lease in other.market.leases())

    run(91, 7, play)


def test_own_puts_that_come_together_leave_the_room_that_is_promised():
    async def play(world):
        node, customer = world.nodes
        room = node.market.headroom.free("storage")
        offered = await customer.market.buyer.lease_hosts(
            size_bytes=MIB, count=1, exclude=frozenset({customer.key.node_id})
        )
        (lease,) = offered.leases
        promised = {view.entry.id: view for view in node.market.leases()}[lease.lease_id].quantity
        assert 0 < promised < room
        own = type(lease)(node.key.node_id, OWN_STORAGE, 0)
        data = content(4 * MIB - BODY_OVERHEAD_BYTES)
        each = held_bytes(len(data))
        shard = StorageShard(0, data, root_of(data))

        async def store(by, where, number):
            await by.storage._client.store(
                where, b"l" * 32, 0, shards=[(number, shard)], record=None
            )

        count = room // each
        done = await asyncio.gather(
            *(store(node, own, number) for number in range(count)), return_exceptions=True
        )
        assert any(isinstance(item, LeaseExhausted) for item in done)
        assert node.shards.used_bytes == room - promised
        assert node.shards.reserved_bytes == 0
        for number in range(promised // each):
            await store(customer, lease, number)
        assert node.shards.free_bytes == 0

    run(92, 2, play, {"storage_capacity": "512MiB"})
