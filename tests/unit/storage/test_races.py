"""What two tasks do to one object at once ends as if one had come after the other."""

import asyncio
import itertools

import pytest

from tests.settle import turns
from tests.unit.storage.world import SETTINGS, World, content, finished, put
from xsc.storage.catalogue.objects import OBJECTS
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.held import Held


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
        await asyncio.gather(
            *(owner.service.rm(gone.capability) for _ in range(2)), return_exceptions=True
        )
        for other in world.hosts[1:]:
            assert (
                owner.customer_used[owner.lease_id(other.id)]
                == other.book.used[owner.lease_id(other.id)]
            )
        assert kept

    play(story)


def test_a_host_that_is_added_while_an_object_is_deleted_is_asked_too():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000), code=(1, 1))
        ref = parse_verify(done.capability).manifest_hash
        entry = owner.service.catalogue.entry(ref)
        more = (
            Held(world[3].id, bytes(32), 0),
            *(entry.held),
        )
        kept, result = await asyncio.gather(
            owner.service.catalogue.note_placement(ref, entry.placement, more),
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
        entry = owner.service.catalogue.entry(ref)
        more = (
            Held(world[3].id, bytes(32), 0),
            *(entry.held),
        )
        await asyncio.gather(
            owner.service.catalogue.note_placement(ref, entry.placement, more),
            owner.service.catalogue.restore("object", 1),
        )
        entry = owner.service.catalogue.entry(ref)
        assert entry.version == 3
        assert world[3].id in {a.node for a in entry.held}
        await asyncio.gather(
            owner.service.catalogue.restore("object", 3),
            owner.service.catalogue.note_placement(ref, entry.placement, more),
            owner.service.catalogue.restore("object", 3),
            return_exceptions=True,
        )
        assert owner.service.catalogue.named("object")[0] == first.capability
        await owner.service.rm(first.capability)
        assert len(list(owner.service.catalogue.versions.of("object"))) == 1

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
        assert list(owner.service.catalogue.entries()) == []

    play(story)


async def broken(world):
    """Return the owner and an object of which one host has lost its column."""
    owner = world[0]
    done = await put(owner, content(50_000), code=(1, 1))
    verify = parse_verify(done.capability)
    host = world.by_id[done.hosts[1]]
    await host.node.delete(verify.locate, owner.id)
    owner.service.repairer.watch.look()
    return owner, verify


def pays_where_it_lies(owner, ref):
    """Say whether the column that was lost is elsewhere, and the owner pays for all columns."""
    entry = owner.service.catalogue.entry(ref)
    paying = {item.node for item in entry.held if item.size_bytes}
    return set(entry.placement.columns) <= paying and len(owner.service.repairer.recent) == 1


def test_what_a_custodian_reports_does_not_undo_what_was_repaired_meanwhile():
    async def story(world):
        owner, verify = await broken(world)
        ref = verify.manifest_hash
        repairing = asyncio.ensure_future(owner.service.repairer.repair(ref))
        await asyncio.sleep(0)
        answer, _ = await owner.service.assignment.on_healed(
            world[3].id, {"object": ref, "resigns": False}, []
        )
        assert answer == {"ended": False, "release": False}
        assert (await repairing).moved
        assert pays_where_it_lies(owner, ref)

    play(story, 5)


def test_a_look_at_an_object_does_not_undo_what_was_repaired_meanwhile():
    async def story(world):
        owner, verify = await broken(world)
        ref, repairer = verify.manifest_hash, owner.service.repairer
        listed = [(ref, owner.service.catalogue.entry(ref).placement, ())]
        sent = asyncio.Event()
        for host in world.hosts[1:]:
            host.before = lambda method, _: sent.set() if method == messages.PUT else None
        repairing = asyncio.ensure_future(repairer.repair(ref))
        await sent.wait()
        # It has been asked about; who looks from now on hears of it only when it is repaired.
        for host in world.hosts[1:]:
            host.delay = lambda method: 5 * (method == messages.STAT)
        looking = asyncio.ensure_future(repairer.round(listed, everything=True))
        assert (await finished(world, repairing)).moved
        await finished(world, looking)
        assert pays_where_it_lies(owner, ref)

    play(story, 5)


def test_an_object_that_takes_long_to_mend_holds_up_no_other():
    async def story(world):
        owner, verify = await broken(world)
        ref, repairer = verify.manifest_hash, owner.service.repairer
        other = parse_verify((await put(owner, content(100), code=(1, 1))).capability)
        async with repairer._objects.turns.of(other.manifest_hash):
            listed = list(repairer._objects.refs())
            assert len(listed) == 2
            await asyncio.wait_for(repairer.round(listed, everything=True), 20)
        assert [key for key, *_ in repairer.recent] == [ref]

    play(story, 5)


def test_of_an_object_that_is_deleted_after_it_was_repaired_nothing_is_remembered():
    async def story(world):
        owner, verify = await broken(world)
        repairer = owner.service.repairer
        assert (await repairer.repair(verify.manifest_hash)).moved
        assert repairer._kept_until_ms
        await owner.service.rm(verify.to_text())
        running = asyncio.ensure_future(repairer.run())
        await finished(world, world.clock.sleep_ms(2 * SETTINGS.moved_kept_ms))
        running.cancel()
        assert (repairer._kept_until_ms, repairer.surveyor.unreadable) == ({}, {})
        assert len(repairer.reports.by_object) == len(repairer._objects.turns) == 0

    play(story, 5)


async def turns_of_others(work):
    """Return how often another task has its turn while some work is done."""
    task = asyncio.ensure_future(work)
    for count in itertools.count():
        if task.done():
            await task
            return count
        await asyncio.sleep(0)
    raise AssertionError


def test_others_have_their_turns_while_long_lists_are_gone_through():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(100), code=(1, 1))
        ref = parse_verify(done.capability).manifest_hash
        raw = owner.state.get(OBJECTS + ref)
        many = [(OBJECTS + number.to_bytes(32, "big"), raw) for number in range(640)]
        owner.state.write(many, sync=True)
        assignment, repairer = owner.service.assignment, owner.service.repairer
        repairer.watch.look()
        assignment._refused = dict.fromkeys(owner.peers(), ("", 2**62))
        placement = owner.service.catalogue.entry(ref).placement
        listed = [(ref, placement, ())] * 640
        assert await turns_of_others(repairer.round(listed, everything=False)) > 10
        assert await turns_of_others(assignment.ask_all()) > 10
        assert await turns_of_others(owner.service.retry_deletions()) > 10

    play(story)


@pytest.mark.parametrize("count", range(0, 60, 3))
def test_an_object_that_is_deleted_while_it_is_repaired_is_paid_for_no_more(count):
    """After so many turns of the event loop: some of what moves is there by then, some comes."""

    async def story(world):
        owner, verify = await broken(world)
        await put(owner, content(70_000), name="another", code=(1, 1))
        repairing = asyncio.ensure_future(owner.service.repairer.repair(verify.manifest_hash))
        await turns(count)
        assert not (await owner.service.rm(verify.to_text())).partly
        await asyncio.gather(repairing, return_exceptions=True)
        await owner.service.retry_deletions()
        assert owner.service.catalogue.entry(verify.manifest_hash) is None
        for host in world.hosts[1:]:
            lease = owner.lease_id(host.id)
            held = host.node.usage.get(lease, 0)
            assert host.book.used.get(lease, 0) == held
            # What its records miss, the host's next count says.
            assert owner.customer_used.get(lease, 0) >= held

    play(story, 5)
