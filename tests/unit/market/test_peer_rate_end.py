"""A rate that is lowered under a run near its end is billed less than what runs."""

from tests.unit.market.fakes import admit, ask
from tests.unit.market.test_account_attacks import owed_to
from tests.unit.market.test_signing import PRICE, entitle, give_up
from xsc.base.limits import PRICE_FUEL
from xsc.terms.slot import STEP


async def test_a_rate_is_not_lowered_below_what_a_run_takes_until_its_end(world, three):
    customer, _, provider = three
    ran, level, leases = 0, 50 * STEP["compute"], 12
    for number in range(leases):
        now_ms = world.clock.now_ms()
        provider.granted.clear()
        offer = entitle(world, customer, provider, 50, kind="compute", slot=b"c" * 16)
        lease_id = bytes([number + 1]) * 32
        entry = await ask(world, customer, provider, lease_id, offer=offer, end_ms=now_ms + 90_000)
        for after_ms, seconds in ((0, 60), (60_000, 30)):
            world.later(now_ms + after_ms - world.clock.now_ms())
            steps = level * seconds
            await admit(world, provider, entry.id, customer, steps)
            if after_ms:
                await give_up(world, customer, provider, entry.id, 0)
            provider.market.granter.used_compute(entry.id, steps, steps)
            ran += steps
        world.later(now_ms + 90_000 - world.clock.now_ms())
        provider.market.tidy()
    fair = PRICE * ran // PRICE_FUEL
    assert owed_to(provider) >= fair * 99 // 100
