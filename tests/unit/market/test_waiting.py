"""Calls that wait in lines: of a customer at one provider, and of any that want the same room."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from tests.settle import settle
from xsc.base.clock import ManualClock
from xsc.base.errors import CreditExceeded, LimitError, NoOffers, RateLimited
from xsc.base.limits import COMPUTE_LEASE_MS, COMPUTE_WAIT_MS, FUEL_DEFAULT, RUN_FUEL
from xsc.market.buyer import COMPUTE_IN_FLIGHT_MAX, COMPUTE_WAITING_MAX
from xsc.market.providers import LEASE
from xsc.market.waiting import WaitingLines

NEED = FUEL_DEFAULT + RUN_FUEL
"""What a run of the default limits may cost."""
RUN_MS = 100


@dataclass
class Shop:
    """A customer and a provider that it does not recognise, which runs what is asked of it."""

    world: object
    customer: object
    provider: object
    ran: list = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def call(self, number=0, *, need=NEED, wait_ms=COMPUTE_WAIT_MS, run_ms=RUN_MS, on=True):
        """Lease fuel, run for so long, and pay for next to nothing, as a small call does."""
        buyer, book = self.customer.market.buyer, self.provider.market.granter
        target = self.provider.id if on else None
        lease = await buyer.lease_compute(fuel_steps=need, on=target, wait_ms=wait_ms)
        book.compute_terms(lease.lease_id, self.customer.id, need)
        await book.admit_compute(lease.lease_id, self.customer.id, need, wait_ms)
        self.ran.append(number)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.world.clock.sleep_ms(run_ms)
        finally:
            self.in_flight -= 1
            book.used_compute(lease.lease_id, need, RUN_FUEL)
        await self.customer.market.buyer.spent(lease.lease_id, RUN_FUEL)

    @property
    def waiting(self):
        return len(self.customer.market.buyer._lines)

    def asked(self, method):
        return sum(each == method for _, _, each in self.world.wire.calls)


@pytest.fixture
def shop(world, pair):
    customer, provider = pair
    return Shop(world, customer, provider)


async def test_64_calls_at_one_provider_are_in_flight_in_the_order_in_which_they_came(world, shop):
    took = world.clock.now_ms()
    await world.drive(*(shop.call(number) for number in range(64)))
    assert shop.ran == list(range(64))
    assert shop.most_in_flight == COMPUTE_IN_FLIGHT_MAX
    assert world.clock.now_ms() - took == 2 * RUN_MS
    assert shop.waiting == 0


async def test_calls_need_one_lease_a_minute_for_as_long_as_they_come(world, shop):
    minutes = 3
    until_ms = world.clock.now_ms() + minutes * COMPUTE_LEASE_MS

    async def one_by_one():
        while world.clock.now_ms() < until_ms:
            await shop.call(run_ms=500)

    await world.drive(*(one_by_one() for _ in range(16)), steps=20_000)
    assert shop.asked(LEASE) <= minutes + 2


@pytest.mark.parametrize("wait_ms", [0, 1, 50])
async def test_nobody_waits_longer_than_it_may(world, shop, wait_ms):
    running = [asyncio.ensure_future(shop.call(run_ms=1000)) for _ in range(COMPUTE_IN_FLIGHT_MAX)]
    await settle()
    before = world.clock.now_ms()
    answers = await world.drive(*(shop.call(wait_ms=wait_ms) for _ in range(3)))
    assert [type(answer) for answer in answers] == [RateLimited] * 3
    assert world.clock.now_ms() - before == wait_ms
    await world.drive(*running)
    await world.drive(shop.call(wait_ms=0))


async def test_a_run_that_was_refused_or_lost_makes_room_at_once(world, shop):
    buyer = shop.customer.market.buyer
    for _ in range(COMPUTE_IN_FLIGHT_MAX):
        lease = await world.drive(buyer.lease_compute(fuel_steps=NEED, on=shop.provider.id))
    call = asyncio.ensure_future(shop.call())
    await settle()
    assert not shop.ran
    before = world.clock.now_ms()
    shop.customer.market.buyer.unused(lease.lease_id, NEED)
    await world.drive(call)
    assert world.clock.now_ms() - before == RUN_MS


async def test_who_takes_any_node_takes_a_free_one_before_it_waits(world, shop):
    running = [asyncio.ensure_future(shop.call(run_ms=5000)) for _ in range(COMPUTE_IN_FLIGHT_MAX)]
    await settle()
    other = world.node(3)
    found = await world.drive(
        shop.customer.market.buyer.lease_compute(fuel_steps=NEED, on=None, wait_ms=COMPUTE_WAIT_MS)
    )
    assert found.node == other.id
    await world.drive(*running)


async def test_a_lease_of_a_service_is_its_own(world, shop):
    buyer, wish = shop.customer.market.buyer, {"fuel_steps": NEED, "on": shop.provider.id}
    await world.drive(shop.call())
    served = await world.drive(buyer.lease_service(**wish))
    run = await world.drive(buyer.lease_compute(**wish))
    assert run.lease_id != served.lease_id
    again = await world.drive(buyer.lease_service(**wish))
    assert again.lease_id not in {run.lease_id, served.lease_id}


@pytest.mark.parametrize("seed", range(20))
async def test_every_wait_ends_and_who_goes_away_takes_nothing_along(world, shop, seed):
    chance = random.Random(seed)
    calls, gone = [], []
    shop.provider.ledger.limit = 10**9 // 2

    async def customer(number):
        await world.clock.sleep_ms(chance.randrange(2_000))
        await shop.call(
            number,
            need=chance.choice([NEED // 8, NEED, 300 * NEED, 20_000 * NEED]),
            wait_ms=chance.choice([0, 300, COMPUTE_WAIT_MS]),
            run_ms=chance.randrange(10 * RUN_MS),
            on=chance.random() < 0.8,
        )

    async def leave():
        for call in gone:
            await world.clock.sleep_ms(chance.randrange(200))
            if call not in {calls[number] for number in shop.ran}:
                call.cancel()

    calls += [asyncio.ensure_future(customer(number)) for number in range(80)]
    gone += chance.sample(calls, 20)
    await world.drive(leave(), steps=2_000)
    answers = await asyncio.wait_for(_all(world, calls), 60)
    for call, answer in zip(calls, answers, strict=True):
        assert answer is None or isinstance(answer, LimitError | NoOffers) or call in gone
    assert shop.waiting == 0
    assert len(shop.provider.market.granter._lines) == 0
    assert shop.provider.market.headroom.credit_left(shop.customer.id) >= 0


async def _all(world, calls):
    for _ in range(5_000):
        await settle()
        if all(call.done() for call in calls):
            break
        if (next_ms := world.clock.next_ms()) is not None:
            world.clock.advance_to(next_ms)
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(("most", "each", "lines"), [(3, 9, "abc"), (9, 3, "aaa")])
async def test_so_many_calls_wait_in_all_and_in_one_line(most, each, lines):
    clock = ManualClock()
    waiting = WaitingLines(clock, most=most, each=each)
    free = False
    standing = [asyncio.ensure_future(waiting.enter(key, lambda: free, 1000)) for key in lines]
    await settle()
    with pytest.raises(RateLimited, match="calls wait here already"):
        await waiting.enter(lines[0], lambda: free, 1000)
    standing[0].cancel()
    await settle()
    assert len(waiting) == 2
    free = True
    waiting.wake()
    await asyncio.gather(*standing, return_exceptions=True)
    assert len(waiting) == 0
    assert clock.now_ms() == ManualClock().now_ms()


async def test_what_time_alone_frees_is_seen_and_what_ends_a_wait_is_said():
    clock = ManualClock()
    lines = WaitingLines(clock, most=COMPUTE_WAITING_MAX, each=COMPUTE_WAITING_MAX)
    begun_ms = clock.now_ms()
    first = asyncio.ensure_future(
        lines.enter("a", lambda: clock.now_ms() - begun_ms >= 2_500, COMPUTE_WAIT_MS)
    )

    def refused():
        raise CreditExceeded("it has reached its limit")

    with pytest.raises(CreditExceeded):
        await lines.enter("b", refused, COMPUTE_WAIT_MS)
    behind = asyncio.ensure_future(lines.enter("a", refused, COMPUTE_WAIT_MS))
    await settle()
    while not first.done():
        clock.advance_to(clock.next_ms())
        await settle()
    assert clock.now_ms() - begun_ms == 3_000
    with pytest.raises(CreditExceeded):
        await behind
    assert len(lines) == 0
