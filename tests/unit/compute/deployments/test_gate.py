"""The gate of a service: how many run, how many wait, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from xsc.base.errors import RateLimited
from xsc.compute.deployments.gate import RequestGate


async def test_requests_run_up_to_the_bound_and_then_in_order():
    gate, let_in = RequestGate(), []

    async def request(number):
        await gate.enter(2)
        let_in.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(5)]
    await settle()
    assert (let_in, gate.running, gate.waiting) == ([0, 1], 2, 3)
    for expected in (3, 4, 5):
        gate.leave(2)
        await settle()
        assert let_in == list(range(expected))
        assert gate.running == 2
    await asyncio.gather(*tasks)
    gate.leave(2)
    gate.leave(2)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_a_full_queue_refuses_at_once():
    gate = RequestGate(queue_max=1)
    await gate.enter(1)
    waiting = asyncio.create_task(gate.enter(1))
    await settle()
    with pytest.raises(RateLimited, match="1 requests wait"):
        await gate.enter(1)
    gate.leave(1)
    await waiting


async def test_nobody_waits_for_longer_than_the_bound():
    gate = RequestGate(wait_ms=1)
    await gate.enter(1)
    with pytest.raises(RateLimited, match="within 1 ms"):
        await gate.enter(1)
    assert (gate.running, gate.waiting) == (1, 0)


async def test_who_goes_away_leaves_no_hole():
    gate = RequestGate()
    await gate.enter(1)
    waiting = [asyncio.create_task(gate.enter(1)) for _ in range(2)]
    await settle()
    waiting[0].cancel()
    await settle()
    assert gate.waiting == 1
    gate.leave(1)
    waiting[1].cancel()  # in the moment in which it was let in
    await settle()
    assert (gate.running, gate.waiting) == (0, 0)
    await gate.enter(1)


async def test_a_new_bound_holds_from_the_next_one_on():
    gate = RequestGate()
    await gate.enter(1)
    waiting = [asyncio.create_task(gate.enter(1)) for _ in range(3)]
    await settle()
    gate.leave(3)
    await settle()
    assert (gate.running, gate.waiting) == (3, 0)
    await asyncio.gather(*waiting)
