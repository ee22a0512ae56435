"""Whole nodes follow each other's spaces, through kills, cuts, backups and recoveries."""

import pytest

from tests.sim.network import run
from tests.sim.test_recovery import back, place_of
from tests.sim.test_recovery import told as told_directory
from tests.sim.test_restore import back_up, caught_up, lose_and_restore
from xsc.base.errors import NotFound, PeerSilent
from xsc.space.limits import ACTIVE_MS, FOLLOWING_SETTLE_MS, HEAD_INTERVAL_MS, RETRY_MS
from xsc.space.paths import UserSpacePaths

SETTINGS = {"probe_interval": "60s"}
FOLLOWED = {
    UserSpacePaths.NODES,
    UserSpacePaths.INTERVAL,
    UserSpacePaths.LEDGER,
    UserSpacePaths.RECOGNITION,
    UserSpacePaths.COMMITMENT,
    UserSpacePaths.ALLOCATION_STATE,
}
"""What is followed of every peer."""


def has(node, owner, path):
    """Return the value that a node has of another's space."""
    try:
        return node.space.get(path, owner.key.node_id).value
    except NotFound:
        return None


def followed(node, owner):
    """Return the prefixes that a node follows of another."""
    subscribed = node.sync.subscribed
    return {prefix for of, prefix in subscribed if of == owner.key.node_id}


def test_what_is_always_followed_comes_at_once_and_nothing_else_does():
    async def play(world):
        ada, *others = world.nodes
        await ada.space.put("nodes/x", b"1")
        await ada.space.put("notes/x", b"2")
        await world.clock.sleep_ms(1_000)
        assert all(has(node, ada, "nodes/x") == b"1" for node in others)
        assert all(has(node, ada, "notes/x") is None for node in others)
        begun_ms = world.clock.now_ms()
        await ada.stop()
        assert world.clock.now_ms() - begun_ms < RETRY_MS, "a held request holds up no stop"

    run(1, 4, play, SETTINGS)


def test_recognition_adds_what_is_followed_and_a_block_ends_it():
    async def play(world):
        ada, bea, _ = world.nodes
        assert followed(ada, bea) == followed(bea, ada) == FOLLOWED
        await ada.commitments.recognise(bea.key.node_id, 100_000)
        await bea.commitments.recognise(ada.key.node_id, 100_000)
        await world.clock.sleep_ms(2 * FOLLOWING_SETTLE_MS)
        mutual = {
            UserSpacePaths.NODES,
            UserSpacePaths.INTERVAL,
            UserSpacePaths.LEDGER,
            UserSpacePaths.ALLOCATION,
        }
        assert followed(ada, bea) == followed(bea, ada) == mutual
        ada.peers.roster.block(bea.key.node_id)
        await ada.space.put("nodes/x", b"1")
        await world.clock.sleep_ms(60_000)
        assert followed(ada, bea) == set()
        assert has(world.nodes[2], ada, "nodes/x") == b"1"

    run(2, 3, play, SETTINGS)


def test_a_peer_that_changes_its_recognition_all_the_time_replaces_few_requests():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.commitments.recognise(bea.key.node_id, 100_000)
        ada.sync.subscribe, told = counted(ada.sync.subscribe)
        for number in range(50):
            await bea.commitments.recognise(ada.key.node_id, number % 2)
            await world.clock.sleep_ms(100)
        assert ada.commitments.their_weight_ppm(bea.key.node_id) == 1
        await world.clock.sleep_ms(FOLLOWING_SETTLE_MS)
        assert UserSpacePaths.ALLOCATION in followed(ada, bea)
        assert 0 < len(told) <= 2 * (50 * 100 // FOLLOWING_SETTLE_MS + 2)

    run(9, 3, play, SETTINGS)


def counted(call):
    """Return a function, and the list of its calls from now on."""
    told = []

    def called(*arguments):
        told.append(arguments)
        return call(*arguments)

    return called, told


def test_a_watch_follows_for_as_long_as_it_is_open_and_a_get_once():
    async def play(world):
        ada, bea = world.nodes
        await ada.space.put("notes/x", b"1")
        assert (await bea.following.read(ada.key.node_id, "notes/x")).value == b"1"
        await ada.space.rm("notes/x")
        with pytest.raises(NotFound):
            await bea.following.read(ada.key.node_id, "notes/x")
        bea.following.watch(ada.key.node_id, "notes")
        await world.clock.sleep_ms(1_000)
        await ada.space.put("notes/x", bytes(9_000))
        await world.clock.sleep_ms(1_000)
        assert has(bea, ada, "notes/x") is None, "a large value comes when it is read"
        assert (await bea.following.read(ada.key.node_id, "notes/x")).value == bytes(9_000)
        bea.following.unwatch(ada.key.node_id, "notes")
        await ada.space.put("notes/y", b"2")
        await world.clock.sleep_ms(HEAD_INTERVAL_MS)
        assert has(bea, ada, "notes/y") is None
        await world.crash(0)
        assert (await bea.following.read(ada.key.node_id, "notes/x")).value == bytes(9_000)

    run(3, 2, play, SETTINGS)


def test_two_that_cannot_reach_each_other_converge_through_a_third():
    async def play(world):
        ada, bea, cid = world.nodes
        world.net.partition(world.place(0), world.place(1))
        for number in range(5):
            await ada.space.put(f"nodes/{number}", b"x")
            await bea.space.put(f"nodes/{number}", b"y")
        await world.clock.sleep_ms(3 * HEAD_INTERVAL_MS)
        for number in range(5):
            assert has(bea, ada, f"nodes/{number}") == b"x"
            assert has(ada, bea, f"nodes/{number}") == b"y"
        assert has(cid, ada, "nodes/0") == b"x"

    run(4, 3, play, SETTINGS)


def test_who_was_killed_comes_back_and_fetches_exactly_what_it_missed():
    async def play(world):
        ada, _, cid, *_ = world.nodes
        for number in range(20):
            await ada.space.put(f"nodes/{number}", b"before")
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        await world.crash(2)
        for number in range(10):
            await ada.space.put(f"nodes/{number}", b"after")
        node = world.make(2)
        fetched = []

        def note(change):
            if change.owner != node.space.owner:
                fetched.append(change.path)

        node.space.on_change(note)
        world.nodes[2] = node
        await node.start()
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        assert sorted(fetched) == [f"nodes/{number}" for number in range(10)]
        assert node.sync.asking.received_bytes < cid.sync.asking.received_bytes

    run(5, 4, play, SETTINGS)


def test_a_joiner_has_an_interval_of_its_inviter_and_others_of_none_have_two():
    async def play(world):
        domains = {node.space.clock.domain for node in world.nodes}
        assert len(domains) == 1
        first = world.nodes[0].space
        assert len(first.ls(UserSpacePaths.GRANTS)) == 2

    async def meet(world):
        ada = world.nodes[0]
        for index in (1, 2):
            other = world.nodes[await world.add()]
            assert index == world.index_of(other.key.node_id)
            await other.join(ada.peers.invite(60_000))
            ada.peers.invite(60_000)  # nobody comes
        await world.clock.sleep_ms(1_000)
        await play(world)

    run(6, 1, meet, SETTINGS)


def test_a_joiner_whose_grant_is_lost_gets_it_later():
    async def play(world):
        ada = world.nodes[0]
        bea = world.nodes[await world.add()]
        call = bea.peers.call

        async def loses(peer, method, *args, **options):
            if method == "space.grant" and world.clock.monotonic_ms() < begun_ms + 50_000:
                raise PeerSilent("the request is lost")
            return await call(peer, method, *args, **options)

        begun_ms = world.clock.monotonic_ms()
        bea.intervals._caller = Calls(loses)
        await bea.join(ada.peers.invite(60_000))
        await world.clock.sleep_ms(5_000)
        assert bea.space.clock is None
        await world.crash(1)
        bea = await world.restart(1)
        await world.clock.sleep_ms(5_000)
        assert bea.space.clock.domain == ada.space.clock.domain

    run(9, 1, play, SETTINGS)


class Calls:
    def __init__(self, call):
        self.call = call


def test_grants_of_peers_are_known():
    async def play(world):
        await world.nodes[0].space.put("a", b"1")
        await world.clock.sleep_ms(1_000)
        for node in world.nodes[1:]:
            assert world.nodes[0].key.node_id in node.space.causality.granted

    run(10, 3, play, SETTINGS)


def test_the_space_comes_back_from_a_recovery_above_all_that_peers_have():
    async def play(world):
        ada, bea, _ = world.nodes
        for number in range(5):
            await ada.space.put(f"nodes/{number}", b"x")
        await ada.space.rm("nodes/4")
        last = await ada.space.put("notes/gone", b"nobody follows it")
        await told_directory(world)
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        earlier = ada.space.clock.interval
        await world.lose(0)
        await back(world, 0, place_of(world, 1))
        ada = world.nodes[0]
        assert [record.path for record in ada.space.ls("nodes")] == [
            *(f"nodes/{number}" for number in range(4)),
            UserSpacePaths.ADDRESS,
        ]
        assert ada.space.clock.domain == bea.space.clock.domain
        assert ada.space.clock.interval != earlier
        assert await ada.space.put("nodes/new", b"y") > last
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        assert has(bea, ada, "nodes/new") == b"y"

    run(7, 3, play, SETTINGS)


def test_the_space_comes_back_from_a_backup_above_all_that_was_written_since():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.space.put("nodes/x", b"1")
        await ada.space.put("notes/x", b"1")
        raw = back_up(world)
        earlier = ada.space.clock.interval
        last = await ada.space.put("nodes/x", b"2")
        await told_directory(world)
        await lose_and_restore(world, raw)
        await caught_up(world)
        ada = world.nodes[0]
        assert ada.space.get("nodes/x").value == b"2"
        assert ada.space.get("notes/x").value == b"1"
        assert ada.space.clock is not None
        assert ada.space.clock.interval != earlier
        assert await ada.space.put("nodes/x", b"3") > last
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        assert has(bea, ada, "nodes/x") == b"3"

    run(8, 3, play, SETTINGS)


def test_cursors_and_heads_say_how_far_a_node_follows_and_who_is_there():
    async def play(world):
        ada, bea, _ = world.nodes
        last = await bea.space.put("nodes/x", b"1")
        await world.clock.sleep_ms(HEAD_INTERVAL_MS + 1_000)
        cursors = {at[:2]: at[2] for at in await ada.sync.cursors()}
        assert set(cursors) == {
            (owner.key.node_id, prefix) for owner in world.nodes[1:] for prefix in FOLLOWED
        }
        assert cursors[bea.key.node_id, UserSpacePaths.NODES] == last
        await world.crash(1)
        await world.clock.sleep_ms(2 * ACTIVE_MS)
        now_ms = world.clock.now_ms()
        active = {
            owner for owner, seen in ada.sync.asking.seen_ms.items() if now_ms - seen <= ACTIVE_MS
        }
        assert active == {world.nodes[2].key.node_id}

    run(10, 3, play, SETTINGS)
