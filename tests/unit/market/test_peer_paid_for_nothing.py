"""A provider is paid for what it does not serve, or twice."""

from tests.unit.allocation.fakes import Memory
from tests.unit.market.test_account_attacks import DAY_MS, lying, signed_of
from tests.unit.market.test_service import holding
from tests.unit.market.test_signing import entitle, need_of, needs, signed
from xsc.base.limits import MIB
from xsc.terms.pricing import WORTH
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


async def test_requests_that_were_refused_are_not_paid_after_a_lost_disk(world, three):
    """A provider keeps all that it refused, and shows it once its customer has lost its disk."""
    from tests.unit.market.fakes import NET
    from tests.unit.market.test_review_attacks import level_worth
    from xsc.base.errors import SpaceExhausted
    from xsc.identity.envelope import open_signed, sign
    from xsc.market.providers import LEASE
    from xsc.market.settlement import ACCOUNT
    from xsc.terms.lease import Lease, LeaseRequest
    from xsc.terms.voucher import CountLine, LeaseCount

    customer, _, provider = three
    needs(customer, need_of(50))
    seen = []

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise SpaceExhausted("too little room")

    world.wire.handlers[provider.id][LEASE] = refuse
    begun_ms = world.clock.now_ms()
    for _ in range(30):
        customer.received.clear()
        entitle(world, customer, provider, 50)
        await signed(world, customer)
        world.later(60_000)
    world.later(10 * DAY_MS)
    customer.state = Memory()
    await customer.restart()
    await customer.market.settlement.lost({provider.id: {}})
    requests = [open_signed(raw, LeaseRequest, network=NET).record for raw in seen]
    shown = {
        r.lease_id: sign(
            Lease(request=raw, level=r.level, granted_ms=r.start_ms, clearing=b"c" * 32),
            provider.key,
            NET,
        ).raw
        for raw, r in zip(seen, requests, strict=True)
    }
    honest = provider.market.handlers()[ACCOUNT]

    async def answer(caller, header, parts):
        reply, rest = await honest(caller, header, parts)
        count = open_signed(reply["count"], LeaseCount, network=NET).record
        lines = tuple(
            CountLine(
                lease_id=r.lease_id,
                held_bytes=0,
                level=r.level,
                used=wide(level_worth(50, count.counted_ms - r.start_ms)),
                end_ms=r.end_ms,
            )
            for r in requests
        )
        told = count.model_copy(update={"leases": lines, "amount_micro": 2**60})
        rows = [shown[lease_id] for lease_id in header["leases"]]
        return reply | {"count": sign(told, provider.key, NET).raw, "leases": rows}, rest

    world.wire.handlers[provider.id] |= {ACCOUNT: answer}
    await customer.market.settlement.agree(provider.id)
    most = level_worth(50, world.clock.now_ms() - begun_ms) // WORTH
    assert signed_of(customer, provider) <= most
