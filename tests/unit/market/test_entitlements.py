"""What a clearing granted ahead of use is kept free, drawn by its holder and by nobody else."""

from dataclasses import replace

import pytest

from tests.unit.market.fakes import A_MIB, RATE
from xsc.base.errors import ComputeExhausted, NoOffers, SpaceExhausted
from xsc.base.limits import COMPUTE_LEASE_MS, EPOCH_MS, STORAGE_LEASE_IDLE_MS
from xsc.base.limits import SLOT_STEP_BYTES as STEP
from xsc.market.pricing import Ladder
from xsc.terms.slot import Entitlement

DAY_MS = 24 * EPOCH_MS
LATER_MS = 30 * DAY_MS


def entitle(world, customer, provider, quantity, **change):
    """Grant a need of the customer a part of a slot of the provider."""
    now_ms = world.clock.now_ms()
    whole = {
        "slot": b"s" * 16,
        "window": (now_ms, now_ms + 10 * DAY_MS),
        "provider": provider.id,
        "customer": customer.id,
        "need": b"n" * 16,
        "kind": "storage",
        "quantity": quantity,
        "tier": "mutual",
        "price": 7,
        "granted_ms": now_ms,
        "until_ms": now_ms + DAY_MS,
        "clearing": b"c" * 32,
    } | change
    opens_ms, closes_ms = whole["window"]
    made = Entitlement(opens_ms=opens_ms, closes_ms=closes_ms, **whole)
    provider.granted.append(made)
    customer.received.append(made)
    return made


def left(provider, granted):
    """Return what can be drawn of an entitlement now."""
    return provider.market.headroom.entitled(granted.kind, granted.customer, granted.draw)[1]


def others(world, *but):
    return frozenset(node.id for node in world.nodes.values() if node not in but)


async def leased(world, customer, provider, size_bytes=STEP):
    exclude = others(world, provider)
    got = await world.drive(
        customer.market.buyer.lease_hosts(size_bytes=size_bytes, count=1, exclude=exclude)
    )
    if not got.leases:
        raise got.refused[provider.id]
    return got.leases[0]


async def computing(world, customer, provider, steps):
    return await world.drive(customer.market.buyer.lease_compute(fuel_steps=steps, on=provider.id))


@pytest.fixture
def three(world):
    """A holder and another customer without room, and a provider with 100 steps of storage."""
    nodes = world.node(1), world.node(2), world.node(3)
    for node in nodes[:2]:
        node.room.storage = node.room.steps = 0
    nodes[2].room.storage = 100 * STEP
    nodes[2].room.steps = 1_000 * RATE
    return nodes


async def test_a_holder_pays_the_price_of_its_entitlement_and_no_share_bounds_it(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80)
    host = await leased(world, holder, provider, 80 * STEP)
    assert host.price == 7
    assert holder.one("customer").quantity == 80 * STEP
    both = (holder, "customer"), (provider, "provider")
    drawn = [node.market.store.drawn_steps(role, world.clock.now_ms()) for node, role in both]
    assert drawn[0] == drawn[1]
    assert list(drawn[0].values()) == [80]


async def test_what_is_entitled_is_kept_from_all_others_until_it_lapses(world, three):
    holder, other, provider = three
    provider.standing.mutual[other.id] = 20_000
    entitle(world, holder, provider, 80)
    with pytest.raises(SpaceExhausted):
        await leased(world, other, provider, 30 * STEP)
    world.later(DAY_MS)
    await leased(world, other, provider, 30 * STEP)


async def test_a_lease_takes_nothing_that_entitlements_of_later_windows_need(world, three):
    holder, other, provider = three
    provider.standing.mutual[other.id] = 20_000
    start_ms = world.clock.now_ms() + LATER_MS
    window = start_ms, start_ms + DAY_MS
    entitle(world, holder, provider, 80, window=window, until_ms=window[1])
    with pytest.raises(SpaceExhausted):
        await leased(world, other, provider, 30 * STEP)
    with pytest.raises(SpaceExhausted):
        # Before its window begins it is nobody's to draw, the holder's neither.
        await leased(world, holder, provider, 80 * STEP)
    world.later(LATER_MS)
    assert (await leased(world, holder, provider, 80 * STEP)).price == 7


async def test_compute_of_later_windows_leaves_the_minute_before_free(world, three):
    holder, other, provider = three
    provider.standing.mutual[other.id] = 20_000
    start_ms = world.clock.now_ms() + 10 * COMPUTE_LEASE_MS
    window = start_ms, start_ms + 10 * COMPUTE_LEASE_MS
    # All of the workers.
    entitle(world, holder, provider, 1_000, kind="compute", window=window, until_ms=window[1])
    await computing(world, other, provider, 100 * RATE)
    world.later(10 * COMPUTE_LEASE_MS)
    with pytest.raises(ComputeExhausted):
        await computing(world, other, provider, 100 * RATE)
    lease = await computing(world, holder, provider, 900 * RATE)
    assert lease.price == 7


async def test_what_is_drawn_is_never_recalled_and_the_rest_can_be(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 80)
    host = await leased(world, holder, provider, 40 * STEP)
    provider.stores(host.lease_id, holder.id, 40 * STEP)
    provider.room.stored = 40 * STEP
    provider.granted[:] = [replace(granted, quantity=10)]
    assert left(provider, provider.granted[0]) == 0
    assert provider.market.headroom.free("storage") == 60 * STEP
    assert provider.one("provider").held_bytes == provider.one("provider").quantity == 40 * STEP


async def test_what_a_lease_gives_up_can_be_drawn_again(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 80)
    await leased(world, holder, provider, 60 * STEP)
    assert left(provider, granted) == 20 * STEP
    world.later(STORAGE_LEASE_IDLE_MS)
    provider.market.tidy()
    assert left(provider, granted) == 80 * STEP


async def used(world, holder, provider, steps):
    """Lease just so many fuel steps and use them all; return the lease."""
    holder.market.buyer._quantity = lambda _quote, _price, least: least
    lease = await computing(world, holder, provider, steps)
    provider.market.granted.admit_compute(lease.lease_id, holder.id, steps)
    provider.market.granted.used_compute(lease.lease_id, steps, steps)
    return lease


async def test_a_rate_is_drawn_once_within_a_minute_and_free_again_after_it(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 100, kind="compute")
    for _ in range(3):
        await used(world, holder, provider, 30 * RATE)
        assert left(provider, granted) == 70 * RATE
        world.later(COMPUTE_LEASE_MS // 2)
        # What was used counts until the end of its lease, whatever is done with the lease.
        await provider.restart()
        assert left(provider, granted) == 70 * RATE
        await used(world, holder, provider, 70 * RATE)
        assert left(provider, granted) == 0
        world.later(COMPUTE_LEASE_MS // 2)
        assert left(provider, granted) == 30 * RATE
        world.later(COMPUTE_LEASE_MS // 2)
        assert left(provider, granted) == 100 * RATE


async def test_fuel_that_was_given_back_unused_can_be_drawn_at_once(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 100, kind="compute")
    holder.market.buyer._quantity = lambda _quote, _price, least: least
    lease = await computing(world, holder, provider, 40 * RATE)
    assert left(provider, granted) == 60 * RATE
    provider.market.granted.admit_compute(lease.lease_id, holder.id, 40 * RATE)
    provider.market.granted.used_compute(lease.lease_id, 40 * RATE, 10 * RATE)
    entry = provider.market.store.get("provider", lease.lease_id)
    entry.use = replace(entry.use, given_back=True)
    assert left(provider, granted) == 90 * RATE


async def test_draws_survive_a_restart(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 80)
    await leased(world, holder, provider, 60 * STEP)
    await provider.restart()
    assert left(provider, granted) == 20 * STEP


async def test_an_expired_lease_of_compute_frees_its_fuel_within_a_second(world, three):
    _, other, provider = three
    provider.standing.mutual[other.id] = 20_000
    before = provider.market.headroom.free("compute")
    await computing(world, other, provider, 100 * RATE)
    assert provider.market.headroom.free("compute") < before
    world.later(COMPUTE_LEASE_MS)
    assert provider.market.headroom.free("compute") == before


async def test_a_stranger_with_an_entitlement_is_not_bound_by_the_share_of_strangers(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 90, tier="open", price=15)
    host = await leased(world, holder, provider, 90 * STEP)
    assert host.price == 15


@pytest.mark.parametrize("tier", ["mutual", "one_way", "open"])
async def test_an_entitlement_costs_no_more_than_what_is_posted(world, three, tier):
    holder, _, provider = three
    entitle(world, holder, provider, 40, tier=tier, price=35 * A_MIB)
    posted = provider.market.headroom.pricing().ladder("storage").reserve
    assert (await leased(world, holder, provider, 20 * STEP)).price == posted < 35 * A_MIB


async def test_an_entitlement_that_is_dearer_than_what_is_quoted_without_it_is_not_drawn(
    world, three, monkeypatch
):
    holder, _, provider = three
    monkeypatch.setattr(
        "xsc.market.granter.ladder_for", lambda each, *_: Ladder(each.price, each.price, each.price)
    )
    made = entitle(world, holder, provider, 40, tier="open", price=35 * A_MIB)
    assert (await leased(world, holder, provider, STEP)).price < 35 * A_MIB
    assert left(provider, made) == 40 * STEP


async def test_what_exceeds_an_entitlement_costs_what_is_posted(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 1, price=1)
    posted = provider.market.headroom.pricing().ladder("storage").reserve
    assert posted > 1
    assert (await leased(world, holder, provider, 8 * STEP)).price >= posted
    assert left(provider, granted) == STEP, "a lease of the share draws nothing"


async def test_a_quote_for_an_entitlement_grants_that_and_no_share(world, three):
    holder, _, provider = three
    granted = entitle(world, holder, provider, 1, price=1)
    quote = await world.drive(holder.market.quotes.fresh("storage", provider.id, granted.draw))
    assert (quote.record.price, quote.record.available) == (1, STEP)
    lease = holder.market.requests.lease
    with pytest.raises(SpaceExhausted):
        await world.drive(lease(quote, 1, 8 * STEP, 8 * STEP))
    assert (await world.drive(lease(quote, 1, 8 * STEP, 1))).terms.quantity == STEP
    with pytest.raises(SpaceExhausted):
        await world.drive(lease(quote, 1, 8 * STEP, 1))


async def test_an_entitlement_that_is_not_there_is_refused(world, three):
    holder, other, provider = three
    granted = entitle(world, holder, provider, 80)

    async def quoted(customer, kind="storage", **change):
        draw = granted.draw.model_copy(update=change)
        return await customer.market.quotes.fresh(kind, provider.id, draw)

    quote = await quoted(holder)
    assert quote.record.draw == granted.draw
    assert isinstance(await quoted(other), NoOffers)
    assert isinstance(await quoted(holder, "compute"), NoOffers)
    for name in ("slot", "need"):
        assert isinstance(await quoted(holder, **{name: b"x" * 16}), NoOffers)
    for name in ("start_ms", "end_ms"):
        assert isinstance(await quoted(holder, **{name: 1}), NoOffers)
    provider.granted.clear()
    with pytest.raises(NoOffers):  # it was withdrawn after the quote
        await world.drive(holder.market.requests.lease(quote, 7, STEP, STEP))


async def test_both_sides_count_a_lease_against_the_entitlement_that_it_names(world, three):
    holder, _, provider = three
    now_ms = world.clock.now_ms()
    lapses = [now_ms + (4 - number) * EPOCH_MS for number in range(4)]
    for number, lapse_ms in enumerate(lapses):
        # Both sort by what they take for the end, and only the provider knows the lapse.
        entitle(world, holder, provider, 10, need=bytes([number]) * 16, until_ms=lapse_ms)
        window_end = now_ms + (number + 1) * DAY_MS
        holder.received[-1] = replace(holder.received[-1], until_ms=window_end)
    await leased(world, holder, provider, 10 * STEP)
    mine = holder.market.store.drawn_steps("customer", now_ms)
    theirs = provider.market.store.drawn_steps("provider", now_ms)
    assert mine == theirs
    assert list(mine.values()) == [10]


async def test_a_node_near_the_data_is_used_at_the_price_of_an_entitlement(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 900, kind="compute", tier="open")
    lease = await world.drive(
        holder.market.buyer.lease_compute(fuel_steps=10 * RATE, on=None, saved={provider.id: 1})
    )
    assert (lease.node, lease.price) == (provider.id, 7)


@pytest.mark.parametrize("kind", ["storage", "compute"])
async def test_what_is_entitled_is_drawn_before_other_leases_at_hand(world, three, kind):
    holder, _, provider = three

    async def take():
        if kind == "storage":
            return await leased(world, holder, provider, STEP)
        return await computing(world, holder, provider, RATE)

    bought = await take()
    made = entitle(world, holder, provider, 20, kind=kind, tier="open", price=bought.price - 2)
    provider.granted.remove(made)
    refused = await take()
    assert refused == bought, "the provider knows of no entitlement, and a lease is at hand"
    provider.granted.append(made)
    drawn = await take()
    posted = provider.market.headroom.pricing().ladder(kind).reserve
    assert drawn.price == min(made.price, posted)
    again = await take()
    assert again == drawn, "a lease on an entitlement is used up first"
    assert len(holder.market.leases()) == 2


async def test_a_draw_counts_at_its_own_provider_where_two_slots_have_one_id(world, three):
    holder, other, provider = three
    other.room.storage = 100 * STEP
    mine, theirs = (entitle(world, holder, node, 80) for node in (provider, other))
    assert mine.slot == theirs.slot
    await leased(world, holder, other, 80 * STEP)
    drawn = holder.market.store.drawn_steps("customer", world.clock.now_ms())
    assert drawn == {theirs.key: 80}
    assert mine.key not in drawn
