"""What a peer gains by a false count, a false voucher, or none, between two nodes in memory."""

import asyncio

import pytest
from xsc.market.room import LEASE_UNIT

from tests.settle import settle
from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import NET, admit
from tests.unit.market.test_attacks import ask
from tests.unit.market.test_service import holding, leased, redeem, voucher_of
from tests.unit.market.test_signing import PRICE, entitle, leased_all, lowering
from xsc.base.errors import RecordInvalid, SpaceExhausted, XscError
from xsc.base.limits import (
    EPOCH_MS,
    LEASE_KEPT_MS,
    MIB,
    OFFER_MS,
    REQUEST_WINDOW_MS,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_IDLE_MS,
    TIDY_MS,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market.granter import LOWER
from xsc.market.providers import LEASE
from xsc.market.settlement import ACCOUNT
from xsc.terms.count import CountLine, LeaseCount, number_of, wide
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.pricing import worth as worth_of

DAY_MS = 24 * EPOCH_MS


def lying(world, provider, lie, leases=None):
    """Have the provider sign another count, by `lie(count)`, and show its leases, or others."""
    honest = provider.market.handlers()[ACCOUNT]

    async def answer(caller, header, parts):
        reply, rest = await honest(caller, header, parts)
        count = open_signed(reply["count"], LeaseCount, network=NET).record
        raw = sign(count.model_copy(update=lie(count)), provider.key, NET).raw
        shown = leases if leases is not None and header["leases"] else reply["leases"]
        return reply | {"count": raw, "leases": [*shown]}, rest

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}


def signed_of(customer, provider):
    return customer.market.store.account("customer", provider.id).signed_micro


def owed_to(provider):
    (account,) = provider.market.accounts()
    return provider.market.owed_micro(account) + account.settled_micro


async def test_a_count_with_an_old_date_is_paid_each_minute_once(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    terms = provider.market.store.get("provider", host.lease_id).terms
    size, told = 100 * MIB, {"used": 0, "at": terms.start_ms}

    def lie(count):
        # What the customer itself believes by now, said to be of a minute ago.
        (line,), now_ms = count.leases, count.counted_ms
        told["used"] += size * (now_ms - told["at"])
        told["at"] = now_ms - REQUEST_WINDOW_MS
        lines = (line.model_copy(update={"used": wide(told["used"])}),)
        return {"counted_ms": told["at"], "amount_micro": 2**60, "leases": lines}

    lying(world, provider, lie)
    for _ in range(360):
        world.later(10_000)
        await customer.market.settlement.settle_due()
    most = terms.quantity * (world.clock.now_ms() - terms.start_ms)
    allowed = worth_of("storage", terms.price, most, cleared=False) // WORTH
    assert signed_of(customer, provider) <= allowed


async def test_what_ran_or_lay_there_is_owed_although_no_count_was_asked_for(world, three):
    customer, _, provider = three
    now_ms, level = world.clock.now_ms(), 50 * LEASE_UNIT["compute"]
    window = (now_ms, now_ms + DAY_MS)
    entitle(world, customer, provider, 50, kind="compute", window=window, until_ms=window[1])
    rate = {"kind": "compute", "quantity": level, "quantity_min": level, "price": PRICE}
    entry = await ask(
        world,
        customer,
        provider,
        1,
        draw=provider.granted[-1].draw(1),
        start_ms=now_ms,
        end_ms=now_ms + EPOCH_MS,
        **rate,
    )
    await admit(world, provider, entry.terms.lease_id, customer, level)
    provider.market.granter.used_compute(entry.terms.lease_id, level, level)
    world.later(EPOCH_MS)
    provider.market.tidy()
    assert owed_to(provider) == worth_of("compute", PRICE, level * EPOCH_MS, cleared=True) // WORTH


async def test_a_deletion_takes_no_debt_with_it(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.stores(entry.terms.lease_id, customer.id, 50 * SLOT_STEP_BYTES)
    world.later(2 * STORAGE_LEASE_IDLE_MS)
    provider.market.tidy()
    owed = owed_to(provider)
    provider.drops(entry.terms.lease_id, 50 * SLOT_STEP_BYTES)
    provider.market.tidy()
    assert owed_to(provider) == owed > 0


async def test_a_level_is_not_given_up_before_its_first_minute_is_paid(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    world.later(OFFER_MS)
    asked = lowering(world, entry.terms.lease_id, 0)
    asked["at_ms"] -= REQUEST_WINDOW_MS
    await provider.market.handlers()[LOWER](customer.id, asked, ())
    minute = 50 * SLOT_STEP_BYTES * OFFER_MS
    assert owed_to(provider) == worth_of("storage", PRICE, minute, cleared=True) // WORTH


async def test_a_request_that_was_refused_is_not_paid_for_a_week(world, pair):
    customer, provider = pair
    seen = []
    grant = world.wire.handlers[provider.id][LEASE]

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise SpaceExhausted("too little room")

    world.wire.handlers[provider.id][LEASE] = refuse
    with pytest.raises(XscError):
        await leased(world, customer)
    world.wire.handlers[provider.id][LEASE] = grant
    world.later(7 * DAY_MS)
    request = open_signed(seen[0], LeaseRequest, network=NET).record
    late = Lease(request=seen[0], quantity=request.quantity, granted_ms=request.start_ms)

    def lie(count):
        used = request.quantity * (count.counted_ms - request.start_ms)
        line = CountLine(
            lease_id=request.lease_id,
            held_bytes=0,
            level=0,
            used=wide(used),
            end_ms=request.end_ms,
        )
        return {"leases": (line,), "amount_micro": 2**60}

    lying(world, provider, lie, [sign(late, provider.key, NET).raw])
    await customer.market.settlement.agree(provider.id)
    kept = request.quantity * (STORAGE_LEASE_IDLE_MS + REQUEST_WINDOW_MS)
    assert (
        signed_of(customer, provider)
        <= worth_of("storage", request.price, kept, cleared=False) // WORTH
    )


async def test_after_a_lost_disk_what_was_paid_is_not_paid_again(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(10 * EPOCH_MS)
    await customer.market.settlement.settle_all()
    paid = signed_of(customer, provider)
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {host.lease_id: 100 * MIB}})
    lying(world, provider, lambda _: {"closed": wide(paid * WORTH), "amount_micro": 2**60})
    await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) == paid > 0


async def test_a_voucher_over_more_than_may_be_owed_is_refused_and_counts_go_on(world, pair):
    customer, provider = pair
    await holding(world, customer, provider)
    for amount in (2**63 - 1, provider.ledger.limit * 10):
        raw = await voucher_of(customer, provider, amount_micro=amount)
        with pytest.raises(RecordInvalid, match="more than may be owed"):
            await redeem(customer, provider, raw)
    world.later(LEASE_KEPT_MS)
    await redeem(customer, provider, None)
    await customer.market.settlement.settle_all()
    assert 0 < signed_of(customer, provider) < provider.ledger.limit


async def test_a_lease_that_is_left_out_and_shown_again_is_paid_once(world, pair):
    customer, provider = pair
    (host,) = await leased(world, customer, size_bytes=100 * MIB)
    entry = provider.market.store.get("provider", host.lease_id)
    start_ms, quantity, shows = entry.terms.start_ms, entry.terms.quantity, [True]

    def lie(count):
        line = CountLine(
            lease_id=host.lease_id,
            held_bytes=0,
            level=0,
            used=wide(quantity * (count.counted_ms - start_ms)),
            end_ms=count.counted_ms,
        )
        lines = (line,) if shows[0] else ()
        return {"leases": lines, "closed": wide(2**120), "amount_micro": 2**60}

    lying(world, provider, lie, [entry.raw])
    for _ in range(5):
        world.later(10_000)
        for shows[0] in (True, False):
            await customer.market.settlement.agree(provider.id)
    most = worth_of("storage", entry.terms.price, quantity * 50_000, cleared=False) // WORTH
    assert signed_of(customer, provider) <= most


async def test_a_restart_of_the_customer_explains_no_minute_more(world, pair):
    """What a minute between two clocks comes to is allowed for changes, once for each."""
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(1)
    await customer.market.settlement.agree(provider.id)
    quantity = provider.market.store.get("provider", host.lease_id).terms.quantity
    more = []

    def lie(count):
        (line,) = count.leases
        used = number_of(line.used) + quantity * REQUEST_WINDOW_MS * len(more)
        return {"leases": (line.model_copy(update={"used": wide(used)}),), "amount_micro": 2**60}

    lying(world, provider, lie)
    for _ in range(5):
        more.append(host)
        world.later(EPOCH_MS)
        await customer.restart()
        await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) == 5 * 4_000


async def test_a_cleared_lease_is_agreed_on_in_time_whatever_the_interval(world, three):
    """Its provider takes one back of which its customer has heard nothing for ten minutes."""
    customer, _, provider = three
    customer.settings["settle_interval_ms"] = DAY_MS
    await customer.restart()
    await leased_all(world, customer, provider, 50)
    running = asyncio.create_task(customer.market.run())
    for _ in range(2 * STORAGE_LEASE_IDLE_MS // TIDY_MS):
        await settle()
        world.clock.advance_to(world.clock.now_ms() + TIDY_MS)
        provider.market.tidy()
    running.cancel()
    (entry,) = provider.market.store.of("provider", customer.id)
    assert not entry.use.given_back
    assert signed_of(customer, provider) > 0
