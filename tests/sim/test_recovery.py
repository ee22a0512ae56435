"""A node loses its disk and comes back from its key and what its peers hold."""

import asyncio

import pytest

from tests.sim.network import SEEDS, content, get, points, put, run, stream
from tests.unit.node.test_routes import Api
from xsc.api.objects import PUT
from xsc.base.errors import (
    NotAllowed,
    ObjectUnknown,
    RateLimited,
    Recovering,
)
from xsc.base.ids import to_text
from xsc.base.limits import EPOCH_MS, MIB, PEER_TIMEOUT_MS, STORAGE_QUESTION_TIMEOUT_MS
from xsc.db.memory import MemoryKeyValue
from xsc.ledger.exchange import HISTORY_TIMEOUT_MS, LEDGER_HEAD_TIMEOUT_MS
from xsc.ledger.incarnation import Noted
from xsc.net.calls.server import read_horizons
from xsc.node import directory as keeper
from xsc.node.directory import DIRECTORY_TOLD_MS_MAX
from xsc.node.home.recover import begin_signing, find_objects
from xsc.storage.catalogue.directory import HeadBody, make_head
from xsc.storage.catalogue.heads import HEAD_GET, HEAD_PUT, HEADS

OWNER = 0


def place_of(world, index):
    """Say where a node is, as a person would tell it who lost everything."""
    node = world.nodes[index]
    return f"{to_text(node.key.node_id)}@{node.peers.own_address.addresses()[0]}"


async def put_named(node, name, data):
    done = await node.storage.put(stream(data), name=name, size_hint=len(data))
    return done.capability


async def told(world, index=OWNER):
    """Wait until all peers that are up hold the newest directory of a node."""
    node = world.nodes[index]
    node.directory.wake()
    await world.clock.sleep_ms(20_000)
    assert not await node.directory.write()


async def readable(world, index, place):
    """Do the first stage on an empty disk; return the node, which signs nothing."""
    node = world.make(index, recovering=True)
    return node, await find_objects(node, [place], recovering=True)


async def back(world, index, place):
    """Recover a node on its empty disk, then start it as the daemon would."""
    node, found = await readable(world, index, place)
    done = await begin_signing(node, found)
    await node.peers.stop()
    # A request of the same millisecond as the recovery is refused as one of before.
    await world.clock.sleep_ms(10)
    world.nodes[index] = world.make(index)
    await world.nodes[index].start()
    return done


def test_a_recovered_node_refuses_requests_that_were_signed_before():
    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(10))
        await told(world)
        await world.lose(OWNER)
        await back(world, OWNER, place_of(world, 2))
        now_ms = world.clock.now_ms()
        floors = read_horizons(world.disks[OWNER].state)
        assert set(floors) == {node.key.node_id for node in world.nodes[1:]}
        assert all(now_ms - 60_000 < floor_ms <= now_ms + 1 for floor_ms in floors.values())

    run(29, 4, play)


async def debts(world):
    """Settle what is owed, so that the owner has entries of both sides."""
    await world.skip(EPOCH_MS, EPOCH_MS)
    for node in world.nodes:
        await node.market.settlement.settle_all()


async def story(world):
    owner = world.nodes[OWNER]
    friend = world.nodes[3].key.node_id
    await owner.commitments.recognise(friend, 250_000)
    kept = {
        await put_named(owner, "a", content(10)): content(10),
        await put_named(owner, "a", content(9 * MIB + 1)): content(9 * MIB + 1),
        await put_named(owner, "b/c", content(70_000)): content(70_000),
    }
    await put(world.nodes[1], content(3 * MIB))
    await debts(world)
    await owner.ledger.set_limit(friend, 123_456_789)
    others = await put(world.nodes[1], content(20 * MIB))
    await debts(world)
    await told(world)
    before, generation = owner.storage.catalogue.directory(), owner.directory.generation
    chain, log = owner.ledger.head(), owner.ledger.entries(limit=1000)
    balances = {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()}
    assert any(balances.values())
    await world.lose(OWNER)
    done = await back(world, OWNER, place_of(world, 2))
    owner = world.nodes[OWNER]
    assert (done.objects, done.lost) == (3, [])
    assert (done.peers, done.silent, done.unproven) == (6, [], [])
    assert done.entries == len(
        [row for row in log if row.state == "settled" and row.kind == "post"]
    )
    assert owner.ledger.chain.state.first_seq > chain[0]
    first_seq = owner.ledger.chain.state.first_seq
    signed = [row for row in owner.ledger.entries() if row.seq >= first_seq]
    assert {row.kind for row in signed} == {"claim"}, "nothing else is signed yet"
    assert {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()} == balances
    assert owner.ledger.limit(friend) == 123_456_789
    assert owner.commitments.weight_ppm(friend) == 250_000
    assert owner.storage.catalogue.directory() == before
    for capability, data in kept.items():
        assert await get(owner, capability) == data
    assert await get(owner, owner.storage.catalogue.named("a", 1)[0]) == content(10)
    await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
    assert (await owner.storage.put(stream(b"x"), name="a")).version == 3
    await put(owner, content(20 * MIB))
    await debts(world)
    await debts(world)
    assert owner.ledger.count() > done.entries, "the recovered chain goes on"
    for node in world.nodes:
        await node.ledger.verify()
    await told(world)
    assert owner.directory.generation > generation
    assert not owner.ended.done()
    assert others


@pytest.mark.parametrize("seed", range(3)[:SEEDS])
def test_a_node_comes_back_from_its_key_and_one_peer(seed):
    run(seed, 7, story, {"starter_credit": "1000", "storage_capacity": "2GiB"})


@pytest.mark.parametrize("gone", points(range(1, 7)))
def test_any_dead_peer_stops_no_recovery(gone):
    """The counterparty of any ledger entry may be gone for good, and so may the home."""

    async def play(world):
        owner, dead = world.nodes[OWNER], world.nodes[gone]
        first = await put_named(owner, "a", content(20 * MIB))
        await debts(world)
        await told(world)
        balances = {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()}
        assert owner.ledger.count() >= 6
        await world.crash(gone)
        await world.lose(OWNER)
        friend = place_of(world, 1 + gone % 6)

        node, found = await readable(world, OWNER, friend)
        assert (found.objects, found.lost) == (1, ())
        assert await get(node, first) == content(20 * MIB), "whatever the ledger says"
        with pytest.raises(Recovering):
            await node.ledger.set_limit(dead.key.node_id, 5)
        assert node.ledger.count() == 0
        await node.peers.stop()

        done = await back(world, OWNER, friend)
        owner = world.nodes[OWNER]
        assert done.silent == [dead.key.node_id]
        assert [(each.peer, each.amount_micro) for each in done.unproven] == [
            (dead.key.node_id, balances[dead.key.node_id])
        ]
        for peer, balance in balances.items():
            assert owner.ledger.balance(peer) == (0 if peer == dead.key.node_id else balance)
        assert await get(owner, first) == content(20 * MIB)
        others = [node for node in world.nodes if node is not dead]
        await world.until(
            lambda: all(
                node.health.is_up(peer.key.node_id)
                for node in others
                for peer in others
                if peer is not node
            )
        )
        await put_named(owner, "b", content(20 * MIB))
        await debts(world)

        # What the dead one held comes late, and is a claim. Nobody counts as a forger.
        await world.restart(gone)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await world.until(
            lambda: owner.ledger.balance(dead.key.node_id) == balances[dead.key.node_id]
        )
        rows = owner.ledger.entries(peer=dead.key.node_id)
        assert {row.state for row in rows if row.kind == "post"} == {"settled"}
        assert "claim" in {row.kind for row in rows}
        assert not any(
            map(owner.ledger.chain.state.unproven_micro, owner.ledger.chain.state.balances)
        )
        await put_named(owner, "c", content(20 * MIB))
        await debts(world)
        await agreed(world)

    run(11, 7, play)


async def agreed(world):
    """Check that all books hold, that each two agree, and that nobody has evidence."""
    for node in world.nodes:
        report = await node.ledger.verify()
        assert report.forks == 0
        assert not node.ended.done()
        for other in world.nodes:
            ours, theirs = other.key.node_id, node.key.node_id
            assert node.ledger.balance(ours) == -other.ledger.balance(theirs)


def test_a_peer_that_crawls_holds_up_no_recovery_and_no_start():
    """Each page of its history comes just in time, and there is always more."""

    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(100_000))
        await told(world)
        await world.lose(OWNER)
        handlers = world.nodes[1].peers.server.handlers
        head = handlers["ledger.head"]
        asked_ms = []

        async def more(caller, header, parts):
            answer, bodies = await head(caller, header, parts)
            return {**answer, "entries": 2**31}, bodies

        async def crawl(_caller, header, _parts):
            asked_ms.append(world.clock.now_ms())
            await world.clock.sleep_ms(PEER_TIMEOUT_MS - 1_000)
            item = {"seq": header["start"], "half": b"", "other": b"", "voucher": b""}
            return {"v": 1, "items": [item], "more": True, "incarnation": None}, ()

        handlers.update({"ledger.head": more, "ledger.history": crawl})
        node, found = await readable(world, OWNER, place_of(world, 2))
        before_ms = world.clock.now_ms()
        begun = await begin_signing(node, found)
        assert world.clock.now_ms() - before_ms < HISTORY_TIMEOUT_MS + 2_000
        assert begun.silent == [world.nodes[1].key.node_id]
        await node.peers.stop()
        asked_ms.clear()
        before_ms = world.clock.now_ms()
        owner = await world.restart(OWNER)
        started_ms = world.clock.now_ms()
        assert started_ms - before_ms < LEDGER_HEAD_TIMEOUT_MS
        await world.clock.sleep_ms(2 * HISTORY_TIMEOUT_MS)
        assert asked_ms[0] >= started_ms, "it is asked beside the work"
        assert asked_ms[-1] - asked_ms[0] < HISTORY_TIMEOUT_MS
        assert await get(owner, owner.storage.catalogue.named("a", 1)[0]) == content(100_000)

    run(48, 4, play)


def test_a_peer_that_holds_back_the_newest_stops_nobody_and_makes_no_forger():
    """It hides head and entries during the recovery, and shows them when the owner has gone on."""

    async def play(world):
        owner, liar = world.nodes[OWNER], world.nodes[3]
        await put_named(owner, "a", content(5 * MIB))
        await debts(world)
        await told(world)
        old = world.disks[1].state.get(HEADS + owner.key.node_id)
        await put_named(owner, "b", content(20 * MIB))
        await debts(world)
        await told(world)
        for index in (1, 2, 4, 5, 6):  # as if they had been away
            world.disks[index].state.write([(HEADS + owner.key.node_id, old)], sync=True)
        hidden = liar.peers.server.handlers
        shown = dict(hidden)

        async def hide(_caller, _header, _parts):
            raise NotAllowed("not now")

        hidden[HEAD_GET] = hidden["ledger.history"] = hide
        await world.lose(OWNER)
        done = await back(world, OWNER, place_of(world, 2))
        assert done.objects == 1
        hidden.update(shown)
        owner = world.nodes[OWNER]
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await put_named(owner, "c", content(20 * MIB))
        await told(world)
        await debts(world)
        assert not owner.ended.done()
        await owner.ledger.confirm_head([liar.key.node_id])
        await agreed(world)

    run(18, 7, play)


def test_what_nobody_has_now_stays_in_the_directory_and_comes_back():
    async def play(world):
        owner = world.nodes[OWNER]
        capability = await put_named(owner, "a", content(10))
        late = await world.join()
        await told(world)
        before = owner.storage.catalogue.directory()
        await world.crash(late)  # what was copied to it is gone, and the head is not
        world.disks[late].bodies = MemoryKeyValue()
        world.disks[late].index = MemoryKeyValue()
        await world.restart(late)
        await world.crash(1)
        await world.lose(OWNER)
        done = await back(world, OWNER, place_of(world, late))
        owner = world.nodes[OWNER]
        assert (done.objects, done.lost) == (0, ["a"])
        assert owner.storage.catalogue.directory() == before
        assert [(row.name, row.margin) for row in owner.storage.ls()] == [("a", -1)]
        assert owner.storage.catalogue.named("a") == [capability]
        await told(world)
        await world.restart(1)
        await world.until(lambda: not owner.storage.catalogue.unfound())
        assert owner.storage.catalogue.directory() == before
        assert await get(owner, capability) == content(10)

    run(19, 2, play)


def test_nothing_is_signed_before_the_recovery_is_over():
    async def play(world):
        await world.lose(OWNER)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(Recovering):
            await node.ledger.set_limit(world.nodes[1].key.node_id, 5)
        assert node.ledger.count() == 0
        await node.ledger.restart([], Noted())
        await node.ledger.set_limit(world.nodes[1].key.node_id, 5)

    run(12, 3, play)


def test_a_directory_too_large_for_its_head_is_an_object(monkeypatch):
    monkeypatch.setattr(keeper, "DIRECTORY_INLINE_BYTES_MAX", 100)

    async def play(world):
        owner = world.nodes[OWNER]
        for number in range(40):
            await put_named(owner, f"object {number}", content(number))
        await told(world)
        hidden = [row for row in owner.storage.ls() if row.name == keeper.OBJECT_NAME]
        assert len(hidden) == 1, "the ones before it are deleted"
        await world.lose(OWNER)
        done = await back(world, OWNER, place_of(world, 1))
        assert done.objects == 40
        owner = world.nodes[OWNER]
        for number in range(40):
            assert await get(
                owner, owner.storage.catalogue.named(f"object {number}")[0]
            ) == content(number)

    run(13, 7, play)


def test_an_identity_that_nobody_holds_a_directory_of_is_told_so():
    async def play(world):
        for node in world.nodes:
            await node.tasks.stop()
            for key, _ in list(node.parts.stores.state.scan(b"storage/head/")):
                node.parts.stores.state.write([(key, None)], sync=True)
        await world.lose(OWNER)
        with pytest.raises(ObjectUnknown, match="no peer that answered"):
            await readable(world, OWNER, place_of(world, 1))

    run(14, 3, play)


@pytest.mark.parametrize("lie", ["bare", "old", "forged", "present", "busy"])
def test_a_peer_that_refuses_a_head_without_proof_stops_nobody(lie):
    """Only a head that the node itself signed shows that its home is an old copy."""

    async def play(world):
        owner, liar = world.nodes[OWNER], world.nodes[3]
        await put_named(owner, "a", content(10))
        await told(world)
        old = owner.directory.head
        forged = make_head(
            HeadBody(peers=(), directory=b"", listed=bytes(32), ledger=b""),
            2**40,
            liar.key,
            owner.peers.network,
            b"n" * 12,
        )
        shown = {"old": [old], "forged": [forged.raw]}
        asked = 0

        async def refuse(_caller, _header, parts):
            nonlocal asked
            asked += 1
            if lie == "bare":
                raise NotAllowed("a directory head of generation 9 is held already")
            if lie == "busy":
                raise RateLimited("too many", retry_after_s=1)
            return {}, shown.get(lie, [bytes(part.data) for part in parts])

        liar.peers.server.handlers[HEAD_PUT] = refuse
        await put_named(owner, "b", content(11))
        honest = [index for index in range(len(world.nodes)) if index not in (OWNER, 3)]
        key = HEADS + owner.key.node_id
        await world.until(
            lambda: (
                asked
                and owner.directory.head != old
                and all(world.disks[i].state.get(key) == owner.directory.head for i in honest)
            )
        )
        await world.clock.sleep_ms(30_000)
        assert not owner.ended.done()
        assert not owner.directory.copies_beside(b"") > len(honest), "a refusal is no copy"

    run(16, 5, play)


def test_a_host_that_was_too_busy_for_a_head_gets_it_later():
    async def play(world):
        owner, host = world.nodes[OWNER], world.nodes[3]
        kept = host.peers.server.handlers[HEAD_PUT]
        refusals = 3

        async def busy(caller, header, parts):
            nonlocal refusals
            if caller == owner.key.node_id and refusals:
                refusals -= 1
                raise RateLimited("too many", retry_after_s=1)
            return await kept(caller, header, parts)

        host.peers.server.handlers[HEAD_PUT] = busy
        await put_named(owner, "a", content(10))
        key = HEADS + owner.key.node_id
        await world.until(
            lambda: not refusals and world.disks[3].state.get(key) == owner.directory.head
        )

    run(17, 5, play)


def test_an_old_copy_of_a_home_stops_itself():
    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(10))
        await told(world)
        old = [*world.disks[OWNER].state.scan(b"")]
        await put_named(world.nodes[OWNER], "b", content(10))
        await told(world)
        await world.lose(OWNER)
        world.disks[OWNER].state.write(old, sync=True)
        node = await world.restart(OWNER)
        await world.until(node.ended.done)
        assert "old copy" in node.ended.result().message

    run(15, 4, play)


def test_what_was_put_before_a_clean_stop_keeps_its_name():
    """The directory head leaves every few seconds; a stop does not leave the last one behind."""

    async def play(world):
        owner = world.nodes[OWNER]
        await put_named(owner, "a", content(10))
        await told(world)
        await put_named(owner, "b", content(11))
        await owner.stop()
        await world.lose(OWNER)
        await back(world, OWNER, place_of(world, 2))
        owner = world.nodes[OWNER]
        assert await get(owner, owner.storage.catalogue.named("b")[0]) == content(11)

    run(18, 7, play)


def test_a_stop_does_not_wait_long_for_peers_that_are_silent():
    async def play(world):
        owner = world.nodes[OWNER]
        await told(world)
        await put_named(owner, "a", content(10))
        for index in range(1, 7):
            world.net.stall(world.name(index), HEAD_PUT)
        began_ms = world.clock.now_ms()
        await owner.directory.told()
        assert world.clock.now_ms() - began_ms <= DIRECTORY_TOLD_MS_MAX

    run(18, 7, play)


def test_a_name_that_was_waited_for_outlives_the_home():
    async def play(world):
        owner = world.nodes[OWNER]
        for number in range(3):
            await put_named(owner, f"object {number}", content(number))
            found, wanted = await owner.directory.told(4)
            assert found >= wanted == 4
        await world.lose(OWNER)
        await back(world, OWNER, place_of(world, 2))
        owner = world.nodes[OWNER]
        for number in range(3):
            assert await get(
                owner, owner.storage.catalogue.named(f"object {number}")[0]
            ) == content(number)

    run(19, 7, play)


def test_names_that_are_waited_for_together_share_their_heads():
    async def play(world):
        owner = world.nodes[OWNER]
        await told(world)
        before = owner.directory.generation

        async def one(number):
            await put_named(owner, f"object {number}", content(number))
            return await owner.directory.told(4)

        said = await asyncio.gather(*(one(number) for number in range(64)))
        assert all(found >= 4 for found, _ in said)
        assert owner.directory.generation - before <= 8
        await world.lose(OWNER)
        done = await back(world, OWNER, place_of(world, 1))
        assert done.objects == 64

    run(20, 7, play)


@pytest.mark.parametrize("silent", [2, 3])
def test_a_put_says_where_its_name_is_at_fewer_peers_than_it_should(silent):
    async def play(world):
        owner = world.nodes[OWNER]
        await told(world)
        await put_named(owner, "a", content(10))
        for index in range(1, 1 + silent):
            world.net.stall(world.name(index), HEAD_PUT)
        began_ms = world.clock.now_ms()
        found, wanted = await owner.directory.told(4)
        waited_ms = world.clock.now_ms() - began_ms
        assert (found, wanted) == (6 - silent, 4)
        fields = {"XSC_Name": "b", "XSC_Wait_For_Name": "1"}
        said = await Api(owner).call(PUT.method, PUT.path, body=b"content", **fields)
        assert ["the name is at 3 of 4 peers" in text for text in said["warnings"]] == (
            [True] if silent == 3 else []
        )
        # Whoever is silent keeps nobody waiting while others are enough.
        assert waited_ms <= (500 if silent == 2 else DIRECTORY_TOLD_MS_MAX)

    run(21, 7, play)


def test_a_peer_that_was_waited_for_in_vain_keeps_the_next_names_no_more():
    """Five nodes: a name should be at all four peers, and one of them answers nothing."""

    async def play(world):
        owner = world.nodes[OWNER]
        await told(world)
        world.net.stall(world.name(1), HEAD_PUT)

        async def named(name):
            await put_named(owner, name, content(10))
            began_ms = world.clock.now_ms()
            return await owner.directory.told(4), world.clock.now_ms() - began_ms

        assert await named("first") == ((3, 4), DIRECTORY_TOLD_MS_MAX)
        for name in "abc":
            found, waited_ms = await named(name)
            assert found == (3, 4)
            assert waited_ms <= 500
        world.net.resume(world.name(1), HEAD_PUT)
        await world.clock.sleep_ms(2 * STORAGE_QUESTION_TIMEOUT_MS)
        found, waited_ms = await named("last")
        assert (found, waited_ms <= 500) == ((4, 4), True), "it is waited for again"
        # A slow one among enough others is nobody's delay, and not taken for silent.
        world.net.set_rate(world.name(4), 2_000, 10**9)
        await put_named(owner, "three", content(10))
        assert await owner.directory.told(3) == (3, 3)
        await world.clock.sleep_ms(STORAGE_QUESTION_TIMEOUT_MS)
        assert (await named("four"))[0] == (4, 4)

    run(21, 5, play)
