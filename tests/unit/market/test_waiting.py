"""Calls that wait for fuel: one customer at one provider, by what the customer's market gives."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from tests.settle import settle
from xsc.base.clock import ManualClock
from xsc.base.errors import ComputeExhausted, LimitError, NoOffers, RateLimited, RecordInvalid
from xsc.base.limits import (
    COMPUTE_IN_FLIGHT_MAX,
    COMPUTE_LEASE_LATE_MS,
    COMPUTE_LEASE_MS,
    COMPUTE_WAIT_MS,
    COMPUTE_WAITING_MAX,
    FUEL_DEFAULT,
    ROOM_PART_OPEN,
    RUN_FUEL,
)
from xsc.market.service import LEASE, QUOTE
from xsc.market.waiting import WaitingLines

NEED = FUEL_DEFAULT + RUN_FUEL
"""What a run of the default limits reserves."""
SHARE = 7 * NEED + NEED // 2
RUN_MS = 100


@dataclass
class Shop:
    """A customer and a provider that it does not recognise, which runs what is asked of it."""

    world: object
    customer: object
    provider: object
    ran: list = field(default_factory=list)

    async def call(self, number=0, *, need=NEED, wait_ms=COMPUTE_WAIT_MS, run_ms=RUN_MS, on=True):
        """Lease fuel, run for so long, and pay for next to nothing, as a small call does."""
        buyer, book = self.customer.market.buyer, self.provider.market.granted
        target = self.provider.id if on else None
        lease = await buyer.lease_compute(fuel_steps=need, on=target, wait_ms=wait_ms)
        book.admit_compute(lease.lease_id, self.customer.id, need)
        self.ran.append(number)
        try:
            await self.world.clock.sleep_ms(run_ms)
        finally:
            book.used_compute(lease.lease_id, need, RUN_FUEL)
        await self.customer.market.taken.spent(lease.lease_id, RUN_FUEL, 0)

    @property
    def waiting(self):
        return len(self.customer.market.buyer._lines)

    def asked(self, method):
        return sum(each == method for _, _, each in self.world.wire.calls)


@pytest.fixture
def shop(world, pair):
    customer, provider = pair
    provider.room.steps = SHARE * ROOM_PART_OPEN
    return Shop(world, customer, provider)


async def test_64_calls_in_flight_at_one_provider_run_in_the_order_in_which_they_came(world, shop):
    took = world.clock.now_ms()
    await world.drive(*(shop.call(number) for number in range(64)))
    assert shop.ran == list(range(64))
    # Seven fit at a time, and nobody waits for more than a run to end.
    assert world.clock.now_ms() - took < 12 * RUN_MS
    assert shop.waiting == 0


async def test_calls_one_after_the_other_need_few_leases_for_as_long_as_they_come(world, shop):
    """A lease has less left than a run reserves long before it is used up."""

    async def one_by_one():
        for number in range(4_000):
            await shop.call(number, run_ms=0)

    await world.drive(one_by_one(), steps=20_000)
    assert shop.asked(LEASE) < 10


async def test_calls_in_flight_need_few_leases_for_as_long_as_they_come(world, shop):
    async def one_by_one(first):
        for number in range(first, 3_000, 16):
            await shop.call(number, run_ms=0)

    await world.drive(*map(one_by_one, range(16)), steps=20_000)
    assert len(shop.ran) == 3_000
    assert shop.asked(LEASE) < 20
    assert shop.asked(QUOTE) < 200


async def test_who_has_no_run_there_is_refused_at_once(world, shop):
    shop.provider.room.steps = 0
    before = world.clock.now_ms()
    with pytest.raises(ComputeExhausted):
        await world.drive(shop.call())
    assert world.clock.now_ms() == before


async def test_what_could_never_fit_is_refused_at_once_also_beside_runs(world, shop):
    running = asyncio.ensure_future(shop.call())
    await settle()
    before = world.clock.now_ms()
    with pytest.raises(ComputeExhausted):
        await world.drive(shop.call(need=SHARE + NEED))
    assert world.clock.now_ms() == before
    await world.drive(running)
    # What fits alone is served once it is alone.
    await world.drive(shop.call(1), shop.call(2, need=SHARE - NEED // 4), shop.call(3))
    assert shop.ran == [0, 1, 2, 3]


@pytest.mark.parametrize("wait_ms", [0, 1, 50])
async def test_nobody_waits_longer_than_it_may(world, shop, wait_ms):
    running = [asyncio.ensure_future(shop.call(run_ms=1000)) for _ in range(7)]
    await settle()
    before = world.clock.now_ms()
    calls = [asyncio.ensure_future(shop.call(wait_ms=wait_ms)) for _ in range(3)]
    answers = await world.drive(*calls)
    assert [type(answer) for answer in answers] == [ComputeExhausted] * 3
    assert world.clock.now_ms() - before == wait_ms
    await world.drive(*running)
    await world.drive(shop.call(wait_ms=0))


async def test_who_may_not_wait_is_refused_when_the_first_begins_to(world, shop):
    """They come while the first is still asking."""
    running = [asyncio.ensure_future(shop.call(run_ms=1000)) for _ in range(7)]
    await settle()
    before = world.clock.now_ms()
    first = asyncio.ensure_future(shop.call(wait_ms=30_000))
    refused = []

    async def impatient():
        with pytest.raises(ComputeExhausted):
            await shop.call(wait_ms=0)
        refused.append(world.clock.now_ms() - before)

    await world.drive(impatient(), impatient())
    assert refused == [0, 0]
    await world.drive(*running, first)


async def test_a_large_call_for_any_node_holds_up_no_smaller_one(world, shop):
    """What the large one waits for is at one node; the smaller ones need no more than is free."""
    held = [asyncio.ensure_future(shop.call(run_ms=1000)) for _ in range(4)]
    await settle()
    large = asyncio.ensure_future(shop.call("large", need=SHARE - NEED // 4, on=False))
    await settle()
    before = world.clock.now_ms()
    await world.drive(*(shop.call(number, on=False) for number in range(3)))
    assert world.clock.now_ms() - before == RUN_MS
    # Those that need as much stay behind it.
    second = asyncio.ensure_future(shop.call("second", need=SHARE - NEED // 4, on=False))
    await world.drive(*held, large, second)
    assert shop.ran[-2:] == ["large", "second"]


async def test_a_run_that_is_never_heard_of_keeps_others_waiting_until_its_lease_ends(world, shop):
    buyer = shop.customer.market.buyer
    for _ in range(7):
        await world.drive(buyer.lease_compute(fuel_steps=NEED, on=shop.provider.id))
    before = world.clock.now_ms()
    await world.drive(shop.call(wait_ms=2 * COMPUTE_LEASE_MS))
    assert world.clock.now_ms() - before <= COMPUTE_LEASE_MS + COMPUTE_LEASE_LATE_MS + RUN_MS


async def test_a_run_that_was_refused_makes_room_at_once(world, shop):
    buyer = shop.customer.market.buyer
    leases = [
        await world.drive(buyer.lease_compute(fuel_steps=NEED, on=shop.provider.id))
        for _ in range(7)
    ]
    call = asyncio.ensure_future(shop.call())
    await settle()
    assert not shop.ran
    before = world.clock.now_ms()
    shop.customer.market.taken.unused(leases[0].lease_id, NEED)
    await world.drive(call)
    assert world.clock.now_ms() - before == RUN_MS


async def test_no_more_runs_are_in_flight_than_a_provider_lets_one_customer_queue(world, shop):
    shop.provider.room.steps *= 100
    at_once = []

    async def call(number):
        await shop.call(number)

    async def look():
        for _ in range(4):
            await world.clock.sleep_ms(RUN_MS // 2)
            at_once.append(shop.customer.market.buyer._in_flight(shop.provider.id))

    await world.drive(look(), *map(call, range(3 * COMPUTE_IN_FLIGHT_MAX)))
    assert max(at_once) == COMPUTE_IN_FLIGHT_MAX


async def test_calls_that_take_any_node_leave_one_to_those_that_wait_for_it(world, shop):
    running = [asyncio.ensure_future(shop.call(number)) for number in range(7)]
    await settle()
    waits = asyncio.ensure_future(shop.call("there"))
    await settle()
    anywhere = [asyncio.ensure_future(shop.call(f"any {number}", on=False)) for number in range(9)]
    await world.drive(waits, *running, *anywhere)
    assert shop.ran[7] == "there"
    assert len(shop.ran) == 17


async def test_who_takes_any_node_takes_a_free_one_before_it_waits(world, shop):
    running = [asyncio.ensure_future(shop.call(run_ms=5000)) for _ in range(7)]
    await settle()
    other = world.node(3)
    found = await world.drive(
        shop.customer.market.buyer.lease_compute(fuel_steps=NEED, on=None, wait_ms=COMPUTE_WAIT_MS)
    )
    assert found.node == other.id
    await world.drive(*running)


async def test_a_lease_of_a_service_is_its_own_and_leaves_as_much_to_runs(world, shop):
    def wish(apart):
        return shop.customer.market.buyer.lease_compute(
            fuel_steps=NEED, on=shop.provider.id, apart=apart
        )

    await world.drive(shop.call())
    served = await world.drive(wish(True))
    room = shop.customer.market.taken.price_and_room(served.lease_id, shop.provider.id)[1]
    assert abs(room - SHARE // 2) <= NEED
    run = await world.drive(wish(False))
    assert run.lease_id != served.lease_id
    shop.customer.market.taken.unused(run.lease_id, NEED)
    shop.customer.market.taken.release(served.lease_id)
    again = await world.drive(wish(False))
    assert again.lease_id == run.lease_id
    shop.customer.market.taken.unused(run.lease_id, NEED)
    # All of the share is to be had again, in one lease.
    await world.drive(shop.call(need=SHARE - NEED // 4))


async def test_only_its_customer_gives_a_lease_back_and_only_when_nothing_runs_under_it(
    world, shop
):
    stranger, provider = world.node(4), shop.provider
    lease = await world.drive(
        shop.customer.market.buyer.lease_compute(fuel_steps=NEED, on=provider.id)
    )
    granted = provider.market.store.get("provider", lease.lease_id)

    async def give_back(node, lease_id=lease.lease_id):
        caller = world.wire.caller(node.id)
        await world.drive(
            caller.call(provider.id, QUOTE, {"kind": "compute", "given_back": [lease_id]})
        )
        return granted.use.given_back

    assert not await give_back(stranger)
    assert not await give_back(shop.customer, b"x")
    with pytest.raises(RecordInvalid):
        await give_back(shop.customer, 7)
    assert not granted.use.given_back
    provider.market.granted.admit_compute(lease.lease_id, shop.customer.id, NEED)
    assert not await give_back(shop.customer)
    provider.market.granted.used_compute(lease.lease_id, NEED, RUN_FUEL)
    reserved = provider.market.headroom.offered("compute", shop.customer.id)
    assert await give_back(shop.customer)
    assert provider.market.headroom.offered("compute", shop.customer.id) > reserved
    assert granted.use.billed_micro > 0


@pytest.mark.parametrize("seed", range(20))
async def test_every_wait_ends_and_who_goes_away_takes_nothing_along(world, shop, seed):
    chance = random.Random(seed)
    calls, gone = [], []

    async def customer(number):
        await world.clock.sleep_ms(chance.randrange(2_000))
        await shop.call(
            number,
            need=chance.choice([NEED // 8, NEED, 3 * NEED, SHARE - NEED // 4]),
            wait_ms=chance.choice([0, 300, COMPUTE_WAIT_MS]),
            run_ms=chance.randrange(3 * RUN_MS),
            on=chance.random() < 0.8,
        )

    async def leave():
        for call in gone:
            await world.clock.sleep_ms(chance.randrange(200))
            if call not in shop_running():
                call.cancel()

    def shop_running():
        return {calls[number] for number in shop.ran}

    calls += [asyncio.ensure_future(customer(number)) for number in range(40)]
    gone += chance.sample(calls, 10)
    await world.drive(leave(), steps=2_000)
    answers = await asyncio.wait_for(_all(world, calls), 60)
    for call, answer in zip(calls, answers, strict=True):
        assert answer is None or isinstance(answer, LimitError | NoOffers) or call in gone
    assert shop.waiting == 0
    assert shop.customer.market.buyer._in_flight(shop.provider.id) == 0
    await world.drive(shop.call(need=SHARE - NEED // 4, wait_ms=0))


async def _all(world, calls):
    for _ in range(5_000):
        await settle()
        if all(call.done() for call in calls):
            break
        if (next_ms := world.clock.next_ms()) is not None:
            world.clock.advance_to(next_ms)
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_so_many_calls_wait_and_no_more():
    clock = ManualClock()
    lines = WaitingLines(clock, waiting_max=3)
    assert WaitingLines(clock)._waiting_max == COMPUTE_WAITING_MAX

    async def stand(node):
        async with lines.place(node, NEED, clock.monotonic_ms() + 1000) as place:
            await lines.wait(place, 1000)

    standing = [asyncio.ensure_future(stand(node)) for node in (b"a", b"a", b"c")]
    await settle()
    with pytest.raises(RateLimited, match="3 calls of this node wait"):
        await stand(b"b")
    standing[0].cancel()
    await settle()
    assert len(lines) == 1  # who came next was woken, and has gone
    clock.advance_to(clock.now_ms() + 1000)
    await asyncio.gather(*standing, return_exceptions=True)
    assert len(lines) == 0
