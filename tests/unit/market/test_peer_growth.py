"""A provider makes its customer's memory and disk grow, and honest nodes look bad."""

from tests.unit.market.fakes import NET, ask
from tests.unit.market.test_account_attacks import lying, owed_to
from tests.unit.market.test_signing import (
    entitle,
    need_of,
    needs,
    signed,
)
from xsc.allocation.commitments import PRICES_POSTED_MS
from xsc.base.limits import MIB, OFFER_MS
from xsc.identity.envelope import open_signed, sign
from xsc.market.providers import LEASE
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.voucher import CountLine, wide


def disk(node):
    return sum(len(key) + len(raw) for key, raw in node.state.scan(b"", b"\xff" * 40))


async def test_a_provider_that_grants_a_byte_at_a_time_fills_no_disk(world, three):
    customer, _, provider = three
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50, until_ms=2**60)

    async def grant(_caller, header, _parts):
        lease = Lease(request=header["request"], level=1, clearing=b"c" * 32)
        return {"lease": sign(lease, provider.key, NET).raw}, ()

    world.wire.handlers[provider.id] |= {LEASE: grant}
    for _ in range(300):
        world.later(5_000)
        customer.market.tidy()
        await signed(world, customer)
    assert len(customer.market.leases()) <= 256


async def test_a_provider_that_grants_and_denies_fills_no_disk(world, three):
    """Each denial is kept as evidence with each lease: a count of 512 lines."""
    customer, _, provider = three
    needs(customer, need_of(50))
    entitle(world, customer, provider, 50, until_ms=2**60)

    async def grant(_caller, header, _parts):
        request = open_signed(header["request"], LeaseRequest, network=NET).record
        lease = Lease(
            request=header["request"],
            level=request.level,
            clearing=b"c" * 32,
        )
        return {"lease": sign(lease, provider.key, NET).raw}, ()

    lines = tuple(
        CountLine(
            lease_id=number.to_bytes(32, "big"),
            held_bytes=2**50,
            level=2**50,
            used=wide(0),
            end_ms=1,
        )
        for number in range(512)
    )
    lying(world, provider, lambda _: {"leases": lines, "amount_micro": 0})
    world.wire.handlers[provider.id] |= {LEASE: grant}
    customer.health.quality_ppm(provider.id)
    for _ in range(120):
        world.later(10_000)
        customer.market.tidy()
        await signed(world, customer)
        await customer.market.settlement.settle_due()
    assert disk(customer) < 2 * MIB


async def test_an_offer_that_nobody_takes_raises_no_price_for_an_hour(world, three):
    customer, _other, provider = three
    price = provider.market.headroom.pricing().ladder("storage").reserve
    world.later(PRICES_POSTED_MS)
    entitle(world, customer, provider, 100)
    provider.market.headroom.pricing()  # in the minute in which all is offered
    world.later(OFFER_MS)
    provider.granted.clear()
    world.later(PRICES_POSTED_MS - OFFER_MS - 1)
    now = provider.market.headroom.pricing().ladder("storage").reserve
    assert now == price


async def test_the_first_minute_of_a_lease_for_now_is_paid(world, pair):
    customer, provider = pair
    for number in range(1, 11):
        entry = await ask(
            world,
            customer,
            provider,
            bytes([number]) * 32,
            start_ms=world.clock.now_ms() + 60_000,
            end_ms=world.clock.now_ms() + 120_000,
        )
        provider.stores(entry.id, customer.id, 1024 * MIB)
        world.later(59_000)
        provider.drops(entry.id, 1024 * MIB)
        world.later(1_000)
    assert owed_to(provider) > 0


async def test_an_honest_provider_is_not_reported_for_a_put_whose_answer_was_lost(world, pair):
    """The customer's clock goes on for half a minute before it asks what is there."""
    from tests.unit.market.test_service import holding

    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(20_000)
    await customer.market.settlement.settle_due()
    quality = customer.health.quality_ppm(provider.id)
    provider.stores(host.lease_id, customer.id, 100 * MIB)  # the answer is lost
    world.later(20_000)
    await customer.market.settlement.settle_due()
    assert customer.health.quality_ppm(provider.id) == quality
