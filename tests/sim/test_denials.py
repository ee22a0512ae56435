"""A host that lost its disk does not know the leases that it granted, and says so."""

from tests.sim.network import content, get, run, stream
from tests.sim.test_drain import drained
from tests.sim.test_recovery import back, place_of, put_named, told
from xsc.base.limits import MIB

OWNER, HOST = 0, 2


async def forgotten(world, *, noticed=False):
    """Store some objects, and let a host come back from its key alone."""
    owner = world.nodes[OWNER]
    kept = {
        await put_named(owner, f"object {number}", content(20 * MIB + number)): number
        for number in range(3)
    }
    leases = [view for view in owner.market.leases() if world.index_of(view.entry.peer) == HOST]
    await told(world, HOST)
    await told(world)
    await world.lose(HOST)
    if noticed:
        host = world.nodes[HOST].key.node_id
        await world.until(lambda: not owner.health.is_up(host))
    await back(world, HOST, place_of(world, 3))
    return kept, {view.entry.id for view in leases}


def at(world, index):
    views = world.nodes[OWNER].market.leases()
    return {
        view.entry.id: view.status for view in views if world.index_of(view.entry.peer) == index
    }


def test_the_first_put_after_a_host_lost_its_disk_lies_on_as_many_nodes_as_ever():
    async def play(world):
        owner = world.nodes[OWNER]
        kept, dead = await forgotten(world)
        begun_ms = world.clock.now_ms()
        done = await owner.storage.put(stream(content(200_000)), name="after")
        assert world.clock.now_ms() - begun_ms < 1_000
        assert len(set(done.hosts)) == 6
        assert not done.warnings
        # One refusal is enough to learn of all leases there.
        assert {at(world, HOST)[lease] for lease in dead} == {"denied"}
        assert {"open"} == {status for lease, status in at(world, 3).items()}
        assert {"open"} == {at(world, HOST)[lease] for lease in at(world, HOST).keys() - dead}
        # What lay there is missing until it is built again, and nobody has to ask for that.
        margins = {row.capability: row.margin for row in owner.storage.ls()}
        assert 1 in {margins[capability] for capability in kept}
        await world.clock.sleep_ms(10_000)
        assert {row.margin for row in owner.storage.ls()} == {2}
        for capability, number in kept.items():
            assert (await owner.storage.stat(capability)).margin == 2
            assert await get(owner, capability) == content(20 * MIB + number)
        for _ in range(3):
            assert len(set((await owner.storage.put(stream(b"x" * 10_000), name="")).hosts)) == 6
        await world.crash(OWNER)
        await world.restart(OWNER)
        assert {at(world, HOST)[lease] for lease in dead} == {"denied"}

    run(31, 6, play)


def test_a_host_that_is_up_again_is_asked_before_anything_is_put_there():
    async def play(world):
        _, dead = await forgotten(world, noticed=True)
        await world.until(
            lambda: {at(world, HOST)[lease] for lease in dead} == {"denied"}, within_ms=30_000
        )

    run(32, 7, play, {"settle_interval": "1h"})


def test_a_node_leaves_although_a_host_has_lost_its_disk():
    async def play(world):
        kept, _ = await forgotten(world)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await world.nodes[4].storage.drain.begin()
        await drained(world, 4, within_ms=120_000)
        for capability, number in kept.items():
            assert await get(world.nodes[OWNER], capability) == content(20 * MIB + number)

    run(33, 7, play, {"moved_kept": "1s"})


def test_what_a_host_forgot_in_the_middle_of_a_put_is_stored_again():
    async def play(world):
        owner, host = world.nodes[OWNER], world.nodes[HOST]

        async def source():
            data = content(20 * MIB)
            for start in range(0, len(data), MIB):
                if start == 12 * MIB:
                    book = host.market.store
                    for entry in book.of("provider", owner.key.node_id):
                        book.forget(entry)
                yield data[start : start + MIB]

        done = await owner.storage.put(source(), name="a", size_hint=20 * MIB)
        ref = next(ref for ref, entry in owner.storage.catalogue.entries())
        entry = owner.storage.catalogue.entry(ref)
        live = [at for at in entry.held if not owner.market.buyer.is_denied(at.lease_id)]
        assert len(live) == 6
        assert len({at.size_bytes for at in live}) == 1, "each holds its column, whole"
        assert len(set(done.hosts)) == 6
        assert await get(owner, done.capability) == content(20 * MIB)

    run(34, 7, play)
