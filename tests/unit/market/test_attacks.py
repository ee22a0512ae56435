"""What a customer or a provider that signs what it likes gets away with: nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.market.fakes import A_MIB, NET, admit
from tests.unit.market.test_signing import (
    PRICE,
    entitle,
    leased_all,
    lowering,
    need_of,
    needs,
    signed,
)
from xsc.base.errors import LeaseExhausted, RateLimited, RecordInvalid, SpaceExhausted
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    MIB,
    OFFER_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
    TIMEOUT_MS_MAX,
)
from xsc.identity.envelope import sign
from xsc.market.granter import LOWER
from xsc.market.providers import LEASE
from xsc.terms.lease import LeaseRequest

GFUEL = 10**9


async def ask(world, customer, provider, number, *, kind="storage", draw=None, **change):
    """Ask for a lease as a customer that states what it likes."""
    quote = None
    if draw is None:
        answer = await provider.market.handlers()["market.quote"](customer.id, {"kind": kind}, ())
        quote = answer[0]["quote"]
    now_ms = world.clock.now_ms()
    fields = {
        "lease_id": number.to_bytes(32, "big"),
        "provider": provider.id,
        "customer": customer.id,
        "kind": kind,
        "quote": quote,
        "draw": draw,
        "quantity": 1,
        "quantity_min": 1,
        "price": 40 * A_MIB,
        "start_ms": now_ms,
        "end_ms": now_ms + COMPUTE_LEASE_MS,
        "renews": None,
    } | change
    raw = sign(LeaseRequest(**fields), customer.key, NET).raw
    await provider.market.handlers()[LEASE](customer.id, {"request": raw}, ())
    return provider.market.store.get("provider", fields["lease_id"])


def moved(provider, old, new, size_bytes):
    granted, ids = provider.market.granter, (old.terms.lease_id, new.terms.lease_id)
    fits = granted.admit_renewal(*ids, old.terms.customer, size_bytes)
    granted.renewed(*ids, fits, fits)


async def halfway(world, customer, provider, size_bytes):
    """Return a cleared lease of 50 steps in its second half, and what may renew it."""
    granted = await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_due())
    (old,) = provider.market.store.of("provider", customer.id)
    provider.stores(old.terms.lease_id, customer.id, size_bytes)
    provider.room.stored = size_bytes
    world.later(old.terms.start_ms + STORAGE_LEASE_MS // 2 - world.clock.now_ms())
    provider.granted[:] = [replace(granted, until_ms=2**60)]
    start_ms = world.clock.now_ms()
    return old, {
        "draw": granted.draw(1),
        "quantity": 50 * SLOT_STEP_BYTES,
        "quantity_min": 50 * SLOT_STEP_BYTES,
        "start_ms": start_ms,
        "end_ms": start_ms + STORAGE_LEASE_MS,
        "renews": old.terms.lease_id,
        "price": PRICE,
    }


async def test_one_entitlement_renews_a_lease_once(world, three):
    customer, _, provider = three
    old, asked = await halfway(world, customer, provider, 10 * MIB)
    new = await ask(world, customer, provider, 1, **asked)
    with pytest.raises((SpaceExhausted, LeaseExhausted, RecordInvalid)):
        await ask(world, customer, provider, 2, **asked)
    moved(provider, old, new, MIB)
    with pytest.raises((SpaceExhausted, LeaseExhausted, RecordInvalid)):
        await ask(world, customer, provider, 3, **asked)
    assert old.use.level + new.use.level <= 50 * SLOT_STEP_BYTES


async def test_one_grant_renews_two_old_leases_for_no_more_than_it_is(world, three):
    """Each was renewed for now in full, beside the other one that had nothing yet."""
    customer, other, provider = three
    needs(customer, need_of(100))
    old = []
    for slot in (b"s", b"t"):
        entitle(world, customer, provider, 50, slot=slot * 16, until_ms=2**60)
        await signed(world, customer)
    await world.drive(customer.market.settlement.settle_due())
    for entry in provider.market.store.of("provider", customer.id):
        provider.stores(entry.terms.lease_id, customer.id, 50 * SLOT_STEP_BYTES)
        old.append(entry)
    provider.room.stored = 100 * SLOT_STEP_BYTES
    world.later(STORAGE_LEASE_MS * 5 // 8)
    named = old[0].drawn_key
    provider.market.store.counts_for = lambda _: named
    provider.granted[:] = [replace(provider.granted[0], quantity=50)]
    entitle(world, other, provider, 50)
    got = 0
    for number, entry in enumerate(old):
        start_ms = world.clock.now_ms()
        try:
            new = await ask(
                world,
                customer,
                provider,
                number + 1,
                quantity=50 * SLOT_STEP_BYTES,
                start_ms=start_ms,
                end_ms=start_ms + STORAGE_LEASE_MS,
                renews=entry.terms.lease_id,
            )
        except LeaseExhausted:
            continue
        got += new.terms.quantity
    assert got == 50 * SLOT_STEP_BYTES


async def test_what_stays_under_an_old_lease_keeps_its_level_and_is_paid(world, three):
    customer, _, provider = three
    old, asked = await halfway(world, customer, provider, 50 * SLOT_STEP_BYTES)
    new = await ask(world, customer, provider, 1, **asked)
    moved(provider, old, new, MIB)
    assert (old.use.level, new.use.level) == (50 * SLOT_STEP_BYTES - MIB, MIB)
    world.later(OFFER_MS)
    lower = provider.market.handlers()[LOWER]
    await lower(customer.id, lowering(world, new.terms.lease_id, 0), ())
    assert old.use.level >= old.use.held_bytes
    assert new.use.level >= new.use.held_bytes
    moved(provider, old, new, 10 * MIB)
    assert (old.use.held_bytes, new.use.held_bytes) == (50 * SLOT_STEP_BYTES - 11 * MIB, 11 * MIB)
    assert (old.use.level, new.use.level) == (old.use.held_bytes, 11 * MIB), "levels go over, too"


async def test_a_call_that_waits_past_the_end_of_its_rate_is_refused(world, three):
    customer, _, provider = three
    now_ms = world.clock.now_ms()
    needs(customer, need_of(50, kind="compute"))
    window = (now_ms, now_ms + COMPUTE_LEASE_MS)
    entitle(world, customer, provider, 50, kind="compute", window=window)
    await signed(world, customer)
    (entry,) = provider.market.store.all("provider")
    level, lease_id = entry.use.level, entry.terms.lease_id
    await admit(world, provider, lease_id, customer, level)
    provider.market.granter.used_compute(lease_id, level, level)
    with pytest.raises((LeaseExhausted, RateLimited)):
        await admit(world, provider, lease_id, customer, level, wait_ms=TIMEOUT_MS_MAX)
    assert entry.reserved == 0


async def test_a_call_whose_lease_is_forgotten_before_it_waits_is_refused(pair):
    customer, provider = pair
    with pytest.raises(LeaseExhausted):
        await provider.market.granter.admit_compute(b"x" * 32, customer.id, GFUEL, 0)


async def test_calls_whose_lease_is_forgotten_while_they_wait_are_refused(world, pair):
    customer, provider = pair
    provider.ledger.limit = 40 * A_MIB
    granted = provider.market.granter
    first = await ask(world, customer, provider, 1, kind="compute", quantity=10 * GFUEL)
    await granted.admit_compute(first.terms.lease_id, customer.id, GFUEL, 0)
    short = await ask(world, customer, provider, 2, kind="compute", quantity=1_000 * GFUEL)
    waiting = asyncio.ensure_future(
        granted.admit_compute(short.terms.lease_id, customer.id, GFUEL, TIMEOUT_MS_MAX)
    )
    await settle()
    provider.market.store.forget(short)
    granted.used_compute(first.terms.lease_id, GFUEL, 1)
    await settle()
    with pytest.raises(LeaseExhausted):
        await waiting
