"""What a recovery did not find: it is listed, can be deleted, and is looked for again."""

import asyncio

import pytest

from tests.settle import settle
from tests.unit.storage.world import World, content, finished, get, put
from xsc.base.errors import ObjectUnknown
from xsc.storage.catalogue.objects import MANIFESTS, OBJECTS
from xsc.storage.object.capability import parse_read


async def unfound_world(count=4):
    """Return a world in which node 0 lost its state, with what its directory had listed."""
    world = await World(count).start()
    owner = world[0]
    done = await put(owner, content(400_000), code=(2, 1))
    listed = owner.service.catalogue.directory()
    ref = parse_read(done.capability).manifest_hash
    owner.state.write([(OBJECTS + ref, None), (MANIFESTS + ref, None)], sync=True)
    await owner.service.catalogue.keep_unfound(listed)
    return world, owner, done.capability


def silence(world, *, up):
    for host in world.hosts[1:]:
        host.up = up


async def test_what_nobody_has_is_listed_and_can_be_deleted():
    world, owner, capability = await unfound_world()
    silence(world, up=False)
    listed = [(row.name, row.margin, row.hosts) for row in owner.service.ls()]
    assert listed == [("object", -1, ())]
    assert owner.service.catalogue.named("object") == [capability]
    with pytest.raises(ObjectUnknown, match="no host that answered"):
        await owner.service.catalogue.restore("object", 1)
    done = await finished(world, owner.service.rm(capability))
    assert done.partly
    assert owner.service.catalogue.unfound() == []
    assert (owner.service.ls(), owner.service.catalogue.directory()) == ([], [])
    with pytest.raises(ObjectUnknown):
        owner.service.catalogue.named("object")
    silence(world, up=True)
    assert (await finished(world, owner.service.retry_deletions())).confirmed == 1
    assert list(owner.service.catalogue.entries()) == []
    assert not any(host.book.used.get(owner.lease_id(host.id)) for host in world.hosts[1:])


async def test_what_was_held_nowhere_is_gone_with_the_word():
    _, owner, _ = await unfound_world()
    [item] = owner.service.catalogue.unfound()
    await owner.service.rm(item.capability)
    bare = type(item)(item.name, item.version, item.capability, 1, 1, ())
    await owner.service.catalogue.keep_unfound([bare])
    assert not (await owner.service.rm(item.capability)).partly
    assert (owner.service.catalogue.unfound(), list(owner.service.catalogue.entries())) == ([], [])


async def test_what_the_newest_directory_does_not_list_is_looked_for_no_more():
    _, owner, _ = await unfound_world()
    await owner.service.catalogue.keep_unfound([])
    assert owner.service.catalogue.unfound() == []
    with pytest.raises(ObjectUnknown):
        owner.service.catalogue.named("object")


async def test_what_a_recovery_did_not_find_is_deleted_also_at_hosts_that_are_back():
    world, owner, capability = await unfound_world()
    done = await finished(world, owner.service.rm(capability))
    assert done.confirmed
    assert not done.partly
    assert (owner.service.catalogue.unfound(), list(owner.service.catalogue.entries())) == ([], [])


async def test_peers_that_come_up_together_are_asked_in_one_pass():
    world, owner, capability = await unfound_world()
    silence(world, up=False)
    loop = asyncio.create_task(owner.service.adoption.run())
    before = len(owner.calls)
    for host in world.hosts[1:] * 30:
        owner.service.node_up(host.id)
    await settle()
    assert len(owner.calls) - before == len(world.hosts) - 1
    assert owner.service.catalogue.unfound()
    silence(world, up=True)
    owner.service.node_up(world[1].id)
    await settle()
    assert await get(owner, capability) == content(400_000)
    loop.cancel()


async def test_one_that_is_deleted_while_it_is_looked_for_stays_deleted():
    world, owner, capability = await unfound_world()
    loop = asyncio.create_task(owner.service.adoption.run())
    begun = asyncio.Event()
    world[1].before = lambda _method, _number: begun.set()
    owner.service.node_up(world[1].id)
    await begun.wait()
    await finished(world, owner.service.rm(capability))
    await settle()
    assert (owner.service.catalogue.unfound(), list(owner.service.catalogue.entries())) == ([], [])
    loop.cancel()
