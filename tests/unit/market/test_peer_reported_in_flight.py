"""A run that has ended at its provider, whose answer is on its way, is no false count."""

from tests.unit.market.fakes import admit


async def test_a_run_whose_receipt_is_on_its_way_is_no_reason_for_a_report(world, pair):
    customer, provider = pair
    steps = 10**9
    handle = await world.drive(
        customer.market.buyer.lease_compute(fuel_steps=steps, on=provider.id)
    )
    await admit(world, provider, handle.lease_id, customer, steps)
    provider.market.granter.used_compute(handle.lease_id, steps, steps)
    before = customer.health.quality_ppm(provider.id)
    # The receipt comes a moment later; meanwhile the customer settles, as every ten seconds.
    await world.drive(customer.market.settlement.settle_all())
    assert customer.health.quality_ppm(provider.id) == before
