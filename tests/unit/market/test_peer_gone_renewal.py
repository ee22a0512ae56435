"""A request for a renewal outlives its lease: it is granted later as a lease of its own."""

from tests.unit.market.fakes import NET
from tests.unit.market.test_account_attacks import DAY_MS, lying, signed_of
from tests.unit.market.test_signing import held_half, needs, signed
from xsc.base.errors import PeerSilent
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.identity.envelope import open_signed, sign
from xsc.market.providers import LEASE
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import worth as worth_of
from xsc.terms.voucher import CountLine, wide


async def test_a_renewal_is_not_granted_once_its_lease_is_forgotten(world, three):
    customer, _, provider = three
    held = 50 * SLOT_STEP_BYTES
    _, lease_id = await held_half(world, customer, provider, 50, held)
    honest, seen = world.wire.handlers[provider.id], []

    async def stall(_caller, header, _parts):
        seen.append(header["request"])
        raise PeerSilent("it answers nothing to this")

    world.wire.handlers[provider.id] = honest | {LEASE: stall}
    (entry,) = customer.market.store.all("customer")
    await signed(world, customer)
    world.later(8 * DAY_MS)
    await signed(world, customer)
    request = open_signed(seen[-1], LeaseRequest, network=NET).record
    assert request.renews
    # The lease ends; its data is elsewhere by then, and the need is withdrawn.
    world.later(entry.terms.end_ms + 1 - world.clock.now_ms())
    needs(customer)
    for node in (customer, provider):
        node.market.tidy()
    provider.drops(lease_id, held)
    await customer.market.buyer.used(lease_id, -held)
    await world.drive(customer.market.settlement.settle_all())
    paid = signed_of(customer, provider)
    # It names the lease no more, as an honest one after an hour.
    world.later(2 * 3_600_000)
    closed = provider.market.store.get("provider", lease_id).use.used
    lying(world, provider, lambda _: {"leases": (), "closed": wide(closed)})
    await customer.market.settlement.agree(provider.id)
    assert customer.market.store.get("customer", lease_id) is None
    # Now it grants what was asked for at half-life.
    late = Lease(request=seen[-1], level=request.level)
    raw = sign(late, provider.key, NET).raw

    async def grant(_caller, header, _parts):
        return {"lease": raw}, ()

    world.wire.handlers[provider.id] |= {LEASE: grant}

    def lie(count):
        passed = min(count.counted_ms, request.end_ms) - request.start_ms
        used = worth_of("storage", request.price, request.level * passed, cleared=True)
        line = CountLine(
            lease_id=lease_id,
            held_bytes=0,
            level=request.level,
            used=wide(used),
            end_ms=request.end_ms,
        )
        return {"leases": (line,), "closed": wide(closed), "amount_micro": 2**60}

    lying(world, provider, lie)
    await signed(world, customer)
    await world.drive(customer.market.settlement.settle_all())
    assert signed_of(customer, provider) <= paid + 1
