"""Calls made at the same time share a batch, and each caller gets its own result."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settle import turns
from xsc.base.errors import NoOffers, RateLimited, SpaceExhausted
from xsc.base.gather import Gather


class Desk:
    """Runs batches while its gate is open, and writes them down."""

    def __init__(self, **bounds) -> None:
        self.gather = Gather(self.run, **bounds)
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.fault: Exception | None = None

    async def run(self, _key, calls):
        self.batches.append(list(calls))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return [SpaceExhausted(f"no {call}") if call < 0 else 10 * call for call in calls]

    def submit(self, *calls):
        return [self.gather.submit("", call) for call in calls]


async def test_calls_of_one_turn_are_one_batch_and_each_has_its_own_outcome():
    desk = Desk()
    first, bad, last = desk.submit(1, -2, 3)
    assert (await first, await last) == (10, 30)
    with pytest.raises(SpaceExhausted, match="no -2"):
        await bad
    assert desk.batches == [[1, -2, 3]]
    assert await desk.gather.submit("", 4) == 40
    assert desk.batches == [[1, -2, 3], [4]]


async def test_a_full_batch_waits_for_no_pause():
    pauses = []

    async def pause():
        pauses.append(len(desk.batches))
        await asyncio.sleep(0)

    desk = Desk(most=lambda *_: 2, pause=pause)
    assert await asyncio.gather(*desk.submit(1, 2, 3, 4, 5)) == [10, 20, 30, 40, 50]
    assert desk.batches == [[1, 2], [3, 4], [5]]
    # The one before the third batch, and one that finds nothing more.
    assert pauses == [2, 3]


async def test_calls_made_while_a_batch_runs_are_the_next_one():
    desk = Desk()
    desk.gate.clear()
    calls = desk.submit(1)
    await asyncio.sleep(0)
    calls += desk.submit(2, 3)
    assert desk.gather.waiting("") == 2
    await asyncio.sleep(0)
    assert desk.batches == [[1]]
    desk.gate.set()
    assert await asyncio.gather(*calls) == [10, 20, 30]
    assert desk.batches == [[1], [2, 3]]
    assert desk.gather.waiting("") == 0


async def test_keys_share_nothing():
    ran = []

    async def run(key, calls):
        ran.append((key, list(calls)))
        return calls

    gather = Gather(run)
    await asyncio.gather(*(gather.submit(number % 2, number) for number in range(5)))
    assert ran == [(0, [0, 2, 4]), (1, [1, 3])]


async def test_a_batch_is_bounded_in_number_and_size():
    desk = Desk(most=lambda waiting, before: min(waiting, before + 1))
    await asyncio.gather(*desk.submit(1, 2, 3, 4))
    assert desk.batches == [[1], [2, 3], [4]]
    desk = Desk(size_of=lambda call: call, size_max=10)
    await asyncio.gather(*desk.submit(4, 4, 4, 100, 1))
    assert desk.batches == [[4, 4], [4], [100], [1]]


async def test_a_pause_lets_more_calls_in():
    gate = asyncio.Event()
    desk = Desk(pause=gate.wait)
    calls = desk.submit(1)
    await asyncio.sleep(0)
    calls += desk.submit(2)
    assert not desk.batches
    gate.set()
    assert await asyncio.gather(*calls) == [10, 20]
    assert desk.batches == [[1, 2]]


async def test_a_cancelled_caller_hurts_nobody_and_is_left_out():
    desk = Desk()
    desk.gate.clear()
    first, second = desk.submit(1, 2)
    await asyncio.sleep(0)
    third, fourth = desk.submit(3, 4)
    first.cancel()
    third.cancel()
    desk.gate.set()
    assert (await second, await fourth) == (20, 40)
    assert desk.batches == [[1, 2], [4]]


async def test_all_calls_can_be_run_though_their_callers_have_gone():
    desk = Desk(all_run=True)
    first, second = desk.submit(1, 2)
    first.cancel()
    assert await second == 20
    assert desk.batches == [[1, 2]]


async def test_an_error_of_the_batch_reaches_each_caller_as_its_own_and_no_other_batch():
    desk = Desk()
    desk.fault = RateLimited("later", hint="wait", retry_after_s=7)
    faults = await asyncio.gather(*desk.submit(1, 2), return_exceptions=True)
    assert faults[0] is not faults[1]
    for fault in faults:
        assert isinstance(fault, RateLimited)
        assert (fault.message, fault.hint, fault.retry_after_s) == ("later", "wait", 7)
    desk.fault = None
    assert await desk.submit(3)[0] == 30


@pytest.mark.parametrize("count", range(4))
async def test_a_stop_at_any_turn_leaves_nobody_waiting(count):
    tasks = []

    def spawn(work):
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    desk = Desk(spawn=spawn, stopped=lambda: NoOffers("stopped"))
    desk.gate.clear()
    calls = desk.submit(1, 2)
    await turns(count)
    calls += desk.submit(3)
    tasks[0].cancel()
    faults = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(fault) for fault in faults] == [NoOffers] * 3
    desk.gate.set()
    assert await desk.submit(4)[0] == 40


async def test_a_bug_reaches_each_caller_as_what_it_is():
    desk = Desk()
    desk.fault = TypeError("a bug")
    faults = await asyncio.gather(*desk.submit(1, 2), return_exceptions=True)
    assert faults == [desk.fault] * 2
    desk.fault = None
    assert await desk.submit(3)[0] == 30


@given(
    st.lists(
        st.one_of(st.integers(-3, 9), st.sampled_from(["turn", "open", "close", "cancel"])),
        max_size=40,
    ),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_each_call_is_run_once_in_order_and_answered_as_if_alone(steps, most, size_max):
    async def play():
        desk = Desk(most=lambda *_: most, size_of=abs, size_max=size_max)
        given_in: list[tuple[int, asyncio.Future[int]]] = []
        for step in steps:
            match step:
                case "turn":
                    await asyncio.sleep(0)
                case "open":
                    desk.gate.set()
                case "close":
                    desk.gate.clear()
                case "cancel":
                    for _, future in given_in[-1:]:
                        future.cancel()
                case call:
                    given_in.append((call, *desk.submit(call)))
        desk.gate.set()
        await desk.gather.idle()
        ran = iter([call for batch in desk.batches for call in batch])
        for call, future in given_in:
            assert future.done()
            if future.cancelled():
                continue
            assert call in ran  # skips those that were cancelled while they ran
            if call < 0:
                assert isinstance(future.exception(), SpaceExhausted)
            else:
                assert future.result() == 10 * call
        assert sum(map(len, desk.batches)) <= len(given_in)
        for batch in desk.batches:
            assert 1 <= len(batch) <= most
            assert len(batch) == 1 or sum(map(abs, batch)) <= size_max

    asyncio.run(play())
