"""What a guardian counts, keeps and pays for, whatever comes while it waits for somebody."""

import asyncio

import pytest

from tests.settle import settle, turns
from tests.unit.storage.test_races import broken, play
from tests.unit.storage.world import content, finished, put
from xsc.base.errors import RateLimited
from xsc.base.limits import GUARD_SHARES, REPAIR_GRACE_MS
from xsc.storage.object.capability import parse_verify
from xsc.storage.repair.custodian import GUARD, HEALED, TOLD, WARDS, guard_message
from xsc.storage.transfer.put import Held

LEASES = (b"a" * 32, b"b" * 32)


async def warded(world, *, held=()):
    """Return the owner, node 1 as the guardian of its object, and the object's capability."""
    owner, guardian = world[0], world[1]
    verify = parse_verify((await put(owner, content(50_000), code=(1, 1))).capability)
    ref = verify.manifest_hash
    placement = owner.service.entry(ref).placement
    await owner.call(guardian.id, GUARD, guard_message(verify, placement, []))
    if held:
        assert await guardian.service.guards.save(owner.id + ref, placement, held)
    return owner, guardian, verify


def ward_of(host, ref):
    """Return the ward of node 0's object."""
    return dict(host.service.guards.wards()).get(host.world[0].id + ref)


def test_what_is_given_back_is_freed_under_each_lease_that_it_lay_under():
    async def story(world):
        sizes = dict(zip(LEASES, (100, 50), strict=True))
        # The owner has something at that node, the guardian has nothing any more.
        held = tuple(Held(world[2].id, lease, size) for lease, size in sizes.items())
        owner, guardian, verify = await warded(world, held=held)
        assert world[2].id in {at.node for at in owner.service.entry(verify.manifest_hash).held}
        guardian.customer_used = sizes
        await guardian.service.guards.on_unguard(owner.id, {"object": verify.manifest_hash}, [])
        await guardian.service.guards.end_all()
        assert ward_of(guardian, verify.manifest_hash) is None
        assert guardian.customer_used == dict.fromkeys(LEASES, 0)

    play(story)


def test_an_owner_that_says_it_is_deleted_does_not_undo_what_was_paid_for_meanwhile():
    async def story(world):
        more = (Held(world[2].id, LEASES[0], 100), Held(world[3].id, LEASES[1], 50))
        owner, guardian, verify = await warded(world, held=more[:1])
        ref = verify.manifest_hash
        await owner.service.rm(verify.to_text())
        await guardian.service.guards.save(
            owner.id + ref, ward_of(guardian, ref).placement, more[:1]
        )
        owner.delay = lambda method: 5 * (method == HEALED)
        reporting = asyncio.ensure_future(guardian.service.guards.report_all())
        await settle()
        assert await guardian.service.guards.save(
            owner.id + ref, ward_of(guardian, ref).placement, more
        )
        await finished(world, reporting)
        ward = ward_of(guardian, ref)
        assert ward.ended
        assert [item.node for item in ward.held] == [item.node for item in more]

    play(story, 4)


def test_an_owner_that_asks_again_does_not_undo_what_was_paid_for_meanwhile():
    async def story(world):
        more = (Held(world[2].id, LEASES[0], 100),)
        owner, guardian, verify = await warded(world)
        ref = verify.manifest_hash
        placement = owner.service.entry(ref).placement
        guards = guardian.service.guards
        await asyncio.gather(
            guards.save(owner.id + ref, placement, more),
            guards.on_guard(owner.id, guard_message(verify, placement, [world[2].id]), []),
        )
        assert ward_of(guardian, ref).held
        assert ward_of(guardian, ref).before == (world[2].id,)

    play(story)


def test_a_ward_is_counted_once_however_often_at_once_it_is_handed_over_or_ended():
    async def story(world):
        owner, guardian, verify = await warded(world)
        ref, guards = verify.manifest_hash, guardian.service.guards
        await guards.on_unguard(owner.id, {"object": ref}, [])
        message = guard_message(verify, owner.service.entry(ref).placement, [])
        await asyncio.gather(*(guards.on_guard(owner.id, message, []) for _ in range(3)))
        assert guards._counts().wards[owner.id] == 1
        await asyncio.gather(
            *(guards.on_unguard(owner.id, {"object": ref}, []) for _ in range(3)),
            return_exceptions=True,
        )
        counts = guards._counts()
        assert (counts.wards[owner.id], counts.rows[owner.id], counts.held[owner.id]) == (0, 0, 0)

    play(story)


@pytest.mark.parametrize("bound", ["number", "bytes"])
def test_what_is_guarded_for_one_peer_is_bounded(monkeypatch, bound):
    """However many come at once; what is ended makes room, and each peer has its own."""

    async def story(world):
        owner, guardian, other = world[0], world[1], world[2]
        guards = guardian.service.guards

        async def message(host):
            verify = parse_verify((await put(host, content(5_000), code=(1, 1))).capability)
            placement = host.service.entry(verify.manifest_hash).placement
            return verify.manifest_hash, guard_message(verify, placement, [])

        mine = [await message(owner) for _ in range(6)]
        await guards.on_guard(owner.id, mine[0][1], [])
        ((_, row),) = guardian.state.scan(WARDS, WARDS + b"\xff")
        if bound == "number":
            monkeypatch.setattr("xsc.storage.repair.custodian.WARDS_A_PEER_MAX", 3)
        else:
            monkeypatch.setattr(
                "xsc.storage.repair.custodian.WARD_BYTES_A_PEER_MAX", 4 * len(row) - 1
            )
        done = await asyncio.gather(
            *(guards.on_guard(owner.id, header, []) for _, header in mine[1:]),
            return_exceptions=True,
        )
        refused = [isinstance(fault, RateLimited) for fault in done]
        assert refused == [False, False, True, True, True]
        # What is guarded already may be handed over again, and others have room of their own.
        await guards.on_guard(owner.id, mine[0][1], [])
        await guards.on_guard(other.id, (await message(other))[1], [])
        await guards.on_unguard(owner.id, {"object": mine[0][0]}, [])
        await guards.on_guard(owner.id, mine[5][1], [])
        with pytest.raises(RateLimited):
            await guards.on_guard(owner.id, mine[4][1], [])
        # The next start counts the same, what this node itself has added as well.
        more = (Held(world[3].id, LEASES[0], 100),)
        placement = owner.service.entry(mine[1][0]).placement
        assert await guards.save(owner.id + mine[1][0], placement, more)
        counted, guards._counted = guards._counts(), None
        assert guards._counts() == counted
        assert counted.rows.total() == sum(
            len(row) for _, row in guardian.state.scan(WARDS, WARDS + b"\xff")
        )

    play(story, 4)


def test_an_object_that_is_deleted_while_it_is_handed_over_is_guarded_by_nobody():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000), code=(1, 1))
        for host in world.hosts[1:]:
            host.delay = lambda method: 5 * (method == GUARD)
        asking = asyncio.ensure_future(owner.service.guards.ask_all())
        await settle()
        await finished(world, asyncio.gather(asking, owner.service.rm(done.capability)))
        for host in world.hosts:
            assert not list(host.state.scan(WARDS, WARDS + b"\xff"))
            assert not list(host.state.scan(TOLD, TOLD + b"\xff"))

    play(story, 5)


async def guarding(owner, guardian):
    """Do once what both do again and again; return how many objects are guarded."""
    for host in (owner, guardian):
        guards = host.service.guards
        for work in (guards.ask_all, guards.release_all, guards.end_all, guards.report_all):
            await work()
    return len(list(guardian.service.guards.wards()))


def test_a_guardian_that_missed_a_deletion_is_told_when_it_is_back():
    async def story(world):
        owner, guardian = world[0], world[1]
        done = await put(owner, content(100), code=(1, 1))
        await put(owner, content(200), code=(1, 1))
        assert await guarding(owner, guardian) == 2
        guardian.up = False
        assert (await owner.service.rm(done.capability)).partly
        assert await guarding(owner, guardian) == 2
        guardian.up = True
        assert await guarding(owner, guardian) == 1
        assert len(list(owner.state.scan(TOLD, TOLD + b"\xff"))) == 1

    play(story)


def test_a_guardian_that_is_no_peer_any_more_is_not_told_for_ever():
    async def story(world):
        owner, guardian = world[0], world[1]
        done = await put(owner, content(100), code=(1, 1))
        assert await guarding(owner, guardian) == 1
        del world.by_id[guardian.id]
        world.hosts.remove(guardian)
        await owner.service.guards.release(parse_verify(done.capability).manifest_hash)
        assert not list(owner.state.scan(TOLD, TOLD + b"\xff"))

    play(story)


@pytest.mark.parametrize("count", range(0, 60, 4))
def test_a_guardian_told_to_stop_while_it_mends_pays_for_nothing_more(count):
    """After so many turns of the event loop: some of what it mends is there by then."""

    async def story(world):
        owner, verify = await broken(world)
        guardian, ref = world[4], verify.manifest_hash
        message = guard_message(verify, owner.service.entry(ref).placement, [])
        await owner.call(guardian.id, GUARD, message)
        mender = guardian.service.ward_mender
        mender.look()
        owner.up = False
        mender.look()
        world.clock.advance_to(world.clock.now_ms() + REPAIR_GRACE_MS)
        mender.look()
        mending = asyncio.ensure_future(mender.mend(owner.id + ref))
        await turns(count)
        await guardian.service.guards.on_unguard(owner.id, {"object": ref}, [])
        await guardian.service.guards.end_all()
        await asyncio.gather(mending, return_exceptions=True)
        await guardian.service.guards.end_all()
        assert ward_of(guardian, ref) is None
        for host in world.hosts[:4]:
            lease = guardian.lease_id(host.id)
            counts = (host.node.usage, guardian.customer_used, host.book.used)
            assert [count.get(lease, 0) for count in counts] == [0, 0, 0]

    play(story, 5)


@pytest.mark.parametrize("bound", ["one owner", "all owners"])
def test_a_guardian_keeps_no_more_for_an_owner_than_it_may(bound):
    async def story(world):
        owner, verify = await broken(world)
        guardian, ref = world[4], verify.manifest_hash
        guards, mender = guardian.service.guards, guardian.service.ward_mender
        message = guard_message(verify, owner.service.entry(ref).placement, [])
        await owner.call(guardian.id, GUARD, message)
        mender.look()
        owner.up = False
        mender.look()
        world.clock.advance_to(world.clock.now_ms() + REPAIR_GRACE_MS)
        mender.look()
        size = 60_000
        if bound == "one owner":
            guards._budget_bytes = size - 20_000
        else:
            guards._budget_bytes = size
            guards._counts().held[world[3].id] = GUARD_SHARES * size - 20_000
        mended = await finished(world, mender.mend(owner.id + ref))
        assert (mended.moved, len(mended.left)) == ((), 1)
        assert "used up" in mended.reason
        assert not ward_of(guardian, ref).held
        guards._counts().held.clear()
        guards._budget_bytes = size
        assert (await finished(world, mender.mend(owner.id + ref))).moved
        held = sum(item.size_bytes for item in ward_of(guardian, ref).held)
        assert guards._counts().held[owner.id] == held
        assert guards._budget_left(owner.id) == size - held < 20_000

    play(story, 5)
