"""What two tasks do to one object at once ends as if one had come after the other."""

import asyncio

from tests.unit.storage.world import World, content, put
from xsc.storage.capability import parse_verify
from xsc.storage.pipeline import Held


def play(story, count=3):
    async def run():
        world = await World(count).start()
        await story(world)

    asyncio.run(run())


def test_two_deletions_at_once_free_what_is_held_once():
    async def story(world):
        owner = world[0]
        kept = await put(owner, content(50_000), name="kept")
        gone = await put(owner, content(50_000), name="gone")
        before = dict(owner.customer_used)
        await asyncio.gather(*(owner.service.rm(gone.capability) for _ in range(2)), return_exceptions=True)
        for other in world.hosts[1:]:
            assert owner.customer_used[owner.lease_id(other.id)] == other.book.used[owner.lease_id(other.id)]
        assert kept

    play(story)


def test_a_host_that_is_added_while_an_object_is_deleted_is_asked_too():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000), code=(1, 1))
        ref = parse_verify(done.capability).manifest_hash
        entry = owner.service.entry(ref)
        more = (Held(world[3].id, bytes(32), 0), *(Held(a.node, a.lease_id, a.size_bytes) for a in entry.held))
        kept, result = await asyncio.gather(
            owner.service.note_placement(ref, entry.placement, more),
            owner.service.rm(done.capability),
        )
        assert not kept or world[3].id in result.confirmed

    play(story, 4)


def test_a_version_restored_while_its_columns_move_loses_neither():
    async def story(world):
        owner = world[0]
        first = await put(owner, content(50_000), code=(1, 1))
        await put(owner, content(50_000), code=(1, 1))
        ref = parse_verify(first.capability).manifest_hash
        entry = owner.service.entry(ref)
        more = (Held(world[3].id, bytes(32), 0), *(Held(a.node, a.lease_id, a.size_bytes) for a in entry.held))
        await asyncio.gather(
            owner.service.note_placement(ref, entry.placement, more),
            owner.service.restore("object", 1),
        )
        entry = owner.service.entry(ref)
        assert entry.version == 3
        assert world[3].id in {a.node for a in entry.held}
        await asyncio.gather(
            owner.service.restore("object", 3),
            owner.service.note_placement(ref, entry.placement, more),
            owner.service.restore("object", 3),
            return_exceptions=True,
        )
        assert owner.service.named("object") [0] == first.capability
        await owner.service.rm(first.capability)
        assert list(owner.service._versions.of("object")) and len(list(owner.service._versions.of("object"))) == 1

    play(story, 4)


def test_deletions_that_somebody_else_finishes_do_not_end_the_others():
    async def story(world):
        owner = world[0]
        all_of_them = [
            (await put(owner, content(50_000, seed), name=str(seed))).capability
            for seed in range(3)
        ]
        world[2].up = False
        for capability in all_of_them:
            assert (await owner.service.rm(capability)).partly
        world[2].up = True
        done, *_ = await asyncio.gather(
            owner.service.retry_deletions(),
            *(owner.service.rm(capability) for capability in all_of_them[1:]),
            return_exceptions=True,
        )
        assert isinstance(done, tuple), done
        assert done[1] == 0
        assert list(owner.service.entries()) == []

    play(story)
