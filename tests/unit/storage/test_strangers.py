"""What a stranger stores under the id of an object of others tells nobody anything about it."""

import asyncio

import pytest

from tests.unit.storage.world import NETWORK, Lease, World, content, put
from xsc.base.limits import LEFTOVERS_KEPT_MS
from xsc.base.merkle import root_of
from xsc.identity.envelope import sign
from xsc.storage.capability import parse_verify
from xsc.storage.delegation import GENERATION_MAX, move_by_delegate, open_placement
from xsc.storage.manifest import hash_of
from xsc.storage.messages import ObjectRecord
from xsc.storage.service import MANIFESTS


def play(story, count=6):
    async def run():
        world = await World(count).start()
        await story(world)

    asyncio.run(run())


async def store(customer, host, verify, sealed, placed):
    """Have a host keep a placement for a customer."""
    record = ObjectRecord(
        sealed, root_of(sealed), hash_of(sealed), placed.raw, placed.id, placed.rank
    )
    lease = Lease(host.id, customer.lease_id(host.id))
    reach = customer.service._reach
    await reach.store(lease, verify.locate, 0, shards=[], record=record)


async def place(world, host, verify, generation=GENERATION_MAX):
    """Have a host keep a placement of node 0's object by node 4, which knows the record."""
    stranger, ref = world[4], verify.manifest_hash
    sealed = world[0].state.get(MANIFESTS + ref)
    placement = open_placement(world[0].service.entry(ref).placement, NETWORK).placement
    change = {
        "owner": stranger.id,
        "generation": generation,
        "columns": (host.id, *placement.columns[1:]),
    }
    raw = sign(placement.model_copy(update=change), stranger.key, NETWORK).raw
    await store(stranger, host, verify, sealed, open_placement(raw, NETWORK))


def told(host, customer, verify):
    """Return the generation of the placement that a host keeps for a customer."""

    async def find():
        found = await host.node.find(verify.locate, verify.manifest_hash)
        placed = [open_placement(raw, NETWORK) for raw in found.placements]
        return max(p.placement.generation for p in placed if p.placement.owner == customer.id)

    return find()


@pytest.mark.parametrize("size", [100, 50_000])
@pytest.mark.parametrize("generation", [1, 2, GENERATION_MAX])
@pytest.mark.parametrize("stranger_last", [False, True])
def test_a_host_that_missed_the_last_placement_is_told_whatever_a_stranger_placed_there(
    size, generation, stranger_last
):
    """Above, beside and below the owner's; before and after the owner has placed anew."""

    async def story(world):
        owner = world[0]
        done = await put(owner, content(size), code=(1, 2))
        verify = parse_verify(done.capability)
        ref, mender = verify.manifest_hash, owner.service.mender
        late, lost, _ = (world.by_id[node] for node in done.hosts)
        if not stranger_last:
            await place(world, late, verify, generation)
        # One host loses what it has, and the other is away while that is mended.
        await lost.node.delete(verify.locate, owner.id)
        mender.look()
        late.up = False
        mender.look()
        assert (await mender.mend(ref)).moved
        world.clock.advance_to(world.clock.now_ms() + LEFTOVERS_KEPT_MS)
        late.up = True
        if stranger_last:
            await place(world, late, verify, generation)
        listed = [(ref, owner.service.entry(ref).placement)]
        mender.look()
        await mender.round(listed, everything=True)
        assert await told(late, owner, verify) == 2
        # And it is told once.
        owner.calls.clear()
        await mender.round(listed, everything=True)
        assert (late.id, "storage.put") not in owner.calls

    play(story)


def test_a_host_is_not_blamed_for_what_a_stranger_placed_there():
    async def story(world):
        done = await put(world[0], content(5_000), code=(1, 1))
        assert world[3].id not in done.hosts
        await place(world, world[3], parse_verify(done.capability))
        for reader in (world[2], world[3]):
            stat = await reader.service.stat(done.capability)
            assert [host.state for host in stat.hosts] == ["ok", "ok"]
            assert reader.reports == []

    play(story)


def test_a_repair_that_a_host_tells_of_is_found_beside_what_a_stranger_placed_there():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(5_000), code=(1, 1))
        verify = parse_verify(done.capability)
        ref, mender = verify.manifest_hash, owner.service.mender
        host = world.by_id[done.hosts[0]]
        await place(world, host, verify)
        placed = open_placement(owner.service.entry(ref).placement, NETWORK)
        raw = move_by_delegate(placed, placed.placement.columns, verify.delegate, NETWORK)
        repaired = open_placement(raw, NETWORK)
        await store(world[3], host, verify, owner.state.get(MANIFESTS + ref), repaired)
        survey = await mender.survey(mender._keeper.load(ref))
        assert survey.placed.raw == raw
        assert host.id not in mender._stale(survey)

    play(story)
