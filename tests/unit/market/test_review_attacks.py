"""Attacks that a review found: what a known peer gained before it was mended."""

from dataclasses import replace

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import NET, TEN_MINUTES_MS, admit, ask, granted_on, request_of
from tests.unit.market.test_account_attacks import lying, owed_to, signed_of
from tests.unit.market.test_attacks import halfway
from tests.unit.market.test_signing import (
    PRICE,
    entitle,
    give_up,
    held_half,
    leased_all,
    need_of,
    needs,
    refusing_less,
    signed,
    taken,
)
from xsc.base.errors import PeerSilent, SpaceExhausted, XscError
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    MIB,
    OFFER_MS,
    REQUEST_WINDOW_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market import lease as rules
from xsc.market.providers import LEASE
from xsc.market.settlement import ACCOUNT
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.pricing import worth as worth_of
from xsc.terms.slot import STEP
from xsc.terms.voucher import CountLine, LeaseCount, number_of, wide

DAY_MS = 24 * EPOCH_MS


def level_worth(steps, ms):
    return worth_of("storage", PRICE, steps * SLOT_STEP_BYTES * ms, cleared=True)


def levels(provider):
    """Return what all leases of storage come to at a provider."""
    now_ms = provider.world.clock.now_ms()
    return sum(
        max(
            e.use.held_bytes,
            0 if e.is_over(now_ms) else rules.advance(e.terms, e.use, now_ms).level,
        )
        for e in provider.market.store.all("provider")
    )


# 1. A provider refuses, and grants what it refused once it likes


@pytest.mark.parametrize("is_disk_lost", [False, True])
async def test_a_need_is_billed_once_however_often_its_provider_refused(world, three, is_disk_lost):
    """Also where the provider shows all that it refused once its customer has lost its disk."""
    customer, _, provider = three
    needs(customer, need_of(50))
    seen = []

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise SpaceExhausted("too little room")

    world.wire.handlers[provider.id][LEASE] = refuse
    begun_ms = world.clock.now_ms()
    for _ in range(60):
        customer.received.clear()
        entitle(world, customer, provider, 50)
        await signed(world, customer)
        world.later(60_000)
    assert len(seen) > 30
    if is_disk_lost:
        world.later(10 * DAY_MS)
        customer.state = Memory()
        await customer.restart()
        await customer.market.settlement.lost({provider.id: {}})
    requests = [open_signed(raw, LeaseRequest, network=NET).record for raw in seen]
    shown = [
        sign(
            Lease(request=raw, level=r.level, clearing=b"c" * 32),
            provider.key,
            NET,
        ).raw
        for raw, r in zip(seen, requests, strict=True)
    ]
    honest = provider.market.handlers()[ACCOUNT]

    async def answer(caller, header, parts):
        reply, rest = await honest(caller, header, parts)
        count = open_signed(reply["count"], LeaseCount, network=NET).record
        lines = tuple(
            CountLine(
                lease_id=r.lease_id,
                held_bytes=0,
                level=r.level,
                used=wide(level_worth(50, count.counted_ms - r.start_ms)),
                end_ms=r.end_ms,
            )
            for r in requests
        )
        told = count.model_copy(update={"leases": lines, "amount_micro": 2**60})
        rows = shown if header["show"] else []
        return reply | {"count": sign(told, provider.key, NET).raw, "leases": rows}, rest

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}
    await customer.market.settlement.agree(provider.id)
    most = level_worth(50, world.clock.now_ms() - begun_ms)
    assert signed_of(customer, provider) <= most // WORTH


# 2. A renewal brings a level along that its lease has no more


async def test_a_renewal_takes_no_level_that_was_given_up_meanwhile(world, three):
    customer, other, provider = three
    old, granted = await halfway(world, customer, provider, MIB)
    asked = request_of(world, customer, provider, offer=granted, lease_id=old.id)
    # It gives the level up after it asked to keep it; the other one leases the room.
    await give_up(world, customer, provider, old.id, 0)
    assert old.use.level == MIB
    provider.granted[:] = [granted]
    entitle(world, other, provider, 99)
    await ask(world, other, provider, offer=provider.granted[-1])
    for renewal in (asked, request_of(world, customer, provider, offer=granted, lease_id=old.id)):
        with pytest.raises(XscError):
            await granted_on(customer, provider, renewal)
    assert levels(provider) <= 100 * SLOT_STEP_BYTES


async def test_a_renewal_takes_no_level_of_a_lease_that_ended_meanwhile(world, three):
    customer, other, provider = three
    old, granted = await halfway(world, customer, provider, MIB)
    world.later(old.terms.end_ms - world.clock.now_ms())
    provider.market.tidy()
    entitle(world, other, provider, 99)
    await ask(world, other, provider, offer=provider.granted[-1])
    await ask(world, customer, provider, old.id, offer=granted, level=MIB)
    assert old.use.level == MIB
    assert levels(provider) <= 100 * SLOT_STEP_BYTES


async def test_a_renewal_that_was_refused_gives_back_no_level_once_it_is_shown(world, three):
    """Its provider keeps the request, and says later that it granted it."""
    customer, _, provider = three
    await held_half(world, customer, provider, 50, MIB)
    seen, honest = [], world.wire.handlers[provider.id]

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise SpaceExhausted("too little room")

    world.wire.handlers[provider.id] = honest | {LEASE: refuse}
    await signed(world, customer)
    needs(customer, need_of(1))
    await signed(world, customer)
    assert customer.one("customer").use.level == SLOT_STEP_BYTES
    request = open_signed(seen[0], LeaseRequest, network=NET).record
    late = Lease(request=seen[0], level=request.level)
    end = {"end_ms": request.end_ms, "level": request.level}

    def lie(count):
        (line,) = count.leases
        used = number_of(line.used) + level_worth(50, count.counted_ms - request.start_ms)
        lines = (line.model_copy(update=end | {"used": wide(used)}),)
        return {"leases": lines, "amount_micro": 2**60}

    async def answer(*_given):
        return {"lease": sign(late, provider.key, NET).raw}, ()

    lying(world, provider, lie)
    owed = owed_to(provider)
    world.later(DAY_MS)
    (entry,) = customer.market.store.all("customer")
    end_ms, before = entry.terms.end_ms, signed_of(customer, provider)
    await customer.market.settlement.agree(provider.id)
    assert (entry.terms.end_ms, entry.use.level) == (end_ms, SLOT_STEP_BYTES)
    assert signed_of(customer, provider) == before, "what is on terms not known here is not paid"
    world.wire.handlers[provider.id] |= {LEASE: answer}
    await customer.market.signing.look()
    assert (entry.terms.end_ms, entry.use.level) == (end_ms, SLOT_STEP_BYTES)
    await customer.market.settlement.agree(provider.id)
    day = worth_of("storage", request.price, SLOT_STEP_BYTES * DAY_MS, cleared=True) // WORTH
    assert signed_of(customer, provider) <= owed + day


# 3. Fuel that ran is refunded


async def rated(world, customer, provider):
    """Return a cleared lease of compute for an hour, and its fuel steps of a minute."""
    now_ms = world.clock.now_ms()
    window = (now_ms, now_ms + DAY_MS)
    granted = entitle(
        world, customer, provider, 50, kind="compute", window=window, until_ms=window[1]
    )
    entry = await ask(world, customer, provider, offer=granted, end_ms=now_ms + EPOCH_MS)
    return entry, 60 * 50 * STEP["compute"]


async def test_fuel_that_ran_in_the_minute_before_is_paid(world, three):
    customer, _, provider = three
    entry, level = await rated(world, customer, provider)
    ran = 0
    for at_ms in (COMPUTE_LEASE_MS - 10, COMPUTE_LEASE_MS):
        world.later(at_ms)
        await admit(world, provider, entry.id, customer, level)
        provider.market.granter.used_compute(entry.id, level, level)
        ran += level
    world.later(20)
    await give_up(world, customer, provider, entry.id, 0)
    paid = worth_of("compute", PRICE, ran * 1_000, cleared=True) // WORTH
    world.later(EPOCH_MS)
    assert owed_to(provider) >= paid


# 4. Room is held for nothing


async def test_who_signs_for_nothing_holds_no_room_over_and_over(world, three):
    customer, _, provider = three
    held_ms, begun_ms = 0, world.clock.now_ms()
    for number in range(1, 7):
        provider.granted.clear()
        granted = entitle(world, customer, provider, 100)
        try:
            await ask(world, customer, provider, bytes([number]) * 32, offer=granted)
        except XscError:
            world.later(TEN_MINUTES_MS)
            continue
        held_ms += TEN_MINUTES_MS
        world.later(TEN_MINUTES_MS)
        provider.market.tidy()
    assert owed_to(provider) or held_ms <= (world.clock.now_ms() - begun_ms) // 2


# 5. An honest peer is reported


async def test_an_honest_provider_is_not_reported_for_an_answer_that_was_lost(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await customer.market.settlement.settle_due()
    world.later(EPOCH_MS)
    needs(customer)
    quality = customer.health.quality_ppm(provider.id)
    lost = refusing_less(world, provider, after=True)
    await signed(world, customer)
    lost.clear()
    await customer.market.settlement.agree(provider.id)
    assert customer.one("customer").status in {"closing", "settled"}, "and no denial"
    assert not customer.denied
    assert customer.health.quality_ppm(provider.id) == quality


async def test_an_honest_provider_is_not_reported_for_taking_back_what_nobody_signed_for(
    world, three
):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    quality = customer.health.quality_ppm(provider.id)
    world.later(TEN_MINUTES_MS)  # the customer was down
    provider.market.tidy()
    await customer.restart()
    await customer.market.settlement.settle_due()
    assert customer.health.quality_ppm(provider.id) == quality


# 6. A refund of what was never billed


async def test_a_lowering_after_the_end_takes_nothing_off(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.stores(entry.id, customer.id, MIB)
    world.later(entry.terms.end_ms + 2 * REQUEST_WINDOW_MS - world.clock.now_ms())
    owed = owed_to(provider)
    await give_up(world, customer, provider, entry.id, 0)
    assert owed_to(provider) >= owed


# 7. A provider's clock


async def test_a_lease_begins_no_minute_before_it_was_asked_for(world, three):
    customer, _, provider = three
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50)
    await signed(world, customer)
    (entry,) = customer.market.store.of("customer", provider.id)
    begun_ms = world.clock.now_ms()

    def lie(count):
        (line,) = count.leases
        used = level_worth(50, count.counted_ms - entry.terms.start_ms)
        return {"leases": (line.model_copy(update={"used": wide(used)}),), "amount_micro": 2**60}

    lying(world, provider, lie)
    world.later(OFFER_MS)
    await customer.market.settlement.agree(provider.id)
    most = level_worth(50, world.clock.now_ms() - begun_ms)
    assert signed_of(customer, provider) <= most // WORTH


# 6. A refund of what was never billed (counted first)


async def test_a_lowering_after_the_end_takes_nothing_off_what_was_counted(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.stores(entry.id, customer.id, MIB)
    world.later(entry.terms.end_ms + 2 * REQUEST_WINDOW_MS - world.clock.now_ms())
    await world.drive(customer.market.settlement.agree(provider.id))
    owed = owed_to(provider)
    await give_up(world, customer, provider, entry.id, 0)
    assert owed_to(provider) >= owed


# 8. A renewal whose answer is lost


@pytest.mark.parametrize("price", [PRICE // 2, PRICE, 3 * PRICE])
async def test_a_renewal_whose_answer_was_lost_is_counted_once_by_both(world, three, price):
    """The provider is on the new term, and the customer goes on with the old one for a while."""
    customer, _, provider = three
    held = 10 * SLOT_STEP_BYTES
    granted, lease_id = await held_half(world, customer, provider, 50, held)
    provider.granted[:] = customer.received[:] = [replace(granted, until_ms=2**60, price=price)]
    honest, lost = world.wire.handlers[provider.id], [True]

    async def lose(*given):
        answer = await honest[LEASE](*given)
        if lost:
            raise PeerSilent("the answer was lost")
        return answer

    world.wire.handlers[provider.id] = honest | {LEASE: lose}
    await signed(world, customer)
    begun_ms = world.clock.now_ms()
    assert customer.newest("customer").terms.end_ms < provider.newest("provider").terms.end_ms
    for node in (customer, provider):
        await node.restart()
    world.wire.handlers[provider.id] |= {LEASE: lose}
    for _ in range(3):  # each look asks again
        world.later(5_000)
        provider.market.tidy()
        customer.market.tidy()
        await signed(world, customer)
    provider.drops(lease_id, SLOT_STEP_BYTES)
    await customer.market.buyer.used(lease_id, -SLOT_STEP_BYTES)
    lost.clear()
    world.later(5_000)
    await signed(world, customer)
    mine, theirs = customer.newest("customer"), provider.newest("provider")
    assert mine.raw == theirs.raw
    assert mine.terms.start_ms == begun_ms
    world.later(EPOCH_MS)
    quality = customer.health.quality_ppm(provider.id)
    await world.drive(customer.market.settlement.settle_all())
    assert customer.one("customer").due_micro == provider.one("provider").due_micro
    assert provider.ledger.owed(customer.id) == provider.one("provider").due_micro
    assert customer.health.quality_ppm(provider.id) == quality


async def test_a_count_of_before_a_renewal_ends_no_new_term(world, three):
    customer, _, provider = three
    granted, lease_id = await held_half(world, customer, provider, 50, 10 * SLOT_STEP_BYTES)
    world.later(STORAGE_LEASE_MS // 2)
    honest = world.wire.handlers[provider.id]

    async def slow(*given):
        answer = await honest[ACCOUNT](*given)
        world.wire.handlers[provider.id] = honest
        provider.granted[:] = customer.received[:] = [replace(granted, until_ms=2**60)]
        world.later(1)
        await customer.market.signing.look()
        return answer

    world.wire.handlers[provider.id] = honest | {ACCOUNT: slow}
    await customer.market.settlement.agree(provider.id)
    (view,) = [view for view in customer.views("customer") if view.entry.id == lease_id]
    assert view.status == "open"
    assert not customer.denied


# 9. Lowerings that fail


async def test_a_lowering_that_is_not_written_takes_nothing_off(world, three):
    """Where the provider's disk is full, each try took a minute of the level off the debt."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    world.later(EPOCH_MS)
    await world.drive(customer.market.settlement.agree(provider.id))
    owed = owed_to(provider)

    async def fail(*_):
        raise SpaceExhausted("the disk is full")

    provider.market.store.sync = fail
    for _ in range(50):
        with pytest.raises(SpaceExhausted):
            await give_up(world, customer, provider, entry.id, 0)
    minute = level_worth(50, REQUEST_WINDOW_MS) // WORTH
    assert owed_to(provider) >= owed - minute - 1 > 0, "once"


@pytest.mark.parametrize("looks", [1, 200])
async def test_a_refused_lowering_explains_a_minute_once(world, three, looks):
    """Each look at what its provider does not lower explained a minute of the level more."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await customer.market.settlement.settle_due()
    world.later(OFFER_MS)
    needs(customer, need_of(25))
    await signed(world, customer)
    (entry,) = customer.market.store.of("customer", provider.id)
    assert entry.use.level == 25 * SLOT_STEP_BYTES
    world.later(10 * EPOCH_MS)
    await customer.market.settlement.settle_due()

    refusing_less(world, provider)
    needs(customer)
    for _ in range(looks):  # the provider publishes something, each tenth of a second
        world.later(100)
        await signed(world, customer)

    def lie(count):
        (line,) = count.leases
        ms = min(200, looks) * REQUEST_WINDOW_MS
        used = number_of(line.used) + level_worth(25, ms)
        return {"leases": (line.model_copy(update={"used": wide(used)}),), "amount_micro": 2**60}

    owed = owed_to(provider)
    lying(world, provider, lie)
    await customer.market.settlement.agree(provider.id)
    minute = worth_of("storage", PRICE, 25 * SLOT_STEP_BYTES * 60_000, cleared=True) // WORTH
    assert signed_of(customer, provider) <= owed + minute + 1


# 11. A count gives up more than was asked


async def test_a_bare_word_gives_up_no_more_than_was_asked(world, three):
    """What a provider only says lowers nothing; what it signs, it is not paid for."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await customer.market.settlement.settle_due()
    world.later(OFFER_MS)
    refusing_less(world, provider)
    needs(customer, need_of(25))
    await signed(world, customer)
    (entry,) = customer.market.store.of("customer", provider.id)
    assert not entry.is_over(world.clock.now_ms())
    assert entry.use.level == 50 * SLOT_STEP_BYTES


# 12. A request whose answer was lost is forgotten


async def test_a_restart_fills_no_need_twice(world, three):
    customer, second, first = three
    second.room.storage = 100 * SLOT_STEP_BYTES
    honest = world.wire.handlers[first.id][LEASE]

    async def lost(*given):
        await honest(*given)
        raise PeerSilent("the answer was lost")

    world.wire.handlers[first.id][LEASE] = lost
    needs(customer, need_of(50))
    entitle(world, customer, first, 50)
    await signed(world, customer)
    world.wire.handlers[first.id][LEASE] = honest
    await customer.restart()
    customer.received.clear()
    entitle(world, customer, second, 50)
    await signed(world, customer)
    assert taken(first, "provider") + taken(second, "provider") == 50


# 13. The refund of a minute, with one step of fuel in the next one


async def test_one_step_of_fuel_hides_no_minute_before(world, three):
    customer, _, provider = three
    entry, level = await rated(world, customer, provider)
    lease_id, ran = entry.id, 0
    for at_ms in (COMPUTE_LEASE_MS - 10, COMPUTE_LEASE_MS):
        world.later(at_ms)
        await admit(world, provider, lease_id, customer, level)
        provider.market.granter.used_compute(lease_id, level, level)
        ran += level
    world.later(20)
    await admit(world, provider, lease_id, customer, 1)
    provider.market.granter.used_compute(lease_id, 1, 1)
    await give_up(world, customer, provider, lease_id, 0)
    paid = worth_of("compute", PRICE, ran * 1_000, cleared=True) // WORTH
    world.later(OFFER_MS)
    assert owed_to(provider) >= paid
