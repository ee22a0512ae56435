"""What was deleted for good stays deleted, whatever was still under way."""

import asyncio

import pytest

from tests.unit.storage.shardstore.test_store import ALICE, BOB, LOCATE, Disk, record, shard
from tests.unit.storage.world import World
from xsc.base.errors import NotAllowed
from xsc.base.merkle import Part, root_of
from xsc.base.units import held_bytes
from xsc.storage.object import messages
from xsc.storage.object.erasure import StorageShard
from xsc.storage.shardstore import writer


async def test_nobody_makes_a_host_forget_what_others_have_ended(monkeypatch):
    monkeypatch.setattr(writer, "TOMBSTONES_MAX", 4)
    node = await Disk().node()
    await node.delete(LOCATE, ALICE, final=True)
    for number in range(100):
        await node.delete(number.to_bytes(32, "big"), BOB, final=True)
    with pytest.raises(NotAllowed):
        await node.store([shard()])
    for number in (97, 98, 99):
        with pytest.raises(NotAllowed):
            await node.store([shard(locate=number.to_bytes(32, "big"), customer=BOB)])
    await node.store([shard(locate=(96).to_bytes(32, "big"), customer=BOB)])


async def test_a_store_after_the_end_of_its_object_is_refused():
    node = await Disk().node()
    await node.delete(LOCATE, ALICE, final=True)
    with pytest.raises(NotAllowed):
        await node.store([shard(), record()])
    await node.store([shard(customer=BOB)])
    await node.store([shard(locate=b"x" * 32)])
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(8, 2), 0)


async def test_a_store_that_waits_for_the_deletion_is_refused_after_it():
    node = await Disk().node()
    await node.store([shard(0)])
    deleting = asyncio.ensure_future(node.delete(LOCATE, ALICE, final=True))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(node.store([shard(1)]))
    assert await deleting
    with pytest.raises(NotAllowed):
        await waiting
    assert (node.used_bytes, node.writer.reserved_bytes) == (0, 0)


async def test_what_is_deleted_to_be_stored_anew_may_come_back():
    node = await Disk().node()
    await node.store([shard()])
    await node.delete(LOCATE, ALICE)
    assert await node.store([shard()]) == held_bytes(4)


async def test_a_put_that_its_deletion_overtook_gives_its_room_back():
    world = await World(2).start()
    customer, host = world[0], world[1]
    lease_id = customer.lease_id(host.id)
    handlers = host.service.handlers()
    await customer.service._client.delete(host.id, LOCATE, final=True)
    data = b"late"
    shards = [(0, StorageShard(0, data, root_of(data)))]
    header, _ = messages.put_message(lease_id, LOCATE, 0, shards, None)
    with pytest.raises(NotAllowed):
        await handlers[messages.PUT](customer.id, header, [Part(memoryview(data), root_of(data))])
    assert host.node.used_bytes == 0
    assert host.book.used == {lease_id: 0}
