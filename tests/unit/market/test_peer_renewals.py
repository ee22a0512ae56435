"""Renewals: a customer lowers its bill by them, and a provider shows a refused one later."""

import pytest

from tests.unit.market.fakes import NET, ask, granted_on, request_of
from tests.unit.market.test_account_attacks import DAY_MS, lying, owed_to, signed_of
from tests.unit.market.test_signing import held_half, needs, signed
from xsc.base.errors import SpaceExhausted, XscError
from xsc.base.limits import MIB, SLOT_STEP_BYTES
from xsc.identity.envelope import open_signed, sign
from xsc.market.providers import LEASE
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.pricing import worth as worth_of
from xsc.terms.voucher import number_of, wide

MINUTE_MS = 60_000


async def renew(world, customer, provider, entry, **change):
    await granted_on(
        customer, provider, request_of(world, customer, provider, lease_id=entry.id, **change)
    )


async def test_two_renewals_take_no_debt_off(world, pair):
    """A dear term that begins in a minute, then a cheap one that began a minute ago.

    The second takes two minutes off at the dear price, which were never counted at it.
    """
    customer, provider = pair
    asked = provider.market.headroom.pricing().ladder("storage").rung("open")
    start = world.clock.now_ms()
    entry = await ask(world, customer, provider, price=asked, end_ms=start + 8_000)
    provider.stores(entry.id, customer.id, 100 * MIB)
    world.later(20 * DAY_MS)
    fair = worth_of("storage", asked, 100 * MIB * 20 * DAY_MS, cleared=False) // WORTH
    before = owed_to(provider)
    assert before == fair > 0
    dear = asked * 4_000
    now = world.clock.now_ms()
    first = {"start_ms": now + MINUTE_MS, "end_ms": now + MINUTE_MS + 1, "price": dear}
    await renew(world, customer, provider, entry, **first)
    second = {"start_ms": now - MINUTE_MS, "end_ms": now + 80 * DAY_MS, "price": asked}
    await renew(world, customer, provider, entry, **second)
    assert owed_to(provider) >= before * 99 // 100


async def test_short_terms_cost_nothing_for_ever(world, pair):
    """The same in terms of two minutes, from the first on, within a small credit."""
    customer, provider = pair
    asked = provider.market.headroom.pricing().ladder("storage").rung("open")
    size = 1024 * MIB
    hour = asked * size // 2**30
    provider.ledger.limit = 4 * hour  # four hours of what is stored
    now = world.clock.now_ms()
    entry = await ask(world, customer, provider, price=asked, end_ms=now + 8_000)
    provider.stores(entry.id, customer.id, size)
    hours = 50
    refused = 0
    for _ in range(hours * 30):
        world.later(2 * MINUTE_MS)
        now = world.clock.now_ms()
        try:
            end = max(now, entry.terms.end_ms) + rules_eighth(entry)
            at = {"start_ms": now + MINUTE_MS, "end_ms": max(end, now + MINUTE_MS + 1)}
            await renew(world, customer, provider, entry, price=3 * asked, **at)
            end = entry.terms.end_ms + rules_eighth(entry)
            at = {"start_ms": now - MINUTE_MS, "end_ms": end}
            await renew(world, customer, provider, entry, price=asked, **at)
        except XscError:
            refused += 1
    provider.market.tidy()
    if refused:
        pass
    assert owed_to(provider) >= hours * hour * 9 // 10


def rules_eighth(entry):
    return max(1, (entry.terms.end_ms - entry.terms.start_ms) // 8)


@pytest.mark.parametrize("days", [1, 29])
async def test_a_renewal_that_was_refused_is_not_shown_once_the_bytes_moved(world, three, days):
    """The lease ran out, its host refused a further term; the bytes were moved and deleted."""
    customer, _, provider = three
    held = 50 * SLOT_STEP_BYTES
    _, lease_id = await held_half(world, customer, provider, 50, held)
    honest, seen = world.wire.handlers[provider.id], []

    async def refuse(_caller, header, _parts):
        seen.append(header["request"])
        raise SpaceExhausted("too little room")

    world.wire.handlers[provider.id] = honest | {LEASE: refuse}
    (entry,) = customer.market.store.all("customer")
    world.later(entry.terms.end_ms + 1 - world.clock.now_ms())
    for node in (customer, provider):
        node.market.tidy()
    await signed(world, customer)  # asked after the end, while the bytes are still stored
    request = open_signed(seen[-1], LeaseRequest, network=NET).record
    assert request.start_ms > entry.terms.end_ms
    # Its data is moved away, and its need is withdrawn.
    provider.drops(lease_id, held)
    await customer.market.buyer.used(lease_id, -held)
    needs(customer)
    await world.drive(customer.market.settlement.settle_all())
    paid = signed_of(customer, provider)
    for _ in range(days):
        world.later(DAY_MS)
        customer.market.tidy()
        await signed(world, customer)
        await world.drive(customer.market.settlement.settle_all())
    assert signed_of(customer, provider) == paid
    late = Lease(request=seen[-1], level=request.level)

    def lie(count):
        lines = tuple(
            line.model_copy(
                update={
                    "end_ms": request.end_ms,
                    "level": request.level,
                    "used": wide(
                        number_of(line.used)
                        + worth_of(
                            "storage",
                            request.price,
                            request.level * (count.counted_ms - request.start_ms),
                            cleared=True,
                        )
                    ),
                }
            )
            for line in count.leases
        )
        return {"leases": lines, "amount_micro": 2**60}

    # An attacker keeps the line in its counts; this honest one has forgotten after an hour.
    lying(world, provider, lie, [sign(late, provider.key, NET).raw])
    await customer.market.settlement.agree(provider.id)
    assert signed_of(customer, provider) <= paid + 1
