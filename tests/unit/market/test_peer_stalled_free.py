"""One stranger's needs times its leases are looked at for each write of anybody."""

from tests.unit.market.fakes import A_MIB, ask
from tests.unit.market.test_signing import entitle, need_of, needs
from xsc.base.limits import GIB, LEASES_A_CUSTOMER_MAX, NEEDS_MAX


async def test_what_is_free_costs_no_product_of_needs_and_leases(world, three):
    customer, _, provider = three
    provider.room.storage = 1_000 * GIB
    stated = [need_of(1, need=bytes([number + 1]) * 16) for number in range(NEEDS_MAX)]
    needs(customer, *stated)
    said = world.stated(customer.id)
    world.stated = lambda _: said  # A real node parses what is published once.
    # Leases for now, under which nothing is stored: they cost nothing.
    for number in range(LEASES_A_CUSTOMER_MAX - 1):
        await ask(world, customer, provider, bytes([1, number]) * 16, price=40 * A_MIB)
    world.later(10_000)
    for need in stated:
        entitle(world, customer, provider, 1, need=need.slot_id)
    calls, real = [0], provider.market.store._need_of

    def counted(*given):
        calls[0] += 1
        return real(*given)

    provider.market.store._need_of = counted
    provider.market.headroom.free("storage")
    assert 0 < calls[0] <= 4 * (LEASES_A_CUSTOMER_MAX + NEEDS_MAX)
