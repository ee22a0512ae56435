"""What a customer or a provider that signs what it likes gets away with: nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.market.fakes import A_MIB, admit, ask
from tests.unit.market.test_signing import (
    NEED,
    PRICE,
    entitle,
    leased_all,
    need_of,
    needs,
    signed,
)
from xsc.base.errors import LeaseExhausted, NoOffers, RateLimited, RecordInvalid
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    MIB,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
    TIMEOUT_MS_MAX,
)

GFUEL = 10**9


async def halfway(world, customer, provider, size_bytes):
    """Return a cleared lease of 50 steps in its second half, and what was granted again for it."""
    granted = await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_due())
    (old,) = provider.market.store.of("provider", customer.id)
    provider.stores(old.id, customer.id, size_bytes)
    provider.room.stored = size_bytes
    world.later(old.terms.start_ms + STORAGE_LEASE_MS // 2 - world.clock.now_ms())
    granted = replace(granted, until_ms=2**60)
    provider.granted[:] = [granted]
    return old, granted


async def test_one_entitlement_renews_a_lease_once(world, three):
    customer, _, provider = three
    old, granted = await halfway(world, customer, provider, 10 * MIB)
    for _ in range(3):
        assert await ask(world, customer, provider, old.id, offer=granted) is old
        world.later(1)
    assert old.terms.end_ms == world.clock.now_ms() - 3 + STORAGE_LEASE_MS
    assert (old.use.level, old.use.held_bytes) == (50 * SLOT_STEP_BYTES, 10 * MIB)
    assert provider.market.headroom.unreserved("storage") == 50 * SLOT_STEP_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"slot": b"x" * 16},
        {"window": (0, 2**60)},
        {"tier": "open"},
        {"need": b"x" * 16},
        {"need": None, "level": 0},
        {"kind": "compute"},
        {"price": PRICE - 1},
        {"level": 51 * SLOT_STEP_BYTES},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_renewal_is_of_what_was_granted(world, three, change):
    """What is held would be missing in the slot that a clearing divides."""
    customer, _, provider = three
    old, granted = await halfway(world, customer, provider, 10 * MIB)
    before = old.raw
    with pytest.raises((NoOffers, RecordInvalid)):
        await ask(world, customer, provider, old.id, offer=granted, **change)
    assert old.raw == before


async def test_one_grant_renews_two_old_leases_for_no_more_than_it_is(world, three):
    """Each was renewed for now in full, beside the other one that had nothing yet."""
    customer, other, provider = three
    needs(customer, need_of(100))
    for slot in (b"s", b"t"):
        entitle(world, customer, provider, 50, slot=slot * 16, until_ms=2**60)
        await signed(world, customer)
    await world.drive(customer.market.settlement.settle_due())
    old = provider.market.store.of("provider", customer.id)
    for entry in old:
        provider.stores(entry.id, customer.id, 50 * SLOT_STEP_BYTES)
    provider.room.stored = 100 * SLOT_STEP_BYTES
    world.later(STORAGE_LEASE_MS * 5 // 8)
    granted = replace(provider.granted[0], quantity=50)
    provider.market.store.key = lambda _: granted.key
    provider.granted[:] = [granted]
    entitle(world, other, provider, 50)
    ends = [entry.terms.end_ms for entry in old]
    await ask(world, customer, provider, old[0].id, offer=granted)
    with pytest.raises(LeaseExhausted):
        await ask(world, customer, provider, old[1].id, offer=granted)
    assert old[0].terms.end_ms > ends[0]
    assert old[1].terms.end_ms == ends[1]


async def test_who_is_at_its_limit_keeps_no_room_by_a_renewal(world, three):
    customer, other, provider = three
    old, granted = await halfway(world, customer, provider, MIB)
    limit, provider.ledger.limit = provider.ledger.limit, 0
    provider.market.tidy()
    assert old.use.level == MIB
    provider.ledger.limit = limit
    provider.market.tidy()
    provider.granted.clear()
    await leased_all(world, other, provider, 99)
    provider.granted[:] = [granted]
    with pytest.raises(RecordInvalid):
        await ask(world, customer, provider, old.id, offer=granted, level=SLOT_STEP_BYTES)
    await ask(world, customer, provider, old.id, offer=granted, level=MIB)
    assert old.use.level == MIB
    assert sum(e.use.level for e in provider.market.store.all("provider")) <= (
        100 * SLOT_STEP_BYTES
    )


async def test_a_need_that_is_named_makes_no_lease_of_another(world, three):
    """A lease for now names no need, and one that is cleared what was granted to it alone."""
    customer, other, provider = three
    granted = entitle(world, customer, provider, 50)
    for holder, change in (
        (other, {}),
        (customer, {"slot": b"x" * 16}),
        (customer, {"need": b"x" * 16}),
        (customer, {"tier": "open"}),
        (customer, {"window": (0, 2**60)}),
    ):
        with pytest.raises(NoOffers):
            await ask(world, holder, provider, offer=granted, **change)
    assert (await ask(world, customer, provider, offer=granted)).terms.need == NEED


async def test_a_call_that_waits_past_the_end_of_its_rate_is_refused(world, three):
    customer, _, provider = three
    now_ms = world.clock.now_ms()
    needs(customer, need_of(50, kind="compute"))
    window = (now_ms, now_ms + COMPUTE_LEASE_MS)
    entitle(world, customer, provider, 50, kind="compute", window=window)
    await signed(world, customer)
    (entry,) = provider.market.store.all("provider")
    steps, lease_id = 60 * entry.use.level, entry.id
    await admit(world, provider, lease_id, customer, steps)
    provider.market.granter.used_compute(lease_id, steps, steps)
    with pytest.raises((LeaseExhausted, RateLimited)):
        await admit(world, provider, lease_id, customer, 1, wait_ms=TIMEOUT_MS_MAX)
    assert entry.reserved == 0


async def test_a_call_whose_lease_is_forgotten_before_it_waits_is_refused(pair):
    customer, provider = pair
    with pytest.raises(LeaseExhausted):
        await provider.market.granter.admit_compute(b"x" * 32, customer.id, GFUEL, 0)


async def test_calls_whose_lease_is_forgotten_while_they_wait_are_refused(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    granted = provider.market.granter
    first = await ask(world, customer, provider, b"1" * 32, kind="compute")
    await granted.admit_compute(first.id, customer.id, GFUEL, 0)
    short = await ask(world, customer, provider, b"2" * 32, kind="compute")
    waiting = asyncio.ensure_future(
        granted.admit_compute(short.id, customer.id, GFUEL, TIMEOUT_MS_MAX)
    )
    await settle()
    provider.market.store.forget(short)
    granted.used_compute(first.id, GFUEL, 1)
    await settle()
    with pytest.raises(LeaseExhausted):
        await waiting
