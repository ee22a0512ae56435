import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import A_MIB, NET, admit, ask, granted_on, request_of
from tests.unit.market.test_signing import (
    entitle,
    leased_all,
    need_of,
    needs,
    others,
    signed,
    taken,
)
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ArgumentInvalid,
    ComputeExhausted,
    CreditExceeded,
    LeaseExhausted,
    NoOffers,
    NotAllowed,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    SignatureInvalid,
    SpaceExhausted,
    StoreDamaged,
)
from xsc.base.ids import short
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    JOBS_QUEUED_A_PEER_MAX,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    MIB,
    REQUEST_WINDOW_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.base.refusals import refusal
from xsc.identity.envelope import open_signed, sign
from xsc.market.account import REFUSED_RETRY_MS, REFUSED_RETRY_MS_MAX
from xsc.market.auction import RESERVE_STEPS
from xsc.market.buyer import LEASE_REFUSED_MS
from xsc.market.lease import LEASE_KEPT_MS, QUANTITY_MAX
from xsc.market.pricing import PriceList
from xsc.market.settlement import ACCOUNT
from xsc.node.offline.verify import verify_file
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE
from xsc.terms.pricing import compute_amount
from xsc.terms.voucher import LeaseCount, Voucher, leases_account

STEPS = 1_000_000_000


async def leased(world, node, **wish):
    got = await world.drive(
        node.market.buyer.lease_hosts(**({"size_bytes": MIB, "count": 1} | wish))
    )
    if not got.leases:
        raise refusal(got.refused, "no room")
    return got.leases


async def computing(world, node, steps=STEPS, on=None):
    return await world.drive(node.market.buyer.lease_compute(fuel_steps=steps, on=on))


async def several(world, node, count, exclude=frozenset(), steps=STEPS):
    wish = node.market.buyer.lease_providers(fuel_steps=steps, count=count, exclude=exclude)
    return [granted.node for granted in await world.drive(wish)]


async def test_compute_is_leased_at_distinct_peers_and_never_here(world):
    customer = world.node(1)
    with pytest.raises(NoOffers):
        await several(world, customer, 1)
    peers = [world.node(number) for number in (2, 3, 4)]
    ids = {peer.id for peer in peers}
    for count in (1, 2, 3, 4):
        found = await several(world, customer, count)
        assert len(set(found)) == len(found) == min(count, 3)
        assert set(found) <= ids
    left = frozenset({peers[0].id})
    assert set(await several(world, customer, 3, left)) == ids - left
    with pytest.raises(NoOffers):
        await several(world, customer, 1, frozenset(ids))
    world.wire.down.add(peers[1].id)
    assert set(await several(world, customer, 3)) == ids - {peers[1].id}
    with pytest.raises(ArgumentInvalid):
        await several(world, customer, 1, steps=0)


async def test_who_verifies_is_of_another_owner_where_there_is_one(world):
    customer = world.node(1)
    for number, owner in ((2, "ann"), (3, "ann"), (4, "ben")):
        node = world.node(number)
        node.settings["owner"] = owner
        node.market = node.make()
    found = set(await several(world, customer, 2))
    assert world.nodes[4].id in found
    assert len(await several(world, customer, 3)) == 3


# Prices


async def test_who_publishes_no_slot_offers_nothing_and_grants_nothing(world, pair):
    customer, provider = pair
    provider.offers = False
    with pytest.raises(NoOffers):
        await leased(world, customer)
    with pytest.raises(NoOffers):
        await computing(world, customer)
    assert not world.wire.calls
    with pytest.raises(NoOffers):
        await ask(world, customer, provider)


# Storage leases


async def test_objects_share_a_lease(world, pair):
    customer, provider = pair
    first = (await leased(world, customer))[0]
    assert first.node == provider.id
    again = (await leased(world, customer))[0]
    assert again.lease_id == first.lease_id
    view = customer.one("customer")
    assert (view.use.level, view.status, view.entry.terms.kind) == (0, "open", "storage")
    assert provider.one("provider").entry.id == first.lease_id


async def test_what_is_handed_out_is_not_handed_out_twice(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 3)
    cleared = customer.one("customer").entry.id
    wish = {"size_bytes": SLOT_STEP_BYTES, "count": 1, "exclude": others(world, provider)}
    got = await world.drive(*(customer.market.buyer.lease_hosts(**wish) for _ in range(4)))
    assert [each.leases[0].lease_id for each in got].count(cleared) == 3


async def test_hosts_are_distinct_and_paid_the_next_price(world):
    customer = world.node(1)
    for number in range(2, 10):
        node = world.node(number)
        node.settings["prices"] = type(node.settings["prices"])(number, number)
        node.market = node.make()
    hosts = await leased(world, customer, count=6)
    assert {host.node for host in hosts} == {world.nodes[n].id for n in range(2, 8)}
    assert {host.price for host in hosts} == {8}


async def test_without_a_further_bid_the_reserve_is_paid(world, pair):
    customer, _ = pair
    (host,) = await leased(world, customer)
    assert host.price == 40 * A_MIB


async def test_up_to_seven_nodes_are_paid_what_room_costs_here_and_not_the_maximum(world):
    customer = world.node(1)
    for number in range(2, 8):
        node = world.node(number)
        asked, prices = (number % 3 + 8) * A_MIB, node.settings["prices"]
        node.settings["prices"] = replace(prices, storage=asked, compute=asked)
        node.market = node.make()
    hosts = await leased(world, customer, count=6)
    assert [host.price for host in hosts] == [10 * A_MIB] * 6
    assert (await computing(world, customer)).price == 8 * A_MIB, (
        "the next bid comes before the reserve"
    )


async def test_who_recognises_the_customer_is_paid_its_rung_whatever_others_ask(world):
    customer = world.node(1)
    for number in (2, 3, 4):
        world.node(number)
    world.nodes[2].standing.mutual[customer.id] = 20_000
    world.nodes[3].standing.weights[customer.id] = 1
    hosts = await leased(world, customer, count=3)
    assert {host.node: host.price for host in hosts} == {
        world.nodes[2].id: 8 * A_MIB,
        world.nodes[3].id: 9 * A_MIB,
        world.nodes[4].id: 10 * A_MIB,
    }
    job = await computing(world, customer)
    assert (job.node, job.price) == (world.nodes[2].id, 8 * A_MIB)
    near = {world.nodes[2].id: MIB}
    again = await world.drive(
        customer.market.buyer.lease_compute(fuel_steps=STEPS, on=None, saved=near)
    )
    assert (again.node, again.price) == (world.nodes[2].id, 8 * A_MIB)


async def test_at_one_price_what_is_stored_spreads_over_all_providers(world):
    customer = world.node(1)
    for number in range(2, 10):
        world.node(number)
    for _ in range(16):
        for host in await leased(world, customer, count=2):
            await customer.market.buyer.used(host.lease_id, MIB)
    held = customer.market.default_need.held()
    assert set(held.values()) == {4 * MIB}, "the emptiest come first"
    # Who answers only half the time comes last, and alike is who answers nearly always.
    customer.health.quality = {world.nodes[2].id: 500_000, world.nodes[3].id: 950_000}
    hosts = {host.node for host in await leased(world, customer, count=7)}
    assert hosts == {world.nodes[number].id for number in range(3, 10)}


async def test_cleared_leases_at_a_host_are_joined_where_none_has_the_room(world, three):
    """What a clearing grants comes in pieces, each a lease of its own."""
    customer, _, provider = three
    provider.room.storage = 3 * SLOT_STEP_BYTES
    for quantity in (1, 3):
        needs(customer, need_of(quantity))
        provider.granted.clear()
        customer.received.clear()
        entitle(world, customer, provider, quantity)
        await signed(world, customer)
    leases = {view.entry.id: view.use.level for view in customer.market.leases()}
    assert sorted(leases.values()) == [SLOT_STEP_BYTES, 2 * SLOT_STEP_BYTES]
    everybody = others(world, provider)
    (host,) = await leased(world, customer, size_bytes=170 * MIB, exclude=everybody)
    assert leases[host.lease_id] == 2 * SLOT_STEP_BYTES, "the larger one first"
    await customer.market.buyer.used(host.lease_id, 128 * MIB)
    (rest,) = await leased(world, customer, size_bytes=42 * MIB, exclude=everybody)
    assert leases[rest.lease_id] == SLOT_STEP_BYTES
    with pytest.raises(SpaceExhausted):
        await leased(world, customer, size_bytes=30 * MIB, exclude=everybody)


async def test_the_own_price_is_passed_where_too_few_ask_less(world):
    customer = world.node(1)
    for number, price in ((2, 9), (3, 12), (4, 33)):
        world.node(number, prices=PriceList(price * A_MIB, price * A_MIB))
    hosts = await leased(world, customer, count=2)
    assert {host.price for host in hosts} == {(10 + 30 / RESERVE_STEPS) * A_MIB}
    assert world.nodes[4].id not in {host.node for host in hosts}


def asking(world, numbers, price):
    for number in numbers:
        node = world.nodes[number]
        node.settings["prices"] = PriceList(price * A_MIB, price * A_MIB, 200_000)
        node.market = node.make()


async def test_leases_at_hand_take_nothing_new_once_the_same_costs_less(world):
    customer = world.node(1, prices=PriceList(40 * A_MIB, 40 * A_MIB))
    customer.room.storage = 0
    for number in (2, 3, 4):
        world.node(number)
    asking(world, (2, 3, 4), 30)
    first = set(await leased(world, customer, count=3))
    assert {host.price for host in first} == {40 * A_MIB}
    for host in first:
        await customer.market.buyer.used(host.lease_id, MIB)
    world.later(1)
    assert set(await leased(world, customer, count=3)) == first, "the same would cost the same"
    customer.settings["prices"] = PriceList(10 * A_MIB, 10 * A_MIB)
    customer.market = await customer.restart()
    asking(world, (2, 3, 4), 9)
    world.later(1)
    second = set(await leased(world, customer, count=3))
    assert {host.price for host in second} == {20 * A_MIB}
    assert not {host.lease_id for host in second} & {host.lease_id for host in first}
    for host in second:
        await customer.market.buyer.used(host.lease_id, MIB)
    for _ in range(3):
        world.later(1)
        assert set(await leased(world, customer, count=3)) == second, "nor back and forth"
    asking(world, (2, 3, 4), 41)
    world.later(1)
    assert set(await leased(world, customer, count=3)) == second, "who asks more gets nothing new"


async def test_what_is_passed_over_is_said_with_the_reason(world):
    customer = world.node(1)
    customer.room.storage = 0
    nodes = {number: world.node(number) for number in (2, 3, 4, 5, 6, 7)}
    nodes[4].settings["site"] = nodes[5].settings["site"] = "cellar"
    for number in (4, 5):
        nodes[number].market = await nodes[number].restart()
    asking(world, (2, 3, 4, 6, 7), 10)
    asking(world, (5,), 11)
    everybody = frozenset(node.id for node in nodes.values())

    async def passed(count, *numbers):
        asked = frozenset(nodes[number].id for number in numbers)
        wish = customer.market.buyer.lease_hosts(
            size_bytes=MIB, count=count, exclude=everybody - asked
        )
        got = await world.drive(wish)
        by_id = {node.id: number for number, node in nodes.items()}
        said = {(by_id[each.node], each.lease_id): each.reason for each in got.passed_over}
        kept = customer.market.buyer.passed_over()
        known = {(each.lease_id or each.node): each.reason for each in kept}
        assert {known[lease or nodes[number].id] for number, lease in said} == set(said.values())
        return [(by_id[host.node], host.lease_id) for host in got.leases], said

    nodes[6].offers = False
    world.wire.down.add(nodes[7].id)
    chosen, said = await passed(2, 2, 4, 5, 6, 7)
    assert [number for number, _ in chosen] in ([2, 4], [4, 2])
    assert "failure domain" in said[5, None]
    assert "offers no storage to this node now" in said[6, None]
    assert "does not answer" in said[7, None]
    lease = dict(chosen)[2]
    await customer.market.buyer.used(lease, MIB)
    world.later(STORAGE_LEASE_MS // 2)
    _, said = await passed(1, 2, 3)
    assert "second half of its term" in said[2, lease]
    assert any("ask less" in reason for (_, lease), reason in said.items() if lease is None)


async def test_a_dear_lease_is_used_where_no_other_can_be_had(world, pair):
    customer, provider = pair
    (first,) = await leased(world, customer)
    await customer.market.buyer.used(first.lease_id, MIB)
    provider.standing.mutual[customer.id] = 20_000
    world.later(1)
    real = provider.market.handlers()
    world.wire.handlers[provider.id] = {k: v for k, v in real.items() if k != "market.lease"}
    world.wire.handlers[provider.id]["market.lease"] = refusing
    assert await leased(world, customer) == [first]
    world.wire.handlers[provider.id] = real
    (second,) = await leased(world, customer)
    assert (first.price, second.price) == (40 * A_MIB, 8 * A_MIB), (
        "who is recognised now pays its rung"
    )


async def refusing(_caller, _header, _parts):
    raise CreditExceeded("no")


async def test_who_asks_more_than_the_reserve_gets_nothing(world, pair):
    customer, provider = pair
    provider.settings["prices"] = type(provider.settings["prices"])(41 * A_MIB, 41 * A_MIB)
    provider.market = provider.make()
    with pytest.raises(NoOffers):
        await leased(world, customer)


async def test_distinct_sites_come_first_and_shared_ones_fill_up(world):
    customer = world.node(1)
    customer.room.storage = 0
    for number, site in ((2, "attic"), (3, "attic"), (4, "cellar"), (5, "")):
        world.node(number, site=site)
    three = {host.node for host in await leased(world, customer, count=3)}
    assert {world.nodes[4].id, world.nodes[5].id} < three
    assert len(await leased(world, customer, count=4)) == 4
    assert len({host.node for host in await leased(world, customer, count=9)}) == 4


async def test_a_new_domain_comes_before_a_lease_at_hand_in_a_used_one(world):
    customer = world.node(1)
    for number in (2, 3):
        world.node(number, site="attic")
    await leased(world, customer, count=2)
    world.node(4, site="cellar")
    hosts = await leased(world, customer, count=2)
    assert world.nodes[4].id in {host.node for host in hosts}


async def test_the_own_node_comes_last_and_settles_nothing(world):
    customer, _ = world.node(1), world.node(2)
    hosts = await leased(world, customer, count=6)
    assert [host.node for host in hosts] == [world.nodes[2].id, customer.id]
    assert (hosts[-1].lease_id, hosts[-1].price) == (OWN_STORAGE, 0)
    customer.market.granter.admit(OWN_STORAGE, customer.id, MIB)
    await customer.market.buyer.used(OWN_STORAGE, MIB)
    customer.market.granter.settle_use(OWN_STORAGE, -MIB)
    with pytest.raises(LeaseExhausted):
        customer.market.granter.admit(OWN_STORAGE, world.nodes[2].id, MIB)
    with pytest.raises(SpaceExhausted):
        customer.market.granter.admit(OWN_STORAGE, customer.id, customer.room.storage + 1)


async def test_excluded_and_silent_nodes_are_not_asked(world):
    customer = world.node(1)
    for number in (2, 3, 4):
        world.node(number)
    world.wire.down.add(world.nodes[3].id)
    hosts = await leased(
        world, customer, count=6, exclude=frozenset({world.nodes[2].id, customer.id})
    )
    assert [host.node for host in hosts] == [world.nodes[4].id]


async def test_a_full_node_alone_has_no_room(world):
    customer = world.node(1)
    customer.room.storage = 0
    with pytest.raises(SpaceExhausted):
        await leased(world, customer)
    with pytest.raises(ArgumentInvalid):
        await leased(world, customer, size_bytes=0)


async def test_a_host_that_refuses_is_replaced(world):
    customer = world.node(1)
    customer.room.storage = 0
    for number in (2, 3):
        world.node(number)
    world.nodes[2].settings["prices"] = type(world.nodes[2].settings["prices"])(1, 1)
    world.nodes[2].market = world.nodes[2].make()
    world.nodes[2].ledger.limit = 0
    hosts = await leased(world, customer)
    assert [host.node for host in hosts] == [world.nodes[3].id]


async def test_a_reported_node_falls_behind(world):
    customer = world.node(1)
    for number in (2, 3):
        world.node(number)
    node = world.nodes[2].id
    customer.health.report(node, "integrity", "shard_mismatch")
    for _ in range(3):
        assert (await leased(world, customer))[0].node == world.nodes[3].id


async def test_suspended_hosts_are_taken_last_and_with_a_warning(world):
    customer = world.node(1)
    for number in (2, 3, 4):
        world.node(number)
    bad = world.nodes[2].id
    customer.health.grades[bad] = "suspended"
    for _ in range(3):
        hosts = await leased(world, customer, count=2)
        assert {host.node for host in hosts} == {world.nodes[3].id, world.nodes[4].id}
    (row,) = [row for row in customer.market.buyer.passed_over() if row.node == bad]
    assert "suspended" in row.reason
    hosts = await leased(world, customer, count=3)
    assert bad in {host.node for host in hosts}
    assert [event for event, _ in customer.log.lines].count("market.suspended_taken") == 1


async def test_who_is_barred_gets_and_gives_no_new_lease(world):
    customer, provider = world.node(1), world.node(2)
    customer.health.grades[provider.id] = "barred"
    customer.room.storage = 0
    got = await world.drive(customer.market.buyer.lease_hosts(size_bytes=MIB, count=1))
    assert not got.leases
    assert "barred" in got.refused[provider.id].message
    customer.health.grades.clear()
    provider.health.grades[customer.id] = "barred"
    got = await world.drive(customer.market.buyer.lease_hosts(size_bytes=MIB, count=1))
    assert isinstance(got.refused[provider.id], NotAllowed)
    provider.health.grades = {b"a friend": "barred"}
    provider.ledger.shares_with = lambda peer: [b"a friend", peer]
    got = await world.drive(customer.market.buyer.lease_hosts(size_bytes=MIB, count=1))
    assert isinstance(got.refused[provider.id], NotAllowed), "it shares its credit"


async def test_a_small_node_leases_what_it_has(world, pair):
    customer, provider = pair
    provider.room.storage = 10 * MIB
    await leased(world, customer, size_bytes=7 * MIB)
    (entry,) = provider.market.store.all("provider")
    provider.stores(entry.id, customer.id, 10 * MIB)
    with pytest.raises(SpaceExhausted):
        await leased(world, world.node(3), size_bytes=11 * MIB, exclude=others(world, provider))


# Admission


async def test_admission_keeps_to_the_lease(world, three):
    customer, other, provider = three
    await leased_all(world, customer, provider, 50)
    entry, level = provider.newest("provider"), 50 * SLOT_STEP_BYTES
    provider.stores(entry.id, customer.id, level - 1)
    with pytest.raises(LeaseExhausted):
        provider.stores(entry.id, customer.id, 2)
    provider.stores(entry.id, customer.id, 1)
    provider.market.granter.settle_use(entry.id, -level)
    provider.stores(entry.id, customer.id, level)
    for lease_id, node in ((entry.id, other), (b"\1" * 32, customer)):
        with pytest.raises(LeaseExhausted):
            provider.stores(lease_id, node.id, 1)
    with pytest.raises(LeaseExhausted):
        provider.market.granter.compute_terms(entry.id, customer.id, 1)
    provider.market.granter.settle_use(b"\1" * 32, -1)


async def test_what_is_over_is_forgotten_on_both_sides(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    world.later(STORAGE_LEASE_MS)
    with pytest.raises(LeaseExhausted):
        provider.stores(host.lease_id, customer.id, 1)
    world.later(LEASE_KEPT_MS)
    for node in (provider, customer):
        node.market.tidy()
        await customer.market.settlement.settle_all()
    assert provider.market.leases() == customer.market.leases() == []
    for node in (customer, provider):
        assert all(key.startswith(b"market/account/") for key in node.state.table)


# Compute leases


async def test_runs_share_a_compute_lease(world, pair):
    customer, provider = pair
    first = await computing(world, customer)
    assert (first.node, first.price) == (provider.id, 40 * A_MIB)
    for steps in (1, STEPS, 10**15):
        assert (await computing(world, customer, steps)).lease_id == first.lease_id


async def test_a_run_is_reserved_used_and_spent(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    left = provider.market.headroom.credit_left(customer.id)
    assert (await admit(world, provider, lease.lease_id, customer)).price == 40 * A_MIB
    assert provider.market.headroom.free("compute") == provider.room.steps
    assert provider.market.headroom.credit_left(customer.id) == left - 40 * A_MIB
    provider.market.granter.used_compute(lease.lease_id, STEPS, 5_000_000)
    assert provider.market.headroom.credit_left(customer.id) == left - 204
    amount = compute_amount(40 * A_MIB, 5_000_000)
    await customer.market.buyer.spent(lease.lease_id, 5_000_000)
    assert provider.one("provider").due_micro == customer.one("customer").due_micro == amount == 204
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 204


async def test_of_compute_leases_alone_price_and_room_are_told(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    leases = customer.market.buyer
    assert leases.price_and_room(lease.lease_id, provider.id) == (40 * A_MIB, QUANTITY_MAX)
    assert leases.price_and_room(lease.lease_id, customer.id) is None
    (host,) = await leased(world, customer)
    assert leases.price_and_room(host.lease_id, provider.id) is None


async def test_admission_of_runs_keeps_to_the_lease(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    with pytest.raises(LeaseExhausted):
        await admit(world, provider, lease.lease_id, provider, 1)
    with pytest.raises(LeaseExhausted):
        provider.stores(lease.lease_id, customer.id, 1)
    provider.market.granter.used_compute(b"\1" * 32, 1, 1)
    with pytest.raises(LeaseExhausted):
        await customer.market.buyer.spent(b"\1" * 32, 1)
    with pytest.raises(LeaseExhausted):
        await customer.market.buyer.used(b"\1" * 32, 1)


async def test_a_compute_lease_ends_after_a_minute(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    await admit(world, provider, lease.lease_id, customer)
    left = provider.market.headroom.credit_left(customer.id)
    world.later(COMPUTE_LEASE_MS)
    assert provider.market.headroom.credit_left(customer.id) == left, "a run outlives its lease"
    provider.market.granter.used_compute(lease.lease_id, STEPS, 0)
    assert provider.market.headroom.credit_left(customer.id) > left
    with pytest.raises(LeaseExhausted):
        provider.market.granter.compute_terms(lease.lease_id, customer.id, 1)
    assert (await computing(world, customer)).lease_id != lease.lease_id
    assert {view.status for view in customer.market.leases()} == {"open", "expired"}


async def test_more_fuel_than_the_workers_run_in_a_minute_is_leased_where_any_is_left(world, pair):
    customer, provider = pair
    lease = await computing(world, customer, 100 * provider.room.steps)
    provider.ledger.limit = 2**60
    await admit(world, provider, lease.lease_id, customer, 100 * provider.room.steps)


async def test_where_no_fuel_is_left_it_is_no_matter_of_disks(world, pair):
    customer, provider = pair
    customer.room.steps = provider.room.steps = 0
    for on in (None, provider.id):
        with pytest.raises(ComputeExhausted) as caught:
            await computing(world, customer, 1, on)
        assert "room" not in caught.value.message
    with pytest.raises(ComputeExhausted):
        await world.drive(customer.market.buyer.lease_providers(fuel_steps=1, count=2))


async def test_every_node_that_has_too_little_fuel_is_named(world, pair):
    customer, provider = pair
    other = world.node(3)
    customer.room.steps = provider.room.steps = other.room.steps = 0
    with pytest.raises(ComputeExhausted) as caught:
        await computing(world, customer)
    both = ", ".join(sorted(short(node.id) for node in (provider, other)))
    assert f"no fuel left: {both}" in caught.value.message


async def test_compute_on_a_node_by_name(world, pair):
    customer, provider = pair
    world.node(3)
    assert (await computing(world, customer, on=provider.id)).node == provider.id
    assert (await computing(world, customer, on=world.nodes[3].id)).node == world.nodes[3].id
    with pytest.raises(NoOffers):
        await computing(world, customer, on=b"\5" * 32)
    with pytest.raises(ArgumentInvalid):
        await computing(world, customer, steps=2**63)


async def test_own_compute_comes_last_and_is_free(world):
    customer = world.node(1)
    lease = await computing(world, customer)
    assert (lease.node, lease.lease_id, lease.price) == (customer.id, OWN_COMPUTE, 0)
    world.node(2)
    assert (await computing(world, customer)).node == world.nodes[2].id
    assert (await admit(world, customer, OWN_COMPUTE, customer)).price == 0
    customer.market.granter.used_compute(OWN_COMPUTE, STEPS, STEPS)
    await customer.market.buyer.spent(OWN_COMPUTE, STEPS)
    with pytest.raises(LeaseExhausted):
        customer.market.granter.compute_terms(OWN_COMPUTE, world.nodes[2].id, 1)


# Near the data


def priced(world, number, price):
    node = world.node(number)
    node.standing.weights = {}
    node.settings["prices"] = type(node.settings["prices"])(price * A_MIB, price * A_MIB)
    node.market = node.make()
    return node


async def near(world, node, saved, on=None):
    wish = node.market.buyer.lease_compute(fuel_steps=STEPS, on=on, saved=saved)
    return await world.drive(wish)


async def test_compute_goes_where_bytes_are_saved_at_about_the_best_price(world):
    customer = world.node(1)
    customer.room.steps = 0
    ids = {price: priced(world, number, price).id for number, price in ((2, 8), (3, 9), (4, 11))}
    lease = await near(world, customer, {ids[9]: 10**9, ids[11]: 10**9})
    assert (lease.node, lease.price) == (ids[9], 10 * A_MIB), "11 is over a quarter above 8"
    # There is a lease at hand, and nobody saves more: nobody is asked.
    world.wire.calls.clear()
    assert (await near(world, customer, {ids[9]: 100})).lease_id == lease.lease_id
    assert world.wire.calls == []
    # Who would save more is asked, and is too dear, or takes over.
    assert (await near(world, customer, {ids[9]: 9, ids[11]: 10})).lease_id == lease.lease_id
    assert (await near(world, customer, {ids[8]: 2, ids[9]: 1})).node == ids[8]
    assert (await near(world, customer, {ids[8]: 1, ids[9]: 3})).lease_id == lease.lease_id
    assert (await near(world, customer, {ids[9]: 3}, on=ids[8])).node == ids[8]


async def test_nobody_above_the_reserve_is_chosen_for_its_bytes(world):
    customer = world.node(1)
    customer.room.steps = 0
    dear = priced(world, 2, 41)
    with pytest.raises(NoOffers):
        await near(world, customer, {dear.id: 10**9})
    free = priced(world, 3, 0)
    assert (await near(world, customer, {dear.id: 10**9, b"x" * 32: 5})).node == free.id


async def test_the_next_nearest_is_taken_where_one_refuses_or_is_down(world):
    customer = world.node(1)
    customer.room.steps = 0
    nodes = [priced(world, number, 10) for number in (2, 3, 4)]
    saved = {node.id: 100 - number for number, node in enumerate(nodes)}
    nodes[0].ledger.limit = 0
    assert (await near(world, customer, saved)).node == nodes[1].id
    world.wire.down.add(nodes[1].id)
    assert (await near(world, customer, saved)).node == nodes[2].id
    world.wire.down.update({nodes[0].id, nodes[2].id})
    with pytest.raises(NoOffers):
        await near(world, customer, saved)


# Credit


async def test_calls_wait_for_the_credit_that_others_may_use_and_come_in_their_order(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB * 5 // 2
    lease = await computing(world, customer)
    ran = []

    async def call(number, steps=STEPS):
        granted = provider.market.granter
        granted.compute_terms(lease.lease_id, customer.id, steps)
        await granted.admit_compute(lease.lease_id, customer.id, steps, 60_000)
        ran.append(number)
        assert provider.market.headroom.credit_left(customer.id) >= 0
        await world.clock.sleep_ms(100)
        granted.used_compute(lease.lease_id, steps, 1)

    before = world.clock.now_ms()
    await world.drive(*(call(number, (1 + number % 2) * STEPS) for number in range(20)))
    assert ran == list(range(20))
    assert world.clock.now_ms() - before == 2_000
    assert len(provider.market.granter._lines) == 0


async def test_a_call_that_may_cost_more_than_all_credit_is_refused_in_a_sentence(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    lease = await computing(world, customer)
    await admit(world, provider, lease.lease_id, customer)
    with pytest.raises(CreditExceeded, match=r"may cost 0\.081920, and no more than 0\.040960"):
        await admit(world, provider, lease.lease_id, customer, 2 * STEPS, wait_ms=60_000)


async def test_a_call_waits_for_credit_no_longer_than_it_may(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    lease = await computing(world, customer)
    await admit(world, provider, lease.lease_id, customer)
    for wait_ms in (0, 1, 5_000):
        before = world.clock.now_ms()
        with pytest.raises(RateLimited, match="had no turn"):
            await admit(world, provider, lease.lease_id, customer, wait_ms=wait_ms)
        assert world.clock.now_ms() - before == wait_ms
    provider.ledger.limit *= 3
    await admit(world, provider, lease.lease_id, customer)


async def test_so_many_calls_wait_for_credit_and_no_more(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    lease = await computing(world, customer)
    await admit(world, provider, lease.lease_id, customer)
    granted = provider.market.granter
    waiting = [
        asyncio.ensure_future(granted.admit_compute(lease.lease_id, customer.id, STEPS, 60_000))
        for _ in range(JOBS_QUEUED_A_PEER_MAX)
    ]
    await settle()
    with pytest.raises(RateLimited, match="32 calls wait"):
        await admit(world, provider, lease.lease_id, customer, wait_ms=60_000)
    for call in waiting:
        call.cancel()
    await settle()
    assert len(granted._lines) == 0


async def test_credit_bounds_everything_that_is_open(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * 256 + 40 * A_MIB - 1
    (host,) = await leased(world, customer)
    provider.stores(host.lease_id, customer.id, 256 * MIB)
    lease = await computing(world, customer)
    with pytest.raises(CreditExceeded):
        await admit(world, provider, lease.lease_id, customer)
    provider.ledger.limit += 1
    await admit(world, provider, lease.lease_id, customer)
    provider.market.tidy()
    with pytest.raises(CreditExceeded):
        provider.stores(host.lease_id, customer.id, MIB)
    with pytest.raises(CreditExceeded):
        await ask(world, customer, provider)
    provider.market.granter.used_compute(lease.lease_id, STEPS, 0)
    provider.market.tidy()
    for _ in range(1024):  # an hour of what may be owed
        provider.stores(host.lease_id, customer.id, MIB)
    with pytest.raises(CreditExceeded):
        provider.stores(host.lease_id, customer.id, MIB)


async def test_debt_stops_new_leases_until_it_is_repaid(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    lease = await computing(world, customer)
    await admit(world, provider, lease.lease_id, customer)
    provider.market.granter.used_compute(lease.lease_id, STEPS, STEPS)
    world.later(COMPUTE_LEASE_MS)
    with pytest.raises(CreditExceeded):
        await computing(world, customer)
    await customer.market.buyer.spent(lease.lease_id, STEPS)
    await customer.market.settlement.settle_all()
    with pytest.raises(CreditExceeded):
        await computing(world, customer)
    provider.ledger.limit += 40 * A_MIB
    await computing(world, customer)


# What peers must not get away with


async def test_the_same_request_gets_the_same_lease(world, pair):
    customer, provider = pair
    raw = request_of(world, customer, provider)
    first = await granted_on(customer, provider, raw)
    assert await granted_on(customer, provider, raw) == first
    again = request_of(world, customer, provider, lease_id=b"\x08" * 32)
    both = await world.drive(*(granted_on(customer, provider, again) for _ in range(2)))
    assert both[0] == both[1]
    assert len(provider.market.leases()) == 2


async def test_a_lease_id_stands_for_one_request(world, pair):
    """Until it is time to renew it: the present lease is the answer to any other."""
    customer, provider = pair
    thief = world.node(3)
    first = await granted_on(customer, provider, request_of(world, customer, provider))
    dearer = request_of(world, customer, provider, price=50 * A_MIB)
    assert await granted_on(customer, provider, dearer) == first
    world.later(STORAGE_LEASE_MS // 2)
    with pytest.raises(RecordInvalid, match="nothing is held"):
        await ask(world, customer, provider)
    with pytest.raises(RecordInvalid, match="another customer"):
        await ask(world, thief, provider)
    await leased(world, customer)
    (own,) = customer.market.store.all("customer")
    with pytest.raises(RecordInvalid, match="used before"):
        await ask(world, provider, customer, own.id)
    assert provider.market.store.get("provider", b"\x07" * 32).raw == first


@pytest.mark.parametrize(
    "change",
    [
        {"price": 10 * A_MIB - 1},
        {"kind": "compute", "slot": b"s" * 16},
        {"slot": b"x" * 16},
        {"window": (0, 5)},
        {"tier": "mutual"},
        {"need": b"x" * 16, "level": MIB},
        {"provider": b"\3" * 32},
        {"customer": b"\3" * 32},
        {"lease_id": OWN_STORAGE},
        {"lease_id": OWN_COMPUTE},
        {"start_ms": 5},
        {"end_ms": 2**60},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_request_beside_its_quote_is_refused(world, pair, change):
    customer, provider = pair
    with pytest.raises((RecordInvalid, NoOffers)):
        await granted_on(customer, provider, request_of(world, customer, provider, **change))
    with pytest.raises(SignatureInvalid):
        await granted_on(world.node(3), provider, request_of(world, customer, provider))
    assert provider.market.leases() == []


async def test_a_lease_that_grants_otherwise_is_not_taken(world, pair):
    customer, provider = pair
    stranger = world.node(3)
    other = await granted_on(stranger, provider, request_of(world, stranger, provider))

    async def crooked(_caller, _header, _parts):
        return {"lease": other}, ()

    provider.room.storage = 4 * GIB
    world.wire.handlers[provider.id] = provider.market.handlers() | {"market.lease": crooked}
    world.wire.down.add(stranger.id)
    with pytest.raises(NoOffers):
        await leased(world, customer)
    assert customer.market.leases() == []


# What a peer can take for nothing


async def test_leases_for_now_take_no_room(world, three):
    customer, other, provider = three
    for number in range(20):
        entry = await ask(world, customer, provider, bytes([number + 1]) * 32)
        provider.stores(entry.id, customer.id, 1)
    assert provider.market.headroom.free("storage") == provider.room.storage
    (host,) = await leased(world, other, exclude=others(world, provider))
    provider.stores(host.lease_id, other.id, provider.room.storage)


async def test_a_lease_for_now_is_used_where_room_is_free_and_refused_where_not(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.stores(host.lease_id, customer.id, MIB)
    provider.room.stored = provider.room.storage - 64 * MIB
    with pytest.raises(SpaceExhausted):
        provider.market.granter.admit(host.lease_id, customer.id, 65 * MIB)
    await customer.market.buyer.refused(host.lease_id)
    (other,) = await leased(world, customer)
    assert other.lease_id != host.lease_id
    world.later(LEASE_REFUSED_MS)
    assert (await leased(world, customer))[0].lease_id == host.lease_id


async def test_a_write_that_fails_costs_nothing_and_one_that_is_repeated_costs_once(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.market.granter.admit(host.lease_id, customer.id, 100 * MIB)
    provider.market.granter.stored(host.lease_id, 100 * MIB, 0)
    assert provider.one("provider").due_micro == 0
    provider.stores(host.lease_id, customer.id, 100 * MIB)
    provider.market.granter.admit(host.lease_id, customer.id, 100 * MIB)
    provider.market.granter.stored(host.lease_id, 100 * MIB, 0)
    assert provider.one("provider").use.held_bytes == 100 * MIB
    provider.market.granter.stored(b"\1" * 32, 1, 1)


async def test_who_owes_more_than_its_limit_keeps_what_lies_there_and_adds_nothing(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    provider.ledger.limit = 16_001  # three hours, one ahead, and one more byte
    world.later(3 * EPOCH_MS)
    provider.market.tidy()
    provider.stores(host.lease_id, customer.id, 1)
    provider.ledger.limit = 12_000
    provider.market.tidy()
    with pytest.raises(CreditExceeded, match=r"of 0\.012000, 0\.012000 .* 0\.004000 are kept"):
        provider.market.granter.admit(host.lease_id, customer.id, 1)
    provider.ledger.limit = -1  # lowered below the debt
    with pytest.raises(CreditExceeded, match=r"here: of 0\.000000, 0\.012000 are not settled"):
        provider.market.granter.admit(host.lease_id, customer.id, 1)
    provider.ledger.limit = 12_001
    world.later(EPOCH_MS)
    provider.market.tidy()
    with pytest.raises(CreditExceeded):
        provider.market.granter.admit(host.lease_id, customer.id, 1)
    assert provider.one("provider").use.held_bytes == 100 * MIB + 1
    assert provider.market.headroom.free("storage") == provider.room.storage
    provider.ledger.limit *= 4
    await customer.market.settlement.settle_all()
    provider.market.tidy()
    provider.stores(host.lease_id, customer.id, 1)


async def test_at_its_limit_a_customer_is_served_nothing_more_booked_or_not(world, pair):
    customer, provider = pair
    host = await due(world, customer, provider)
    job = await computing(world, customer)
    await admit(world, provider, job.lease_id, customer, 1)
    await customer.market.settlement.settle_all()
    provider.ledger.limit = provider.ledger.owed(customer.id)
    assert provider.ledger.limit > 0
    provider.market.tidy()
    for serve in (
        lambda: provider.market.granter.admit(host.lease_id, customer.id, 1),
        lambda: provider.market.granter.compute_terms(job.lease_id, customer.id, 1),
    ):
        with pytest.raises(CreditExceeded):
            serve()
    said = [event for event, _ in provider.log.lines]
    assert said.count("market.customer_at_limit") == 1
    provider.ledger.limit *= 4
    provider.market.tidy()
    provider.market.tidy()
    provider.market.granter.admit(host.lease_id, customer.id, 1)
    said = [event for event, _ in provider.log.lines]
    assert (said.count("market.customer_at_limit"), said.count("market.customer_within_limit")) == (
        1,
        1,
    )


async def test_who_pays_nothing_has_no_limit_to_reach(world, pair):
    customer, provider = pair
    provider.standing.mutual[customer.id] = 20_000
    provider.settings["prices"] = PriceList(10 * A_MIB, 10 * A_MIB, 1_000_000, 100_000)
    provider.market = provider.make()
    provider.ledger.limit = 0
    (host,) = await leased(world, customer)
    assert host.price == 0
    provider.market.tidy()
    provider.stores(host.lease_id, customer.id, MIB)


def losing(world, method, after):
    """Make the next call of a method end in silence, once it was handled or before."""
    real, lost = world.wire.caller, []

    class Lossy:
        def __init__(self, own):
            self.inner = real(own)

        async def call(self, peer, name, *rest, **more):
            if name != method or lost:
                return await self.inner.call(peer, name, *rest, **more)
            lost.append(peer)
            if after:
                await self.inner.call(peer, name, *rest, **more)
            raise PeerSilent("the answer was lost")

    world.wire.caller = Lossy
    return lost


@pytest.mark.parametrize("granted", [True, False])
async def test_a_grant_whose_answer_was_lost_is_found_by_the_same_request(world, three, granted):
    customer, _, provider = three
    losing(world, "market.lease", granted)
    customer.market = customer.make()
    await leased_all(world, customer, provider, 50)
    assert customer.market.leases() == []
    assert taken(customer, "customer") == 50, "it may have been granted"
    await customer.restart()
    assert taken(customer, "customer") == 50, "also over a restart"
    world.wire.down.add(provider.id)
    world.later(REQUEST_WINDOW_MS + 1)
    await customer.market.signing.look()
    assert taken(customer, "customer") == 50
    world.wire.down.clear()
    await customer.market.signing.look()
    assert taken(customer, "customer") == taken(provider, "provider") == 50 * granted
    assert [view.entry.raw for view in customer.market.leases()] == [
        view.entry.raw for view in provider.market.leases()
    ]


async def test_a_look_that_is_given_up_while_it_leases_loses_no_grant(world, three):
    customer, _, provider = three
    granted, call = asyncio.Event(), provider.market.granter.on_lease

    async def late(*args):
        await call(*args)
        granted.set()
        await asyncio.Event().wait()

    world.wire.handlers[provider.id]["market.lease"] = late
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50)
    task = asyncio.ensure_future(customer.market.signing.look())
    await granted.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    world.wire.handlers[provider.id]["market.lease"] = call
    await world.drive(customer.market.signing.look())
    assert customer.one("customer").entry.id == provider.one("provider").entry.id


async def short_leases(world, customer, provider, count, first=0, *, later_ms=1):
    """Ask for leases that are soon over; return the answers."""
    end_ms = world.clock.now_ms() + later_ms
    raw = [
        request_of(world, customer, provider, lease_id=number.to_bytes(32, "little"), end_ms=end_ms)
        for number in range(first + 1, first + count + 1)
    ]
    return await world.drive(*(granted_on(customer, provider, item) for item in raw))


async def test_one_customer_has_so_many_leases_in_use(world, pair):
    customer, provider = pair
    for first in range(0, LEASES_A_CUSTOMER_MAX + 32, 32):
        answers = await short_leases(world, customer, provider, 32, first, later_ms=200_000)
        world.later(10_000)
    assert all(isinstance(item, RateLimited) for item in answers)
    assert len(provider.market.leases()) == LEASES_A_CUSTOMER_MAX


async def test_a_lease_that_cannot_be_kept_is_not_granted_and_the_next_one_is(world, pair):
    customer, provider = pair
    provider.state.full = True
    answers = await short_leases(world, customer, provider, 2, later_ms=60_000)
    assert [type(item) for item in answers] == [SpaceExhausted] * 2
    assert not provider.market.leases()
    provider.state.full = False
    answers = await short_leases(world, customer, provider, 2, later_ms=60_000)
    assert [type(item) for item in answers] == [bytes] * 2
    assert len(provider.market.leases()) == 2


async def test_leases_that_are_over_at_once_do_not_fill_the_disk(world, pair):
    customer, provider = pair
    step = 32
    for first in range(0, 2 * LEASES_DONE_A_CUSTOMER_MAX, step):
        await short_leases(world, customer, provider, step, first)
        world.later(10_000)
        rows = [key for key in provider.state.table if key.startswith(b"market/lease/p/")]
        assert len(rows) <= LEASES_DONE_A_CUSTOMER_MAX + step
    assert provider.market.leases()


# Settlement


async def holding(world, customer, provider, size=100 * MIB):
    """Return a lease with bytes under it: an hour costs 4,000."""
    (host,) = await leased(world, customer, size_bytes=size)
    provider.stores(host.lease_id, customer.id, size)
    await customer.market.buyer.used(host.lease_id, size)
    return host


@pytest.mark.parametrize("trouble", ["disk", "peer"])
async def test_settling_with_one_peer_ends_soon_whatever_happens(world, pair, trouble, monkeypatch):
    """Its operator is about to block it, which must not depend on that."""
    customer, provider = pair
    await due(world, customer, provider)

    async def full(_changes):
        raise SpaceExhausted("the disk is full")

    async def never(*_):
        await asyncio.Event().wait()

    handlers, commit = world.wire.handlers[provider.id], customer.market.store._commit
    if trouble == "disk":
        customer.market.store._commit = full
    else:
        world.wire.handlers[provider.id] = {**handlers, ACCOUNT: never}
    with monkeypatch.context() as brief:
        brief.setattr("xsc.market.settlement.SETTLE_LAST_MS", 20)
        await customer.market.settlement.settle_with(provider.id)
    assert provider.ledger.owed(customer.id) == 0
    customer.market.store._commit, world.wire.handlers[provider.id] = commit, handlers
    await customer.market.settlement.settle_with(provider.id)
    assert provider.ledger.owed(customer.id) == 40 * 100


async def test_who_leaves_is_asked_to_book_at_once(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    await customer.market.settlement.settle_due()
    assert provider.ledger.owed(customer.id) == 0
    customer.leaving.add(provider.id)
    await customer.market.settlement.settle_due()
    assert provider.ledger.owed(customer.id) == 4_000


async def test_closing_settles(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    await world.drive(customer.market.close())
    assert provider.ledger.owed(customer.id) == 4_000


@pytest.mark.parametrize(
    "trouble", [["silent"], ["late"], ["lost"], ["refused"], ["lost", "late", "lost"]]
)
async def test_a_failed_booking_is_made_up_for_and_never_doubled(world, pair, trouble):
    customer, provider = pair
    await due(world, customer, provider)
    provider.ledger.trouble = list(trouble)
    for _ in range(5):
        await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 4_000
    assert customer.market.store.accounts()[0].settled_micro == 4_000
    world.later(EPOCH_MS)
    provider.ledger.trouble = list(trouble)
    for _ in range(5):
        await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 8_000


@pytest.mark.parametrize("trouble", ["silent", "late", "lost", "refused"])
async def test_a_crash_in_a_booking_neither_loses_nor_doubles_it(world, pair, trouble):
    customer, provider = pair
    await due(world, customer, provider)
    provider.ledger.trouble = [trouble]
    await customer.market.settlement.settle_all()
    # A newer voucher comes before the first was ever answered, after both came back.
    await provider.restart()
    await customer.restart()
    world.later(EPOCH_MS)
    await customer.market.settlement.settle_all()
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 8_000
    assert provider.ledger.settled(leases_account(provider.id, customer.id)) == 8_000
    assert customer.market.store.accounts()[0].settled_micro == 8_000


async def test_the_provider_books_again_by_itself(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    provider.ledger.trouble = ["silent"]
    await customer.market.settlement.settle_all()
    world.wire.down.add(customer.id)
    await provider.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 4_000


async def test_a_provider_that_is_down_is_paid_later(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    world.wire.down.add(provider.id)
    await customer.market.settlement.settle_all()
    world.wire.down.clear()
    world.later(EPOCH_MS)
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 8_000


async def test_vouchers_that_come_together_share_one_write(world, pair):
    """Settling is written off the event loop, and together with what others settle."""
    customer, provider = pair
    lease = await holding(world, customer, provider)
    entry = provider.market.store.get("provider", lease.lease_id)
    before = provider.state.synced
    await asyncio.gather(*(provider.market.store.sync(entry) for _ in range(50)))
    assert provider.state.synced - before <= 2


async def voucher_of(customer, provider, /, **change):
    fields = {
        "account": leases_account(provider.id, customer.id),
        "provider": provider.id,
        "customer": customer.id,
        "number": 1,
        "amount_micro": 4_000,
        "until_ms": 1,
        "count": bytes(32),
    } | change
    return sign(Voucher(**fields), customer.key, NET).raw


async def redeem(customer, provider, raw, caller=None):
    """Show a provider a voucher; return its answer."""
    handler = provider.market.handlers()[ACCOUNT]
    header = {"voucher": raw, "book_now": True, "show": False, "less": []}
    return (await handler(caller or customer.id, header, ()))[0]


async def due(world, customer, provider):
    host = await holding(world, customer, provider)
    world.later(EPOCH_MS)
    return host


def told(world):
    return sum(call[2] == ACCOUNT for call in world.wire.calls)


async def test_storage_is_owed_by_the_millisecond_and_booked_once(world, pair):
    customer, provider = pair
    await holding(world, customer, provider)
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 0
    for epochs in (1, 2, 3):
        world.later(EPOCH_MS)
        await customer.market.settlement.settle_all()
        await customer.market.settlement.settle_all()
        assert provider.ledger.owed(customer.id) == 40 * 100 * epochs
    assert len(provider.ledger.asked) == 3
    assert customer.market.store.accounts()[0].settled_micro == 12_000
    assert provider.market.store.accounts()[0].settled_micro == 12_000


async def test_the_timer_promises_at_once_and_books_after_an_hour(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    tasks = [asyncio.create_task(node.market.run()) for node in pair]

    async def passing(steps):
        for _ in range(steps):
            await settle()
            world.later(5_000)
        await settle()

    await passing(6)
    account = provider.market.store.account("provider", customer.id)
    assert account.signed_micro >= 4_000
    assert provider.ledger.booked == {}
    await passing(700)
    assert provider.ledger.booked == {}
    await passing(40)
    for task in tasks:
        task.cancel()
    assert len(provider.ledger.booked) == 1
    assert 8_000 <= provider.ledger.owed(customer.id) <= account.signed_micro


async def test_vouchers_are_cumulative_and_old_ones_change_nothing(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    part = await voucher_of(customer, provider, amount_micro=400)
    whole = await voucher_of(customer, provider, number=2)
    for raw, settled in ((part, 400), (whole, 4_000), (part, 4_000), (whole, 4_000)):
        assert (await redeem(customer, provider, raw))["settled_micro"] == settled
    assert provider.ledger.owed(customer.id) == 4_000
    assert len(provider.ledger.booked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"number": 5, "amount_micro": 3_999},
        {"number": 2, "amount_micro": 4_001},
        {"number": 5, "provider": b"\3" * 32, "amount_micro": 8_000},
        {"number": 5, "account": b"\3" * 32, "amount_micro": 8_000},
    ],
    ids=["falls", "two of one number", "other provider", "other account"],
)
async def test_a_wrong_voucher_is_refused(world, pair, change):
    customer, provider = pair
    await due(world, customer, provider)
    await redeem(customer, provider, await voucher_of(customer, provider, number=2))
    with pytest.raises(RecordInvalid):
        await redeem(customer, provider, await voucher_of(customer, provider, **change))
    assert provider.ledger.owed(customer.id) == 4_000


async def test_a_voucher_of_an_older_number_over_more_promises_nothing(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    await redeem(customer, provider, await voucher_of(customer, provider, number=3))
    raw = await voucher_of(customer, provider, number=2, amount_micro=9_000)
    with pytest.raises(RecordInvalid):
        await redeem(customer, provider, raw)
    assert provider.ledger.owed(customer.id) == 4_000


async def test_a_voucher_of_anybody_else_is_refused(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    thief = world.node(3)
    raw = await voucher_of(customer, provider)
    with pytest.raises(SignatureInvalid):
        await redeem(thief, provider, raw, caller=thief.id)
    assert provider.ledger.booked == {}


async def test_vouchers_of_no_more_are_not_kept(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    for number in range(1, 9):
        await redeem(customer, provider, await voucher_of(customer, provider, number=number))
    account = provider.market.store.account("provider", customer.id)
    assert (account.number, len(provider.ledger.booked)) == (1, 1)


async def test_a_lease_that_its_provider_signs_not_to_know_is_over_for_its_customer(world, pair):
    customer, provider = pair
    denied = await holding(world, customer, provider)
    world.later(EPOCH_MS)
    provider.state = Memory()
    await provider.restart()
    await customer.market.settlement.settle_all()
    assert customer.denied == [{denied.lease_id}]
    assert customer.market.buyer.is_denied(denied.lease_id)
    (host,) = await leased(world, customer)
    assert host.lease_id != denied.lease_id
    provider.market.granter.admit(host.lease_id, customer.id, 1)
    # Nothing more is owed from there on, and it stays so.
    world.later(3 * EPOCH_MS)
    await customer.restart()
    (view,) = (view for view in customer.market.leases() if view.entry.id == denied.lease_id)
    assert view.status == "denied"
    end = customer.market.signing.end_of(denied.lease_id)
    assert end.end_ms <= world.clock.now_ms()
    assert "signed" in end.reason
    count = open_signed(
        customer.market.lease_record(denied.lease_id, denial=True),
        LeaseCount,
        network=NET,
        author=provider.id,
    ).record
    assert denied.lease_id not in {line.lease_id for line in count.leases}
    assert verify_file(customer.market.lease_record(denied.lease_id, denial=True))


async def test_a_bare_word_ends_no_lease(world, pair):
    """The provider has signed it: what it only says ends neither it, nor what is owed."""
    customer, provider = pair
    kept = await holding(world, customer, provider)
    world.later(EPOCH_MS)

    async def deny(*_):
        raise NotAllowed("this customer has no such lease here")

    world.wire.handlers[provider.id] |= {ACCOUNT: deny}
    before = customer.one("customer")
    await customer.market.settlement.settle_all()
    await customer.market.buyer.refused(kept.lease_id)
    assert customer.one("customer") == before
    assert (before.status, before.due_micro) == ("open", 4_000)


@pytest.mark.parametrize("lie", ["other", "customer", "late", "twice", "thief"])
async def test_a_count_of_anything_else_changes_nothing(world, pair, lie):
    customer, provider = pair
    await due(world, customer, provider)
    thief, honest = world.node(3), world.wire.handlers[provider.id][ACCOUNT]

    async def answer(*given):
        header, parts = await honest(*given)
        count = open_signed(header["count"], LeaseCount, network=NET).record
        change = {
            "other": {"provider": thief.id},
            "customer": {"customer": thief.id},
            "late": {"counted_ms": count.counted_ms + REQUEST_WINDOW_MS + 1},
            "twice": {"leases": count.leases * 2},
            "thief": {},
        }[lie]
        key = thief.key if lie == "thief" else provider.key
        raw = sign(count.model_copy(update={"leases": (), **change}), key, NET).raw
        return header | {"count": raw}, parts

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}
    before = customer.one("customer")
    await customer.market.settlement.agree(provider.id)
    assert customer.one("customer") == before
    assert customer.denied == []


async def test_who_counts_too_much_is_reported_once_and_its_count_is_kept(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(EPOCH_MS)
    await customer.market.settlement.settle_all()
    entry = provider.market.store.get("provider", host.lease_id)
    entry.use = replace(entry.use, used=entry.use.used * 3)
    quality = customer.health.quality_ppm(provider.id)
    for _ in range(3):
        world.later(1)
        await customer.market.settlement.settle_all()
    account = customer.market.store.account("customer", provider.id)
    assert account.disputed is not None
    open_signed(account.disputed, LeaseCount, network=NET, author=provider.id)
    assert customer.health.quality_ppm(provider.id) == quality // 2
    assert provider.ledger.owed(customer.id) == 4_000
    await customer.restart()
    world.later(1)
    await customer.market.settlement.settle_all()
    assert customer.health.quality_ppm(provider.id) == quality // 2, "also over a restart"


async def test_a_refusal_costs_the_ledger_of_a_provider_little_however_often_it_comes(world, pair):
    """Each try is an entry and its withdrawal, which are kept for ever."""
    customer, provider = pair
    await due(world, customer, provider)
    await customer.market.settlement.settle_due()
    provider.ledger.trouble = ["refused"] * 1_000
    for _ in range(200):
        await provider.market.settlement.settle_all()
    assert len(provider.ledger.asked) <= 2
    begun_ms = world.clock.now_ms()
    for _ in range(2_000):
        world.later(10_000)
        await provider.market.settlement.settle_all()
    passed = (world.clock.now_ms() - begun_ms) // REFUSED_RETRY_MS
    assert len(provider.ledger.asked) <= 3 + passed.bit_length()
    # Who signs at last is booked, at the latest a day after.
    provider.ledger.trouble = []
    world.later(REFUSED_RETRY_MS_MAX)
    await provider.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 4_000


async def test_who_refuses_to_book_what_it_signed_is_reported_and_own_limits_are_no_fault(
    world, pair
):
    customer, provider = pair
    await due(world, customer, provider)
    await customer.market.settlement.settle_due()
    quality = provider.health.quality_ppm(customer.id)
    limit, provider.ledger.limit = provider.ledger.limit, 0
    await provider.market.settlement.settle_all()
    assert provider.health.quality_ppm(customer.id) == quality
    provider.ledger.limit = limit
    provider.ledger.trouble = ["no credit"]
    await provider.market.settlement.settle_all()
    assert provider.health.quality_ppm(customer.id) == quality // 2
    assert (customer.id, "payment") not in provider.health.served_by
    await provider.market.settlement.settle_all()
    assert (customer.id, "payment") in provider.health.served_by


async def test_a_provider_that_lost_its_disk_is_paid_what_was_signed(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    await customer.market.settlement.settle_due()
    signed = customer.market.store.account("customer", provider.id).signed_micro
    assert (signed, provider.ledger.owed(customer.id)) == (4_000, 0)
    provider.state = Memory()
    await provider.restart()
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 4_000
    assert provider.market.headroom.credit_left(customer.id) == provider.ledger.credit_left(
        customer.id
    )


async def test_a_customer_that_lost_its_disk_signs_no_number_twice(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(EPOCH_MS)
    await customer.market.settlement.settle_all()
    before = customer.one("customer")
    account = provider.market.store.account("provider", customer.id)
    number = account.number
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {host.lease_id: 100 * MIB}})
    world.later(EPOCH_MS)
    for _ in range(2):  # what it has there is asked for first, and paid with the next count
        await customer.market.settlement.settle_all()
    after = customer.one("customer")
    assert (after.entry.raw, after.use.held_bytes) == (before.entry.raw, 100 * MIB)
    assert (account.number, account.signed_micro) == (number + 1, 8_000)
    assert provider.ledger.owed(customer.id) == 8_000
    assert customer.market.store.account("customer", provider.id).disputed is None


async def test_a_customer_that_lost_its_disk_reports_nobody_for_what_ran(world, pair):
    customer, provider = pair
    lease, steps = await computing(world, customer), 10**6
    await admit(world, provider, lease.lease_id, customer, steps)
    provider.market.granter.used_compute(lease.lease_id, steps, steps)
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {}})
    for _ in range(2):
        await customer.market.settlement.settle_all()
    account = customer.market.store.account("customer", provider.id)
    assert account.signed_micro == 0, "nor does it believe what it cannot know"
    assert customer.health.quality_ppm(provider.id) == 900_000


# Restart


async def test_both_sides_come_back_with_their_leases(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    lease = await computing(world, customer)
    await customer.market.settlement.settle_all()

    def seen():
        views = customer.market.leases() + provider.market.leases()
        return [(each.entry.raw, each.use, each.status, each.settled_micro) for each in views]

    before = seen()
    await customer.restart()
    await provider.restart()
    assert sorted(seen(), key=repr) == sorted(before, key=repr)
    assert (await leased(world, customer))[0].lease_id == host.lease_id
    assert (await computing(world, customer)).lease_id == lease.lease_id
    assert provider.market.headroom.free("storage") == provider.room.storage


async def test_promises_and_debts_are_on_the_disk_before_they_are_said(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    granted, taken = provider.state.synced, customer.state.synced
    assert (granted, taken) == (1, 1)
    heard = []
    handlers = provider.market.handlers()

    async def listen(caller, header, parts):
        if header["voucher"] is not None:
            heard.append(customer.state.synced)
        return await handlers[ACCOUNT](caller, header, parts)

    world.wire.handlers[provider.id] = handlers | {ACCOUNT: listen}
    await customer.market.settlement.settle_all()
    assert heard == [taken + 1]


async def test_a_damaged_lease_is_reported_at_the_start(world, pair):
    customer, provider = pair
    await leased(world, customer)
    key = next(key for key in customer.state.table if key.startswith(b"market/lease/"))
    customer.state.table[key] = b"\xa0"
    with pytest.raises(StoreDamaged):
        await customer.restart()
    key = next(key for key in provider.state.table if key.startswith(b"market/lease/"))
    provider.state.table[key] = encode(decode(provider.state.table[key])[:1])
    with pytest.raises(StoreDamaged):
        await provider.restart()
