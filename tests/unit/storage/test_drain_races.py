"""A node that leaves: words, counts and deletions that come at once."""

import asyncio

import pytest

from tests.unit.storage.test_races import play
from tests.unit.storage.world import NETWORK, content, finished, put
from xsc.base.errors import NotFound, SpaceExhausted
from xsc.base.limits import SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.identity.envelope import sign
from xsc.storage.catalogue.heads import HEADS
from xsc.storage.catalogue.objects import MANIFESTS
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.repair.drain import RELEASED, STAYS
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import DeletionOrder


def order_by(host, leaver, locate):
    order = DeletionOrder(
        customer=host.id, host=leaver.id, locate=locate, columns=(), final=False, ordered_ms=1
    )
    return sign(order, host.key, NETWORK)


def test_a_deletion_that_comes_with_the_cancelling_does_not_undo_it():
    async def story(world):
        drain = world[1].service.drain
        await drain.begin()
        await drain.keep(order_by(world[0], world[1], b"a" * 32))
        assert len(list(world[1].state.scan(RELEASED, RELEASED + b"\xff"))) == 1
        late = order_by(world[0], world[1], b"b" * 32)
        await asyncio.gather(drain.cancel(), drain.keep(late))
        assert not drain.active
        with pytest.raises(NotFound):
            world[1].space.get("nodes/departure")
        await drain.begin()
        await drain.count()
        assert not list(world[1].state.scan(RELEASED, RELEASED + b"\xff"))
        assert drain.status().released_objects == 0

    play(story)


def test_orders_that_come_together_are_all_counted():
    async def story(world):
        drain = world[1].service.drain
        await drain.begin()
        orders = [order_by(world[0], world[1], bytes([n]) * 32) for n in range(20)]
        await asyncio.gather(*(drain.keep(order) for order in orders))
        await drain.count()
        assert drain.status().released_objects == 20

    play(story)


def test_an_order_that_deletes_nothing_takes_no_room_in_the_proof():
    async def story(world):
        owner, leaver = world[0], world[1]
        await leaver.service.drain.begin()
        for number in range(3):
            order = order_by(owner, leaver, bytes([number]) * 32)
            await owner.call(leaver.id, messages.DELETE, {"order": order.raw})
        assert not list(leaver.state.scan(RELEASED, RELEASED + b"\xff"))

    play(story)


def test_a_customer_cannot_fill_the_proof():
    """While it leaves a host takes nothing that could be deleted again."""

    async def story(world):
        owner, leaver = world[0], world[1]
        verify = parse_verify((await put(owner, content(1_000), code=(1, 1))).capability)
        sealed = owner.state.get(MANIFESTS + verify.manifest_hash)
        await leaver.service.drain.begin()
        lease = LeaseHandle(leaver.id, owner.lease_id(leaver.id))
        for column in range(5, 50):
            await owner.service._client.delete(leaver.id, verify.locate, columns={column})
        assert not list(leaver.state.scan(RELEASED, RELEASED + b"\xff"))
        for _ in range(3):
            record = ObjectRecord(sealed, root_of(sealed), verify.manifest_hash)
            with pytest.raises(SpaceExhausted):
                await owner.service._client.store(lease, verify.locate, 0, shards=[], record=record)
            await owner.service._client.delete(leaver.id, verify.locate)
        assert len(list(leaver.state.scan(RELEASED, RELEASED + b"\xff"))) == 1

    play(story)


def test_an_order_that_cannot_be_kept_deletes_nothing():
    async def story(world):
        owner, leaver = world[0], world[1]
        verify = parse_verify((await put(owner, content(1_000), code=(1, 1))).capability)
        await leaver.service.drain.begin()
        used, write = leaver.node.used_bytes, leaver.state.write

        def full(_changes, *, sync):
            raise SpaceExhausted("the disk is full")

        leaver.state.write = full
        with pytest.raises(SpaceExhausted):
            await owner.service._client.delete(leaver.id, verify.locate)
        assert leaver.node.used_bytes == used > 0
        leaver.state.write = write
        await owner.service._client.delete(leaver.id, verify.locate)
        assert leaver.node.used_bytes == 0
        assert len(list(leaver.state.scan(RELEASED, RELEASED + b"\xff"))) == 1

    play(story)


def test_only_who_stored_something_says_why_it_stays():
    async def story(world):
        owner, leaver, thief = world[0], world[1], world[2]
        verify = parse_verify((await put(owner, content(1_000), code=(1, 1))).capability)
        await leaver.service.drain.begin()
        for node in (thief, owner):
            await node.call(leaver.id, STAYS, {"locate": verify.locate, "reason": str(node.id)})
        assert leaver.service.drain._stays == {(verify.locate, owner.id): str(owner.id)}
        order = order_by(thief, leaver, verify.locate)
        await thief.call(leaver.id, messages.DELETE, {"order": order.raw})
        assert (await leaver.service.drain.count()).left_objects == 1

    play(story)


def test_a_directory_that_no_other_peer_has_holds_the_drain_up():
    async def story(world):
        owner, leaver = world[0], world[1]
        drain = leaver.service.drain
        await drain.begin()
        assert (await drain.count()).only_here == ()
        leaver.state.write([(HEADS + owner.id, b"head")], sync=True)
        owner.service.drain.copies = lambda beside: beside != leaver.id
        assert (await drain.count()).only_here == (owner.id,)
        assert drain.status().state == "leaving"
        owner.up = False
        assert (await drain.count()).only_here == (), "nobody waits for who is away"
        owner.up = True
        owner.service.drain.copies = lambda _: 1
        assert (await drain.count()).only_here == ()
        assert drain.status().state == "done"

    play(story)


def test_a_deletion_waits_for_one_segment_of_a_look_and_not_for_all():
    """Before something is deleted all that remains is read: that can be gigabytes."""

    async def story(world):
        owner, leaver = world[0], world[1]
        done = await put(owner, content(3 * SEGMENT_BYTES), code=(1, 1))
        owner.service.repairer.watch.look()
        await leaver.leave()
        ref = parse_verify(done.capability).manifest_hash
        assert (await finished(world, owner.service.repairer.repair(ref))).moved
        await finished(world, world.clock.sleep_ms(61_000))
        deleting = []

        def read(method, _):
            if method == messages.GET and not deleting:
                deleting.append(asyncio.ensure_future(owner.service.rm(done.capability)))

        for host in world.hosts[2:]:
            host.before = read
            host.delay = lambda method: 5 * (method == messages.GET)
        owner.calls.clear()
        await finished(world, owner.service.repairer.repair(ref))
        assert not (await finished(world, deleting[0])).partly
        asked = [method for _, method in owner.calls].count(messages.GET)
        assert 1 <= asked < 6
        assert not any(host.node.used_bytes for host in world.hosts)

    play(story, 4)
