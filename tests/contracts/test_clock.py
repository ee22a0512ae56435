"""The clock port: the system's and the manual one keep the same laws."""

import asyncio

import pytest

from tests.sim.loop import simulate
from xsc.base.clock import ManualClock
from xsc.node.system import SystemClock


def run_system(story):
    return asyncio.run(story(SystemClock()))


def run_manual(story):
    clock = ManualClock()
    return simulate(clock, story(clock))


@pytest.fixture(params=[run_system, run_manual], ids=["system", "manual"])
def run(request):
    return request.param


def test_a_sleep_lasts_at_least_as_long_as_it_was_asked_for(run):
    async def story(clock):
        wall, steady = clock.now_ms(), clock.monotonic_ms()
        await clock.sleep_ms(20)
        return clock.now_ms() - wall, clock.monotonic_ms() - steady

    wall_ms, steady_ms = run(story)
    assert wall_ms >= 19
    assert steady_ms >= 19


def test_shorter_sleeps_end_first_and_equal_ones_in_their_order(run):
    async def story(clock):
        ended = []

        async def wait(name, duration_ms):
            await clock.sleep_ms(duration_ms)
            ended.append(name)

        await asyncio.gather(wait("late", 60), wait("soon", 5), wait("mid", 30))
        return ended

    assert run(story) == ["soon", "mid", "late"]


def test_no_sleep_lets_others_run(run):
    async def story(clock):
        seen = []

        async def other():
            seen.append("other")

        task = asyncio.ensure_future(other())
        await clock.sleep_ms(0)
        seen.append("self")
        await task
        return seen

    assert run(story) == ["other", "self"]


def test_a_cancelled_sleeper_holds_nobody_up(run):
    async def story(clock):
        sleeper = asyncio.ensure_future(clock.sleep_ms(3_600_000))
        await clock.sleep_ms(1)
        sleeper.cancel()
        await asyncio.gather(sleeper, return_exceptions=True)
        begun = clock.monotonic_ms()
        await clock.sleep_ms(5)
        return clock.monotonic_ms() - begun

    assert run(story) < 1_000


def test_steady_time_never_goes_back(run):
    async def story(clock):
        seen = []
        for _ in range(50):
            seen.append(clock.monotonic_ms())
            await clock.sleep_ms(0)
        return seen

    seen = run(story)
    assert seen == sorted(seen)
