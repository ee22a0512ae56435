"""Compiling what an order brings is billed: once, within what the customer signed, checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.compute.jobs.test_receipts import PRICE, RESULT, an_order
from tests.unit.compute.programs import wasm
from tests.unit.compute.test_service import AGAIN, FIRST, LIMITS, amount, forged
from xsc.base.errors import LeaseExhausted, PeerSilent, ProofInvalid, ReceiptInvalid, RecordInvalid
from xsc.base.limits import (
    COMPILE_BYTE_FUEL,
    COMPILE_MS_MAX,
    FUEL_MAX,
    MEMORY_BYTES_MAX,
    MILLISECOND_FUEL,
    MODULE_BYTES_MAX,
    PRICE_FUEL,
    RUN_FUEL,
)
from xsc.compute.jobs.receipts import bill, billed_steps, check_receipt, make_receipt
from xsc.compute.wasm.limits import Limits
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.compute import Given, replay_file
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import ExecutionReceipt, Observed, Order
from xsc.terms.pricing import compute_amount, run_steps

ADD = wasm("add")


class _Id:
    node_id = bytes(32)


_ORDER = an_order(_Id, _Id)
_OUTCOME = make_receipt(
    type("Signed", (), {"record": _ORDER, "raw": b""})(), RESULT, price=1, started_ms=0, wall_ms=0
).outcome


def there(world):
    return {"on": world.provider.key.node_id}


def receipt_of(done):
    return open_signed(done.receipt, ExecutionReceipt, network=None).record


async def test_only_the_order_that_brings_an_uncompiled_module_pays_for_compiling(world):
    first = await world.invoke(**there(world))
    again = await world.invoke(**there(world))
    assert (first.compiled_bytes, amount(first)) == (len(ADD), FIRST)
    assert (again.compiled_bytes, amount(again)) == (0, AGAIN)
    # The module is brought again, and its code is still there.
    world.provider.service._job_executor._modules.clear()
    third = await world.invoke(**there(world))
    assert world.wire.sent[-1][1]["module"] is True
    assert (third.compiled_bytes, amount(third)) == (0, AGAIN)
    # The code is gone, and the module still there.
    await world.provider.sandbox.stop()
    await world.provider.sandbox.start()
    fourth = await world.invoke(**there(world))
    assert world.wire.sent[-1][1]["module"] is False
    assert (fourth.compiled_bytes, amount(fourth)) == (0, AGAIN)
    assert world.provider.market.used == [FIRST, AGAIN, AGAIN, AGAIN]
    assert (await world.invoke(local=True)).compiled_bytes == 0


async def test_compiling_is_billed_whole_however_little_fuel_the_run_has(world):
    """Else a customer would have modules compiled for the least fuel that there is."""
    world.provider.market.room = FIRST  # what the run costs at most, and nothing beside
    done = await world.invoke(limits=Limits(fuel=4), **there(world))
    assert (done.results, done.fuel_used, done.trap) == (("5",), 4, None)
    assert amount(done) == FIRST
    assert world.provider.market.used == [FIRST]
    assert world.provider.market.reserved == 0
    assert world.customer.market.spending[0][1] == FIRST


async def test_a_lease_has_room_for_compiling_where_nobody_has_the_module(world):
    """And for a run alone where somebody has it; who has lost it is asked under another lease."""
    asked, lease_compute = [], world.customer.market.lease_compute

    async def lease(*, fuel_steps, on, saved=None, wait_ms=0):
        asked.append(fuel_steps)
        world.provider.market.room = fuel_steps
        return await lease_compute(fuel_steps=fuel_steps, on=on, saved=saved)

    world.customer.market.lease_compute = lease
    whole = LIMITS.steps + len(ADD) * COMPILE_BYTE_FUEL
    await world.invoke(**there(world))
    await world.invoke(**there(world))
    assert asked == [whole, LIMITS.steps]
    world.provider.service._job_executor._modules.clear()
    assert (await world.invoke(**there(world))).results == ("5",)
    assert asked[2:] == [LIMITS.steps, whole]
    world.customer.market.lease_compute = lease_compute
    world.provider.market.room = 1
    with pytest.raises(LeaseExhausted):
        await world.invoke(**there(world))


@pytest.mark.parametrize("said", [0, 1, len(ADD) - 1, len(ADD) + 1, 2**40])
async def test_an_order_that_says_another_size_than_it_brings_is_refused(world, said):
    """Compiling is billed by what the order says: who said nothing had it for nothing."""
    await world.invoke(**there(world))
    world.provider.service._job_executor._modules.clear()
    _, header, parts = world.wire.sent[1]
    order = open_signed(header["order"], Order, network=None).record
    value = {**order.to_value(), "nonce": b"n" * 16, "given_bytes": said}
    raw = sign(Order.from_value(value), world.customer.key, world.network).raw
    with pytest.raises(RecordInvalid, match="not as long as the order says"):
        await world.serve({**header, "order": raw}, parts)
    assert world.provider.market.reserved == 0
    assert not world.provider.service._job_executor._modules


async def test_compiling_is_billed_also_where_the_answer_was_lost_and_asked_for_again(world):
    lost = []

    def tap(answer):
        if not lost:
            lost.append(answer)
            raise PeerSilent("the answer is lost")
        return answer

    world.wire.tap = tap
    done = await world.invoke(**there(world))
    assert done.compiled_bytes == len(ADD)
    assert world.provider.market.used == [FIRST]


class _TooLong:
    """A sandbox whose jail took 7 ms for the module, and for which a job waits longer."""

    def __init__(self, clock):
        self.clock = clock

    async def run(self, job, watch=None):
        self.clock.advance_to(self.clock.now_ms() + 50)
        ended = replace(RESULT, results=(), trap="compile_limit", fuel_used=0)
        return replace(ended, memory_peak_bytes=0, wall_ms=7)

    async def stop(self):
        """Nothing runs."""


async def test_compiling_for_too_long_is_billed_for_the_time_that_it_took(world):
    """And not for what the job waited for a jail, which other modules had."""
    await world.provider.sandbox.stop()
    world.provider.service.runner.sandbox = _TooLong(world.clock)
    limits = Limits(fuel=FUEL_MAX // 2**20)
    done = await world.invoke(limits=limits, **there(world))
    assert done.trap.code == "compile_limit"
    assert (done.wall_ms, done.fuel_used) == (7, 7 * MILLISECOND_FUEL)
    assert receipt_of(done).amount_micro == amount(done) > 0


@pytest.mark.parametrize("claimed_ms", [2 * COMPILE_MS_MAX, COMPILE_MS_MAX, 51])
async def test_no_more_time_to_compile_is_paid_than_has_passed(world, claimed_ms):
    await world.provider.sandbox.stop()
    world.provider.service.runner.sandbox = _TooLong(world.clock)

    def claim(receipt):
        order = open_signed(receipt.order, Order, network=None).record
        fuel = min(order.fuel_max, min(claimed_ms, COMPILE_MS_MAX) * MILLISECOND_FUEL)
        outcome = receipt.outcome.model_copy(update={"fuel_used": fuel})
        observed = receipt.observed.model_copy(update={"wall_ms": claimed_ms})
        amount = bill(order, outcome, observed, PRICE_FUEL)
        return receipt.model_copy(
            update={"outcome": outcome, "observed": observed, "amount_micro": amount}
        )

    forged(world, claim)
    with pytest.raises(ReceiptInvalid, match="more time than has passed"):
        await world.invoke(limits=Limits(fuel=10**12), **there(world))
    assert world.customer.market.spending == []


@pytest.mark.parametrize("claimed", [1, len(ADD) - 1, len(ADD) + 1, len(ADD)])
async def test_a_bill_for_compiling_that_was_not_due_is_not_paid(world, claimed):
    if claimed == len(ADD):
        await world.invoke(**there(world))  # from now on the module is not sent

    def claim(receipt):
        observed = Observed(started_ms=1, wall_ms=1, saved_bytes=0, compiled_bytes=claimed, calls=0)
        order = open_signed(receipt.order, Order, network=None).record
        amount = bill(order, receipt.outcome, observed, PRICE_FUEL)
        return receipt.model_copy(update={"observed": observed, "amount_micro": amount})

    forged(world, claim)
    before = list(world.customer.market.spending)
    with pytest.raises(ReceiptInvalid, match="compiling"):
        await world.invoke(**there(world))
    assert world.customer.market.spending == before


async def test_offline_it_is_held_against_the_module(world):
    done = await world.invoke(**there(world))
    assert "4 fuel and 41000 to compile, " in verify_file(done.receipt, ADD)
    again = await asyncio.to_thread(replay_file, done.receipt, ADD, Given())
    assert again["verdict"] == "agrees"
    receipt = receipt_of(done)
    order = open_signed(receipt.order, Order, network=None)
    short = Observed(started_ms=1, wall_ms=1, saved_bytes=0, compiled_bytes=len(ADD) - 1, calls=0)
    amount = bill(order.record, receipt.outcome, short, PRICE_FUEL)
    lie = receipt.model_copy(update={"observed": short, "amount_micro": amount})
    raw = sign(lie, world.provider.key, world.network).raw
    verify_file(raw)  # without the module it cannot be told
    for check in (verify_file, lambda lie, module: replay_file(lie, module, Given())):
        with pytest.raises(ProofInvalid, match="compiling another module"):
            await asyncio.to_thread(check, raw, ADD)
    more = short.model_copy(update={"compiled_bytes": len(ADD) + 1})
    raw = sign(lie.model_copy(update={"observed": more}), world.provider.key, world.network).raw
    with pytest.raises(ProofInvalid, match="more than the job can have brought"):
        verify_file(raw)


@given(
    st.integers(1, FUEL_MAX),
    st.integers(1, MEMORY_BYTES_MAX),
    st.integers(0, FUEL_MAX),
    st.integers(0, MODULE_BYTES_MAX),
    st.integers(0, 10**9),
)
def test_no_bill_is_above_what_the_customer_signed(fuel_max, memory_bytes, used, compiled, price):
    observed = Observed(started_ms=0, wall_ms=0, saved_bytes=0, compiled_bytes=compiled, calls=0)
    outcome = _OUTCOME.model_copy(update={"fuel_used": min(used, fuel_max)})
    limits = {"fuel_max": fuel_max, "memory_bytes_max": memory_bytes, "given_bytes": compiled}
    order = _ORDER.model_copy(update=limits)
    billed = billed_steps(order, outcome, observed)
    assert billed <= run_steps(fuel_max, memory_bytes, order.given_bytes) < 2**63
    # No run costs less than being taken does; and many pay no more than one of their size.
    assert bill(order, outcome, observed, price) >= compute_amount(price, RUN_FUEL)
    assert bill(order, outcome, observed, price) <= compute_amount(price, billed)


@pytest.mark.parametrize("compiled", [1, 10])
def test_a_receipt_bills_compiling_no_more_than_the_order_brings(alice, bob, network, compiled):
    order = sign(an_order(alice, bob), alice, network)
    made = make_receipt(
        order, RESULT, price=PRICE, started_ms=1, wall_ms=1, compiled_bytes=compiled
    )
    assert "more than the job can have brought" in check_receipt(order, made, PRICE)
