"""A renewal that was refused is shown in place of the one that its customer asks for later."""

from dataclasses import replace

from tests.unit.market.fakes import A_MIB, NET
from tests.unit.market.test_signing import DAY_MS, held_half, need_of, needs, signed
from xsc.base.errors import NoOffers
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.identity.envelope import open_signed, sign
from xsc.market.providers import LEASE
from xsc.terms.lease import Lease, LeaseRequest


async def test_a_renewal_costs_no_more_than_its_need_pays_when_it_is_asked_for(world, three):
    customer, _, provider = three
    held = 50 * SLOT_STEP_BYTES
    granted, _ = await held_half(world, customer, provider, 50, held)
    dear, cheap = 40 * A_MIB, 7 * A_MIB
    honest, seen = world.wire.handlers[provider.id], []

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise NoOffers("not now")

    world.wire.handlers[provider.id] = honest | {LEASE: refuse}
    customer.received[:] = [replace(granted, price=dear)]
    world.later(8 * DAY_MS)
    await signed(world, customer)
    first = open_signed(seen[0], LeaseRequest, network=NET).record
    assert (first.price, first.renews) == (dear, True)
    assert not customer.market.store.asked, "it was refused"
    # From now on its owner pays a sixth.
    needs(customer, need_of(50, price_max=cheap))
    customer.received[:] = [replace(granted, price=cheap)]
    raw = sign(Lease(request=seen[0], level=first.level), provider.key, NET).raw

    async def show(_caller, header, _parts):
        seen.append(header["request"])
        return {"lease": raw}, ()

    world.wire.handlers[provider.id] = honest | {LEASE: show}
    world.later(10 * DAY_MS)
    await signed(world, customer)
    assert open_signed(seen[-1], LeaseRequest, network=NET).record.price == cheap
    (entry,) = customer.market.store.all("customer")
    assert entry.terms.price <= cheap
