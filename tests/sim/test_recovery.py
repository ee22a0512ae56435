"""A node loses its disk and comes back from its key and what its peers hold."""

import asyncio

import pytest

from tests.sim.network import content, get, put, run, stream
from xsc.base.errors import (
    LedgerDamaged,
    NotAllowed,
    ObjectUnknown,
    PeerSilent,
    RateLimited,
    Recovering,
)
from xsc.base.ids import to_text
from xsc.base.limits import DIRECTORY_TOLD_MS_MAX, MIB
from xsc.net.plain import Plain
from xsc.node import directory as keeper
from xsc.node.recovery import recover
from xsc.node.routes.objects import PATH, plain_handlers
from xsc.storage.directory import HeadBody, make_head
from xsc.storage.heads import HEAD_PUT, HEADS

OWNER = 0


def place_of(world, index):
    """Say where a node is, as a person would tell it who lost everything."""
    node = world.nodes[index]
    return f"{to_text(node.key.node_id)}@{node.peers.addresses()[0]}"


async def put_named(node, name, data):
    done = await node.storage.put(stream(data), name=name, size_hint=len(data))
    return done.capability


async def told(world, index=OWNER):
    """Wait until all peers that are up hold the newest directory of a node."""
    node = world.nodes[index]
    node.directory.wake()
    await world.clock.sleep_ms(20_000)
    assert not await node.directory.write()


async def back(world, index, place, *, without_silent=False):
    """Recover a node on its empty disk, then start it as the daemon would."""
    node = world.make(index, recovering=True)
    done = await recover(node, [place], without_silent=without_silent)
    await node.peers.stop()
    world.nodes[index] = world.make(index)
    await world.nodes[index].start()
    return done


async def debts(world):
    """Settle what is owed, so that the owner has entries of both sides."""
    for node in world.nodes:
        await node.market.settle_all()


async def story(world):
    owner = world.nodes[OWNER]
    friend = world.nodes[3].key.node_id
    await owner.allocation.recognise(friend, 250_000)
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
    before = owner.storage.directory()
    chain = owner.ledger.head()
    balances = {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()}
    assert any(balances.values())
    await world.lose(OWNER)
    done = await back(world, OWNER, place_of(world, 2))
    owner = world.nodes[OWNER]
    assert (done.peers, done.objects, done.silent, done.lost) == (6, 3, (), ())
    assert owner.ledger.head() == chain
    assert {peer: owner.ledger.balance(peer) for peer in owner.peers.peers()} == balances
    assert owner.ledger.limit(friend) == 123_456_789
    assert owner.allocation.weight_ppm(friend) == 250_000
    assert owner.storage.directory() == before
    for capability, data in kept.items():
        assert await get(owner, capability) == data
    assert await get(owner, owner.storage.named("a", 1)[0]) == content(10)
    await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
    assert (await owner.storage.put(stream(b"x"), name="a")).version == 3
    await put(owner, content(20 * MIB))
    await debts(world)
    await debts(world)
    assert owner.ledger.head()[0] > chain[0], "the recovered chain goes on"
    for node in world.nodes:
        await node.ledger.verify()
    await told(world)
    assert owner.directory.generation > done.generation
    assert not owner.failed.done()
    assert others


@pytest.mark.parametrize("seed", range(3))
def test_a_node_comes_back_from_its_key_and_one_peer(seed):
    run(seed, 7, story, {"starter_credit": "1000", "storage_capacity": "2GiB"})


def test_a_silent_peer_stops_a_recovery_unless_it_is_left_out():
    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(MIB))
        await told(world)
        await world.lose(OWNER)
        await world.crash(4)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(PeerSilent, match="do not answer"):
            await recover(node, [place_of(world, 2)], without_silent=False)
        await node.peers.stop()
        done = await back(world, OWNER, place_of(world, 2), without_silent=True)
        assert done.silent == (world.nodes[4].key.node_id,)
        assert done.objects == 1
        assert await get(world.nodes[OWNER], world.nodes[OWNER].storage.named("a")[0])

    run(11, 7, play, {"settle_interval": "1h"})


def test_a_ledger_with_a_gap_is_not_gone_on_with():
    async def play(world):
        await put_named(world.nodes[OWNER], "a", content(20 * MIB))
        await debts(world)
        await told(world)
        assert world.nodes[OWNER].ledger.head()[0] >= 6
        await world.lose(OWNER)
        await world.crash(4)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(LedgerDamaged, match="missing at all peers that answered"):
            await recover(node, [place_of(world, 2)], without_silent=True)
        with pytest.raises(Recovering):
            await node.ledger.set_limit(world.nodes[1].key.node_id, 5)
        await node.peers.stop()

    run(11, 7, play)


def test_nothing_is_signed_before_the_recovery_is_over():
    async def play(world):
        await world.lose(OWNER)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(Recovering):
            await node.ledger.set_limit(world.nodes[1].key.node_id, 5)
        assert node.ledger.head()[0] == 0
        node.ledger.finish_recovery()
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
            assert await get(owner, owner.storage.named(f"object {number}")[0]) == content(number)

    run(13, 7, play)


def test_an_identity_that_nobody_holds_a_directory_of_is_told_so():
    async def play(world):
        for node in world.nodes:
            await node.tasks.stop()
            for key, _ in list(node.parts.state.scan(b"storage/head/")):
                node.parts.state.write([(key, None)], sync=True)
        await world.lose(OWNER)
        node = world.make(OWNER, recovering=True)
        with pytest.raises(ObjectUnknown, match="no peer that answered"):
            await recover(node, [place_of(world, 1)], without_silent=True)
        await node.peers.stop()

    run(14, 3, play)


@pytest.mark.parametrize("lie", ["bare", "old", "forged", "present", "nothing", "busy"])
def test_a_peer_that_refuses_a_head_without_proof_stops_nobody(lie):
    """Only a head that the node itself signed shows that its home is an old copy."""

    async def play(world):
        owner, liar = world.nodes[OWNER], world.nodes[3]
        await put_named(owner, "a", content(10))
        await told(world)
        old = owner.directory.head
        forged = make_head(
            HeadBody(0, (), b"", None), 2**40, liar.key, owner.peers.network, b"n" * 12
        )
        shown = {"old": [old], "forged": [forged.raw], "nothing": []}
        asked = 0

        async def refuse(_caller, _header, parts):
            nonlocal asked
            asked += 1
            if lie == "bare":
                raise NotAllowed("a directory head of generation 9 is held already")
            if lie == "busy":
                raise RateLimited("too many", retry_after_s=1)
            return {"stored": False}, shown.get(lie, [bytes(part.data) for part in parts])

        liar.peers._handlers[HEAD_PUT] = refuse
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
        assert not owner.failed.done()
        assert not owner.directory.copies_beside(b"") > len(honest), "a refusal is no copy"

    run(16, 5, play)


def test_a_host_that_was_too_busy_for_a_head_gets_it_later():
    async def play(world):
        owner, host = world.nodes[OWNER], world.nodes[3]
        kept = host.peers._handlers[HEAD_PUT]
        refusals = 3

        async def busy(caller, header, parts):
            nonlocal refusals
            if caller == owner.key.node_id and refusals:
                refusals -= 1
                raise RateLimited("too many", retry_after_s=1)
            return await kept(caller, header, parts)

        host.peers._handlers[HEAD_PUT] = busy
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
        await world.until(node.failed.done)
        assert "old copy" in node.failed.result().message

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
        assert await get(owner, owner.storage.named("b")[0]) == content(11)

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
            assert await get(owner, owner.storage.named(f"object {number}")[0]) == content(number)

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
        stored = plain_handlers(owner)[PATH]
        headers = {"xsc-name": "b", "xsc-wait-for-name": "1"}
        _, said = await stored(Plain(PATH, headers, b"content"))
        assert ["the name is at 3 of 4 peers" in text for text in said["warnings"]] == (
            [True] if silent == 3 else []
        )
        # Whoever is silent keeps nobody waiting while others are enough.
        assert waited_ms <= (500 if silent == 2 else DIRECTORY_TOLD_MS_MAX)

    run(21, 7, play)
