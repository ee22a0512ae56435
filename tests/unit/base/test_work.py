"""Processor time is told to whoever is named where a call entered, however the call goes."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from xsc.base.work import ENTERED, Measured, worked


async def test_each_step_of_a_call_is_measured_and_nothing_of_what_it_waits_for():
    told, clock = [], count(0, 5)
    ENTERED.set(told.append)

    async def work():
        await asyncio.sleep(0)
        worked(100)
        with pytest.raises(ZeroDivisionError):
            await asyncio.gather(asyncio.sleep(0, 1 / 1), failing())
        return "done"

    async def failing():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    measured = Measured(work(), lambda: next(clock))
    assert await measured == "done"
    assert (measured.took_us, told) == (15, [100])


async def test_a_call_that_is_cancelled_ends_as_without():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
            await asyncio.sleep(0)

    async def call():
        await Measured(work(), lambda: 0)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    worked(1)  # nobody is named here
