"""What a need comes to cost: no more than was stated, and no more than is asked without one.

Bounds are read off the ledgers, and follow from the published need alone.
"""

import pytest

from tests.sim.network import content, put, run
from tests.sim.test_slots import A_STEP, SETTINGS, need, offer, recognise
from xsc.base.limits import COMPUTE_LEASE_MS, EPOCH_MS, MIB, PRICE_FUEL, SLOT_STEP_FUEL
from xsc.identity.envelope import open_signed, sign
from xsc.space.paths import UserSpacePaths
from xsc.storage.object.durability import Contract
from xsc.terms.pricing import WORTH, slot_amount
from xsc.terms.slot import AvailabilitySlot, Commitment
from xsc.terms.voucher import LeaseCount, number_of, wide

SECONDS = 90


def slot_of(number, kind, quantity, window, price):
    return AvailabilitySlot(
        slot_id=number.to_bytes(16, "big"),
        kind=kind,
        quantity=quantity,
        windows=(window,),
        price_mutual=price,
        price_one_way=price,
        reserve=price,
        valid_until_ms=window[1],
    )


async def publish(provider, *slots):
    value = Commitment(slots=slots).to_bytes()
    await provider.space.put(UserSpacePaths.COMMITMENT, value)


def claim(provider, more_micro):
    """Have a provider sign that it counted more than it did."""
    answers = provider.peers.server.handlers
    on_account = answers["market.account"]

    async def answer(caller, header, parts):
        reply, rest = await on_account(caller, header, parts)
        count = open_signed(reply["count"], LeaseCount, network=None).record
        lines = tuple(
            line.model_copy(update={"used": wide(100 * number_of(line.used) + 10**15)})
            for line in count.leases
        )
        more = count.amount_micro + more_micro
        closed = wide(number_of(count.closed) + more_micro * WORTH)
        false = count.model_copy(update={"leases": lines, "amount_micro": more, "closed": closed})
        raw = sign(false, provider.key, provider.peers.network).raw
        return reply | {"count": raw}, rest

    answers["market.account"] = answer


def booked(customer, *providers):
    return -sum(customer.ledger.balance(provider.key.node_id) for provider in providers)


def test_compute_of_many_providers_in_short_windows_costs_what_one_level_does():
    """Each grants the whole need, in windows of a minute: together twice what it allows."""

    async def play(world):
        customer, *liars = world.nodes
        begin = world.clock.now_ms() + 2_000
        length_ms = COMPUTE_LEASE_MS + 3_000
        price = 1_000 * A_STEP
        a_second = price * 7 * SLOT_STEP_FUEL // PRICE_FUEL
        for liar in liars:
            await publish(liar, slot_of(1, "compute", 7, (begin, begin + length_ms), price))
            claim(liar, a_second * 20)
            await recognise(liar, customer)
        begun_ms = world.clock.now_ms()
        await need(customer, 7, "compute", 1_000)
        for _ in range(SECONDS):
            await world.clock.sleep_ms(1_000)
            passed_ms = world.clock.now_ms() - begun_ms
            if world.clock.now_ms() >= begin + length_ms:
                begin += length_ms
                for liar in liars:
                    await publish(liar, slot_of(1, "compute", 7, (begin, begin + length_ms), price))
            assert booked(customer, *liars) <= a_second * passed_ms // 1_000
        assert booked(customer, *liars) > 0

    run(21, 3, play, SETTINGS)


@pytest.mark.parametrize(("kind", "quantity"), [("storage", 1_333), ("compute", 400)])
def test_a_new_slot_every_three_seconds_costs_what_one_slot_does(kind, quantity):
    hourly = slot_amount(kind, 40 * A_STEP, quantity)

    async def play(world):
        customer, liar = world.nodes
        claim(liar, hourly // 60)
        begun_ms = world.clock.now_ms()
        await need(customer, quantity, kind, price=40)
        for number in range(SECONDS // 3):
            now_ms = world.clock.now_ms()
            await publish(
                liar, slot_of(number, kind, quantity, (now_ms, now_ms + EPOCH_MS), 40 * A_STEP)
            )
            await world.clock.sleep_ms(3_000)
        for _ in range(120):
            passed_ms = world.clock.now_ms() - begun_ms
            assert booked(customer, liar) <= hourly * passed_ms // EPOCH_MS
            await world.clock.sleep_ms(1_000)
        assert booked(customer, liar) > 0

    run(22, 2, play, SETTINGS | {"storage_capacity": "128GiB"})


def test_a_need_is_granted_at_no_more_than_its_provider_asks_everybody():
    def sum_of(customer):
        return sum(each.quantity for each in customer.allocator.received())

    async def play(world):
        one, other, *customers = world.nodes
        for provider in (one, other):
            await offer(provider, 100)
        for customer in customers:
            await need(customer, 80, price=40)
        await world.until(lambda: sum(map(sum_of, customers)) == 200)
        await world.clock.sleep_ms(20_000)
        for customer in filter(sum_of, customers):
            own, asks = customer.key.node_id, customer.commitments.quote
            price_of = {
                node: asks("storage", node, own).price
                for node in (one.key.node_id, other.key.node_id)
            }
            for each in customer.allocator.received():
                assert each.price <= price_of[each.provider]
            await put(customer, content(3 * MIB), contract=Contract(0))
            leases = [
                entry for entry in customer.market.store.all("customer") if entry.terms.cleared
            ]
            for entry in leases:
                assert entry.terms.price <= price_of[entry.terms.provider]
            assert leases

    run(23, 6, play, SETTINGS)
