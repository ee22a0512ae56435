"""The credit bounds what is held under leases for now."""

import contextlib

import pytest

from tests.unit.market.fakes import ask
from xsc.base.errors import CreditExceeded, XscError
from xsc.base.limits import GIB, KIB, MIB


def fill(customer, provider, entry, size, most):
    held = 0
    try:
        while held < most:
            provider.stores(entry.id, customer.id, size)
            held += size
    except XscError:
        pass
    return held


@pytest.mark.parametrize("size", [MIB, 64 * KIB])
async def test_small_writes_are_within_the_credit_as_well(world, pair, size):
    customer, provider = pair
    asked = provider.market.headroom.pricing().ladder("storage").rung("open")
    provider.ledger.limit = 100  # micro-credits: ten MiB for an hour
    entry = await ask(world, customer, provider, price=asked)
    held = 0
    for _ in range(5):
        held += fill(customer, provider, entry, size, 256 * MIB)
        world.later(5_000)
        provider.market.tidy()
    hour = asked * entry.use.held_bytes // GIB
    assert hour <= 2 * provider.ledger.limit


async def test_bytes_under_way_are_within_the_credit_as_well(world, pair):
    customer, provider = pair
    asked = provider.market.headroom.pricing().ladder("storage").rung("open")
    provider.ledger.limit = 100
    entry = await ask(world, customer, provider, price=asked)
    for _ in range(5):
        with contextlib.suppress(CreditExceeded):
            while entry.reserved < 256 * MIB:
                provider.market.granter.admit(entry.id, customer.id, MIB)
        world.later(5_000)
        provider.market.tidy()
    assert asked * entry.reserved // GIB <= provider.ledger.limit
