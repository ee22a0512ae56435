"""What a clearing granted is kept free, and becomes a lease that its customer signs."""

import asyncio
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.market.fakes import A_MIB, NET, TEN_MINUTES_MS, Memory, admit, ask
from xsc.base.errors import (
    LeaseExhausted,
    NoOffers,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    SpaceExhausted,
)
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    JOBS_QUEUED_A_PEER_MAX,
    JOBS_QUEUED_MAX,
    MIB,
    OFFER_MS,
    OFFER_SETTLE_MS,
    REQUEST_WINDOW_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.identity.envelope import open_signed
from xsc.market import providers
from xsc.market.settlement import ACCOUNT
from xsc.market.signing import LOWER_MS
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import slot_amount
from xsc.terms.slot import STEP, Entitlement, NeedSlot
from xsc.terms.voucher import LeaseCount

DAY_MS = 24 * EPOCH_MS
NEED = b"n" * 16
PRICE = 7 * A_MIB
A_MINUTE = 60 * STEP["compute"]
"""The fuel steps that a step of a rate runs in a minute."""


def need_of(quantity, need=NEED, kind="storage", price_max=40 * A_MIB):
    return NeedSlot(
        slot_id=need,
        kind=kind,
        quantity=quantity,
        price_max=price_max,
        valid_until_ms=2**60,
    )


def entitle(world, holder, provider, quantity, **change):
    """Grant a need of the customer a part of a slot of the provider."""
    now_ms = world.clock.now_ms()
    whole = {
        "slot": b"s" * 16,
        "window": (now_ms, now_ms + 200 * DAY_MS),
        "provider": provider.id,
        "customer": holder.id,
        "need": NEED,
        "kind": "storage",
        "quantity": quantity,
        "slot_quantity": 100,
        "tier": "mutual",
        "price": PRICE,
        "granted_ms": now_ms,
        "until_ms": now_ms + OFFER_MS,
        "clearing": b"c" * 32,
    } | change
    made = Entitlement(**whole)
    provider.granted.append(made)
    holder.received.append(made)
    return made


def needs(customer, *stated):
    customer.needs = {need.slot_id: need for need in stated}


async def signed(world, customer):
    await world.drive(customer.market.signing.look())


async def leased_all(world, customer, provider, quantity, kind="storage"):
    """Have a customer state one need, and take a lease on all of it at one provider."""
    needs(customer, need_of(quantity, kind=kind))
    granted = entitle(world, customer, provider, quantity, kind=kind)
    await signed(world, customer)
    return granted


def taken(node, role):
    """Return the steps of all leases of a role that are not over."""
    return sum(node.market.store.drawn_steps(role, node.world.clock.now_ms()).values())


def others(world, *but):
    return frozenset(node.id for node in world.nodes.values() if node not in but)


async def leased(world, customer, provider, size_bytes):
    """Take room for now."""
    got = await world.drive(
        customer.market.buyer.lease_hosts(
            size_bytes=size_bytes, count=1, exclude=others(world, provider)
        )
    )
    if not got.leases:
        raise got.refused[provider.id]
    return got.leases[0]


async def give_up(world, customer, provider, lease_id, level):
    """Give up room as a customer that says what it likes; return the level that is counted."""
    less = [[lease_id, level]]
    header = {"voucher": None, "book_now": False, "show": False, "less": less}
    reply = await world.wire.caller(customer.id).call(provider.id, ACCOUNT, header)
    count = open_signed(reply.header["count"], LeaseCount, network=NET).record
    return next((line.level for line in count.leases if line.lease_id == lease_id), None)


def refusing_less(world, provider, after=False):
    """Have the answers of a provider be lost that are to confirm less, after it heard or before."""
    honest, lost = provider.market.handlers()[ACCOUNT], [True]

    async def lose(caller, header, parts):
        if not lost or not header["less"]:
            return await honest(caller, header, parts)
        if after:
            await honest(caller, header, parts)
        raise PeerSilent("lost")

    world.wire.handlers[provider.id] |= {ACCOUNT: lose}
    return lost


async def test_a_holder_pays_the_price_of_its_entitlement_and_no_share_bounds_it(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 80)
    for node, role in ((customer, "customer"), (provider, "provider")):
        lease = node.one(role)
        terms = lease.entry.terms
        assert (lease.use.level, terms.price, terms.need) == (80 * SLOT_STEP_BYTES, PRICE, NEED)
        assert taken(node, role) == 80
    await signed(world, customer)
    assert customer.one("customer").use.level == 80 * SLOT_STEP_BYTES, "once"
    # A put uses it before it takes a further lease.
    host = await leased(world, customer, provider, 79 * SLOT_STEP_BYTES)
    assert host.lease_id == customer.one("customer").entry.id


async def test_what_is_entitled_is_kept_from_all_others_until_it_lapses(world, three):
    customer, other, provider = three
    provider.standing.mutual[other.id] = 20_000
    entitle(world, customer, provider, 80)
    with pytest.raises(SpaceExhausted):
        await leased(world, other, provider, 30 * SLOT_STEP_BYTES)
    world.later(OFFER_MS)
    await leased(world, other, provider, 30 * SLOT_STEP_BYTES)


async def test_an_entitlement_that_is_not_there_is_refused(world, three):
    customer, other, provider = three
    granted = entitle(world, customer, provider, 8)

    async def asked(node, offer):
        wish = {"level": SLOT_STEP_BYTES, "need": need_of(8)}
        return await world.drive(node.market.providers.lease(offer, PRICE, **wish))

    for asking, named in (
        (customer, replace(granted, slot=b"x" * 16)),
        (customer, replace(granted, tier="open")),
        (other, granted),
    ):
        with pytest.raises(NoOffers):
            await asked(asking, named)
    provider.granted.clear()
    with pytest.raises(NoOffers):
        await asked(customer, granted)


async def test_leases_of_providers_that_are_down_count(world, three):
    """A need is filled once, also where one of its providers cannot be asked."""
    customer, second, first = three
    second.room.storage = 100 * SLOT_STEP_BYTES
    needs(customer, need_of(50))
    entitle(world, customer, first, 40)
    await signed(world, customer)
    world.wire.down.add(first.id)
    customer.received.clear()
    entitle(world, customer, second, 50)
    await signed(world, customer)
    assert taken(customer, "customer") == 50
    assert taken(second, "provider") == 10


async def test_what_is_dearer_than_its_need_or_than_it_was_granted_is_not_taken(world, three):
    customer, _, provider = three
    needs(customer, need_of(50, price_max=PRICE - 1))
    entitle(world, customer, provider, 40)
    await signed(world, customer)
    assert customer.market.leases() == []
    needs(customer, need_of(50))
    customer.received[:] = [replace(each, price=PRICE - 1) for each in customer.received]
    await signed(world, customer)
    assert customer.market.leases() == []


async def test_an_offer_that_the_provider_has_no_room_for_is_tried_again_later(world, three):
    customer, _, provider = three
    needs(customer, need_of(50))
    provider.room.stored = 100 * SLOT_STEP_BYTES
    entitle(world, customer, provider, 50, until_ms=2**60)
    for _ in range(3):
        await signed(world, customer)
    assert len([call for call in world.wire.calls if call[2] == "market.lease"]) == 1
    provider.room.stored = 0
    world.later(OFFER_SETTLE_MS)
    await signed(world, customer)
    assert taken(customer, "customer") == 50


async def test_a_lower_need_gives_up_the_newest_room_and_keeps_what_is_used(world, three):
    customer, second, first = three
    second.room.storage = 100 * SLOT_STEP_BYTES
    needs(customer, need_of(50))
    entitle(world, customer, first, 30)
    await signed(world, customer)
    world.later(1)
    entitle(world, customer, second, 20)
    await signed(world, customer)
    for node in (first, second):
        view = node.one("provider")
        node.stores(view.entry.id, customer.id, 5 * SLOT_STEP_BYTES)
        await customer.market.buyer.used(view.entry.id, 5 * SLOT_STEP_BYTES)
    needs(customer, need_of(33))
    await signed(world, customer)
    assert [taken(node, "provider") for node in (first, second)] == [30, 20], "for a minute"
    world.later(OFFER_MS)
    await signed(world, customer)
    assert [taken(node, "provider") for node in (first, second)] == [28, 5]
    needs(customer)
    await signed(world, customer)
    assert [taken(node, "provider") for node in (first, second)] == [5, 5]
    assert taken(customer, "customer") == 10
    first.market.granter.settle_use(first.one("provider").entry.id, -5 * SLOT_STEP_BYTES)
    await customer.market.buyer.used(first.one("provider").entry.id, -5 * SLOT_STEP_BYTES)
    world.later(EPOCH_MS)
    await signed(world, customer)
    assert taken(first, "provider") == 0
    assert first.one("provider").status == customer_view(customer, first).status == "closing"


def customer_view(customer, provider):
    (view,) = [view for view in customer.market.leases() if view.entry.peer == provider.id]
    return view


async def test_only_its_customer_lowers_a_lease_and_it_only_falls(world, three):
    customer, other, provider = three
    await leased_all(world, customer, provider, 50)
    lease_id = provider.one("provider").entry.id

    def level():
        return provider.one("provider").use.level // SLOT_STEP_BYTES

    async def asked(steps, node=customer):
        await give_up(world, node, provider, lease_id, steps * SLOT_STEP_BYTES)
        return level()

    world.later(OFFER_MS - 1)
    assert await asked(0) == 50, "its first minute"
    world.later(1)
    assert await asked(0, other) == 50
    for wrong in ([lease_id, -1], [lease_id, "0"], [lease_id, 0, 0], [7, 0], 7):
        header = {"voucher": None, "book_now": False, "show": False, "less": [wrong]}
        with pytest.raises(RecordInvalid):
            await provider.market.handlers()[ACCOUNT](customer.id, header, ())
    for steps, left in ((2**30, 50), (10, 10), (50, 10)):
        assert await asked(steps) == left
    await provider.restart()
    assert level() == 10, "also after a restart"
    provider.stores(lease_id, customer.id, MIB)
    await asked(0)
    assert provider.one("provider").use.level == MIB, "not below what is held"


async def test_of_two_lowerings_the_one_that_is_not_written_puts_back_no_level(world, three):
    customer, other, provider = three
    await leased_all(world, customer, provider, 50)
    world.later(OFFER_MS)
    store, lease_id, commit = provider.market.store, provider.one("provider").entry.id, []
    reached, failing = asyncio.Event(), asyncio.Event()

    async def fail(*_):
        store._commit = commit.pop()
        reached.set()
        await failing.wait()
        raise SpaceExhausted("the disk is full")

    commit.append(store._commit)
    store._commit = fail
    steps = (40 * SLOT_STEP_BYTES, 30 * SLOT_STEP_BYTES)
    tasks = [
        asyncio.create_task(give_up(world, customer, provider, lease_id, level)) for level in steps
    ]
    await reached.wait()
    await settle()
    failing.set()
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, SpaceExhausted)
    assert second == provider.one("provider").use.level == 30 * SLOT_STEP_BYTES
    # Where none is written by its answer, the room is others' all the same.
    store._commit, _ = fail, commit.append(store._commit)
    with pytest.raises(SpaceExhausted):
        await give_up(world, customer, provider, lease_id, 0)
    await settle()
    provider.granted.clear()
    await leased_all(world, other, provider, 100)
    await provider.restart()
    assert taken(provider, "provider") == 100


async def test_a_lease_that_its_provider_signs_not_to_know_fills_no_need(world, three):
    customer, second, first = three
    await leased_all(world, customer, first, 50)
    second.room.storage = 100 * SLOT_STEP_BYTES
    first.state, first.granted[:] = Memory(), []
    await first.restart()
    await world.drive(customer.market.settlement.agree(first.id))
    assert taken(customer, "customer") == 0
    assert not customer.market.signing.held_steps()
    customer.received.clear()
    entitle(world, customer, second, 50)
    await signed(world, customer)
    assert taken(second, "provider") == 50


async def test_a_level_costs_its_price_by_time_on_both_sides(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_due())
    lease_id = provider.one("provider").entry.id
    provider.stores(lease_id, customer.id, 20 * SLOT_STEP_BYTES)
    await customer.market.buyer.used(lease_id, 20 * SLOT_STEP_BYTES)
    world.later(10 * EPOCH_MS + EPOCH_MS // 2)
    hour = slot_amount("storage", PRICE, 10)
    for node, role in ((customer, "customer"), (provider, "provider")):
        assert node.one(role).due_micro == hour * 5 * 21 // 2
    needs(customer, need_of(30))
    await signed(world, customer)
    world.later(EPOCH_MS)
    for node, role in ((customer, "customer"), (provider, "provider")):
        assert node.one(role).due_micro == hour * 5 * 21 // 2 + hour * 3
    await world.drive(customer.market.settlement.settle_all())
    assert provider.ledger.owed(customer.id) == hour * 5 * 21 // 2 + hour * 3


async def test_a_rate_is_full_again_each_minute(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50, kind="compute")
    level, lease_id = 50 * A_MINUTE, provider.one("provider").entry.id
    for minute in range(3):
        lease = await world.drive(
            customer.market.buyer.lease_compute(fuel_steps=level, on=provider.id)
        )
        assert (lease.lease_id, lease.price) == (lease_id, 0)
        terms = await admit(world, provider, lease_id, customer, level)
        assert (terms.price, terms.cleared) == (0, True)
        provider.market.granter.used_compute(lease_id, level, level)
        await customer.market.buyer.spent(lease_id, level)
        assert customer.market.buyer.price_and_room(lease_id, provider.id) == (0, 0)
        world.later(COMPUTE_LEASE_MS)
        assert customer.market.buyer.price_and_room(lease_id, provider.id) == (0, level)
        for node, role in ((customer, "customer"), (provider, "provider")):
            # A run under a cleared lease costs nothing more.
            hour = slot_amount("compute", PRICE, 50)
            assert node.one(role).due_micro == hour * (1 + minute) // 60


async def test_a_lease_that_costs_nothing_is_kept_all_the_same(world, three):
    customer, _, provider = three
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50, price=0)
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_due())
    world.later(TEN_MINUTES_MS)
    provider.market.tidy()
    assert taken(provider, "provider") == 50


async def test_a_slot_is_leased_once_also_where_the_node_has_more_room(world, three):
    """While what is held is cleared again: whoever ranks before waits for it."""
    customer, other, provider = three
    provider.room.storage = 1_000 * SLOT_STEP_BYTES
    needs(customer, need_of(100))
    needs(other, need_of(100))
    entitle(world, customer, provider, 100)
    await signed(world, customer)
    entitle(world, other, provider, 100)
    await signed(world, other)
    assert taken(provider, "provider") == 100


async def test_a_cleared_lease_survives_a_restart_of_both_sides(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    before = [node.market.leases() for node in (customer, provider)]
    for node in (customer, provider):
        await node.restart()
    assert [node.market.leases() for node in (customer, provider)] == before
    assert taken(customer, "customer") == taken(provider, "provider") == 50


async def held_half(world, customer, provider, level, held):
    """Store bytes under a cleared lease, and wait until its renewal is due."""
    granted = await leased_all(world, customer, provider, level)
    await world.drive(customer.market.settlement.settle_due())
    lease_id = provider.one("provider").entry.id
    provider.stores(lease_id, customer.id, held)
    provider.room.stored = held
    await customer.market.buyer.used(lease_id, held)
    provider.granted.clear()
    customer.received.clear()
    world.later(STORAGE_LEASE_MS * 5 // 8)
    return granted, lease_id


def ends(*nodes):
    return [view.entry.terms.end_ms for node in nodes for view in node.market.leases()]


async def test_a_renewal_needs_what_a_clearing_grants_where_others_wait_for_the_room(world, three):
    customer, other, provider = three
    held = 60 * SLOT_STEP_BYTES
    granted, lease_id = await held_half(world, customer, provider, 100, held)
    young = provider.market.headroom.drawn_steps(young=True)
    assert not any(young.values()), "what is held is cleared again"
    before = ends(customer, provider)
    entitle(world, other, provider, 50, until_ms=world.clock.now_ms() + DAY_MS)
    waits = provider.granted[0]
    for quantity in (59, 0):
        provider.granted[:] = [replace(granted, quantity=quantity), waits]
        customer.received[:] = provider.granted[:1]
        await signed(world, customer)
        assert ends(customer, provider) == before
        why = customer.market.signing.end_of(lease_id).reason
        assert "granted its room to others: its data has to move" in why
        world.later(7 * EPOCH_MS)
    # Its owner moves what is more than was granted.
    provider.drops(lease_id, 20 * SLOT_STEP_BYTES)
    await customer.market.buyer.used(lease_id, -20 * SLOT_STEP_BYTES)
    provider.granted[:] = [replace(granted, quantity=50), waits]
    customer.received[:] = provider.granted[:1]
    await signed(world, customer)
    for node, role in ((customer, "customer"), (provider, "provider")):
        view = node.one(role)
        assert view.entry.id == lease_id
        assert view.entry.terms.end_ms == world.clock.now_ms() + STORAGE_LEASE_MS
        assert (view.use.level, view.use.held_bytes) == (
            50 * SLOT_STEP_BYTES,
            40 * SLOT_STEP_BYTES,
        )


@pytest.mark.parametrize("late_ms", [0, STORAGE_LEASE_MS // 2], ids=["half", "over"])
async def test_a_renewal_on_an_entitlement_takes_the_level_of_the_old_lease_and_no_more(
    world, three, late_ms
):
    customer, _, provider = three
    begun_ms, size = world.clock.now_ms(), 60 * SLOT_STEP_BYTES
    granted, lease_id = await held_half(world, customer, provider, 100, size)
    world.later(late_ms)
    for node in (customer, provider):
        node.market.tidy()
    provider.granted[:] = customer.received[:] = [replace(granted, until_ms=2**60, price=PRICE)]
    level = 60 if late_ms else 100
    await signed(world, customer)
    for node, role in ((customer, "customer"), (provider, "provider")):
        (old,) = [view for view in node.views(role) if view.entry.id == lease_id]
        assert old.entry.terms.end_ms == world.clock.now_ms() + STORAGE_LEASE_MS
        assert (old.use.level, old.use.held_bytes) == (level * SLOT_STEP_BYTES, size)
    for _ in range(2):
        world.later(TEN_MINUTES_MS // 2)
        await signed(world, customer)
        await world.drive(customer.market.settlement.settle_due())
        for node in (customer, provider):
            node.market.tidy()
        assert taken(customer, "customer") == taken(provider, "provider") == 100
    world.later(DAY_MS)
    await world.drive(customer.market.settlement.settle_all())
    passed_ms = world.clock.now_ms() - begun_ms
    due = slot_amount("storage", PRICE, 100) * passed_ms // EPOCH_MS
    # After its end a lease keeps nothing free, and what is held is paid once it is renewed.
    due -= slot_amount("storage", PRICE, 40) * late_ms // 4 // EPOCH_MS
    owed = provider.ledger.owed(customer.id)
    assert abs(owed - due) <= 2, "each millisecond of the level once"


async def test_a_renewal_gives_back_nothing_that_was_given_up(world, three):
    customer, other, provider = three
    await leased_all(world, customer, provider, 100)
    await world.drive(customer.market.settlement.settle_due())
    lease_id = provider.one("provider").entry.id
    provider.stores(lease_id, customer.id, MIB)
    provider.room.stored = MIB
    await customer.market.buyer.used(lease_id, MIB)
    needs(customer, need_of(1))
    world.later(OFFER_MS)
    await signed(world, customer)
    needs(other, need_of(98))
    provider.granted.clear()
    entitle(world, other, provider, 98)
    await signed(world, other)
    await world.drive(other.market.settlement.settle_due())
    assert taken(provider, "provider") == 99
    provider.granted.clear()
    world.later(STORAGE_LEASE_MS * 5 // 8)
    more = {"need": NEED, "level": 100 * SLOT_STEP_BYTES, "tier": "open"}
    with pytest.raises(RecordInvalid, match="more than it has"):
        await ask(world, customer, provider, lease_id, **more)
    await signed(world, customer)
    assert customer_view(provider, customer).use.level == SLOT_STEP_BYTES
    assert taken(provider, "provider") == 99, "what is held still counts"


async def test_a_lease_is_not_renewed_above_the_price_of_its_need(world, three):
    customer, _, provider = three
    _, lease_id = await held_half(world, customer, provider, 50, MIB)
    before = ends(customer)
    needs(customer, need_of(50, price_max=PRICE - 1))
    await signed(world, customer)
    assert ends(customer) == before
    assert "above what is paid" in customer.market.signing.end_of(lease_id).reason
    needs(customer, need_of(50))
    world.later(DAY_MS)
    await signed(world, customer)
    assert ends(customer) == [world.clock.now_ms() + STORAGE_LEASE_MS] != before


async def test_a_run_waits_until_its_rate_has_refilled_and_never_for_more_than_it_is(world, three):
    customer, _, provider = three
    needs(customer, need_of(50, kind="compute"))
    entitle(world, customer, provider, 50, kind="compute")
    await signed(world, customer)
    level, lease_id = 50 * A_MINUTE, provider.one("provider").entry.id
    begun_ms = world.clock.now_ms()
    await admit(world, provider, lease_id, customer, level)
    provider.market.granter.used_compute(lease_id, level, level)
    with pytest.raises(RateLimited):
        await admit(world, provider, lease_id, customer, level // 2)
    await admit(world, provider, lease_id, customer, level // 2, wait_ms=2 * COMPUTE_LEASE_MS)
    half_ms = COMPUTE_LEASE_MS // 2
    assert half_ms <= world.clock.now_ms() - begun_ms <= half_ms + 1_000
    with pytest.raises(LeaseExhausted):
        await admit(world, provider, lease_id, customer, level + 1, wait_ms=COMPUTE_LEASE_MS)


async def test_many_cleared_rates_have_no_more_places_to_wait_than_one(world, three):
    customer, other, provider = three
    level, count = A_MINUTE, JOBS_QUEUED_MAX
    for holder, rates in ((customer, count), (other, 1)):
        needs(holder, need_of(rates, kind="compute"))
        for number in range(rates):
            entitle(world, holder, provider, 1, kind="compute", slot=bytes([number]) * 16)
        await signed(world, holder)

    def call(entry, wait_ms=COMPUTE_LEASE_MS):
        terms = entry.terms
        return provider.market.granter.admit_compute(terms.lease_id, terms.customer, level, wait_ms)

    leases = list(provider.market.store.all("provider"))
    (others,) = (entry for entry in leases if entry.peer == other.id)
    mine = [entry for entry in leases if entry.peer == customer.id]
    assert len(mine) == count
    for entry in leases:
        await call(entry, 0)  # it takes the whole rate of a minute
    waiting = [asyncio.ensure_future(call(entry)) for entry in mine]
    await settle()
    refused = [each for each in waiting if each.done()]
    assert len(refused) == count - JOBS_QUEUED_A_PEER_MAX
    assert all(isinstance(each.exception(), RateLimited) for each in refused)
    last = asyncio.ensure_future(call(others))
    await settle()
    assert not last.done(), "another customer has its own places"
    for entry in leases:
        provider.market.granter.used_compute(entry.terms.lease_id, level, 0)
    await world.drive(last, *(each for each in waiting if not each.done()))


async def test_what_is_too_large_for_a_cleared_rate_runs_for_now(world, three):
    customer, _, provider = three
    provider.room.steps *= 2
    needs(customer, need_of(50, kind="compute"))
    entitle(world, customer, provider, 50, kind="compute")
    await signed(world, customer)
    level, cleared = 50 * A_MINUTE, provider.one("provider").entry.id

    async def lease(steps):
        wish = customer.market.buyer.lease_compute(fuel_steps=steps, on=provider.id)
        return await world.drive(wish)

    assert (await lease(level // 2)).lease_id == cleared
    assert (await lease(level + 1)).lease_id != cleared
    said = {each.lease_id: each.reason for each in customer.market.buyer.passed_over()}
    assert f"of the {level + 1} that are needed are left in it in this minute" in said[cleared]
    assert (await lease(level)).lease_id != cleared, "a run has the rest of the rate"
    assert (await lease(level // 2)).lease_id == cleared


async def test_whole_workers_are_kept_for_what_was_cleared(world, three):
    customer, _, provider = three
    capacity = provider.room.steps
    assert capacity == 100 * STEP["compute"]
    assert provider.market.headroom.cleared_workers(4) == 0
    needs(customer, need_of(70, kind="compute"))
    entitle(world, customer, provider, 70, kind="compute")
    await signed(world, customer)
    cleared = provider.market.headroom.cleared_workers
    assert [cleared(workers) for workers in (0, 1, 2, 3, 4, 10)] == [0, 0, 1, 2, 2, 7]
    provider.room.steps = 0
    assert cleared(4) == 0


async def test_fuel_that_ran_is_billed_before_its_rate_is_given_up(world, three):
    customer, _, provider = three
    level = 50 * A_MINUTE
    await leased_all(world, customer, provider, 50, kind="compute")
    lease_id = provider.one("provider").entry.id
    world.later(OFFER_MS)
    await admit(world, provider, lease_id, customer, level)
    needs(customer)
    await signed(world, customer)
    assert taken(provider, "provider") == 50
    provider.market.granter.used_compute(lease_id, level, level)
    await customer.market.buyer.spent(lease_id, level)
    await signed(world, customer)
    assert taken(provider, "provider") == 50
    world.later(COMPUTE_LEASE_MS)
    await signed(world, customer)
    assert taken(provider, "provider") == 0
    assert provider.one("provider").due_micro == slot_amount("compute", PRICE, 50) // 30


async def test_a_rate_that_little_runs_under_is_lowered_to_what_runs_under_it(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50, kind="compute")
    lease_id = provider.one("provider").entry.id
    world.later(OFFER_MS)
    await admit(world, provider, lease_id, customer, 20 * A_MINUTE)
    needs(customer)
    await signed(world, customer)
    assert taken(provider, "provider") == 20


def ending(end_ms):
    """Return what makes requests that end then."""
    return lambda **fields: LeaseRequest(**(fields | {"end_ms": end_ms}))


async def test_a_rate_is_leased_for_a_minute_at_least_and_never_past_its_need(
    world, three, monkeypatch
):
    customer, _, provider = three
    now_ms = world.clock.now_ms()
    needs(customer, need_of(50, kind="compute"))
    for end_ms in (now_ms + COMPUTE_LEASE_MS - 1, now_ms + 10 * COMPUTE_LEASE_MS):
        provider.granted.clear()
        customer.received.clear()
        entitle(world, customer, provider, 50, kind="compute", window=(now_ms, end_ms))
        with monkeypatch.context() as patch:
            patch.setattr(providers, "LeaseRequest", ending(end_ms + 1))
            await signed(world, customer)
        assert not provider.market.leases()
    world.later(DAY_MS)
    now_ms = world.clock.now_ms()
    entitle(world, customer, provider, 50, kind="compute", window=(now_ms, now_ms + EPOCH_MS))
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_due())
    world.later(DAY_MS)
    assert provider.one("provider").due_micro == slot_amount("compute", PRICE, 50)


async def test_nothing_runs_under_a_lease_that_has_not_begun(world, three, monkeypatch):
    customer, _, provider = three
    made = LeaseRequest

    def later(**fields):
        moved = {name: fields[name] + REQUEST_WINDOW_MS for name in ("start_ms", "end_ms")}
        return made(**(fields | moved))

    monkeypatch.setattr(providers, "LeaseRequest", later)
    needs(customer, need_of(50, kind="compute"))
    now_ms = world.clock.now_ms()
    entitle(world, customer, provider, 50, kind="compute", window=(now_ms, now_ms + 2 * DAY_MS))
    await signed(world, customer)
    lease_id = provider.one("provider").entry.id
    with pytest.raises(RateLimited):
        await admit(world, provider, lease_id, customer, 1)
    world.later(REQUEST_WINDOW_MS)
    await admit(world, provider, lease_id, customer, 1)


async def test_who_needs_nothing_owes_nothing_more_whatever_its_provider_says(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)

    refusing_less(world, provider)
    needs(customer)
    world.later(EPOCH_MS)
    for _ in range(20):
        await signed(world, customer)
        world.later(LOWER_MS)
    owed = customer.one("customer").due_micro
    assert owed <= slot_amount("storage", PRICE, 50) * (EPOCH_MS + LOWER_MS) // EPOCH_MS
    assert taken(customer, "customer") == 0


async def test_a_rate_whose_need_is_withdrawn_is_given_up_beside_what_is_stored(world, three):
    customer, _, provider = three
    standing = need_of(5, need=b"d" * 16).model_copy(update={"standing": True})
    needs(customer, standing, need_of(50, kind="compute"))
    entitle(world, customer, provider, 3, need=b"d" * 16)
    entitle(world, customer, provider, 50, kind="compute", slot=b"r" * 16)
    await signed(world, customer)
    assert taken(customer, "customer") == 53
    needs(customer, standing)
    world.later(OFFER_MS)
    await signed(world, customer)
    levels = {
        view.entry.terms.kind: view.use.level
        for view in provider.market.leases()
        if view.status == "open"
    }
    assert levels == {"storage": 3 * SLOT_STEP_BYTES}, "a default need of storage has no rates"


async def test_each_lowering_is_asked_for_two_minutes_from_its_own_first_call(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)

    refusing_less(world, provider)
    world.later(EPOCH_MS)
    for stated in (10, 50, 10):
        needs(customer, need_of(stated))
        await signed(world, customer)
        assert taken(customer, "customer") == 50
        world.later(LOWER_MS - 1)
    world.later(1)
    await signed(world, customer)
    assert taken(customer, "customer") == 10


async def test_what_may_have_been_granted_counts_for_the_need(world, three):
    customer, second, first = three
    second.room.storage = 100 * SLOT_STEP_BYTES
    grant, lost = world.wire.handlers[first.id]["market.lease"], [True]

    async def lose(caller, header, parts):
        got = await grant(caller, header, parts)
        if lost:
            raise PeerSilent("lost")
        return got

    world.wire.handlers[first.id]["market.lease"] = lose
    needs(customer, need_of(50))
    entitle(world, customer, first, 50, price=PRICE - 1)
    await signed(world, customer)
    entitle(world, customer, second, 50)
    await signed(world, customer)
    lost.clear()
    await world.drive(customer.market.settlement.agree(first.id))
    assert taken(customer, "customer") == 50


async def test_offers_that_fail_keep_a_need_from_nobody(world, three):
    customer, sham, honest = three
    sham.room.storage = 100 * SLOT_STEP_BYTES

    async def refuse(_caller, _header, _parts):
        raise NoOffers("no")

    world.wire.handlers[sham.id]["market.lease"] = refuse
    needs(customer, need_of(50))
    for number in range(4):
        entitle(world, customer, sham, 25, slot=bytes([number]) * 16, price=1, until_ms=2**60)
    entitle(world, customer, honest, 50)
    await signed(world, customer)
    await signed(world, customer)
    assert taken(honest, "provider") == 50


async def test_who_asks_for_no_count_owes_what_was_kept_for_it(world, three):
    """It signed for it: else it would hold room for nothing, again and again."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    world.later(TEN_MINUTES_MS)
    provider.market.tidy()
    owed = provider.one("provider").due_micro
    assert owed == slot_amount("storage", PRICE, 50) // 6
    await world.drive(customer.market.settlement.settle_all())
    assert provider.ledger.owed(customer.id) == owed


async def test_nothing_is_kept_of_a_rate_for_who_reached_its_limit(world, three):
    customer, _, provider = three
    needs(customer, need_of(100, kind="compute"))
    entitle(world, customer, provider, 100, kind="compute")
    provider.ledger.limit = slot_amount("compute", PRICE, 100)
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_due())
    provider.granted.clear()
    world.later(3 * EPOCH_MS)
    provider.market.tidy()
    assert customer.id in provider.market.headroom.at_limit
    assert provider.market.headroom.unreserved("compute") == 100 * STEP["compute"]


@pytest.mark.parametrize("kind", ["storage", "compute"])
async def test_who_reached_its_limit_pays_no_further_and_is_granted_room_anew(world, three, kind):
    customer, other, provider = three
    limit = provider.ledger.limit
    await leased_all(world, customer, provider, 60, kind=kind)
    (entry,) = provider.market.store.all("provider")
    world.later(OFFER_MS)
    provider.ledger.limit = 0
    provider.market.tidy()
    provider.granted.clear()
    provider.ledger.limit = limit
    provider.market.tidy()
    await leased_all(world, other, provider, 60, kind=kind)

    async def use():
        if kind == "storage":
            provider.stores(entry.id, customer.id, 50 * SLOT_STEP_BYTES)
        else:
            await admit(world, provider, entry.id, customer)

    with pytest.raises(LeaseExhausted):
        await use()
    world.later(EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    (own,) = customer.market.store.all("customer")
    assert (own.use.level, own.use.denial) == (0, None)
    assert provider.ledger.owed(customer.id) == slot_amount(kind, PRICE, 60) // 60, "a minute"
    await leased_all(world, customer, provider, 40, kind=kind)
    assert provider.market.headroom.unreserved(kind) == 0


async def test_a_lowering_whose_answer_was_lost_leaves_one_bill(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    world.later(EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    lost = refusing_less(world, provider, after=True)
    needs(customer)
    await signed(world, customer)
    lost.clear()
    world.later(LOWER_MS - 1)
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_all())
    theirs, own = provider.one("provider"), customer.one("customer")
    assert own.due_micro == theirs.due_micro == theirs.settled_micro
    assert theirs.settled_micro == slot_amount("storage", PRICE, 50)


async def test_what_is_given_up_while_bytes_come_is_taken_off_once(world, three):
    """The level of a count is taken over also where what it holds is not of now any more."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_due())
    lease_id = provider.one("provider").entry.id
    needs(customer, need_of(25))
    for _ in range(2 + LOWER_MS // OFFER_MS):
        world.later(OFFER_MS)
        provider.stores(lease_id, customer.id, MIB)
        await customer.market.buyer.used(lease_id, MIB)
        await signed(world, customer)
        assert customer.one("customer").due_micro == provider.one("provider").due_micro
    assert taken(customer, "customer") == taken(provider, "provider") == 25


async def test_a_provider_that_was_down_hears_later_what_was_given_up(world, three):
    """It is paid no more for that, and not reported for what it counted meanwhile."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_due())
    quality = customer.health.quality_ppm(provider.id)
    world.later(EPOCH_MS)
    world.wire.down.add(provider.id)
    needs(customer, need_of(25))
    for _ in range(10):
        await signed(world, customer)
        world.later(OFFER_MS)
    assert (taken(customer, "customer"), taken(provider, "provider")) == (25, 50)
    world.wire.down.clear()
    for _ in range(2):
        await world.drive(customer.market.settlement.settle_due())
        assert taken(provider, "provider") == 25
        world.later(OFFER_MS)
    assert customer.health.quality_ppm(provider.id) == quality
