"""Puts that arrive late, and puts that come together: no room is lost, and none is given twice."""

import asyncio

from tests.sim.network import content, run, store
from tests.sim.test_repair import agree
from xsc.base.errors import ArgumentInvalid, LeaseExhausted, SpaceExhausted
from xsc.base.limits import MIB, SEGMENT_BYTES
from xsc.base.units import BODY_OVERHEAD_BYTES, held_bytes
from xsc.terms.lease import OWN_STORAGE, LeaseHandle


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


def test_puts_that_come_together_to_a_host_that_is_nearly_full_take_all_room_and_no_more():
    async def play(world):
        node, customer = world.nodes
        room, data = node.market.headroom.free("storage"), content(4 * MIB - BODY_OVERHEAD_BYTES)
        offered = await customer.market.buyer.lease_hosts(
            size_bytes=MIB, count=1, exclude=frozenset({customer.key.node_id})
        )
        own = LeaseHandle(node.key.node_id, OWN_STORAGE, 0)
        most = room // held_bytes(len(data))
        done = await asyncio.gather(
            *(store(node, own, 2 * number, data) for number in range(most)),
            *(store(customer, *offered.leases, 2 * number + 1, data) for number in range(most)),
            return_exceptions=True,
        )
        refused = [item for item in done if item is not None]
        assert len(refused) == most
        assert {type(item) for item in refused} <= {LeaseExhausted, SpaceExhausted}
        assert node.shards.used_bytes == most * held_bytes(len(data))
        assert node.shards.writer.reserved_bytes == 0
        await customer.market.settlement.settle_all()
        await agree(world)

    run(92, 2, play, {"storage_capacity": "128MiB"})
