"""What the model of the laws (`test_laws`) found, each as a story of its own."""

import pytest

from tests.sim.network import content, get, put, run
from tests.sim.test_repair import QUICK, custodians_of
from xsc.base.errors import ObjectUnknown
from xsc.storage.object.capability import parse_verify


def test_an_object_that_is_being_deleted_is_no_object_to_its_owner():
    async def play(world):
        node = world.nodes[0]
        capability = await put(node, content(70_000))
        for other in range(1, 7):
            world.net.partition("node-0", f"node-{other}")
        assert (await node.storage.rm(capability)).partly
        world.net.heal()
        with pytest.raises(ObjectUnknown):
            await get(node, capability)
        with pytest.raises(ObjectUnknown):
            await node.storage.stat(capability)
        assert await node.storage.retry_deletions() == (1, 0, 0)
        assert [other.shards.used_bytes for other in world.nodes] == [0] * 7

    run(95, 7, play)


def test_a_custodian_that_missed_a_deletion_gives_back_what_it_repaired():
    """A host and the custodians were cut off from the owner, which then went away."""

    async def play(world):
        owner = world.nodes[0]
        capability = await put(owner, content(100))
        await custodians_of(world)
        ref = parse_verify(capability).manifest_hash
        custodians = [node for node in world.nodes if list(node.storage.custodian.store.objects())]
        names = {world.name(world.index_of(node.key.node_id)) for node in custodians}
        hosts = [world.index_of(host.node) for host in (await owner.storage.stat(capability)).hosts]
        silent = next(f"node-{i}" for i in hosts if i and f"node-{i}" not in names)
        for name in names | {silent}:
            world.net.partition("node-0", name)
        assert (await owner.storage.rm(capability)).partly
        await world.crash(0)

        def held():
            return [
                ward.held
                for node in custodians
                for _, ward in node.storage.custodian.store.objects()
            ]

        await world.skip_until(lambda: any(held()), 900_000, 30_000)
        world.net.heal()
        owner = await world.restart(0)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await owner.storage.retry_deletions()
        assert owner.storage.catalogue.entry(ref) is None
        await world.skip_until(
            lambda: not any(node.shards.used_bytes for node in world.nodes), 900_000, 30_000
        )
        assert not any(held())
        with pytest.raises(ObjectUnknown):
            await get(world.nodes[3], capability)

    run(96, 7, play, QUICK)


def test_what_was_deleted_while_it_was_counted_is_taken_off_once():
    """The host deleted, and its count came before its receipt: the lease holds another object."""

    async def play(world):
        owner = world.nodes[0]
        kept, gone = await put(owner, content(70_000)), await put(owner, content(70_000, seed=1))
        world.net.stall("node-1", "storage.delete")
        assert (await owner.storage.rm(gone)).partly
        await owner.market.settlement.settle_all()
        world.net.resume("node-1", "storage.delete")
        assert await owner.storage.retry_deletions() == (1, 0, 0)
        held = {lease.entry.id: lease.use.held_bytes for lease in owner.market.leases()}
        for host in world.nodes[1:]:
            assert all(held[lease] == size for lease, size in host.shards.usage.items())
        assert len(await get(owner, kept)) == 70_000

    run(97, 7, play)
