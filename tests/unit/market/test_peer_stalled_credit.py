"""Guests of one friend share one credit: what they owe is summed anew for each of them."""

from dataclasses import replace

from tests.unit.market.fakes import A_MIB, ask
from xsc.base.limits import (
    INTRODUCED_A_PEER_MAX,
    LEASES_A_CUSTOMER_MAX,
    LEASES_DONE_A_CUSTOMER_MAX,
)
from xsc.market import lease as rules

EACH = LEASES_A_CUSTOMER_MAX + LEASES_DONE_A_CUSTOMER_MAX


async def test_a_look_at_who_reached_its_limit_goes_over_each_lease_a_few_times(
    world, three, monkeypatch
):
    """Each has all the leases for now that it may have, in use and over: they cost nothing."""
    customer, _, provider = three
    entry = await ask(world, customer, provider, price=40 * A_MIB)
    store, number = provider.market.store, 1
    guests = [bytes([2, guest]) * 16 for guest in range(INTRODUCED_A_PEER_MAX)]
    for guest in guests:
        for _ in range(EACH):
            number += 1
            named = {"lease_id": number.to_bytes(32, "big"), "customer": guest}
            store._know(replace(entry, terms=entry.terms.model_copy(update=named)))
    provider.ledger.sharing = guests
    calls, real = [0], rules.advance

    def counted(*given):
        calls[0] += 1
        return real(*given)

    monkeypatch.setattr(rules, "advance", counted)
    provider.market.headroom.refresh()
    assert 0 < calls[0] <= 4 * len(guests) * EACH
