"""Counts, vouchers and requests: what a provider or a customer makes of them."""

from tests.unit.market.fakes import NET, ask
from tests.unit.market.test_account_attacks import owed_to, signed_of
from tests.unit.market.test_service import holding
from tests.unit.market.test_signing import (
    entitle,
    give_up,
    leased_all,
    need_of,
    needs,
    signed,
    taken,
)
from xsc.base.errors import PeerSilent
from xsc.base.limits import EPOCH_MS, MIB, OFFER_MS, REQUEST_WINDOW_MS, SLOT_STEP_BYTES
from xsc.identity.envelope import open_signed, sign
from xsc.market.providers import LEASE
from xsc.market.settlement import ACCOUNT
from xsc.market.signing import LOWER_MS
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.pricing import worth as worth_of
from xsc.terms.voucher import LeaseCount, wide


async def test_a_minute_is_explained_once_while_puts_come_all_the_time(world, pair):
    """Each count comes while a put ends, so the leeway of all puts before is there again."""
    customer, provider = pair
    host = await holding(world, customer, provider)
    begun_ms = world.clock.now_ms()
    entry = customer.market.store.get("customer", host.lease_id)
    price = entry.terms.price
    honest = provider.market.handlers()[ACCOUNT]
    told = [0, begun_ms]

    async def answer(caller, header, parts):
        reply, rest = await honest(caller, header, parts)
        world.later(1)
        # A put ends while the count is on its way.
        provider.stores(host.lease_id, customer.id, 512)
        await customer.market.buyer.used(host.lease_id, 512)
        count = open_signed(reply["count"], LeaseCount, network=NET).record
        (line,) = count.leases
        # It knows both counts: what the customer would just believe.
        told[0] = rules_used(customer, host.lease_id, world.clock.now_ms())
        lines = (line.model_copy(update={"used": wide(told[0])}),)
        count = count.model_copy(update={"leases": lines, "amount_micro": 2**60})
        return reply | {"count": sign(count, provider.key, NET).raw}, rest

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}
    for _ in range(360):
        world.later(10_000)
        await customer.market.settlement.agree(provider.id)
    held = 100 * MIB + 720 * 512
    worth = worth_of("storage", price, held * (world.clock.now_ms() - begun_ms), cleared=False)
    minute = worth_of("storage", price, held * REQUEST_WINDOW_MS, cleared=False)
    assert not customer.market.store.account("customer", provider.id).disputed
    assert signed_of(customer, provider) <= (worth + 2 * minute) // WORTH


def rules_used(customer, lease_id, now_ms):
    from xsc.market import lease as rules

    entry = customer.market.store.get("customer", lease_id)
    use = rules.advance(entry.terms, entry.use, now_ms)
    return use.used + use.leeway


async def test_a_voucher_that_comes_after_a_lowering_makes_no_debt(world, three):
    """An honest pair: the voucher was lost, room is given up, the voucher comes again."""
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    await world.drive(customer.market.settlement.settle_all())
    world.later(EPOCH_MS)
    honest = provider.market.handlers()[ACCOUNT]
    lost = [True]

    async def lose(caller, header, parts):
        if lost and header["voucher"] is not None:
            raise PeerSilent("lost")
        return await honest(caller, header, parts)

    world.wire.handlers[provider.id] |= {ACCOUNT: lose}
    await world.drive(customer.market.settlement.settle_all())
    (entry,) = customer.market.store.all("customer")
    needs(customer)
    entry.less = 0, world.clock.now_ms() - 50_000  # what a clock that is behind would say
    lost.clear()
    await world.drive(customer.market.settlement.settle_all())
    provider.granted.clear()
    customer.received.clear()
    await leased_all(world, customer, provider, 50)
    for _ in range(3):
        world.later(EPOCH_MS)
        await world.drive(customer.market.settlement.settle_all())
    (theirs,) = provider.market.store.accounts()
    assert provider.market.owed_micro(theirs) == 0


async def test_a_silent_provider_blocks_a_need_no_longer_than_its_request_could_last(world, three):
    """It takes the request, and answers nothing ever: no lease, no count."""
    customer, second, silent = three
    second.room.storage = 100 * SLOT_STEP_BYTES

    async def never(*_):
        raise PeerSilent("no answer")

    world.wire.handlers[silent.id] = {LEASE: never, ACCOUNT: never}
    needs(customer, need_of(50))
    entitle(world, customer, silent, 50, price=1)
    await signed(world, customer)
    world.later(LOWER_MS + 2 * REQUEST_WINDOW_MS)
    await customer.restart()
    customer.received.clear()
    entitle(world, customer, second, 50)
    await signed(world, customer)
    assert taken(second, "provider") == 50


async def test_a_lease_that_a_peer_takes_forgets_no_own_request(world, three):
    """The peer names its own lease after the request that it has not answered."""
    customer, second, provider = three
    customer.room.storage = 100 * SLOT_STEP_BYTES
    second.room.storage = 100 * SLOT_STEP_BYTES
    honest = world.wire.handlers[provider.id][LEASE]

    async def lost(_caller, header, _parts):
        request = open_signed(header["request"], LeaseRequest, network=NET).record
        await ask(world, provider, customer, request.lease_id)
        raise PeerSilent("the answer was lost")

    world.wire.handlers[provider.id][LEASE] = lost
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50)
    await signed(world, customer)
    world.wire.handlers[provider.id][LEASE] = honest
    assert customer.market.store.asked, "it may be granted, and counts"


async def test_bytes_that_lay_there_in_the_minute_that_is_given_up_are_paid(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 50)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.stores(entry.id, customer.id, 50 * SLOT_STEP_BYTES)
    world.later(2 * OFFER_MS)
    provider.market.tidy()
    owed = owed_to(provider)
    provider.drops(entry.id, 50 * SLOT_STEP_BYTES)
    await give_up(world, customer, provider, entry.id, 0)
    assert owed_to(provider) >= owed
