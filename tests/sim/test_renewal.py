"""Leases over years: who is readable for ever, who is gone and when, and what it costs.

Time passes in jumps (`World.skip`): to a node it is as if its machine had slept.
"""

import asyncio
import os
from contextlib import suppress

import pytest

from tests.sim.network import content, get, put, run, stream
from tests.sim.test_recovery import back, place_of, told
from xsc.base.limits import EPOCH_MS, MIB, STORAGE_LEASE_MS
from xsc.market.lease import due_ms
from xsc.terms.pricing import amount
from xsc.terms.voucher import leases_account

OWNER = 0
DAY_MS = 86_400_000
SETTINGS = {"starter_credit": "1000000", "settle_interval": "20h", "storage_capacity": "2GiB"}
POWER = {**SETTINGS, "repair_grace": "60s", "repair_interval": "60s", "probe_interval": "20s"}


def held_by(world, owner):
    """Return the bytes that every node holds for another, by lease."""
    return {
        lease.entry.id: lease.use.held_bytes
        for node in world.nodes
        for lease in node.market.leases()
        if lease.entry.role == "provider"
        and lease.entry.peer == owner.key.node_id
        and lease.use.held_bytes
    }


def settled_in_full(world, owner):
    """Hold both sides of all leases of an owner against each other and against the ledgers."""
    own = owner.key.node_id
    mine = {view.entry.id: view for view in owner.market.leases() if view.entry.role == "customer"}
    accounts = {
        each.peer: each for each in owner.market.store.accounts() if each.role == "customer"
    }
    paid = 0
    for node in world.nodes:
        if node is owner:
            continue
        for view in node.market.leases():
            if view.entry.role == "provider" and view.entry.peer == own:
                assert view.use.held_bytes == node.shards.usage.get(view.entry.id, 0)
                assert view.use.held_bytes == mine[view.entry.id].use.held_bytes
                assert view.due_micro == mine[view.entry.id].due_micro
        for theirs in node.market.store.accounts():
            if (theirs.role, theirs.peer) == ("provider", own):
                if node.key.node_id not in accounts:
                    assert not theirs.settled_micro + node.market.owed_micro(theirs)
                    continue
                ours = accounts[node.key.node_id]
                settled, owed = theirs.settled_micro, node.market.owed_micro(theirs)
                assert settled == ours.settled_micro
                assert owed == owner.market.owed_micro(ours)
                # What fell due since it was settled, just now.
                assert owed <= 1
                account = leases_account(node.key.node_id, own)
                assert node.ledger.settled(account) == settled
                paid += settled
        balance = node.ledger.balance(own)
        assert balance == -owner.ledger.balance(node.key.node_id)
    return paid


async def settle(world):
    for node in world.nodes:
        await node.market.settlement.settle_all()


def test_an_object_whose_owner_runs_is_readable_for_ever_and_never_swept():
    async def play(world):
        owner = world.nodes[OWNER]
        kept = {
            await put(owner, content(size), code=(1, 1)): content(size)
            for size in (10, 70_000, 2 * MIB)
        }
        before = held_by(world, owner)
        leases = {view.entry.id for view in owner.market.leases()}
        start_ms = world.clock.now_ms()
        for number in range(10):
            await world.skip(40 * DAY_MS, 8 * DAY_MS)
            assert held_by(world, owner) == before
            for capability, data in kept.items():
                assert await get(owner, capability) == data
            # It wakes seldom, and challenges as seldom.
            await settle(world)
            if number % 3 == 2:
                await world.crash(number % 2)
                await world.restart(number % 2)
                owner = world.nodes[OWNER]
        assert world.clock.now_ms() - start_ms >= 400 * DAY_MS
        assert {view.entry.id for view in owner.market.leases() if view.use.held_bytes} == leases
        await settle(world)
        assert settled_in_full(world, owner) > 0
        for view in owner.market.leases():
            hours = (world.clock.now_ms() - start_ms) // EPOCH_MS + 1
            assert (
                view.due_micro
                <= amount("storage", view.entry.terms.price, hours * max(before.values())) + 1
            )
        counted_exactly(world, range(3))

    run(11, 3, play, SETTINGS)


def test_a_recovered_owner_goes_on_with_its_leases():
    async def play(world):
        owner = world.nodes[OWNER]
        for name in ("a", "b"):
            data = content(2 * MIB, seed=len(name))
            await owner.storage.put(stream(data), name=name, size_hint=len(data), code=(1, 1))
        await settle(world)
        await told(world)
        before = {view.entry.id: view for view in owner.market.leases()}
        held = held_by(world, owner)
        assert sum(held.values()) > 4 * MIB
        await world.lose(OWNER)
        await back(world, OWNER, place_of(world, 1))
        owner = world.nodes[OWNER]
        after = {view.entry.id: view for view in owner.market.leases()}
        assert {
            key: view.use.held_bytes for key, view in after.items() if view.use.held_bytes
        } == held
        assert {key: view.entry.terms.end_ms for key, view in after.items()} == {
            key: view.entry.terms.end_ms for key, view in before.items() if key in after
        }
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await world.skip(60 * DAY_MS, 4 * DAY_MS)
        now_ms = world.clock.now_ms()
        live = [view for view in owner.market.leases() if view.use.held_bytes]
        assert {view.entry.id for view in live} == set(held), "it renews, and buys nothing anew"
        assert all(view.entry.terms.end_ms > now_ms + STORAGE_LEASE_MS // 3 for view in live)
        await settle(world)
        assert settled_in_full(world, owner) > 0
        (capability,) = owner.storage.catalogue.named("a")
        done = await owner.storage.rm(capability)
        assert not done.partly
        (left,) = owner.storage.catalogue.named("b")
        assert await get(owner, left) == content(2 * MIB, seed=1)
        assert sum(held_by(world, owner).values()) * 2 == sum(held.values())
        await owner.storage.rm(left)
        assert held_by(world, owner) == {}
        assert not any(view.use.held_bytes for view in owner.market.leases())
        await settle(world)
        settled_in_full(world, owner)

    run(12, 3, play, SETTINGS)


SIZES = (10, 70_000, 2 * MIB)


async def put_all(world):
    """Return what the owner stored at others, by capability."""
    owner = world.nodes[OWNER]
    return {await put(owner, content(size), code=(1, 1)): content(size) for size in SIZES}


async def read_all(world, reader, kept):
    for capability, data in kept.items():
        assert await get(world.nodes[reader], capability) == data


def in_custody_at(world, index):
    return [
        ward for _, ward in world.nodes[index].storage.custodian.store.objects() if not ward.ended
    ]


def counted_exactly(world, nodes):
    """Hold what the shard stores hold against what the leases say."""
    for index in nodes:
        node = world.nodes[index]
        held = {
            view.entry.id: view.use.held_bytes
            for view in node.market.leases()
            if view.entry.role == "provider" and view.use.held_bytes
        }
        assert {key: size for key, size in node.shards.usage.items() if any(key)} == held
        assert sum(node.shards.usage.values()) == node.shards.used_bytes


def without_custodians(*but):
    def prepare(world):
        for index in range(world.count):
            if index not in but:
                world.settings_of[index] = {"guard": "none"}

    return prepare


def test_with_the_owner_away_and_no_custodian_it_is_gone_after_end_and_grace():
    async def play(world):
        kept = await put_all(world)
        start_ms = world.clock.now_ms()
        await world.clock.sleep_ms(120_000)
        assert not any(in_custody_at(world, index) for index in range(1, 4))
        before = [world.nodes[index].shards.used_bytes for index in range(1, 4)]
        assert sum(before) > 2 * sum(SIZES)
        await world.crash(OWNER)
        await world.skip(119 * DAY_MS, 7 * DAY_MS)
        assert [world.nodes[index].shards.used_bytes for index in range(1, 4)] == before
        await read_all(world, 1, kept)
        counted_exactly(world, range(1, 4))
        await world.skip(start_ms + 121 * DAY_MS - world.clock.now_ms(), DAY_MS)
        assert [world.nodes[index].shards.used_bytes for index in range(1, 4)] == [0, 0, 0]
        counted_exactly(world, range(1, 4))

    run(13, 4, play, SETTINGS, without_custodians())


def test_with_the_owner_away_one_custodian_keeps_an_object_for_ever_and_gives_it_back():
    async def play(world):
        kept = await put_all(world)
        owner_id = world.nodes[OWNER].key.node_id
        await world.until(lambda: len(in_custody_at(world, 1)) == len(SIZES))
        await world.crash(OWNER)
        for _ in range(8):
            await world.skip(50 * DAY_MS, 10 * DAY_MS)
            await read_all(world, 2, kept)
        counted_exactly(world, range(1, 4))
        for node in world.nodes[1:]:
            views = [view for view in node.market.leases() if view.use.held_bytes]
            assert all(view.entry.peer != owner_id for view in views), "the owner's part is swept"
        custodian = world.nodes[1]
        assert any(view.use.held_bytes for view in custodian.market.leases())

        owner = await world.restart(OWNER)
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        await world.skip(DAY_MS, DAY_MS // 4, 70_000)
        assert not any(item.held for item in in_custody_at(world, 1)), (
            "the owner took all of it over"
        )
        custodian_id = custodian.key.node_id
        mine = {view.entry.id for view in owner.market.leases() if view.use.held_bytes}
        for node in world.nodes[1:]:
            for view in node.market.leases():
                if view.entry.role == "provider" and view.use.held_bytes:
                    assert view.entry.peer != custodian_id
                    assert view.entry.id in mine
        counted_exactly(world, range(4))
        await world.skip(70 * DAY_MS, 10 * DAY_MS)
        await read_all(world, 2, kept)
        assert not any(row.ending for row in owner.storage.ls())
        await settle(world)
        assert settled_in_full(world, owner) > 0

    run(14, 4, play, SETTINGS, without_custodians(1))


def test_what_a_host_does_not_renew_moves_before_the_end():
    async def play(world):
        kept = await put_all(world)
        owner = world.nodes[OWNER]
        ends = {view.entry.id: view.entry.terms.end_ms for view in owner.market.leases()}
        stingy = next(node for node in world.nodes[1:] if node.shards.used_bytes)
        await stingy.ledger.set_limit(owner.key.node_id, 0)
        await world.skip(59 * DAY_MS, 4 * DAY_MS)
        assert stingy.shards.used_bytes
        refused = [row.ending[0].reason for row in owner.storage.ls() if row.ending]
        await world.skip(5 * DAY_MS, DAY_MS, 120_000)
        assert world.clock.now_ms() < min(ends.values())
        assert stingy.shards.used_bytes == 0
        await read_all(world, 2, kept)
        assert all(row.margin == 1 for row in owner.storage.ls())
        assert not any(row.ending for row in owner.storage.ls())
        assert all("debt limit" in reason for reason in refused)
        await stingy.ledger.set_limit(owner.key.node_id, 10**12)
        await settle(world)
        settled_in_full(world, owner)
        counted_exactly(world, range(1, 4))

    run(15, 4, play, SETTINGS)


def test_a_deletion_that_a_lost_host_cannot_confirm_ends_with_its_lease_and_the_grace():
    async def play(world):
        owner = world.nodes[OWNER]
        kept = {await put(owner, content(size), code=(1, 1)): content(size) for size in SIZES[:2]}
        doomed = await put(owner, content(70_000, seed=1), code=(1, 1))
        held = {host.node for host in (await owner.storage.stat(doomed)).hosts}
        gone = next(i for i in range(1, 4) if world.nodes[i].key.node_id in held)
        there = world.nodes[gone].key.node_id
        await world.lose(gone)
        assert (await owner.storage.rm(doomed)).partly
        (end_ms,) = {
            v.entry.terms.end_ms
            for v in owner.market.leases()
            if v.entry.peer == there and v.use.held_bytes
        }

        def named():
            return [
                i for _, e in owner.storage.catalogue.entries() for i in e.held if i.node == there
            ]

        await world.skip(end_ms + 29 * DAY_MS - world.clock.now_ms(), 20 * DAY_MS)
        assert named(), "until then it could come back and has it still"
        assert (await owner.collect_garbage()).deletions_open == 1
        world.clock.advance_to(world.clock.now_ms() + 2 * DAY_MS)
        done = await owner.collect_garbage()
        assert (done.deletions_open, done.deletions_given_up) == (0, 1)
        await world.clock.sleep_ms(60_000)
        await world.skip(280 * DAY_MS, 40 * DAY_MS)
        assert not named(), "objects that moved away name it no more either"
        assert [entry.deleting for _, entry in owner.storage.catalogue.entries()] == [False] * 2
        assert not any(
            view.use.held_bytes for view in owner.market.leases() if view.entry.peer == there
        )
        await read_all(world, OWNER, kept)
        for other in set(range(1, 4)) - {gone}:
            counted_exactly(world, [other])
        held = held_by(world, owner)
        paid = {v.entry.id: v.use.held_bytes for v in owner.market.leases() if v.use.held_bytes}
        assert paid.items() <= held.items()
        assert sum(paid.values()) == sum(
            node.shards.used_bytes for i, node in enumerate(world.nodes) if i not in (OWNER, gone)
        )

    run(18, 4, play, POWER)


def test_a_deletion_ends_with_the_lease_where_the_host_is_no_peer_any_more():
    async def play(world):
        owner = world.nodes[OWNER]
        doomed = await put(owner, content(70_000), code=(1, 1))
        gone = next(i for i in range(1, 3) if world.nodes[i].shards.used_bytes)
        await world.lose(gone)
        owner.peers.roster.remove(world.nodes[gone].key.node_id)
        assert (await owner.storage.rm(doomed)).partly
        await world.skip(89 * DAY_MS, 30 * DAY_MS)
        assert len(list(owner.storage.catalogue.entries())) == 1
        await world.skip(2 * DAY_MS, DAY_MS)
        assert not list(owner.storage.catalogue.entries())

    run(19, 3, play, POWER)


def lose_power_at(world, index, sync, *, before):
    """Take a node's power away at a synced write of its state, just before or after it.

    Returns what is set by then, and the disk as it is left. Before it, most was sent that
    is not on the disk; after it, least.
    """
    state, write = world.disks[index].state, world.disks[index].state.write
    lost = asyncio.Event()
    left, kept = sync, []

    def counted(changes, *, sync):
        nonlocal left
        left -= sync
        if not left and sync and not lost.is_set():
            if not before:
                write(changes, sync=sync)
            world.net.kill(world.name(index))
            kept.append(world.disks[index].after_crash())
            lost.set()
        else:
            write(changes, sync=sync)

    state.write = counted
    return lost, kept


EVERYWHERE = "TEST_LAWS_EXAMPLES" in os.environ
TAKING = [(n, before) for n in range(1, 7) for before in (True, False)]
"""The synced writes of a custodian that takes two objects over, and whether it is made."""
BACK = range(1, 13)
"""The same of an owner that takes them back, from its start."""


async def power_is_lost(world, index, lost, kept):
    """Lose the power, stay down for two days, which are due as well, and come back."""
    with suppress(TimeoutError):
        # Where that is the last of all, there was no such write.
        await asyncio.wait_for(lost.wait(), 600)
    world.clock.advance_to(world.clock.now_ms() + 2 * DAY_MS)
    await world.crash(index)
    if kept:
        world.disks[index] = kept[0]
    return await world.restart(index)


async def pays_for_all(world, payer):
    """Hold what a node counts against what hosts hold for it, and what it paid."""
    await world.until(lambda: bool(held_by(world, payer)), 300_000)
    await world.skip(90_000, 30_000)
    await settle(world)
    counted_exactly(world, range(1, 4))
    assert settled_in_full(world, payer) > 0
    assert held_by(world, payer) == {
        view.entry.id: view.use.held_bytes
        for view in payer.market.leases()
        if view.entry.role == "customer" and view.use.held_bytes
    }


@pytest.mark.parametrize(
    ("sync", "before"), TAKING if EVERYWHERE else [(3, False), (4, True), (6, True)]
)
def test_a_custodian_that_loses_its_power_while_it_takes_over_pays_for_all_that_it_keeps(
    sync, before
):
    async def play(world):
        for size in SIZES[1:]:
            await put(world.nodes[OWNER], content(size), code=(1, 1))
        await world.until(lambda: len(in_custody_at(world, 1)) == 2)
        await world.crash(OWNER)
        await world.skip(66 * DAY_MS, 33 * DAY_MS)
        lost, kept = lose_power_at(world, 1, sync, before=before)
        world.clock.advance_to(world.clock.now_ms() + 5 * DAY_MS)
        custodian = await power_is_lost(world, 1, lost, kept)
        assert kept or sync > 4
        await pays_for_all(world, custodian)

    run(16, 4, play, POWER, without_custodians(1))


@pytest.mark.parametrize("sync", BACK if EVERYWHERE else (5, 6, 7))
def test_an_owner_that_loses_its_power_while_it_takes_back_pays_for_all_that_it_keeps(sync):
    async def play(world):
        for size in SIZES[1:]:
            await put(world.nodes[OWNER], content(size), code=(1, 1))
        await world.until(lambda: len(in_custody_at(world, 1)) == 2)
        await world.crash(OWNER)
        await world.skip(66 * DAY_MS, 33 * DAY_MS)
        await world.skip(64 * DAY_MS, 16 * DAY_MS, 20_000)
        assert all(ward.held for ward in in_custody_at(world, 1))
        await world.restart(OWNER)
        lost, kept = lose_power_at(world, OWNER, sync, before=True)
        owner = await power_is_lost(world, OWNER, lost, kept)
        assert kept or sync > 7
        await pays_for_all(world, owner)
        # The custodian gives all of it back, a column at a time.
        await world.skip_until(lambda: not held_by(world, world.nodes[1]), 900_000, 30_000)

    run(17, 4, play, POWER, without_custodians(1))


RENEWING = [(who, n, before) for who in (0, 1) for n in range(1, 9) for before in (True, False)]
"""The node that loses power; at which of its synced writes; whether that write is made."""


@pytest.mark.parametrize(
    ("who", "sync", "before"),
    RENEWING if EVERYWHERE else [(0, 2, False), (1, 2, True)],
)
def test_a_power_loss_at_any_write_of_a_renewal_loses_nothing_and_is_paid_once(who, sync, before):
    async def play(world):
        kept_objects = {}
        for size in SIZES:
            kept_objects[await put(world.nodes[OWNER], content(size), code=(1, 1))] = content(size)
        held = held_by(world, world.nodes[OWNER])
        host = next(i for i in range(1, 4) if world.nodes[i].shards.used_bytes)
        terms = [
            entry.terms
            for entry in world.nodes[OWNER].market.store.all("customer")
            if entry.peer == world.nodes[host].key.node_id and entry.use.held_bytes
        ]
        due = min(map(due_ms, terms))
        await world.skip(due - 2 * EPOCH_MS - world.clock.now_ms(), DAY_MS)
        index = host if who else OWNER
        lost, left = lose_power_at(world, index, sync, before=before)
        world.clock.advance_to(due)
        for _ in range(24):  # Two hours, in jumps: where that is the last of all, it never comes.
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), 3)
                break
            world.clock.advance_to(world.clock.now_ms() + EPOCH_MS // 12)
        world.clock.advance_to(world.clock.now_ms() + 2 * DAY_MS)
        await world.crash(index)
        if left:
            world.disks[index] = left[0]
        await world.restart(index)
        owner = world.nodes[OWNER]
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes), 600_000)
        await world.skip(15 * DAY_MS, 3 * DAY_MS, 120_000)
        assert held_by(world, owner) == held
        live = [view for view in owner.market.leases() if view.use.held_bytes]
        assert {view.entry.id for view in live} == set(held)
        assert all(view.entry.terms.end_ms > due + 3 * STORAGE_LEASE_MS // 4 for view in live)
        counted_exactly(world, range(1, 4))
        await settle(world)
        assert settled_in_full(world, owner) > 0
        await read_all(world, 2, kept_objects)

    run(20, 4, play, POWER, without_custodians())
