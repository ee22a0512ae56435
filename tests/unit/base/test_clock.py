"""The manual clock wakes sleepers in order of time; seeded bytes repeat."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy, event_within, rest


async def test_sleepers_wake_in_order_of_time_and_then_of_arrival():
    clock, woken = ManualClock(1000), []

    async def sleeper(name: str, duration_ms: int) -> None:
        await clock.sleep_ms(duration_ms)
        woken.append(name)

    tasks = [
        asyncio.ensure_future(sleeper(name, duration_ms))
        for name, duration_ms in [("late", 300), ("first", 100), ("second", 100), ("now", 0)]
    ]
    await settle()
    assert woken == ["now"]
    assert clock.next_ms() == 1100
    clock.advance_to(1099)
    await settle()
    assert woken == ["now"]
    clock.advance_to(1300)
    await asyncio.gather(*tasks)
    assert woken == ["now", "first", "second", "late"]
    assert clock.next_ms() is None


async def test_a_cancelled_sleeper_is_forgotten():
    clock = ManualClock()
    task = asyncio.ensure_future(clock.sleep_ms(10))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.next_ms() is None
    clock.advance_to(clock.now_ms() + 100)


def test_time_never_goes_back():
    clock = ManualClock(1000)
    clock.advance_to(1500)
    clock.advance_to(1200)
    assert (clock.now_ms(), clock.monotonic_ms()) == (1500, 500)


def test_the_same_seed_gives_the_same_bytes_and_never_the_same_token_twice():
    first, second, other = SeededEntropy(b"a"), SeededEntropy(b"a"), SeededEntropy(b"b")
    tokens = [first.token(16) for _ in range(100)]
    assert tokens == [second.token(16) for _ in range(100)]
    assert len(set(tokens)) == 100
    assert other.token(16) not in tokens
    assert [len(first.token(size)) for size in (0, 1, 1000)] == [0, 1, 1000]


async def test_work_runs_at_once_and_its_errors_pass_through():
    executor = InlineExecutor()
    assert await executor.run(max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        await executor.run(divmod, 1, 0)
    executor.close()


async def test_a_wait_for_an_event_or_a_time_ends_with_the_first_and_leaves_no_sleeper():
    clock, event = ManualClock(), asyncio.Event()
    waiting = asyncio.ensure_future(event_within(clock, event, 10))
    await settle()
    event.set()
    await waiting
    assert event.is_set()
    await settle()
    assert clock.next_ms() is None

    event.clear()
    resting = asyncio.ensure_future(rest(clock, event, 10))
    await settle()
    assert not resting.done()
    clock.advance_to(clock.now_ms() + 10)
    await resting
    event.set()
    await rest(clock, event, 10)
    assert not event.is_set()
