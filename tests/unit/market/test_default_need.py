"""What a node needs by default: what providers hold, and what they refused."""

from __future__ import annotations

import pytest

from tests.unit.market.test_signing import (
    DAY_MS,
    entitle,
    leased,
    need_of,
    needs,
    signed,
)
from xsc.base.errors import StoreDamaged
from xsc.base.limits import MIB, SLOT_STEP_BYTES
from xsc.market.default_need import SHORT_FILLED_MS, SHORT_MS, SHORTS_MAX


async def test_what_is_held_is_needed_beside_what_other_needs_have(world, three):
    customer, _, provider = three
    lease = await leased(world, customer, provider, MIB)
    need = customer.market.default_need
    assert not need.held().total(), "what was only handed out"
    await customer.market.buyer.used(lease.lease_id, MIB)
    assert need.held() == {provider.id: MIB}
    needs(customer, need_of(2))
    entitle(world, customer, provider, 2)
    await signed(world, customer)
    stored = await leased(world, customer, provider, 2 * MIB)
    await customer.market.buyer.used(stored.lease_id, 2 * MIB)
    assert need.held() == {provider.id: MIB}
    needs(customer)
    assert need.held() == {provider.id: 3 * MIB}, "no other need has it any more"


async def test_what_was_refused_is_needed_until_it_finds_room_or_is_withdrawn(world, three):
    customer, *_ = three
    customer.market.default_need.refused(64 * MIB, 1)
    customer.market.default_need.refused(65 * MIB, 1)
    customer.market.default_need.refused(65 * MIB, 1)
    assert customer.market.default_need.short() == (129 * MIB, 1)
    customer.market = customer.make()
    await customer.market.start()
    assert customer.market.default_need.short() == (129 * MIB, 1), "also over a restart"
    customer.market.default_need.placed(65 * MIB)
    assert customer.market.default_need.short() == (64 * MIB, 1)
    customer.market.default_need.withdraw()
    assert customer.market.default_need.short() == (0, 1)


async def test_a_put_that_is_tried_again_needs_no_more_and_no_less(three):
    need = three[0].market.default_need
    need.refused(143 * MIB, 5)
    need.refused(143 * MIB, 3)
    assert need.short() == (143 * MIB, 5), "what it found since is leased under this need"
    need.placed(143 * MIB)
    assert need.short() == (0, 1)


async def test_what_was_refused_is_needed_for_thirty_days_and_for_a_day_where_it_has_room(
    world, three
):
    customer, _, provider = three
    need = customer.market.default_need
    need.refused(64 * MIB, 1)
    for later_ms, left in ((SHORT_MS - 1, 64 * MIB), (1, 0)):
        world.later(later_ms)
        need.tidy()
        assert need.short() == (left, 1)

    need.refused(64 * MIB, 1)
    needs(customer, need_of(1))
    entitle(world, customer, provider, 1)
    await signed(world, customer)
    assert customer.one("customer").use.level == SLOT_STEP_BYTES
    customer.market.tidy()
    assert need.short() == (64 * MIB, 1)
    world.later(SHORT_FILLED_MS - 1)
    await customer.restart()
    customer.market.tidy()
    assert customer.market.default_need.short() == (64 * MIB, 1)
    world.later(1)
    customer.market.tidy()
    assert customer.market.default_need.short() == (0, 1), "its owner had a day to repeat the put"


async def test_a_need_does_not_end_while_room_is_promised_to_its_open_rest(world, three):
    """What is cleared at half-life falls free when the loser's term ends, 45 days later."""
    customer, _, provider = three
    need = customer.market.default_need
    need.refused(64 * MIB, 1)
    part = ((provider.id, 1),)
    stated = need_of(2).model_copy(update={"standing": True, "parts": part})
    needs(customer, stated)
    entitle(world, customer, provider, 2)
    for _ in range(2 * SHORT_MS // SHORT_FILLED_MS):
        world.later(SHORT_FILLED_MS)
        need.tidy()
        assert need.short() == (64 * MIB, 1)
    customer.received.clear()
    entitle(world, customer, provider, 1)
    need.tidy()
    assert need.short() == (0, 1), "its part is for what is held there"


async def test_so_many_refusals_count_and_the_oldest_goes_first(world, three):
    customer, *_ = three
    need = customer.market.default_need
    for size_bytes in range(1, SHORTS_MAX + 2):
        need.refused(size_bytes, 6)
        world.later(1)
    assert need.short() == (sum(range(2, SHORTS_MAX + 2)), 6)
    need.refused(2, 6)
    need.refused(DAY_MS, 1)
    assert need.short() == (sum(range(2, SHORTS_MAX + 2)) - 3 + DAY_MS, 6)


async def test_what_was_refused_and_cannot_be_read_is_said_at_the_start(world, three):
    customer, *_ = three
    customer.market.default_need.refused(64 * MIB, 1)
    customer.state.write([(b"market/short", b"\0")], sync=False)
    with pytest.raises(StoreDamaged, match="what was refused"):
        await customer.restart()
