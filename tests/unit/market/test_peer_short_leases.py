from tests.unit.market.fakes import ask
from tests.unit.market.test_account_attacks import owed_to
from xsc.base.limits import GIB


async def test_no_term_takes_off_more_than_was_counted(world, pair):
    """Starts only rise here; bytes that came at the end of a dear minute take it all off."""
    from tests.unit.market.test_peer_renewals import DAY_MS, renew

    customer, provider = pair
    asked = provider.market.headroom.pricing().ladder("storage").rung("open")
    now = world.clock.now_ms()
    entry = await ask(world, customer, provider, price=asked, end_ms=now + 8_000)
    provider.stores(entry.id, customer.id, GIB)
    world.later(10 * DAY_MS)
    provider.drops(entry.id, GIB - 1)
    now = world.clock.now_ms()
    dear = 8_000 * asked
    await renew(world, customer, provider, entry, start_ms=now, end_ms=now + 120_000, price=dear)
    before = owed_to(provider)
    world.later(59_000)
    provider.stores(entry.id, customer.id, 10 * GIB)
    await renew(world, customer, provider, entry, start_ms=now, end_ms=now + DAY_MS, price=asked)
    assert owed_to(provider) >= before
