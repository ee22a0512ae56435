import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import A_MIB, NET, admit
from tests.unit.market.test_signing import entitle, need_of, needs, others, signed
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
    ACCOUNTS_A_CUSTOMER_MAX,
    ACCOUNTS_MS,
    COMPUTE_LEASE_MICRO_MAX,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    JOBS_QUEUED_A_PEER_MAX,
    LEASE_KEPT_MS,
    LEASE_REQUESTS_A_CUSTOMER_MAX,
    LEASE_REQUESTS_MS,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
    MIB,
    PRICES_POSTED_MS,
    QUOTE_TTL_MS,
    REFUSED_RETRY_MS,
    REFUSED_RETRY_MS_MAX,
    REQUEST_WINDOW_MS,
    RESERVE_STEPS,
    ROOM_LEAST_BYTES,
    ROOM_PART_MUTUAL,
    ROOM_PART_OPEN,
    SHARE_LEASES,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_BYTES,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.base.refusals import refusal
from xsc.identity.envelope import open_signed, sign
from xsc.market.pricing import PriceList, open_quote
from xsc.market.settlement import ACCOUNT
from xsc.node.offline.verify import verify_file
from xsc.terms.count import LeaseCount
from xsc.terms.lease import OWN_COMPUTE, OWN_STORAGE, LeaseRequest
from xsc.terms.pricing import compute_amount
from xsc.terms.voucher import Voucher, leases_account

STEPS = 1_000_000_000


async def leased(world, node, **wish):
    got = await world.drive(
        node.market.buyer.lease_hosts(**({"size_bytes": MIB, "count": 1} | wish))
    )
    if not got.leases:
        raise refusal(got.refused, "no room")
    return got.leases


def hoarding(node):
    """Let a node ask for all that is offered to it, anew each time."""
    lease = node.market.providers.lease
    node.market.providers.lease = lambda quote, price, _wanted, least: lease(
        quote, price, quote.record.available, least
    )
    choose = node.market.buyer._choose
    node.market.buyer._choose = lambda wish, *rest: choose(replace(wish, new=True), *rest)


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


# Quotes


async def test_a_quote_stands_on_the_customers_rung(world, pair):
    customer, provider = pair
    provider.standing.mutual[customer.id] = 50_000
    (quote,) = await world.drive(customer.market.providers.offers("storage"))
    assert (quote.price_mutual, quote.price_one_way, quote.reserve) == (
        8 * A_MIB,
        9 * A_MIB,
        10 * A_MIB,
    )
    assert (quote.tier, quote.price) == ("mutual", 8 * A_MIB)
    assert quote.available == provider.room.storage // ROOM_PART_MUTUAL


async def test_offers_are_cheapest_first_and_leave_out_who_is_down(world):
    customer = world.node(1)
    for number, price in ((2, 30), (3, 10), (4, 20)):
        node = world.node(number)
        node.standing.weights = {}
        node.settings["prices"] = type(node.settings["prices"])(price, price)
        node.market = node.make()
    assert [q.price for q in await world.drive(customer.market.providers.offers("compute"))] == [
        10,
        20,
        30,
    ]
    world.wire.down.add(world.nodes[3].id)
    assert [q.price for q in await world.drive(customer.market.providers.offers("compute"))] == [
        20,
        30,
    ]


async def test_offers_are_kept_while_they_hold_and_used_for_the_next_lease(world, pair):
    customer, provider = pair
    for _ in range(3):
        (quote,) = await world.drive(customer.market.providers.offers("storage"))
    assert len(world.wire.calls) == 1, "a quote holds"
    await leased(world, customer)
    assert [call[2] for call in world.wire.calls[1:]] == ["market.lease"]
    await world.drive(customer.market.providers.offers("storage"))
    assert len(world.wire.calls) == 3, "a lease changes what is offered"
    world.clock.advance_to(quote.valid_until_ms)
    await world.drive(customer.market.providers.offers("storage"))
    assert len(world.wire.calls) == 4
    for change in (customer.standing.weights, customer.standing.theirs):
        change[provider.id] = 50_000
        await world.drive(customer.market.providers.offers("storage"))
    assert len(world.wire.calls) == 6, "who is recognised is on another rung"


async def test_the_price_rises_with_use(world, pair):
    customer, provider = pair
    provider.room.stored = provider.room.storage // 2
    (quote,) = await world.drive(customer.market.providers.offers("storage"))
    assert quote.reserve == 15 * A_MIB


async def test_posted_prices_move_at_most_once_an_hour(world, pair):
    customer, provider = pair

    async def posted():
        world.later(QUOTE_TTL_MS)
        (quote,) = await world.drive(customer.market.providers.offers("storage"))
        assert quote.reserve == provider.market.headroom.pricing().unit_price("storage")
        return quote.reserve

    assert await posted() == 10 * A_MIB
    provider.room.stored = provider.room.storage // 2
    for _ in range(PRICES_POSTED_MS // QUOTE_TTL_MS - 1):
        assert await posted() == 10 * A_MIB, "it was told, and is asked"
    assert await posted() == 15 * A_MIB
    provider.room.stored = 0
    assert await posted() == 15 * A_MIB
    provider.market = await provider.restart()
    assert await posted() == 10 * A_MIB, "a node that starts looks anew"


async def test_a_quote_for_nothing_known_is_refused(world, pair):
    customer, provider = pair
    with pytest.raises(RecordInvalid):
        await provider.market.handlers()["market.quote"](customer.id, {"kind": "air"}, ())


# Storage leases


async def test_objects_share_a_lease(world, pair):
    customer, provider = pair
    first = (await leased(world, customer))[0]
    assert first.node == provider.id
    again = (await leased(world, customer))[0]
    assert again.lease_id == first.lease_id
    view = customer.one("customer")
    assert (view.quantity, view.status, view.kind) == (STORAGE_LEASE_BYTES, "open", "storage")
    assert provider.one("provider").lease_id == first.lease_id


async def test_a_full_lease_is_topped_up_by_a_further_one(world, pair):
    customer, provider = pair
    (first,) = await leased(world, customer, size_bytes=200 * MIB)
    provider.stores(first.lease_id, customer.id, 200 * MIB)
    provider.room.stored += 200 * MIB
    await customer.market.buyer.used(first.lease_id, 200 * MIB)
    (second,) = await leased(world, customer, size_bytes=100 * MIB)
    assert second.lease_id != first.lease_id
    (third,) = await leased(world, customer, size_bytes=50 * MIB)
    assert third.lease_id in (first.lease_id, second.lease_id)


async def test_what_is_handed_out_is_not_handed_out_twice(world, pair):
    customer, _ = pair
    got = await world.drive(
        *(customer.market.buyer.lease_hosts(size_bytes=100 * MIB, count=1) for _ in range(4))
    )
    ids = [offered.leases[0].lease_id for offered in got]
    assert max(ids.count(id_) for id_ in ids) == 2


async def test_a_large_object_gets_a_lease_of_its_size(world, pair):
    customer, provider = pair
    with pytest.raises(SpaceExhausted):
        await leased(world, customer, size_bytes=3 * GIB)
    provider.standing.mutual[customer.id] = 20_000
    await leased(world, customer, size_bytes=3 * GIB)
    assert customer.one("customer").quantity == 3 * GIB


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
    provider.room.storage = 4 * SLOT_STEP_BYTES
    for quantity in (1, 3):
        needs(customer, need_of(quantity))
        provider.granted.clear()
        customer.received.clear()
        entitle(world, customer, provider, quantity)
        await signed(world, customer)
    leases = {view.lease_id: view.quantity for view in customer.market.leases()}
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
    world.later(QUOTE_TTL_MS)
    assert set(await leased(world, customer, count=3)) == first, "the same would cost the same"
    customer.settings["prices"] = PriceList(10 * A_MIB, 10 * A_MIB)
    customer.market = await customer.restart()
    asking(world, (2, 3, 4), 9)
    world.later(QUOTE_TTL_MS)
    second = set(await leased(world, customer, count=3))
    assert {host.price for host in second} == {20 * A_MIB}
    assert not {host.lease_id for host in second} & {host.lease_id for host in first}
    for host in second:
        await customer.market.buyer.used(host.lease_id, MIB)
    for _ in range(3):
        world.later(QUOTE_TTL_MS)
        assert set(await leased(world, customer, count=3)) == second, "nor back and forth"
    asking(world, (2, 3, 4), 41)
    world.later(QUOTE_TTL_MS)
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

    async def passed(count, *numbers, size=MIB):
        asked = frozenset(nodes[number].id for number in numbers)
        wish = customer.market.buyer.lease_hosts(
            size_bytes=size, count=count, exclude=everybody - asked
        )
        got = await world.drive(wish)
        by_id = {node.id: number for number, node in nodes.items()}
        said = {(by_id[each.node], each.lease_id): each.reason for each in got.passed_over}
        kept = customer.market.buyer.passed_over()
        known = {(each.lease_id or each.node): each.reason for each in kept}
        assert {known[lease or nodes[number].id] for number, lease in said} == set(said.values())
        return [(by_id[host.node], host.lease_id) for host in got.leases], said

    nodes[6].room.storage = 0
    world.wire.down.add(nodes[7].id)
    chosen, said = await passed(2, 2, 4, 5, 6, 7)
    assert [number for number, _ in chosen] in ([2, 4], [4, 2])
    assert "failure domain" in said[5, None]
    assert "not so much storage left" in said[6, None]
    assert "does not answer" in said[7, None]
    lease = dict(chosen)[2]
    _, said = await passed(1, 2, size=nodes[2].room.storage // 2)
    assert "are left in it" in said[2, lease]
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
    world.later(QUOTE_TTL_MS)
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


async def test_after_a_lease_its_provider_is_asked_anew(world, pair):
    customer, provider = pair
    await world.drive(customer.market.providers.offers("storage"))
    await leased(world, customer)
    (quote,) = await world.drive(customer.market.providers.offers("storage"))
    assert quote.available == provider.room.storage // ROOM_PART_OPEN - STORAGE_LEASE_BYTES


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
    with pytest.raises(LeaseExhausted):
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
    customer.health.report(node, "shard_mismatch")
    for _ in range(3):
        assert (await leased(world, customer))[0].node == world.nodes[3].id


async def test_room_that_is_promised_is_not_offered_again(world, pair):
    customer, provider = pair
    await leased(world, customer)
    assert provider.market.headroom.free("storage") == provider.room.storage - STORAGE_LEASE_BYTES
    with pytest.raises(LeaseExhausted):
        provider.market.granter.admit(OWN_STORAGE, provider.id, provider.room.storage)


async def test_a_small_node_leases_what_it_has(world, pair):
    customer, provider = pair
    provider.room.storage = 10 * MIB
    await leased(world, customer)
    assert customer.one("customer").quantity == 10 * MIB // SHARE_LEASES
    await leased(world, customer, size_bytes=7 * MIB)
    assert {view.quantity for view in customer.market.leases()} == {10 * MIB // 4, 7 * MIB}
    with pytest.raises(SpaceExhausted):
        await leased(world, customer, size_bytes=11 * MIB)


# Admission


async def test_admission_keeps_to_the_lease(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.stores(host.lease_id, customer.id, STORAGE_LEASE_BYTES - 1)
    with pytest.raises(LeaseExhausted):
        provider.stores(host.lease_id, customer.id, 2)
    provider.stores(host.lease_id, customer.id, 1)
    provider.market.granter.settle_use(host.lease_id, -STORAGE_LEASE_BYTES)
    provider.stores(host.lease_id, customer.id, STORAGE_LEASE_BYTES)
    with pytest.raises(LeaseExhausted):
        provider.stores(host.lease_id, provider.id, 1)
    with pytest.raises(LeaseExhausted):
        provider.stores(b"\1" * 32, customer.id, 1)
    with pytest.raises(LeaseExhausted):
        provider.market.granter.compute_terms(host.lease_id, customer.id, 1)
    provider.market.granter.settle_use(b"\1" * 32, -1)


async def test_an_idle_lease_goes_back(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    world.later(STORAGE_LEASE_IDLE_MS // 2)
    (other,) = await leased(world, customer)
    assert other.lease_id != host.lease_id
    world.later(STORAGE_LEASE_IDLE_MS // 2)
    provider.market.tidy()
    customer.market.tidy()
    with pytest.raises(LeaseExhausted):
        provider.stores(host.lease_id, customer.id, 1)
    assert provider.market.headroom.free("storage") == provider.room.storage - STORAGE_LEASE_BYTES
    world.later(STORAGE_LEASE_IDLE_MS + LEASE_KEPT_MS)
    for _ in range(2):
        provider.market.tidy()
        customer.market.tidy()
    await customer.market.settlement.settle_all()
    assert provider.market.leases() == customer.market.leases() == []
    for node in (customer, provider):
        assert all(key.startswith(b"market/account/") for key in node.state.table)


async def test_a_lease_in_use_stays(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.stores(host.lease_id, customer.id, MIB)
    world.later(STORAGE_LEASE_IDLE_MS * 10)
    provider.market.tidy()
    assert provider.one("provider").status == "open"


# Compute leases


async def test_runs_share_a_compute_lease(world, pair):
    customer, provider = pair
    first = await computing(world, customer)
    assert (first.node, first.price) == (provider.id, 40 * A_MIB)
    quantity = customer.one("customer").quantity
    assert compute_amount(first.price, quantity) == COMPUTE_LEASE_MICRO_MAX
    runs = quantity // STEPS
    for _ in range(runs - 1):
        same = await computing(world, customer)
        assert same.lease_id == first.lease_id
    assert (await computing(world, customer, 10**15)).lease_id != first.lease_id


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
    assert provider.one("provider").used == 5_000_000
    await customer.market.settlement.settle_all()
    assert provider.ledger.owed(customer.id) == 204


async def test_of_compute_leases_alone_price_and_room_are_told(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    leases = customer.market.buyer
    quantity = customer.one("customer").quantity
    assert leases.price_and_room(lease.lease_id, provider.id) == (40 * A_MIB, quantity)
    await leases.spent(lease.lease_id, quantity + 1)
    assert leases.price_and_room(lease.lease_id, provider.id) == (40 * A_MIB, 0)
    assert leases.price_and_room(lease.lease_id, customer.id) is None
    (host,) = await leased(world, customer)
    assert leases.price_and_room(host.lease_id, provider.id) is None


async def test_admission_of_runs_keeps_to_the_lease(world, pair):
    customer, provider = pair
    lease = await computing(world, customer)
    quantity = customer.one("customer").quantity
    await admit(world, provider, lease.lease_id, customer, quantity)
    with pytest.raises(RateLimited):
        await admit(world, provider, lease.lease_id, customer, 1)
    with pytest.raises(LeaseExhausted):
        await admit(world, provider, lease.lease_id, customer, quantity + 1)
    provider.market.granter.used_compute(lease.lease_id, quantity, 0)
    await admit(world, provider, lease.lease_id, customer, 1)
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
    for on in (None, provider.id, customer.id):
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
    customer.room.steps = 0
    with pytest.raises(ComputeExhausted):
        await computing(world, customer, on=customer.id)
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
    assert (await computing(world, customer, on=customer.id)).node == customer.id
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
    await leased(world, customer)
    lease = await computing(world, customer)
    with pytest.raises(CreditExceeded):
        await admit(world, provider, lease.lease_id, customer)
    provider.ledger.limit += 1
    await admit(world, provider, lease.lease_id, customer)
    others = {world.node(3).id, customer.id}
    with pytest.raises(CreditExceeded):
        await leased(world, customer, size_bytes=300 * MIB, exclude=others)
    provider.market.granter.used_compute(lease.lease_id, STEPS, 0)
    await leased(world, customer, size_bytes=300 * MIB, exclude=others)


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


# Contention


async def test_what_no_entitlement_covers_goes_to_who_comes_first(world):
    provider = world.node(9)
    provider.room.storage = 300 * MIB
    customers = [world.node(number) for number in (1, 2, 3)]
    for node in customers:
        node.room.storage = 0
        hoarding(node)
        provider.standing.mutual[node.id] = 20_000
    everybody = frozenset(node.id for node in customers)
    for node in customers:
        await leased(world, node, exclude=everybody)
    got = [node.one("customer").quantity for node in customers]
    assert got == [150 * MIB, 75 * MIB, 75 * MIB // 2]


async def test_what_is_too_little_is_refused_and_left_to_the_others(world):
    provider = world.node(9)
    provider.room.storage = 300 * MIB
    customers = [world.node(number) for number in (1, 2, 3)]
    everybody = frozenset(node.id for node in customers)
    for node in customers:
        node.room.storage = 0
        hoarding(node)
        provider.standing.mutual[node.id] = 20_000
    await leased(world, customers[0], size_bytes=120 * MIB, exclude=everybody)
    with pytest.raises(SpaceExhausted):
        await leased(world, customers[1], size_bytes=120 * MIB, exclude=everybody)
    await leased(world, customers[2], size_bytes=MIB, exclude=everybody)
    quantities = [view.quantity for view in provider.market.leases()]
    assert sorted(quantities) == [75 * MIB, 150 * MIB]


# What peers must not get away with


async def quote_of(customer, provider, kind="storage"):
    handler = provider.market.handlers()["market.quote"]
    return (await handler(customer.id, {"kind": kind}, ()))[0]["quote"]


async def request_of(world, customer, provider, /, **change):
    quote = await quote_of(customer, provider, change.pop("quoted", "storage"))
    now_ms = world.clock.now_ms()
    fields = {
        "lease_id": b"\x07" * 32,
        "provider": provider.id,
        "customer": customer.id,
        "kind": "storage",
        "quote": quote,
        "quantity": 10 * MIB,
        "quantity_min": MIB,
        "price": 10 * A_MIB,
        "start_ms": now_ms,
        "end_ms": now_ms + 1000,
    } | change
    return sign(LeaseRequest(**fields), customer.key, NET).raw


async def ask(world, customer, provider, raw):
    handler = provider.market.handlers()["market.lease"]
    return await world.drive(handler(customer.id, {"request": raw}, ()))


async def test_the_same_request_gets_the_same_lease(world, pair):
    customer, provider = pair
    raw = await request_of(world, customer, provider)
    first = await ask(world, customer, provider, raw)
    assert await ask(world, customer, provider, raw) == first
    handler = provider.market.handlers()["market.lease"]
    again = await request_of(world, customer, provider, lease_id=b"\x08" * 32)
    both = await world.drive(
        handler(customer.id, {"request": again}, ()), handler(customer.id, {"request": again}, ())
    )
    assert both[0] == both[1]
    assert len(provider.market.leases()) == 2


async def test_a_lease_id_stands_for_one_request(world, pair):
    customer, provider = pair
    raw = await request_of(world, customer, provider)
    await ask(world, customer, provider, raw)
    with pytest.raises(RecordInvalid):
        await ask(
            world, customer, provider, await request_of(world, customer, provider, price=11 * A_MIB)
        )
    handler = provider.market.handlers()["market.lease"]
    other = b"\x08" * 32
    both = await world.drive(
        *[
            handler(
                customer.id,
                {"request": await request_of(world, customer, provider, lease_id=other, price=p)},
                (),
            )
            for p in (10 * A_MIB, 11 * A_MIB)
        ]
    )
    assert [isinstance(item, RecordInvalid) for item in both] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"price": 10 * A_MIB - 1},
        {"kind": "compute"},
        {"provider": b"\3" * 32},
        {"lease_id": OWN_STORAGE},
        {"lease_id": OWN_COMPUTE},
        {"start_ms": 5},
        {"end_ms": 2**60},
        {"price": 2**56, "quantity": 2**40},
        {"quoted": "compute"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_request_beside_its_quote_is_refused(world, pair, change):
    customer, provider = pair
    with pytest.raises(RecordInvalid):
        await ask(world, customer, provider, await request_of(world, customer, provider, **change))
    assert provider.market.leases() == []


async def test_quotes_are_for_one_customer_and_a_minute(world, pair):
    customer, provider = pair
    thief = world.node(3)
    quote = (
        await provider.market.handlers()["market.quote"](customer.id, {"kind": "storage"}, ())
    )[0]["quote"]
    with pytest.raises(RecordInvalid):
        await ask(world, thief, provider, await request_of(world, thief, provider, quote=quote))
    with pytest.raises(SignatureInvalid):
        await ask(world, thief, provider, await request_of(world, customer, provider))
    raw = await request_of(world, customer, provider, lease_id=b"\x09" * 32)
    world.later(60_000)
    with pytest.raises(NoOffers):
        await ask(world, customer, provider, raw)


async def test_later_prices_do_not_touch_a_quote(world, pair):
    customer, provider = pair
    raw = await request_of(world, customer, provider)
    provider.room.stored = provider.room.storage // 2
    await ask(world, customer, provider, raw)
    assert provider.one("provider").price == 10 * A_MIB


async def test_a_lease_that_grants_otherwise_is_not_taken(world, pair):
    customer, provider = pair
    stranger = world.node(3)
    raw = await request_of(world, stranger, provider)
    other = (await ask(world, stranger, provider, raw))[0]["lease"]

    async def crooked(_caller, _header, _parts):
        return {"lease": other}, ()

    provider.room.storage = 4 * GIB
    world.wire.handlers[provider.id] = provider.market.handlers() | {"market.lease": crooked}
    world.wire.down.add(stranger.id)
    with pytest.raises(NoOffers):
        await leased(world, customer)
    assert customer.market.leases() == []


# What a peer can take for nothing


async def test_a_byte_in_each_lease_does_not_take_all_room(world):
    provider = world.node(9)
    hoarders = [world.node(number) for number in range(1, 6)]
    everybody = frozenset(node.id for node in world.nodes.values()) - {provider.id}
    for _ in range(4):
        for node in hoarders:
            hoarding(node)
            try:
                (host,) = await leased(world, node, exclude=everybody)
            except SpaceExhausted:
                continue
            provider.stores(host.lease_id, node.id, 1)
    free = provider.market.headroom.free("storage")
    assert free > provider.room.storage // 2
    friend = world.node(6)
    provider.standing.mutual[friend.id] = 20_000
    (host,) = await leased(world, friend, size_bytes=free // 2, exclude=everybody)
    assert host.node == provider.id
    world.later(EPOCH_MS)
    assert provider.market.headroom.free("storage") == provider.room.storage


async def test_strangers_that_ask_at_once_have_half_together(world):
    provider = world.node(30)
    strangers = [world.node(number) for number in range(1, 11)]
    everybody = frozenset(node.id for node in strangers)
    for node in strangers:
        hoarding(node)
    await world.drive(
        *(
            node.market.buyer.lease_hosts(size_bytes=MIB, count=1, exclude=everybody)
            for node in strangers
        )
    )
    quantities = [view.quantity for view in provider.market.leases()]
    assert len(quantities) == len(strangers)
    most = provider.room.storage // 2 + len(strangers) * ROOM_LEAST_BYTES
    assert provider.room.storage // 4 < sum(quantities) <= most


async def test_room_that_lapsed_is_used_where_it_is_free_and_refused_where_not(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.stores(host.lease_id, customer.id, 1)
    await customer.market.buyer.used(host.lease_id, 1)
    provider.stores(host.lease_id, customer.id, MIB)
    world.later(EPOCH_MS)
    assert provider.market.headroom.free("storage") == provider.room.storage
    assert (await leased(world, customer))[0].lease_id == host.lease_id
    provider.stores(host.lease_id, customer.id, MIB)
    provider.room.stored = provider.room.storage - 64 * MIB
    with pytest.raises(LeaseExhausted):
        provider.market.granter.admit(host.lease_id, customer.id, 65 * MIB)
    await customer.market.buyer.refused(host.lease_id)
    (other,) = await leased(world, customer)
    assert other.lease_id != host.lease_id
    world.later(STORAGE_LEASE_IDLE_MS)
    customer.market.tidy()
    assert (await leased(world, customer))[0].lease_id == host.lease_id


async def test_a_write_that_fails_costs_nothing_and_one_that_is_repeated_costs_once(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.market.granter.admit(host.lease_id, customer.id, 100 * MIB)
    provider.market.granter.stored(host.lease_id, 100 * MIB, 0)
    assert provider.one("provider").due_micro == 0
    provider.stores(host.lease_id, customer.id, 100 * MIB)
    provider.market.granter.admit(host.lease_id, customer.id, 100 * MIB)
    with pytest.raises(LeaseExhausted):
        provider.market.granter.admit(host.lease_id, customer.id, 57 * MIB)
    provider.market.granter.stored(host.lease_id, 100 * MIB, 0)
    assert provider.one("provider").held_bytes == 100 * MIB
    provider.market.granter.stored(b"\1" * 32, 1, 1)


async def test_a_lease_is_not_idle_while_something_is_written(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer)
    provider.market.granter.admit(host.lease_id, customer.id, MIB)
    world.later(STORAGE_LEASE_IDLE_MS)
    provider.market.tidy()
    provider.market.granter.stored(host.lease_id, MIB, MIB)
    assert provider.one("provider").status == "open"


async def test_who_owes_more_than_its_limit_keeps_what_lies_there_and_adds_nothing(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    provider.ledger.limit = 12_001
    world.later(3 * EPOCH_MS)
    provider.market.tidy()
    provider.stores(host.lease_id, customer.id, 1)
    provider.ledger.limit = 12_000
    provider.market.tidy()
    with pytest.raises(CreditExceeded, match=r"0\.012000 .* 0\.012000"):
        provider.market.granter.admit(host.lease_id, customer.id, 1)
    provider.ledger.limit = 12_001
    world.later(EPOCH_MS)
    provider.market.tidy()
    with pytest.raises(CreditExceeded):
        provider.market.granter.admit(host.lease_id, customer.id, 1)
    assert provider.one("provider").held_bytes == 100 * MIB + 1
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
    provider.ledger.limit *= 2
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
async def test_a_grant_whose_answer_was_lost_is_found_in_the_next_count(world, pair, granted):
    customer, provider = pair
    losing(world, "market.lease", granted)
    customer.market = customer.make()
    with pytest.raises(NoOffers):
        await leased(world, customer)
    assert [view.role for view in customer.market.leases()] == []
    known = {entry.terms.lease_id for entry in provider.market.store.all("provider")}
    assert len(known) == granted
    world.wire.down.add(provider.id)
    await world.drive(customer.market.settlement.agree(provider.id))
    assert customer.market.providers.unheard_at() == {provider.id}
    world.wire.down.clear()
    await world.drive(customer.market.settlement.agree(provider.id))
    assert {view.lease_id for view in customer.market.leases()} == known
    if granted:
        (host,) = await leased(world, customer)
        assert {host.lease_id} == known
    else:
        # It may still come to be granted, until its quote is no longer valid.
        world.later(QUOTE_TTL_MS + REQUEST_WINDOW_MS + 1)
        await world.drive(customer.market.settlement.agree(provider.id))
    assert not customer.market.providers.unheard_at()


async def test_a_put_that_is_given_up_while_it_leases_loses_no_grant(world, pair):
    customer, provider = pair
    answered = asyncio.Event()
    call = provider.market.granter.on_lease

    async def late(*args):
        answer = await call(*args)
        if not answered.is_set():
            await answered.wait()
        return answer

    world.wire.handlers[provider.id]["market.lease"] = late
    task = asyncio.ensure_future(customer.market.buyer.lease_hosts(size_bytes=MIB, count=1))
    await settle()
    assert any(name == "market.lease" for _, _, name in world.wire.calls)
    assert task.cancel()
    answered.set()
    with suppress(asyncio.CancelledError):
        await task
    await world.drive(customer.market.settlement.agree(provider.id))
    assert customer.one("customer").lease_id == provider.one("provider").lease_id


async def short_leases(world, customer, provider, count, first=0, **change):
    """Ask for leases that are over after a millisecond; return the answers."""
    now_ms = world.clock.now_ms()
    wish = {"end_ms": now_ms + 1, "start_ms": now_ms, "quantity": MIB} | change
    handler = provider.market.handlers()["market.lease"]
    raw = [
        await request_of(world, customer, provider, lease_id=number.to_bytes(32, "little"), **wish)
        for number in range(first + 1, first + count + 1)
    ]
    return await world.drive(*(handler(customer.id, {"request": item}, ()) for item in raw))


async def test_one_customer_asks_for_so_many_leases_at_a_pace(world, pair):
    customer, provider = pair
    most = LEASE_REQUESTS_A_CUSTOMER_MAX
    answers = await short_leases(world, customer, provider, most + 3)
    refused = [isinstance(item, RateLimited) for item in answers]
    assert refused.count(True) >= 3
    assert refused[-3:] == [True] * 3
    world.later(LEASE_REQUESTS_MS)
    answers = await short_leases(world, customer, provider, 2, most + 3)
    assert not any(isinstance(item, RateLimited) for item in answers)


async def test_one_customer_has_so_many_leases_in_use(world, pair):
    customer, provider = pair
    later = {"end_ms": world.clock.now_ms() + 20 * LEASE_REQUESTS_MS}
    for first in range(0, LEASES_A_CUSTOMER_MAX + 32, 32):
        answers = await short_leases(world, customer, provider, 32, first, **later)
        world.later(LEASE_REQUESTS_MS)
    assert all(isinstance(item, RateLimited) for item in answers)
    assert len(provider.market.leases()) == LEASES_A_CUSTOMER_MAX


async def test_a_lease_that_cannot_be_kept_is_not_granted_and_the_next_one_is(world, pair):
    customer, provider = pair
    later = {"end_ms": world.clock.now_ms() + 60_000}
    provider.state.full = True
    answers = await short_leases(world, customer, provider, 2, **later)
    assert [type(item) for item in answers] == [NoOffers] * 2
    provider.state.full = False
    answers = await short_leases(world, customer, provider, 2, **later)
    assert [type(item) for item in answers] == [tuple] * 2
    assert len(provider.market.leases()) == 2


async def test_leases_that_are_over_at_once_do_not_fill_the_disk(world, pair):
    customer, provider = pair
    step = 32
    for first in range(0, 2 * LEASES_DONE_A_CUSTOMER_MAX, step):
        await short_leases(world, customer, provider, step, first)
        world.later(LEASE_REQUESTS_MS)
        rows = [key for key in provider.state.table if key.startswith(b"market/lease/p/")]
        assert len(rows) <= LEASES_DONE_A_CUSTOMER_MAX + step
    assert provider.market.leases()


# Settlement


async def holding(world, customer, provider, size=100 * MIB):
    """Return a lease with bytes under it, whose other room has lapsed: an hour costs 4,000."""
    (host,) = await leased(world, customer, size_bytes=size)
    provider.stores(host.lease_id, customer.id, size)
    await customer.market.buyer.used(host.lease_id, size)
    for node, role in ((customer, "customer"), (provider, "provider")):
        entry = node.market.store.get(role, host.lease_id)
        entry.use = replace(entry.use, level=0)
        node.market.store.save(entry)
    return host


@pytest.mark.parametrize("trouble", ["disk", "peer"])
async def test_settling_with_one_peer_ends_soon_whatever_happens(world, pair, trouble, monkeypatch):
    """Its operator is about to block it, which must not depend on that."""
    customer, provider = pair
    monkeypatch.setattr("xsc.market.settlement.SETTLE_LAST_MS", 20)
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
    assert customer.market.accounts()[0].settled_micro == 4_000
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
    assert customer.market.accounts()[0].settled_micro == 8_000


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


async def redeem(customer, provider, raw, caller=None, leases=()):
    """Show a provider a voucher; return its answer."""
    handler = provider.market.handlers()[ACCOUNT]
    header = {"voucher": raw, "book_now": True, "leases": [*leases]}
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
    assert customer.market.accounts()[0].settled_micro == 12_000
    assert provider.market.accounts()[0].settled_micro == 12_000


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


async def test_counts_are_asked_for_at_a_pace_and_vouchers_of_no_more_are_not_kept(world, pair):
    customer, provider = pair
    await due(world, customer, provider)
    for number in range(1, ACCOUNTS_A_CUSTOMER_MAX + 1):
        await redeem(customer, provider, await voucher_of(customer, provider, number=number))
    account = provider.market.store.account("provider", customer.id)
    assert (account.number, len(provider.ledger.booked)) == (1, 1)
    before = provider.state.synced
    with pytest.raises(RateLimited):
        await redeem(customer, provider, await voucher_of(customer, provider, number=number + 1))
    assert provider.state.synced == before
    world.later(ACCOUNTS_MS)
    await redeem(customer, provider, await voucher_of(customer, provider, number=number + 1))


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
    (view,) = (view for view in customer.market.leases() if view.lease_id == denied.lease_id)
    assert view.status == "denied"
    end = customer.market.renewals.end_of(denied.lease_id)
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
        await customer.market.settlement.agree(provider.id, book_now=True)
    after = customer.one("customer")
    assert (after.lease_id, after.held_bytes, after.end_ms) == (
        before.lease_id,
        100 * MIB,
        before.end_ms,
    )
    assert (account.number, account.signed_micro) == (number + 1, 8_000)
    assert provider.ledger.owed(customer.id) == 8_000
    assert customer.market.store.account("customer", provider.id).disputed is None


async def test_a_customer_that_lost_its_disk_pays_what_ran_and_reports_nobody(world, pair):
    customer, provider = pair
    lease, steps = await computing(world, customer), 10**6
    await admit(world, provider, lease.lease_id, customer, steps)
    provider.market.granter.used_compute(lease.lease_id, steps, steps)
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {}})
    await customer.market.settlement.agree(provider.id, book_now=True)
    account = customer.market.store.account("customer", provider.id)
    assert account.disputed is None
    assert account.signed_micro == provider.one("provider").due_micro > 0
    assert customer.health.quality_ppm(provider.id) == 900_000


# Restart


async def test_both_sides_come_back_with_their_leases(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    lease = await computing(world, customer)
    await customer.market.settlement.settle_all()
    before = (customer.market.leases(), provider.market.leases())
    await customer.restart()
    await provider.restart()
    key = lambda view: view.lease_id  # noqa: E731
    assert sorted(customer.market.leases(), key=key) == sorted(before[0], key=key)
    assert sorted(provider.market.leases(), key=key) == sorted(before[1], key=key)
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
    key = next(key for key in customer.state.table if key.startswith(b"market/use/"))
    customer.state.table[key] = b"\xa0"
    with pytest.raises(StoreDamaged):
        await customer.restart()
    key = next(key for key in provider.state.table if key.startswith(b"market/use/"))
    del provider.state.table[key]
    with pytest.raises(StoreDamaged):
        await provider.restart()


async def test_a_quote_can_be_checked_by_its_customer_alone(world, pair):
    customer, provider = pair
    raw = await quote_of(customer, provider)
    request = await request_of(world, customer, provider)
    quote = open_signed(request, LeaseRequest, network=NET).record.quote
    for each in (raw, quote):
        assert open_quote(
            each,
            network=NET,
            provider=provider.id,
            customer=customer.id,
            kind="storage",
            now_ms=world.clock.now_ms(),
        )
