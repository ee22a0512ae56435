"""A node comes back from a backup of the past, and signs nothing twice."""

import pytest

from tests.sim.network import content, empty_disk, get, put, run, stream
from xsc.base.errors import PeerSilent, Recovering, ReplayRefused
from xsc.base.limits import EPOCH_MS, MIB, REQUEST_WINDOW_MS
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import open_signed
from xsc.identity.keyfile import from_line
from xsc.net.calls.server import HORIZONS, read_horizons
from xsc.net.calls.signing import ReplayGuard
from xsc.net.peers.invitation import PREFIX as INVITATIONS
from xsc.node.home.backup import (
    Reader,
    frames,
    letters_of,
    new_head,
    read_into,
    rows_of,
    seal_of,
)
from xsc.node.home.recover import begin_signing, find_objects
from xsc.storage.transfer import journal
from xsc.terms.voucher import Voucher

OWNER = 0
MONEY = {"starter_credit": "1000", "storage_capacity": "2GiB"}


def back_up(world, index=OWNER):
    """Return the bytes of a backup of a node as it is now."""
    node = world.nodes[index]
    head = new_head(node.key.node_id, "simulation", "identity", 0)
    rows = rows_of(letters_of(world.disks[index]))
    return b"".join(frames(head, rows, seal_of(head, key=node.key)))


async def lose_and_restore(world, raw, index=OWNER):
    """Put a backup in the place of what a node had; return what it brought."""
    key = world.nodes[index].key
    await world.lose(index)
    disk = world.disks[index] = empty_disk()
    reader = Reader([raw])
    return read_into(reader, seal_of(reader.head, key=key), letters_of(disk), from_line)


async def caught_up(world, index=OWNER, *, without_silent=False):
    """Do what the daemon does with a restored home: learn what is new, then start."""
    node = world.make(index, recovering=True)
    try:
        found = await find_objects(node, without_silent=without_silent)
        done = await begin_signing(node, found)
    finally:
        await node.peers.stop()
    world.nodes[index] = world.make(index)
    await world.nodes[index].start()
    await world.clock.sleep_ms(10)  # here a start takes no time, and no request is newer
    return done


async def put_named(node, name, data):
    return (await node.storage.put(stream(data), name=name, size_hint=len(data))).capability


async def settled(world):
    await world.skip(EPOCH_MS, EPOCH_MS)
    for node in world.nodes:
        await node.market.settlement.settle_all()


async def told(world, index=OWNER):
    world.nodes[index].directory.wake()
    await world.clock.sleep_ms(20_000)


async def story(world):
    owner = world.nodes[OWNER]
    old = await put_named(owner, "kept", content(9 * MIB + 1))
    doomed = await put_named(owner, "doomed", content(70_000))
    await put(world.nodes[1], content(5 * MIB))
    await settled(world)
    raw = back_up(world)
    before = owner.ledger.settled_entries()

    # More than the least that a lease costs, so that something is owed anew.
    new = await put_named(owner, "kept", content(20 * MIB))
    await owner.storage.rm(doomed)
    await put(world.nodes[1], content(5 * MIB))
    await settled(world)
    await told(world)
    chain = owner.ledger.settled_entries()
    balances = {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()}
    assert chain > before, "the backup is older than the end of the ledger"

    found = await lose_and_restore(world, raw)
    assert (found.counts["peers"], found.counts["objects"]) == (6, 2)
    assert found.counts["entries"] >= before
    done = await caught_up(world)
    owner = world.nodes[OWNER]
    assert (done.newer_objects, done.deleted_objects, done.silent, done.lost) == (1, 1, [], [])
    assert done.newer_entries == chain - before
    assert owner.ledger.settled_entries() == chain
    first_seq = owner.ledger.chain.state.first_seq
    signed = [row for row in owner.ledger.entries() if row.seq >= first_seq]
    assert {row.kind for row in signed} == {"claim"}, "nothing else is signed yet"
    assert {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()} == balances
    # Of two of one millisecond either may be the first.
    listed = sorted((row.name, row.version) for row in owner.storage.catalogue.directory())
    assert listed == [("kept", 1), ("kept", 2)]
    assert await get(owner, old) == content(9 * MIB + 1)
    assert await get(owner, new) == content(20 * MIB)

    await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
    await put_named(owner, "kept", content(5 * MIB))
    await settled(world)
    await settled(world)
    assert owner.ledger.settled_entries() > chain, "the chain goes on"
    for node in world.nodes:
        await node.ledger.verify()
        assert not list(node.parts.stores.state.scan(b"ledger-fork/", b"ledger-fork0"))
        assert not node.ended.done()


@pytest.mark.parametrize("seed", range(1))
def test_an_old_backup_goes_on_from_the_newest_end_of_the_ledger(seed):
    run(seed, 7, story, MONEY)


def test_nothing_is_signed_while_a_peer_is_silent():
    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(5 * MIB))
        await settled(world)
        raw = back_up(world)
        await put_named(world.nodes[OWNER], "b", content(20 * MIB))
        await settled(world)
        await told(world)
        await lose_and_restore(world, raw)
        await world.crash(4)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(PeerSilent, match="may hold what was"):
            await find_objects(node)
        with pytest.raises(Recovering):
            await node.ledger.set_limit(world.nodes[1].key.node_id, 5)
        await node.peers.stop()
        await world.restart(4)
        done = await caught_up(world)
        assert (done.newer_objects, done.newer_entries > 0) == (1, True)

    run(21, 7, play, MONEY)


def test_a_backup_of_a_forked_ledger_goes_on_in_another_incarnation():
    async def play(world):
        raw = back_up(world)
        friend = world.nodes[1].key.node_id
        await put_named(world.nodes[OWNER], "a", content(20 * MIB))
        await settled(world)
        balances = {
            peer: world.nodes[OWNER].ledger.balance(peer)
            for peer in world.nodes[OWNER].peers.peers()
        }
        assert any(balances.values())
        await told(world)
        await lose_and_restore(world, raw)
        node = world.make(OWNER)  # no daemon does so: it takes the old end for the newest
        await node.ledger.set_limit(friend, 5)
        await caught_up(world)
        owner = world.nodes[OWNER]
        assert {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()} == balances
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await put_named(owner, "b", content(20 * MIB))
        await settled(world)
        for node in world.nodes:
            assert (await node.ledger.verify()).forks == 0
            assert not node.ended.done()

    run(22, 4, play, MONEY)


def test_no_voucher_has_the_number_of_another():
    async def play(world):
        numbers = {}

        def note(caller, raw):
            voucher = open_signed(raw, Voucher, network=world.nodes[1].peers.network)
            key = voucher.author, voucher.record.account, voucher.record.number
            assert numbers.setdefault(key, raw) == raw, "two vouchers of one number"

        for node in world.nodes:
            inner = node.market.handlers()["market.account"]

            async def settle(caller, header, parts, inner=inner):
                if header["voucher"] is not None:
                    note(caller, header["voucher"])
                return await inner(caller, header, parts)

            node.peers.server.handlers["market.account"] = settle  # the network's own ear
        await put_named(world.nodes[OWNER], "a", content(5 * MIB))
        await settled(world)
        raw = back_up(world)
        await put_named(world.nodes[OWNER], "b", content(5 * MIB))
        await settled(world)
        await told(world)
        count = len(numbers)
        await lose_and_restore(world, raw)
        await caught_up(world)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await put_named(world.nodes[OWNER], "c", content(5 * MIB))
        await settled(world)
        assert len(numbers) > count > 0

    run(23, 7, play, MONEY)


def test_what_the_operator_said_of_peers_since_a_backup_holds():
    async def play(world):
        owner = world.nodes[OWNER]
        one, two, three = (node.key.node_id for node in world.nodes[1:])
        raw = back_up(world)
        owner.peers.roster.confirm(one)
        owner.peers.roster.rename(one, "friend")
        owner.peers.roster.block(two)
        owner.peers.roster.remove(three)
        await world.clock.sleep_ms(20_000)
        await lose_and_restore(world, raw)
        await caught_up(world)
        peers = world.nodes[OWNER].peers
        assert peers.peers() == [one]
        assert (peers.roster.info(one).name, peers.roster.info(one).confirmed) == ("friend", True)
        assert peers.roster.info(two).blocked
        assert peers.roster.removed() == [three]

    run(28, 4, play)


def test_what_may_have_been_seen_before_is_refused():
    async def play(world):
        raw = back_up(world)
        await lose_and_restore(world, raw)
        await world.crash(3)
        await caught_up(world, without_silent=True)
        now_ms = world.clock.now_ms()
        horizons = read_horizons(world.disks[OWNER].state)
        silent = world.nodes[3].key.node_id
        assert set(horizons) == {node.key.node_id for node in world.nodes[1:]}
        guard = ReplayGuard(boot_ms=0, horizons=horizons)
        for peer, floor_ms in horizons.items():
            # A silent one may have had a clock that is ahead by all that is allowed.
            most_ms = now_ms + (REQUEST_WINDOW_MS if peer == silent else 0)
            assert most_ms - 60_000 < floor_ms <= most_ms + 1
            with pytest.raises(ReplayRefused, match="before this node can tell"):
                guard.admit(peer, created_ms=floor_ms - 1, nonce=b"n", now_ms=now_ms)
            guard.admit(peer, created_ms=floor_ms, nonce=b"n", now_ms=now_ms)

    run(24, 4, play)


@pytest.mark.parametrize("clock_ms", [0, 2**63 - 1])
def test_what_a_peer_says_of_its_clock_neither_ends_the_node_nor_bars_for_long(clock_ms):
    class Wild:
        def __init__(self, clock):
            self.monotonic_ms, self.sleep_ms = clock.monotonic_ms, clock.sleep_ms

        def now_ms(self):
            return clock_ms

    async def play(world):
        raw = back_up(world)
        await lose_and_restore(world, raw)
        world.nodes[2].health._clock = Wild(world.clock)
        await caught_up(world)
        now_ms = world.clock.now_ms()
        floor_ms = read_horizons(world.disks[OWNER].state)[world.nodes[2].key.node_id]
        assert now_ms - 60_000 < floor_ms <= now_ms + REQUEST_WINDOW_MS + 1

    run(27, 4, play)


def test_what_nobody_has_at_a_restore_stays_in_the_directory_and_comes_back():
    async def play(world):
        owner = world.nodes[OWNER]
        late = await world.join()
        await told(world)
        raw = back_up(world)
        capability = await put_named(owner, "a", content(10))
        await told(world)
        await world.crash(late)  # what was copied to it is gone, and the head is not
        world.disks[late].bodies = MemoryKeyValue()
        world.disks[late].index = MemoryKeyValue()
        await world.restart(late)
        await world.crash(1)
        await lose_and_restore(world, raw)
        done = await caught_up(world, without_silent=True)
        owner = world.nodes[OWNER]
        assert (done.newer_objects, done.lost) == (0, ["a"])
        assert [row.name for row in owner.storage.catalogue.unfound()] == ["a"]
        await told(world)
        await world.restart(1)
        await world.until(lambda: not owner.storage.catalogue.unfound())
        assert owner.storage.catalogue.named("a") == [capability]
        assert await get(owner, capability) == content(10)

    run(28, 2, play)


def test_invitations_and_puts_under_way_are_left_out():
    async def play(world):
        owner = world.nodes[OWNER]
        owner.peers.invite(60_000)
        state = world.disks[OWNER].state
        state.write([(journal.HEAD + bytes(32), b"a put under way")], sync=True)
        assert list(state.scan(INVITATIONS, INVITATIONS + b"\xff"))
        raw = back_up(world)
        await lose_and_restore(world, raw)
        keys = [key for key, _ in world.disks[OWNER].state.scan(b"")]
        assert not [key for key in keys if key.startswith((INVITATIONS, journal.PREFIX))]
        assert [key for key in keys if key.startswith((HORIZONS, b"net/peer/"))]

    run(25, 3, play)


def test_a_lone_node_comes_back_with_all_that_lies_on_it():
    async def play(world):
        capability = await put_named(world.nodes[OWNER], "a", content(5 * MIB))
        raw = back_up(world)
        found = await lose_and_restore(world, raw)
        assert (found.counts["objects"], found.counts["peers"]) == (1, 0)
        assert found.counts["bodies"] > 6
        done = await caught_up(world)
        assert (done.peers, done.newer_objects, done.deleted_objects) == (0, 0, 0)
        assert await get(world.nodes[OWNER], capability) == content(5 * MIB)

    run(26, 1, play)


async def space_story(world):
    space = world.nodes[OWNER].space
    await space.put("notes/today", b"buy bread")
    before = space.get("notes/today")
    raw = back_up(world)
    await space.put("notes/today", b"later")
    await lose_and_restore(world, raw)
    await caught_up(world)
    space = world.nodes[OWNER].space
    assert space.get("notes/today") == before
    await space.put("notes/next", b"x")
    after = space.get("notes/next").signed.record
    assert after.sequence > before.signed.record.sequence
    assert after.domain != before.signed.record.domain, "it counts in another interval"


def test_the_space_comes_back_from_a_backup():
    run(31, 3, space_story)
