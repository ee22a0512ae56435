"""What a peer gains by a false count, a false voucher, or none, between two nodes in memory."""

import asyncio

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import NET, TEN_MINUTES_MS, admit, ask, granted_on
from tests.unit.market.test_service import holding, redeem, voucher_of
from tests.unit.market.test_signing import (
    PRICE,
    entitle,
    give_up,
    leased_all,
    need_of,
    needs,
    signed,
)
from xsc.base.errors import PeerSilent, RecordInvalid, SpaceExhausted
from xsc.base.limits import EPOCH_MS, MIB, OFFER_MS, REQUEST_WINDOW_MS, SLOT_STEP_BYTES
from xsc.identity.envelope import open_signed, sign
from xsc.market.lease import LEASE_KEPT_MS
from xsc.market.providers import LEASE
from xsc.market.settlement import ACCOUNT
from xsc.market.signing import LOWER_MS
from xsc.terms.pricing import WORTH
from xsc.terms.pricing import worth as worth_of
from xsc.terms.slot import STEP
from xsc.terms.voucher import CountLine, LeaseCount, number_of, wide

DAY_MS = 24 * EPOCH_MS


def lying(world, provider, lie, leases=None):
    """Have the provider sign another count, by `lie(count)`, and show its leases, or others."""
    honest = provider.market.handlers()[ACCOUNT]

    async def answer(caller, header, parts):
        reply, rest = await honest(caller, header, parts)
        count = open_signed(reply["count"], LeaseCount, network=NET).record
        raw = sign(count.model_copy(update=lie(count)), provider.key, NET).raw
        shown = leases if leases is not None and header["show"] else reply["leases"]
        return reply | {"count": raw, "leases": [*shown]}, rest

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}


def signed_of(customer, provider):
    return customer.market.store.account("customer", provider.id).signed_micro


def owed_to(provider):
    (account,) = provider.market.store.accounts()
    return provider.market.owed_micro(account) + account.settled_micro


async def test_a_count_with_an_old_date_is_paid_each_minute_once(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    terms = provider.market.store.get("provider", host.lease_id).terms
    minute = worth_of("storage", terms.price, 100 * MIB, cleared=False)
    told = {"used": 0, "at": terms.start_ms}

    def lie(count):
        # What the customer itself believes by now, said to be of a minute ago.
        (line,), now_ms = count.leases, count.counted_ms
        told["used"] += minute * (now_ms - told["at"])
        told["at"] = now_ms - REQUEST_WINDOW_MS
        lines = (line.model_copy(update={"used": wide(told["used"])}),)
        return {"counted_ms": told["at"], "amount_micro": 2**60, "leases": lines}

    lying(world, provider, lie)
    for _ in range(360):
        world.later(10_000)
        await customer.market.settlement.settle_due()
    allowed = minute * (world.clock.now_ms() - terms.start_ms) // WORTH
    # What came is told by two clocks, a minute apart at most.
    assert signed_of(customer, provider) <= allowed + minute * REQUEST_WINDOW_MS // WORTH


async def test_what_ran_or_lay_there_is_owed_although_no_count_was_asked_for(world, three):
    customer, _, provider = three
    now_ms, level = world.clock.now_ms(), 50 * STEP["compute"]
    window = (now_ms, now_ms + DAY_MS)
    granted = entitle(
        world, customer, provider, 50, kind="compute", window=window, until_ms=window[1]
    )
    entry = await ask(world, customer, provider, offer=granted, end_ms=now_ms + EPOCH_MS)
    await admit(world, provider, entry.id, customer, level)
    provider.market.granter.used_compute(entry.id, level, level)
    world.later(EPOCH_MS)
    provider.market.tidy()
    assert owed_to(provider) == worth_of("compute", PRICE, level * EPOCH_MS, cleared=True) // WORTH


async def test_a_deletion_takes_no_debt_with_it(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.stores(entry.id, customer.id, 50 * SLOT_STEP_BYTES)
    world.later(2 * TEN_MINUTES_MS)
    provider.market.tidy()
    owed = owed_to(provider)
    provider.drops(entry.id, 50 * SLOT_STEP_BYTES)
    provider.market.tidy()
    assert owed_to(provider) == owed > 0


async def test_a_level_is_not_given_up_before_its_first_minute_is_paid(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    world.later(OFFER_MS)
    await give_up(world, customer, provider, entry.id, 0)
    minute = 50 * SLOT_STEP_BYTES * OFFER_MS
    assert owed_to(provider) == worth_of("storage", PRICE, minute, cleared=True) // WORTH


@pytest.mark.parametrize("silent", [False, True])
async def test_a_request_that_was_refused_is_not_paid_for_a_week(world, three, silent):
    """Nor one that was not answered, once its provider was silent for so long."""
    customer, _, provider = three
    grant, seen = world.wire.handlers[provider.id][LEASE], []

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise PeerSilent("no answer") if silent else SpaceExhausted("too little room")

    world.wire.handlers[provider.id][LEASE] = refuse
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50)
    await signed(world, customer)
    world.wire.handlers[provider.id][LEASE] = grant
    raw = await granted_on(customer, provider, seen[0])
    world.wire.handlers[provider.id][LEASE] = refuse
    assert len(customer.market.store.asked) == silent
    world.later(REQUEST_WINDOW_MS + LOWER_MS + 1)
    await customer.market.signing.look()
    assert not customer.market.store.asked
    world.later(7 * DAY_MS)
    lying(world, provider, lambda _: {"amount_micro": 2**60}, [raw])
    await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) == 0
    assert not customer.market.leases()


async def test_a_clock_that_is_ahead_grants_no_need_twice(world, three):
    """Its provider says that it granted nothing, while it keeps the answer back."""
    customer, _, provider = three
    asked, late = asyncio.Event(), asyncio.Event()
    honest = world.wire.handlers[provider.id][LEASE]

    async def grant(*given):
        asked.set()
        await late.wait()
        return await honest(*given)

    world.wire.handlers[provider.id] |= {LEASE: grant}
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50)
    looking = asyncio.ensure_future(customer.market.signing.look())
    await asked.wait()
    lying(
        world,
        provider,
        lambda count: {"leases": (), "counted_ms": count.counted_ms + REQUEST_WINDOW_MS},
    )
    world.later(1)
    await customer.market.settlement.agree(provider.id)
    assert customer.market.store.asked, "its answer still counts"
    late.set()
    await looking
    assert len(customer.market.leases()) == 1


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


async def test_after_a_lost_disk_a_lease_is_taken_over_once_and_none_is_kept_back(world, pair):
    customer, provider = pair
    host = await holding(world, customer, provider)
    await customer.market.settlement.settle_all()
    honest, raw = world.wire.handlers[provider.id], customer.one("customer").entry.raw
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {host.lease_id: 100 * MIB}})
    for shown, known in (([], []), ([raw, raw], [host.lease_id])):
        world.wire.handlers[provider.id] = honest
        lying(world, provider, lambda _: {}, shown)
        await customer.market.settlement.agree(provider.id)
        assert [view.entry.id for view in customer.market.leases()] == known
    assert customer.one("customer").entry.terms == provider.one("provider").entry.terms
    assert customer.one("customer").due_micro <= provider.one("provider").due_micro


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


async def test_a_lease_that_is_left_out_and_shown_again_is_paid_once(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    start_ms, shows = entry.terms.start_ms, [True]

    def worth(ms):
        return worth_of("storage", PRICE, 50 * SLOT_STEP_BYTES * ms, cleared=True)

    def lie(count):
        (line,) = count.leases
        more = {"used": wide(worth(count.counted_ms - start_ms)), "end_ms": count.counted_ms}
        lines = (line.model_copy(update=more),) if shows[0] else ()
        return {"leases": lines, "closed": wide(2**120), "amount_micro": 2**60}

    lying(world, provider, lie, [entry.raw])
    for _ in range(5):
        world.later(10_000)
        for shows[0] in (True, False):
            await customer.market.settlement.agree(provider.id)
    assert 0 < signed_of(customer, provider) <= worth(50_000) // WORTH


async def test_leases_that_were_never_asked_for_are_no_matter(world, three):
    """A provider lists them, or shows one of another customer, or that was over long ago."""
    customer, other, provider = three
    mine, theirs = [await ask(world, node, provider, node.id[::-1]) for node in (customer, other)]

    def lie(count):
        lines = [
            CountLine(
                lease_id=bytes([number]) * 32,
                held_bytes=2**40,
                level=2**40,
                used=wide(2**200),
                end_ms=2**60,
            )
            for number in range(256)
        ]
        return {"leases": tuple(lines) + count.leases, "amount_micro": 2**60}

    lying(world, provider, lie, [mine.raw, theirs.raw])
    for _ in range(2):
        world.later(EPOCH_MS)
        await customer.market.settlement.agree(provider.id)
        assert not customer.market.leases()
        assert signed_of(customer, provider) == 0


async def test_a_restart_of_the_customer_explains_no_minute_more(world, pair):
    """What a minute between two clocks comes to is allowed for changes, once for each."""
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(1)
    await customer.market.settlement.agree(provider.id)
    price = provider.market.store.get("provider", host.lease_id).terms.price
    minute = worth_of("storage", price, 100 * MIB * REQUEST_WINDOW_MS, cleared=False)
    more = []

    def lie(count):
        (line,) = count.leases
        used = number_of(line.used) + minute * len(more)
        return {"leases": (line.model_copy(update={"used": wide(used)}),), "amount_micro": 2**60}

    lying(world, provider, lie)
    for _ in range(5):
        more.append(host)
        world.later(EPOCH_MS)
        await customer.restart()
        provider.prove_to(customer)
        await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) == 5 * 4_000


@pytest.mark.parametrize("leased", [True, False])
async def test_who_wants_little_and_then_all_after_a_lost_disk_gets_what_was_signed(
    world, pair, leased
):
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(10 * DAY_MS)
    await customer.market.settlement.settle_all()
    paid = signed_of(customer, provider)
    customer.state = Memory()
    await customer.restart()
    lost = {host.lease_id: 100 * MIB} if leased else {}
    await customer.market.settlement.lost({provider.id: lost})
    honest = world.wire.handlers[provider.id]
    for amount_micro in (0, 10**12):
        world.wire.handlers[provider.id] = honest

        def lie(count, amount_micro=amount_micro):
            leases = count.leases if leased else ()
            said = {"closed": wide(10**15 * WORTH), "leases": leases}
            return said | {"amount_micro": amount_micro}

        lying(world, provider, lie, None if leased else [])
        world.later(1_000)
        await customer.market.settlement.agree(provider.id)
        assert signed_of(customer, provider) <= paid + 1_000
