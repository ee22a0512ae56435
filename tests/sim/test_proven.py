"""Whole nodes: storage is paid up to the last proof, and who lost it loses its pay."""

import pytest

from tests.sim.network import SEEDS, content, put, run
from tests.sim.test_possession import SETTINGS, columns, thin
from xsc.base.limits import EPOCH_MS, MIB
from xsc.health.challenge import SLOT_MS
from xsc.market import account as accounts

PAY = {
    **SETTINGS,
    "settle_interval": "10min",
    "starter_credit": "1000",
    "storage_price_gib_hour": "10240",
    "storage_price_max_gib_hour": "40960",
}


def account_of(node, role, peer):
    """Return the account, and what is signed and comes to be signed in it now."""
    store, now_ms = node.market.store, node.clock.now_ms()
    account, entries = store.account(role, peer), store.of(role, peer)
    return account, accounts.due_micro(account, entries, now_ms)


def pairs(world, owner=0):
    for host in world.nodes:
        if host is not world.nodes[owner] and host.shards.usage:
            yield host, host.key.node_id


@pytest.mark.parametrize("seed", range(SEEDS))
def test_honest_nodes_that_challenge_every_hour_agree_to_the_micro(seed):
    async def play(world):
        owner = world.nodes[0]
        for number in range(4 if SEEDS > 1 else 2):
            await put(owner, content(8 * MIB, number))
            await world.skip((3 if SEEDS > 1 else 2) * EPOCH_MS, SLOT_MS)
        await owner.market.settlement.settle_all()
        for host, peer in pairs(world):
            ours, due = account_of(owner, "customer", peer)
            theirs, due_there = account_of(host, "provider", owner.key.node_id)
            assert ours.void == theirs.void == 0
            assert ours.signed_micro == theirs.signed_micro == due == due_there > 100
            assert not host.market.owed_micro(theirs) > 1

    run(51 + seed, 7, play, PAY)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_host_whose_bodies_are_gone_loses_its_pay_at_the_next_challenge(seed):
    async def play(world):
        owner = world.nodes[0]
        await put(owner, content(8 * MIB))
        await world.skip(2 * EPOCH_MS, SLOT_MS)
        await owner.market.settlement.settle_all()
        victim = world.index_of(columns(world)[0][1])
        host = world.nodes[victim].key.node_id
        account, _ = account_of(owner, "customer", host)
        paid, proven_ms = account.signed_micro, account.proven_ms
        assert paid
        assert thin(world, victim, 1.0, seed)
        await world.skip(2 * EPOCH_MS, SLOT_MS)
        assert account.signed_micro == paid, "nothing after the last proof is paid"
        assert account.void
        assert account.proven_ms > proven_ms
        theirs, _ = account_of(world.nodes[victim], "provider", owner.key.node_id)
        assert theirs.void, "and it says so itself"

    run(61 + seed, 7, play, PAY)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_host_that_was_thinned_loses_pay_back_to_its_last_ok_each_time(seed):
    async def play(world):
        owner = world.nodes[0]
        for number in range(24):
            await put(owner, content(200_000, number))
        await world.skip(2 * EPOCH_MS, SLOT_MS)
        victim = world.index_of(columns(world)[0][1])
        host = world.nodes[victim].key.node_id
        account, _ = account_of(owner, "customer", host)
        assert thin(world, victim, 0.1, seed + 3)
        caught, seen = 0, owner.challenges.rows[host][owner.key.node_id].at_ms
        for _ in range(12 * 12):
            before = account.proven, account.void
            await world.skip(SLOT_MS, SLOT_MS)
            row = owner.challenges.rows.get(host, {}).get(owner.key.node_id)
            if row is None:
                break  # All has moved away.
            if row.at_ms == seen:
                continue
            seen = row.at_ms
            decided, void = account.proven - before[0], account.void - before[1]
            if row.outcome == "missing":
                caught += 1
                assert void == decided > 0
                assert owner.health.grade(host) == "watch"
            elif row.outcome == "ok":
                assert void == 0
        assert caught

    run(71 + seed, 8, play, {**PAY, "repair_grace": "30d"})


def test_an_absent_customer_pays_on_return_and_a_custodians_record_pays_what_it_proves():
    async def play(world):
        owner = world.nodes[0]
        await put(owner, content(8 * MIB))
        await world.skip_until(
            lambda: bool(owner.storage.assignment.custodians()), 30 * 60_000, 60_000
        )
        await world.skip(2 * EPOCH_MS, SLOT_MS)
        await owner.market.settlement.settle_all()
        own = owner.key.node_id
        hosts = [world.nodes[world.index_of(node)] for node in columns(world)[0]]
        hosts = [host for host in hosts if host is not owner]
        paid = {h.key.node_id: account_of(h, "provider", own)[0].signed_micro for h in hosts}
        await world.crash(0)
        await world.skip((8 if SEEDS > 1 else 2) * EPOCH_MS, SLOT_MS)
        certified = [h for h in hosts if account_of(h, "provider", own)[0].certified]
        assert certified, "a custodian proves it meanwhile"
        for host in hosts:
            assert account_of(host, "provider", own)[0].signed_micro == paid[host.key.node_id]
        await world.restart(0)
        back = world.nodes[0]

        def are_paid():
            signed = (account_of(h, "provider", own)[0].signed_micro for h in certified)
            return all(
                micro > paid[h.key.node_id] for micro, h in zip(signed, certified, strict=True)
            )

        await world.skip_until(are_paid, 2 * EPOCH_MS, SLOT_MS)
        await back.market.settlement.settle_all()
        for host in hosts:
            theirs, _ = account_of(host, "provider", own)
            assert host.market.owed_micro(theirs) <= 1

    run(81, 8, play, PAY)
