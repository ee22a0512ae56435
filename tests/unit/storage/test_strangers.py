"""What a peer may say or store of an object of others hides no byte of it and deletes nothing."""

import asyncio
from dataclasses import replace
from itertools import combinations, product

import pytest

from tests.settle import settle
from tests.unit.storage.world import (
    NETWORK,
    SETTINGS,
    Answer,
    World,
    content,
    finished,
    get,
    put,
)
from xsc.base.errors import PeerSilent, RateLimited
from xsc.base.limits import MIB, SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.identity.envelope import sign
from xsc.storage.catalogue.objects import MANIFESTS
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.erasure import StorageShard
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import expected_digest
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.object.segment import Span
from xsc.storage.repair.custodian import HEALED
from xsc.storage.repair.node_watch import WATCHES_MAX
from xsc.storage.repair.repairer import REPORTS_AN_OBJECT_MAX
from xsc.storage.shardstore.store import PASSED_BYTES
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import DeletionOrder

LOCATE = b"l" * 32
SIZES = [100, 50_000, 2 * SEGMENT_BYTES + 5]


def play(story, count=8):
    async def run():
        world = await World(count).start()
        await asyncio.wait_for(story(world), 60)

    asyncio.run(run())


async def in_time(world, work):
    """Return what takes many turns of the event loop, and time now and then."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await settle()
        next_ms = world.clock.next_ms()
        if not task.done() and next_ms is not None:
            world.clock.advance_to(next_ms)
    return await task


def wrong_bytes(method, answer):
    if method != messages.GET:
        return answer
    return Answer(answer.header, [memoryview(bytes(len(part))) for part in answer.parts])


def nothing_there(method, answer):
    return Answer({"states": ["missing"]}, []) if method == messages.GET else answer


def in_pieces(method, answer):
    return Answer(answer.header, answer.parts * 2) if method == messages.GET else answer


def claims_all(lie, columns=6):
    """Return how a liar answers: it holds every column, until somebody wants one."""

    def corrupt(method, answer):
        if method == messages.HOLDS:
            return Answer({"columns": [*range(columns)], "record": True}, [])
        if method == messages.FIND:
            return Answer({}, [memoryview(b"x" * 500)])
        return lie(method, answer)

    return corrupt


PAIRS = [*combinations(range(1, 7), 2)]


@pytest.mark.parametrize(
    ("size", "liars"),
    [*product(SIZES[:2], PAIRS), (SIZES[2], PAIRS[0]), (SIZES[2], PAIRS[-1])],
    ids=str,
)
@pytest.mark.parametrize("lie", [wrong_bytes, nothing_there, in_pieces])
def test_with_four_honest_hosts_any_number_of_liars_hides_nothing(size, lie, liars):
    """Two of the hosts lie, and so does everybody who is none; each is believed once a read."""

    async def story(world):
        data = content(size)
        done = await put(world[0], data)
        reader = world[7]
        others = [host for host in world.hosts[1:] if host.id not in done.hosts]
        lying = [world.by_id[done.hosts[index - 1]] for index in liars] + [
            host for host in others if host is not reader
        ]
        for host in lying:
            host.corrupt = claims_all(lie)
        assert await get(reader, done.capability) == data
        ids = {host.id for host in lying}
        wasted = [node for node, method in reader.calls if method == messages.GET and node in ids]
        segments_begun = 2
        assert len(wasted) <= segments_begun * len(lying)

    play(story, 12)


def test_a_liar_that_never_answers_costs_a_hedge_and_no_more():
    async def story(world):
        data = content(3 * SEGMENT_BYTES)
        done = await put(world[0], data)
        reader = world[7]
        liars = [world.by_id[node] for node in done.hosts[:2]]
        for host in liars:
            host.delay = lambda method: 60_000 * (method == messages.GET)
        before = world.clock.now_ms()
        assert await finished(world, get(reader, done.capability)) == data
        assert world.clock.now_ms() - before < 1_000

    play(story)


@pytest.mark.parametrize("late_ms", [0, 50, 150, 1_000, 4_000])
def test_a_quick_liar_hides_nothing_from_who_can_wait(late_ms):
    """It says at once that it holds everything, long before the hosts answer."""

    async def story(world):
        data = content(50_000)
        done = await put(world[0], data)
        liar = next(host for host in world.hosts[1:] if host.id not in done.hosts)
        liar.corrupt = claims_all(nothing_there)
        for host in world.hosts:
            if host is not liar:
                host.delay = lambda method: late_ms * (method == messages.HOLDS)
        reader = next(host for host in world.hosts[1:] if host is not liar)
        assert await finished(world, get(reader, done.capability)) == data

    play(story, 9)


@pytest.mark.parametrize("liars", [1, 2])
def test_who_only_says_that_it_holds_a_lost_column_does_not_get_it(liars):
    async def story(world):
        owner, data = world[0], content(50_000)
        done = await put(owner, data)
        verify = parse_verify(done.capability)
        ref, repairer = verify.manifest_hash, owner.service.repairer
        manifest = (await owner.service._finder.locate(verify)).manifest
        free = [host for host in world.hosts[1:] if host.id not in done.hosts]
        for liar in free[:liars]:

            def lie(method, answer):
                if method == messages.STAT:
                    columns = [
                        {
                            "customer": owner.id,
                            "column": column,
                            "segments": 1,
                            "digest": expected_digest(manifest, column),
                            "damaged": 0,
                            "ends_ms": None,
                        }
                        for column in range(6)
                    ]
                    return Answer(answer.header | {"record": "ok", "columns": columns}, [])
                return nothing_there(method, answer)

            liar.corrupt = claims_all(lie)
        repairer.watch.look()
        for node in done.hosts[:2]:
            world.by_id[node].up = False
            repairer.watch.look()
            world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
            repairer.watch.look()
            for _ in range(3):
                await in_time(world, repairer.repair(ref))
        columns = owner.service.catalogue.entry(ref).placement.columns
        holding = [
            column
            for column, node in enumerate(columns)
            if world.by_id[node].up
            and (await world.by_id[node].node.holds(verify.locate, 0, ref, manifest.roots)).columns
        ]
        assert len(holding) == 6
        assert await get(owner, done.capability) == data

    play(story, 12)


@pytest.mark.parametrize("size", SIZES)
def test_what_strangers_store_under_the_same_id_hides_nothing(size):
    """They know the locate id and the manifest, and store garbage in every place of it."""

    async def story(world):
        owner, data = world[0], content(size)
        done = await put(owner, data)
        verify = parse_verify(done.capability)
        sealed = owner.state.get(MANIFESTS + verify.manifest_hash)
        for number, stranger in enumerate(world.hosts[8:]):
            for host in world.hosts[1:7]:
                record = ObjectRecord(sealed, root_of(sealed), verify.manifest_hash)
                garbage = content(1000, seed=number)
                shards = [(0, StorageShard(c, garbage, root_of(garbage))) for c in range(20)]
                lease = LeaseHandle(host.id, stranger.lease_id(host.id))
                client = stranger.service._client
                await client.store(lease, verify.locate, 0, shards=shards, record=record)
        for reader in (owner, world[7]):
            reader.calls.clear()
            assert await get(reader, done.capability) == data
            gets = [node for node, method in reader.calls if method == messages.GET]
            assert len(gets) <= 4 * (1 + size // SEGMENT_BYTES), "nobody is asked in vain"
            stat = await reader.service.stat(done.capability)
            assert [host.state for host in stat.hosts] == ["ok"] * 6

    play(story, 26)


@pytest.mark.parametrize("size", SIZES)
def test_who_holds_every_capability_deletes_nothing_of_it(size):
    async def story(world):
        owner, data = world[0], content(size)
        done = await put(owner, data)
        verify = parse_verify(done.capability)
        used = [host.node.used_bytes for host in world.hosts]
        for host in world.hosts[1:7]:
            for final in (False, True):
                order = DeletionOrder(
                    customer=world[7].id,
                    host=host.id,
                    locate=verify.locate,
                    columns=(),
                    final=final,
                    ordered_ms=1,
                )
                header = {"order": sign(order, world[7].key, NETWORK).raw}
                await world[7].call(host.id, messages.DELETE, header)
        await world[7].call(owner.id, HEALED, {"object": verify.manifest_hash, "resigns": False})
        assert [host.node.used_bytes for host in world.hosts] == used
        assert await get(owner, done.capability) == data

    play(story)


@pytest.mark.parametrize("size", [50_000, MIB])
def test_a_report_deletes_nothing_and_a_copy_goes_only_after_all_others_were_read(size):
    """A peer reports what is not true, again and again."""

    async def story(world):
        owner, liar = world[0], world[7]
        done = await put(owner, content(size))
        ref = parse_verify(done.capability).manifest_hash
        used = [host.node.used_bytes for host in world.hosts]
        before = owner.service.catalogue.entry(ref)
        repairer = owner.service.repairer
        repairer.watch.look()
        granted = 0
        for round_ in range(4):
            reply = await liar.call(owner.id, HEALED, {"object": ref, "resigns": False})
            granted += reply.header["release"]
            owner.calls.clear()
            await finished(world, repairer.round([(ref, before.placement, ())], everything=False))
            read = {node for node, method in owner.calls if method == messages.GET}
            if round_ == 0:
                assert read == set(done.hosts) - {owner.id}
        assert granted == 2, "one for each look that read all columns"
        assert [host.node.used_bytes for host in world.hosts] == used
        assert owner.service.catalogue.entry(ref) == before
        # Where one of them cannot be read nothing is let go.
        world.by_id[done.hosts[2]].corrupt = wrong_bytes
        repairer.reported(ref, world[7].id)
        await finished(world, repairer.round([(ref, before.placement, ())], everything=False))
        assert not repairer.reported(ref, world[7].id)

    play(story)


@pytest.mark.parametrize("missing", [*combinations(range(3), 2)])
def test_an_owner_reads_what_was_built_again_elsewhere_while_it_was_away(missing):
    async def story(world):
        owner, custodian = world[0], world[7]
        data = content(3 * MIB)
        done = await put(owner, data, code=(1, 2))
        verify = parse_verify(done.capability)
        # Another customer copies the columns elsewhere, and their hosts lose them.
        hosts = [world.by_id[node] for node in done.hosts]
        for column, (host, other) in enumerate(zip(hosts, world.hosts[4:7], strict=True)):
            located = await owner.service._finder.locate(verify)
            root = located.manifest.roots[column]
            (found,) = await host.node.get(verify.locate, 0, [Wanted(0, column, root)])
            lease = LeaseHandle(other.id, custodian.lease_id(other.id))
            shard = StorageShard(column, bytes(found.data), root)
            sealed = owner.state.get(MANIFESTS + verify.manifest_hash)
            await custodian.service._client.store(
                lease,
                verify.locate,
                0,
                shards=[(0, shard)],
                record=ObjectRecord(sealed, root_of(sealed), verify.manifest_hash),
            )
            await host.node.delete(verify.locate, owner.id)
        for index in missing:
            world.hosts[4 + index].up = False
        assert await get(owner, done.capability) == data
        stat = await owner.service.stat(done.capability)
        assert stat.readable
        for index in missing:
            world.hosts[4 + index].up = True
        # It takes them over where they are: nothing is sent a second time.
        repairer = owner.service.repairer
        repairer.watch.look()
        owner.calls.clear()
        repaired = await repairer.repair(verify.manifest_hash)
        assert not repaired.left
        assert not [node for node, method in owner.calls if method == messages.PUT][3:]
        # What somebody only says that it holds counts once it was read.
        read = {node for node, method in owner.calls if method == messages.GET}
        assert read == {host.id for host in world.hosts[4:7]}
        entry = owner.service.catalogue.entry(verify.manifest_hash)
        assert entry.placement.columns == tuple(host.id for host in world.hosts[4:7])
        for other in world.hosts[4:7]:
            assert owner.lease_id(other.id) in other.node.usage

    play(story)


def test_a_surplus_column_goes_one_at_a_time_and_never_before_the_rest_was_read():
    async def story(world):
        owner, data = world[0], content(MIB)
        done = await put(owner, data)
        verify = parse_verify(done.capability)
        ref, repairer = verify.manifest_hash, owner.service.repairer
        away = [world.by_id[node] for node in done.hosts[:2]]
        repairer.watch.look()
        for host in away:
            host.up = False
        repairer.watch.look()
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
        repairer.watch.look()
        assert len((await finished(world, repairer.repair(ref))).moved) == 2
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
        for host in away:
            host.up = True
        repairer.watch.look()
        held = sum(host.node.used_bytes > 0 for host in away)
        assert held == 2
        placement = owner.service.catalogue.entry(ref).placement
        # A new host claims to hold what it has lost.
        new = world.by_id[placement.columns[0]]
        new.corrupt = wrong_bytes
        await finished(world, repairer.repair(ref))
        assert sum(host.node.used_bytes > 0 for host in away) == 2
        new.corrupt = lambda method, answer: answer
        surplus = 2
        for _ in range(8):
            world.clock.advance_to(world.clock.now_ms() + SETTINGS.moved_kept_ms)
            before = owner.service.catalogue.entry(ref).placement
            owner.calls.clear()
            await finished(world, repairer.repair(ref))
            read = {node for node, method in owner.calls if method == messages.GET}
            left = sum(host.node.used_bytes > 0 for host in (*away, new))
            left -= sum(node in before.columns for node in {host.id for host in (*away, new)})
            assert surplus - 1 <= left <= surplus + 1
            if left < surplus:
                after = owner.service.catalogue.entry(ref).placement
                assert read >= set(after.columns) - {owner.id}
            surplus = left
        assert surplus == 0
        assert await get(owner, done.capability) == data

    play(story, 9)


def test_a_silent_custodian_host_is_no_loss():
    """What is silent while all that remains is read is asked again, and not given up."""

    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000))
        ref = parse_verify(done.capability).manifest_hash
        repairer = owner.service.repairer
        repairer.watch.look()

        def silent(method, _):
            if method == messages.GET:
                raise PeerSilent("the peer does not answer")

        world.by_id[done.hosts[1]].before = silent
        repairer.reported(ref, world[7].id)
        survey = await repairer.surveyor.survey(repairer._objects.load(ref))
        bad = await repairer.surveyor.read_all(survey)
        assert bad
        assert all(fault.silent for fault in bad)
        assert ref not in repairer.surveyor.unreadable

    play(story)


def test_objects_in_custody_that_name_nodes_without_end_are_not_remembered_without_end():
    async def story(world):
        world[0].is_up = lambda node: node in world.by_id and world.by_id[node].up
        repairer = world[0].service.custody_repairer
        repairer.watch.look()
        for number in range(3):
            nodes = [bytes([number]) + index.to_bytes(31, "big") for index in range(WATCHES_MAX)]
            repairer.watch.gone(nodes)
        assert len(repairer.watch) <= WATCHES_MAX + len(world.hosts)
        # Peers are known as ever.
        world[1].up = False
        repairer.watch.look()
        assert world[1].id not in repairer.watch.gone([world[1].id])
        world.clock.advance_to(world.clock.now_ms() + SETTINGS.repair_grace_ms)
        assert world[1].id in repairer.watch.gone([world[1].id])

    play(story)


@pytest.mark.parametrize("size", [100, 50_000])
def test_the_first_friend_makes_a_lone_nodes_objects_no_worse(size):
    """Columns spread; what is worth more than the copy at a node with several stays."""

    async def story(world):
        owner, friend = world[0], world[1]
        friend.up = False
        data = content(size)
        done = await put(owner, data)
        assert set(done.hosts) == {owner.id}
        friend.up = True
        ref, repairer = parse_verify(done.capability).manifest_hash, owner.service.repairer
        for _ in range(6):
            repairer.watch.look()
            await in_time(world, repairer.repair(ref))
            world.clock.advance_to(world.clock.now_ms() + SETTINGS.moved_kept_ms)
        friend.up = False
        assert await get(owner, done.capability) == data

    play(story, 2)


def test_a_custodian_that_repeats_its_report_has_an_object_read_so_often_and_no_more():
    async def story(world):
        owner = world[0]
        done = await put(owner, content(50_000))
        ref, repairer = parse_verify(done.capability).manifest_hash, owner.service.repairer
        repairer.watch.look()
        read = 0
        for _ in range(3 * REPORTS_AN_OBJECT_MAX):
            repairer.reported(ref, world[7].id)
            owner.calls.clear()
            await in_time(world, repairer.repair(ref))
            read += any(method == messages.GET for _, method in owner.calls)
        assert read == REPORTS_AN_OBJECT_MAX

    play(story)


def test_a_report_that_comes_while_all_is_read_waits_for_the_next_read():
    """What was read may have been so before that copy was made."""

    async def story(world):
        owner, early, late = world[0], world[6].id, world[7].id
        done = await put(owner, content(50_000))
        ref, repairer = parse_verify(done.capability).manifest_hash, owner.service.repairer
        repairer.watch.look()
        assert not repairer.reported(ref, early)

        def report(method, _):
            if method == messages.GET:
                repairer.reported(ref, late)

        world.by_id[done.hosts[1]].before = report
        await in_time(world, repairer.repair(ref))
        world.by_id[done.hosts[1]].before = lambda *_: None
        assert (repairer.reported(ref, early), repairer.reported(ref, late)) == (True, False)
        await in_time(world, repairer.repair(ref))
        assert repairer.reported(ref, late)

    play(story)


def test_an_object_that_is_forgotten_while_it_is_read_permits_nobody():
    async def story(world):
        owner, custodian = world[0], world[7].id
        done = await put(owner, content(50_000))
        ref, repairer = parse_verify(done.capability).manifest_hash, owner.service.repairer
        repairer.watch.look()
        assert not repairer.reported(ref, custodian)

        def forget(method, _):
            if method == messages.GET:
                repairer.reports.by_object.clear()

        world.by_id[done.hosts[1]].before = forget
        await in_time(world, repairer.repair(ref))
        assert not repairer.reported(ref, custodian)

    play(story)


WANTED = Wanted(0, 0, root_of(content(MIB)))
LEAF = replace(WANTED, span=Span(0, 1, MIB))


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        (messages.GET, messages.get_message(LOCATE, 0, [LEAF])),
        (messages.KEEP, messages.get_message(LOCATE, 0, [WANTED])),
        (messages.STAT, messages.stat_message(LOCATE, 0, bytes(32))),
        (messages.HAVE, messages.get_message(LOCATE, 0, [WANTED])),
    ],
)
def test_what_is_read_for_a_caller_is_charged_before_the_first_read(method, asked):
    """However little is asked for, whole shards are read and hashed."""

    async def story(world):
        caller, host = world[0], world[1]
        lease = LeaseHandle(host.id, caller.lease_id(host.id))
        shard = StorageShard(0, content(MIB), WANTED.root)
        await caller.service._client.store(lease, LOCATE, 0, shards=[(0, shard)], record=None)
        reads, read = [], host.bodies.get

        def counted(key, **options):
            reads.append(key)
            return read(key, **options)

        host.bodies.get, host.may_read = counted, False
        header = asked if method == messages.STAT else asked | {"lease": lease.lease_id}
        with pytest.raises(RateLimited):
            await caller.call(host.id, method, header)
        assert (reads, host.charged) == ([], [(caller.id, method, MIB)])
        host.may_read = True
        await caller.call(host.id, method, header)
        assert reads

    play(story, 2)


def test_a_deletion_is_charged_for_every_entry_of_its_object_and_looks_at_none_before():
    """Whoever stored them: it passes all of them, also those behind its own."""

    async def story(world):
        caller, host, other = world[0], world[1], world[2]
        data = b"data"
        for customer, column in ((caller, 0), (other, 1), (other, 2)):
            lease = LeaseHandle(host.id, customer.lease_id(host.id))
            shard = StorageShard(column, data, root_of(data))
            await customer.service._client.store(lease, LOCATE, 0, shards=[(0, shard)], record=None)
        looks, scan = [], host.index.scan

        def counted(*asked, **options):
            looks.append(asked)
            return scan(*asked, **options)

        host.index.scan, host.may_read = counted, False
        with pytest.raises(RateLimited):
            await caller.service._client.delete(host.id, LOCATE)
        first = (caller.id, messages.DELETE, PASSED_BYTES)
        assert (looks, host.charged) == ([], [first])
        assert host.node.used_bytes == held_bytes(12, 3)
        host.may_read = True
        await caller.service._client.delete(host.id, LOCATE)
        all_of_it = (caller.id, messages.DELETE, 3 * PASSED_BYTES)
        assert (host.charged, host.node.used_bytes) == ([first, first, all_of_it], held_bytes(8, 2))

    play(story, 3)
