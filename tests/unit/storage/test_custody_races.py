"""What a custodian counts, keeps and pays for, whatever comes while it waits for somebody."""

import asyncio

import pytest

from tests.settle import settle, turns
from tests.unit.storage.test_races import broken, play
from tests.unit.storage.world import SETTINGS, content, finished, put
from xsc.base.errors import PeerSilent, RateLimited
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.held import Held
from xsc.storage.repair.assignment import ASSIGNED, IN_DOUBT
from xsc.storage.repair.custodian import CUSTODY_SHARES, GUARD, HEALED, IN_CUSTODY, custody_message

LEASES = (b"a" * 32, b"b" * 32)


async def handed_over(world, *, held=()):
    """Return the owner, node 1 as the custodian of its object, and the object's capability."""
    owner, custodian = world[0], world[1]
    verify = parse_verify((await put(owner, content(50_000), code=(1, 1))).capability)
    ref = verify.manifest_hash
    placement = owner.service.catalogue.entry(ref).placement
    await owner.call(custodian.id, GUARD, custody_message(verify, placement, []))
    if held:
        assert await custodian.service.custodian.save(owner.id + ref, placement, held)
    return owner, custodian, verify


def in_custody(host, ref):
    """Return the entry of node 0's object."""
    return dict(host.service.custodian.store.objects()).get(host.world[0].id + ref)


def test_what_is_given_back_is_freed_under_each_lease_that_it_lay_under():
    async def story(world):
        sizes = dict(zip(LEASES, (100, 50), strict=True))
        # The owner has something at that node, the custodian has nothing any more.
        held = tuple(Held(world[2].id, lease, size) for lease, size in sizes.items())
        owner, custodian, verify = await handed_over(world, held=held)
        assert world[2].id in {
            at.node for at in owner.service.catalogue.entry(verify.manifest_hash).held
        }
        custodian.customer_used = sizes
        await custodian.service.custodian.on_unguard(owner.id, {"object": verify.manifest_hash}, [])
        await custodian.service.custodian.end_all()
        assert in_custody(custodian, verify.manifest_hash) is None
        assert custodian.customer_used == dict.fromkeys(LEASES, 0)

    play(story)


def test_an_owner_that_says_it_is_deleted_does_not_undo_what_was_paid_for_meanwhile():
    async def story(world):
        more = (Held(world[2].id, LEASES[0], 100), Held(world[3].id, LEASES[1], 50))
        owner, custodian, verify = await handed_over(world, held=more[:1])
        ref = verify.manifest_hash
        await owner.service.rm(verify.to_text())
        await custodian.service.custodian.save(
            owner.id + ref, in_custody(custodian, ref).placement, more[:1]
        )
        owner.delay = lambda method: 5 * (method == HEALED)
        reporting = asyncio.ensure_future(custodian.service.custodian.report_all())
        await settle()
        assert await custodian.service.custodian.save(
            owner.id + ref, in_custody(custodian, ref).placement, more
        )
        await finished(world, reporting)
        entry = in_custody(custodian, ref)
        assert entry.ended
        assert [item.node for item in entry.held] == [item.node for item in more]

    play(story, 4)


def test_an_owner_that_asks_again_does_not_undo_what_was_paid_for_meanwhile():
    async def story(world):
        more = (Held(world[2].id, LEASES[0], 100),)
        owner, custodian, verify = await handed_over(world)
        ref = verify.manifest_hash
        placement = owner.service.catalogue.entry(ref).placement
        custody = custodian.service.custodian
        await asyncio.gather(
            custody.save(owner.id + ref, placement, more),
            custody.on_guard(owner.id, custody_message(verify, placement, [world[2].id]), []),
        )
        assert in_custody(custodian, ref).held
        assert in_custody(custodian, ref).before == (world[2].id,)

    play(story)


def test_a_ward_is_counted_once_however_often_at_once_it_is_handed_over_or_ended():
    async def story(world):
        owner, custodian, verify = await handed_over(world)
        ref, custody = verify.manifest_hash, custodian.service.custodian
        await custody.on_unguard(owner.id, {"object": ref}, [])
        message = custody_message(verify, owner.service.catalogue.entry(ref).placement, [])
        await asyncio.gather(*(custody.on_guard(owner.id, message, []) for _ in range(3)))
        assert custody.store.usage().objects[owner.id] == 1
        await asyncio.gather(
            *(custody.on_unguard(owner.id, {"object": ref}, []) for _ in range(3)),
            return_exceptions=True,
        )
        counts = custody.store.usage()
        assert (counts.objects[owner.id], counts.rows[owner.id], counts.held[owner.id]) == (0, 0, 0)

    play(story)


@pytest.mark.parametrize("bound", ["number", "bytes"])
def test_custody_for_one_peer_is_bounded(monkeypatch, bound):
    """However many come at once; what is ended makes room, and each peer has its own."""

    async def story(world):
        owner, custodian, other = world[0], world[1], world[2]
        custody = custodian.service.custodian

        async def message(host):
            verify = parse_verify((await put(host, content(5_000), code=(1, 1))).capability)
            placement = host.service.catalogue.entry(verify.manifest_hash).placement
            return verify.manifest_hash, custody_message(verify, placement, [])

        mine = [await message(owner) for _ in range(6)]
        await custody.on_guard(owner.id, mine[0][1], [])
        ((_, row),) = custodian.state.scan(IN_CUSTODY, IN_CUSTODY + b"\xff")
        if bound == "number":
            monkeypatch.setattr("xsc.storage.repair.custodian.CUSTODY_OBJECTS_A_PEER_MAX", 3)
        else:
            monkeypatch.setattr(
                "xsc.storage.repair.custodian.CUSTODY_ROW_BYTES_A_PEER_MAX", 4 * len(row) - 1
            )
        done = await asyncio.gather(
            *(custody.on_guard(owner.id, header, []) for _, header in mine[1:]),
            return_exceptions=True,
        )
        refused = [isinstance(fault, RateLimited) for fault in done]
        assert refused == [False, False, True, True, True]
        # What is guarded already may be handed over again, and others have room of their own.
        await custody.on_guard(owner.id, mine[0][1], [])
        await custody.on_guard(other.id, (await message(other))[1], [])
        await custody.on_unguard(owner.id, {"object": mine[0][0]}, [])
        await custody.on_guard(owner.id, mine[5][1], [])
        with pytest.raises(RateLimited):
            await custody.on_guard(owner.id, mine[4][1], [])
        # The next start counts the same, what this node itself has added as well.
        more = (Held(world[3].id, LEASES[0], 100),)
        placement = owner.service.catalogue.entry(mine[1][0]).placement
        assert await custody.save(owner.id + mine[1][0], placement, more)
        counted, custody.store._usage = custody.store.usage(), None
        assert custody.store.usage() == counted
        assert counted.rows.total() == sum(
            len(row) for _, row in custodian.state.scan(IN_CUSTODY, IN_CUSTODY + b"\xff")
        )

    play(story, 4)


def test_an_object_that_is_deleted_while_it_is_handed_over_is_in_nobodys_custody():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000), code=(1, 1))
        for host in world.hosts[1:]:
            host.delay = lambda method: 5 * (method == GUARD)
        asking = asyncio.ensure_future(owner.service.assignment.ask_all())
        await settle()
        await finished(world, asyncio.gather(asking, owner.service.rm(done.capability)))
        for host in world.hosts:
            assert not list(host.state.scan(IN_CUSTODY, IN_CUSTODY + b"\xff"))
            assert not list(host.state.scan(ASSIGNED, ASSIGNED + b"\xff"))

    play(story, 5)


def guarding(world):
    """Return the nodes that have something in custody."""
    return [host for host in world.hosts if list(host.service.custodian.store.objects())]


async def custodians(owner, custodian):
    """Do once what both do again and again; return how many objects are guarded."""
    for host in (owner, custodian):
        custody = host.service.custodian
        assignment = host.service.assignment
        for work in (
            assignment.ask_all,
            assignment.release_all,
            custody.end_all,
            custody.report_all,
        ):
            await work()
    return len(list(custodian.service.custodian.store.objects()))


def test_a_custodian_that_missed_a_deletion_is_told_when_it_is_back():
    async def story(world):
        owner, custodian = world[0], world[1]
        done = await put(owner, content(100), code=(1, 1))
        await put(owner, content(200), code=(1, 1))
        assert await custodians(owner, custodian) == 2
        custodian.up = False
        assert (await owner.service.rm(done.capability)).partly
        assert await custodians(owner, custodian) == 2
        custodian.up = True
        assert await custodians(owner, custodian) == 1
        assert len(list(owner.state.scan(ASSIGNED, ASSIGNED + b"\xff"))) == 1

    play(story)


@pytest.mark.parametrize("also_silent", [False, True])
def test_a_custodian_that_was_replaced_is_told_of_the_deletion(also_silent):
    """One that was gone for the grace, or that missed one call meanwhile."""

    async def story(world):
        owner = world[0]
        done = await put(owner, content(100), code=(1, 1))
        await custodians(owner, world[1])
        first, second = guarding(world)
        owner.service.repairer.watch.look()
        first.up = False
        owner.service.repairer.watch.look()
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms + 1)
        owner.service.repairer.watch.look()
        second.up = not also_silent
        await custodians(owner, world[1])
        assert len(guarding(world)) == (4 if also_silent else 3)
        second.up = first.up = True
        owner.service.repairer.watch.look()
        await owner.service.rm(done.capability)
        await custodians(owner, world[1])
        assert guarding(world) == []
        assert not list(owner.state.scan(ASSIGNED, ASSIGNED + b"\xff"))

    play(story, 6)


@pytest.mark.parametrize("answers", [1, 4])
def test_a_custodian_whose_answer_was_lost_is_told_of_the_deletion(answers):
    """Whether others take its place, or nobody's answer comes."""

    async def story(world):
        owner, lost = world[0], []

        def lose(method, reply):
            if method == GUARD and len(lost) < answers:
                lost.append(reply)
                raise PeerSilent("the answer was lost")
            return reply

        for host in world.hosts[1:]:
            host.corrupt = lose
        done = await put(owner, content(100), code=(1, 1))
        await owner.service.assignment.ask_all()
        assert len(guarding(world)) == (3 if answers == 1 else 4)
        for host in world.hosts[1:]:
            host.up = host not in guarding(world)[:1]
        await owner.service.rm(done.capability)
        assert len(guarding(world)) == 1
        for host in world.hosts[1:]:
            host.up = True
        await custodians(owner, world[1])
        assert guarding(world) == []
        for kept in (ASSIGNED, IN_DOUBT):
            assert not list(owner.state.scan(kept, kept + b"\xff"))

    play(story, 5)


def test_a_custodian_that_is_no_peer_any_more_is_not_told_for_ever():
    async def story(world):
        owner, custodian = world[0], world[1]
        done = await put(owner, content(100), code=(1, 1))
        assert await custodians(owner, custodian) == 1
        del world.by_id[custodian.id]
        world.hosts.remove(custodian)
        await owner.service.assignment.release(parse_verify(done.capability).manifest_hash)
        assert not list(owner.state.scan(ASSIGNED, ASSIGNED + b"\xff"))

    play(story)


@pytest.mark.parametrize("count", range(0, 60, 4))
def test_a_custodian_told_to_stop_while_it_repairs_pays_for_nothing_more(count):
    """After so many turns of the event loop: some of what it repairs is there by then."""

    async def story(world):
        owner, verify = await broken(world)
        custodian, ref = world[4], verify.manifest_hash
        message = custody_message(verify, owner.service.catalogue.entry(ref).placement, [])
        await owner.call(custodian.id, GUARD, message)
        repairer = custodian.service.custody_repairer
        repairer.watch.look()
        owner.up = False
        repairer.watch.look()
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
        repairer.watch.look()
        repairing = asyncio.ensure_future(repairer.repair(owner.id + ref))
        await turns(count)
        await custodian.service.custodian.on_unguard(owner.id, {"object": ref}, [])
        await custodian.service.custodian.end_all()
        await asyncio.gather(repairing, return_exceptions=True)
        await custodian.service.custodian.end_all()
        assert in_custody(custodian, ref) is None
        for host in world.hosts[:4]:
            lease = custodian.lease_id(host.id)
            counts = (host.node.usage, custodian.customer_used, host.book.used)
            assert [count.get(lease, 0) for count in counts] == [0, 0, 0]

    play(story, 5)


@pytest.mark.parametrize("bound", ["one owner", "all owners"])
def test_a_custodian_keeps_no_more_for_an_owner_than_it_may(bound):
    async def story(world):
        owner, verify = await broken(world)
        custodian, ref = world[4], verify.manifest_hash
        custody, repairer = custodian.service.custodian, custodian.service.custody_repairer
        message = custody_message(verify, owner.service.catalogue.entry(ref).placement, [])
        await owner.call(custodian.id, GUARD, message)
        repairer.watch.look()
        owner.up = False
        repairer.watch.look()
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
        repairer.watch.look()
        size = 60_000
        if bound == "one owner":
            custody.store._budget_bytes = size - 20_000
        else:
            custody.store._budget_bytes = size
            custody.store.usage().held[world[3].id] = CUSTODY_SHARES * size - 20_000
        repaired = await finished(world, repairer.repair(owner.id + ref))
        assert (repaired.moved, len(repaired.left)) == ((), 1)
        assert "used up" in repaired.reason
        assert not in_custody(custodian, ref).held
        custody.store.usage().held.clear()
        custody.store._budget_bytes = size
        assert (await finished(world, repairer.repair(owner.id + ref))).moved
        held = sum(item.size_bytes for item in in_custody(custodian, ref).held)
        assert custody.store.usage().held[owner.id] == held
        assert custody.store.budget_left(owner.id) == size - held < 20_000

    play(story, 5)
