"""A provider that was down while a need fell is reported once its customer restarts."""

from tests.unit.market.test_signing import TEN_MINUTES_MS, leased_all, need_of, needs, signed
from xsc.base.limits import EPOCH_MS, TIDY_MS
from xsc.market.signing import LOWER_MS


async def test_an_honest_provider_that_was_down_is_not_reported(world, three):
    customer, _, provider = three
    await leased_all(world, customer, provider, 80)
    world.later(TEN_MINUTES_MS)
    await world.drive(customer.market.settlement.settle_all())
    world.wire.down.add(provider.id)
    needs(customer, need_of(20))
    await signed(world, customer)
    world.later(LOWER_MS + TIDY_MS)
    await signed(world, customer)
    world.later(EPOCH_MS)
    world.wire.down.clear()
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_all())
    assert provider.one("provider").use.level == customer.one("customer").use.level
    before = customer.health.quality_ppm(provider.id)
    customer.market.store.close()
    await customer.restart()
    world.later(TEN_MINUTES_MS)
    await world.drive(customer.market.settlement.settle_all())
    assert customer.health.quality_ppm(provider.id) == before
