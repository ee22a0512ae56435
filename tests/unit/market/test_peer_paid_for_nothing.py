"""A provider is paid for what it does not serve, or twice."""

from tests.unit.allocation.fakes import Memory
from tests.unit.market.test_account_attacks import DAY_MS, lying, signed_of
from tests.unit.market.test_service import holding
from xsc.base.limits import MIB
from xsc.terms.voucher import number_of, wide


async def test_after_a_lost_disk_the_present_term_is_not_paid_twice(world, pair):
    """What the newest voucher paid is believed, and the whole present term once more."""
    customer, provider = pair
    host = await holding(world, customer, provider)
    world.later(10 * DAY_MS)
    await customer.market.settlement.settle_all()
    paid = signed_of(customer, provider)
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {host.lease_id: 100 * MIB}})

    def lie(count):
        (line,) = count.leases
        used = 2 * number_of(line.used)
        return {"leases": (line.model_copy(update={"used": wide(used)}),), "amount_micro": 2**60}

    lying(world, provider, lie)
    world.later(1_000)
    await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) <= paid + 10
