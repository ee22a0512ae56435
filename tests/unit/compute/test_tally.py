"""Who does too often what is not billed is refused for a while, and nobody else is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.unit.compute.programs import SteadyClock, i32, job
from xsc.base.errors import RateLimited, SandboxFailed
from xsc.base.limits import FUEL_MAX, WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS
from xsc.base.log import SilentLog
from xsc.compute import pool as pools
from xsc.compute.pool import PoolSandbox
from xsc.compute.tally import Tally

SPIN = job("endless", "spin", fuel=FUEL_MAX, timeout_ms=60_000)
ADD = job("add", "add", i32(1), i32(2))


def test_within_any_minute_a_customer_loses_so_many_and_no_more():
    losses = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS, b"own")
    steady = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS)
    now_ms, times, refused = 0, deque(), 0
    for step in range(2_000):
        now_ms += (step * step) % 4_000
        losses.note(b"own", now_ms)
        steady.note(b"other", now_ms)
        wait_ms = losses.wait_ms(b"c", now_ms)
        recent = [at for at in times if at > now_ms - WORKERS_LOST_MS]
        assert (wait_ms > 0) == (len(recent) >= WORKERS_LOST_A_PEER_MAX)
        if wait_ms:
            refused += 1
            assert losses.wait_ms(b"c", now_ms + wait_ms - 1) == 1
            assert losses.wait_ms(b"c", now_ms + wait_ms) == 0
        else:
            times.append(now_ms)
            losses.note(b"c", now_ms)
        assert losses.wait_ms(b"own", now_ms) == 0
    assert refused > 100
    assert steady.wait_ms(b"other", now_ms) > 0
    # What is over is forgotten.
    losses.note(b"late", now_ms + WORKERS_LOST_MS + 1)
    assert set(losses._times) == {b"late"}


class WatchedClock(SteadyClock):
    """Real time, but for what a test adds to it."""

    def __init__(self):
        self.added_ms = 0

    def monotonic_ms(self):
        return super().monotonic_ms() + self.added_ms


class Began:
    """Hears that a job has a worker."""

    def __init__(self):
        self.event = asyncio.Event()

    def began(self):
        self.event.set()

    def wrote(self, stream, data):
        pass

    def finish(self, stdout, stderr):
        return True


@pytest_asyncio.fixture
async def pool(monkeypatch):
    monkeypatch.setattr(pools, "WORKERS_LOST_A_PEER_MAX", 1)
    made = PoolSandbox(1, WatchedClock(), SilentLog(), own=b"own")
    await made.start()
    yield made
    await made.stop()


async def spinning(pool, customer):
    """Return a run that has a worker, as a task."""
    watch = Began()
    task = asyncio.create_task(pool.run(replace(SPIN, customer=customer), watch))
    await watch.event.wait()
    return task


async def send(pool, number):
    (worker,) = pool._workers
    os.kill(worker.pid, number)


async def cancel(pool, customer):
    task = await spinning(pool, customer)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def crash(pool, customer):
    task = await spinning(pool, customer)
    await send(pool, signal.SIGKILL)
    with pytest.raises(SandboxFailed):
        await task


async def hang(pool, customer):
    await pool.run(replace(SPIN, limits=replace(SPIN.limits, fuel=1)))
    await send(pool, signal.SIGSTOP)
    short = replace(SPIN.limits, timeout_ms=20)
    result = await pool.run(replace(SPIN, limits=short, customer=customer))
    assert result.trap == "time_exceeded"


async def quick(pool, customer, timeout_ms):
    """Return a call that stands in the line of a worker which is stopped, as a task."""
    while (ADD.module_hash, "add") not in pool._quick or (
        ADD.module_hash not in pool._idle[0].seen
    ):
        await pool.run(ADD)
    await send(pool, signal.SIGSTOP)
    given = replace(ADD, limits=replace(ADD.limits, timeout_ms=timeout_ms), customer=customer)
    task = asyncio.create_task(pool.run(given))
    await asyncio.sleep(0)
    assert sum(map(len, pool._lines.values())) == 1
    return task


async def hang_in_line(pool, customer):
    assert (await (await quick(pool, customer, 20))).trap == "time_exceeded"


async def crash_in_line(pool, customer):
    task = await quick(pool, customer, 60_000)
    await send(pool, signal.SIGKILL)
    with pytest.raises(SandboxFailed):
        await task


async def test_whoever_loses_workers_is_refused_whatever_way_it_did_so(pool):
    for number, lose in enumerate((cancel, crash, hang, hang_in_line, crash_in_line)):
        customer = bytes([number])
        await lose(pool, customer)
        with pytest.raises(RateLimited, match="ended with their worker") as refused:
            await pool.run(replace(ADD, customer=customer))
        assert 0 < refused.value.retry_after_s <= WORKERS_LOST_MS // 1000
        assert (await pool.run(replace(ADD, customer=b"another"))).results == (i32(3),)
    await cancel(pool, b"own")
    assert (await pool.run(replace(ADD, customer=b"own"))).results == (i32(3),)
    pool._clock.added_ms = WORKERS_LOST_MS
    assert (await pool.run(replace(ADD, customer=b"\0"))).results == (i32(3),)


async def test_what_ends_by_its_own_limit_or_waits_costs_no_worker(pool):
    await pool.run(ADD)
    held = await spinning(pool, b"another")
    waiting = asyncio.create_task(pool.run(replace(ADD, customer=b"c")))
    await asyncio.sleep(0)
    assert pool.describe()["queued"] == 1
    waiting.cancel()
    held.cancel()
    await asyncio.gather(waiting, held, return_exceptions=True)
    given = replace(SPIN, customer=b"c", limits=replace(SPIN.limits, fuel=1_000))
    assert (await pool.run(given)).trap == "fuel_exhausted"
    assert pool._losses.wait_ms(b"c", pool._clock.monotonic_ms()) == 0
