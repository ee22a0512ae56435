"""Who does too often, or takes too much of, what is not billed is refused; nobody else is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from dataclasses import replace

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.settle import until
from tests.unit.compute.programs import SteadyClock, i32, i64, job
from xsc.base.errors import RateLimited, SandboxFailed
from xsc.base.limits import FUEL_MAX, JOBS_QUEUED_MAX, MODULE_LOST_MS, RETRY_AFTER_S_MAX
from xsc.base.log import SilentLog
from xsc.base.tally import Rate, Tally
from xsc.compute.jobs.output_buffer import OutputBuffer, run_streamed
from xsc.compute.worker import admission
from xsc.compute.worker import compiler as compilers
from xsc.compute.worker import pool as pools
from xsc.compute.worker.admission import WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS
from xsc.compute.worker.compiler import (
    COMPILE_MS_A_PEER_MAX,
    COMPILE_SHARE_MS,
    COMPILES_QUEUED_A_PEER_MAX,
    COMPILES_QUEUED_MAX,
)
from xsc.compute.worker.pool import PoolSandbox

SPIN = job("endless", "spin", fuel=FUEL_MAX, timeout_ms=60_000)
ADD = job("add", "add", i32(1), i32(2))


def test_within_any_minute_a_customer_loses_so_many_and_no_more():
    losses = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS)
    steady = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS)
    now_ms, times, refused = 0, deque(), 0
    for step in range(2_000):
        now_ms += (step * step) % 4_000
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

    def compiling(self):
        pass

    def began(self):
        self.event.set()

    def wrote(self, stream, data):
        pass

    def finish(self, stdout, stderr):
        return True


@pytest_asyncio.fixture
async def pool(monkeypatch):
    monkeypatch.setattr(admission, "WORKERS_LOST_A_PEER_MAX", 1)
    made = PoolSandbox(1, WatchedClock(), SilentLog(), own=b"own")
    await made.start()
    yield made
    await made.stop()


async def spinning(pool, customer, given=SPIN):
    """Return a run that has a worker, as a task."""
    watch = Began()
    task = asyncio.create_task(pool.run(replace(given, customer=customer), watch))
    await watch.event.wait()
    return task


async def send(pool, number):
    (worker,) = pool._workers.alive
    os.kill(worker.pid, number)


async def cancel(pool, customer):
    task = await spinning(pool, customer)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def crash(pool, customer):
    task = await spinning(pool, customer)
    await send(pool, signal.SIGKILL)
    assert (await task).trap == "worker_lost"


async def hang(pool, customer):
    await pool.run(replace(SPIN, limits=replace(SPIN.limits, fuel=1)))
    await send(pool, signal.SIGSTOP)
    short = replace(SPIN.limits, timeout_ms=20)
    result = await pool.run(replace(SPIN, limits=short, customer=customer))
    assert result.trap == "time_exceeded"


async def quick(pool, customer, timeout_ms):
    """Return a call that stands in the line of a worker which is stopped, as a task."""
    while (ADD.module_hash, "add") not in pool._quick or (
        ADD.module_hash not in next(iter(pool._queues)).seen
    ):
        await pool.run(ADD)
    await send(pool, signal.SIGSTOP)
    given = replace(ADD, limits=replace(ADD.limits, timeout_ms=timeout_ms), customer=customer)
    task = asyncio.create_task(pool.run(given))
    await asyncio.sleep(0)
    assert sum(map(len, pool._queues.values())) == 1
    return task


async def hang_in_line(pool, customer):
    assert (await (await quick(pool, customer, 20))).trap == "time_exceeded"


async def crash_in_line(pool, customer):
    task = await quick(pool, customer, 60_000)
    await send(pool, signal.SIGKILL)
    assert (await task).trap == "worker_lost"


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
    assert pool._admission._losses.wait_ms(b"c", pool._clock.monotonic_ms()) == 0


async def test_a_module_that_ended_a_worker_is_refused_to_who_had_it_run(pool, monkeypatch):
    monkeypatch.setattr(pool._admission, "_losses", Tally(9, WORKERS_LOST_MS))
    for number, lose in enumerate((crash, crash_in_line)):
        customer, given = bytes([number]), (SPIN, ADD)[number]
        await lose(pool, customer)
        with pytest.raises(SandboxFailed, match="ended with its worker"):
            await pool.run(replace(given, customer=customer))
        # Another module, another customer, and the same later are run.
        short = replace(given.limits, fuel=10)
        other = (ADD, SPIN)[number]
        assert (await pool.run(replace(other, limits=short, customer=customer))).fuel_used
        assert (await pool.run(replace(given, limits=short, customer=b"another"))).fuel_used
        pool._clock.added_ms += MODULE_LOST_MS
        assert (await pool.run(replace(given, limits=short, customer=customer))).fuel_used
    await crash(pool, b"own")
    assert (await pool.run(replace(SPIN, limits=short, customer=b"own"))).fuel_used
    # A request that ends its worker takes the service from nobody else.
    request = replace(SPIN, customer=b"s", service=True)
    task = await spinning(pool, b"s", request)
    await send(pool, signal.SIGKILL)
    assert (await task).trap == "worker_lost"
    assert (await pool.run(replace(request, limits=short))).fuel_used
    # One that was cancelled, or killed at its deadline, did not end the worker by itself.
    await cancel(pool, b"c")
    await hang(pool, b"c")
    assert (await pool.run(replace(SPIN, limits=short, customer=b"c"))).fuel_used


async def test_a_worker_that_ended_while_it_was_idle_is_nobodys_loss(pool):
    for quick_one in (False, True):
        while quick_one and (ADD.module_hash, "add") not in pool._quick:
            await pool.run(ADD)
        (worker,) = pool._workers.alive
        await send(pool, signal.SIGKILL)
        await worker.pipes.exited
        await until(lambda pipes=worker.pipes: pipes.ended)
        assert (await pool.run(replace(ADD, customer=b"c"))).results == (i32(3),)
    assert pool._admission._losses.wait_ms(b"c", pool._clock.monotonic_ms()) == 0


async def test_a_lost_worker_is_replaced_also_where_its_run_is_given_up(pool, monkeypatch):
    task = await spinning(pool, b"c")
    began, go_on = asyncio.Event(), asyncio.Event()

    async def end(lost):
        began.set()
        await go_on.wait()
        return await lost.kill()

    monkeypatch.setattr(pools.SandboxProcess, "end", end)
    await send(pool, signal.SIGKILL)
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go_on.set()
    assert (await pool.run(replace(ADD, customer=b"b"))).results == (i32(3),)


@given(
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 400)), max_size=60),
    st.integers(1, 500),
)
def test_within_any_window_a_customer_takes_its_share_and_one_turn_more(turns, most):
    within_ms = 6_000
    rate = Rate(most, within_ms, b"own")
    now_ms, taken = 0, []
    for pause_ms, amount in turns:
        now_ms += pause_ms
        rate.note(b"own", amount, now_ms)
        assert rate.wait_ms(b"own", amount, now_ms) == 0
        wait_ms = rate.wait_ms(b"c", amount, now_ms)
        if wait_ms:
            # However much it is: nobody waits for ever.
            assert wait_ms <= 2 * within_ms + 400 * within_ms // most
            assert rate.wait_ms(b"c", amount, now_ms + wait_ms - 1) > 0
            assert rate.wait_ms(b"c", amount, now_ms + wait_ms) == 0
        else:
            assert amount <= rate.left(b"c", now_ms) or rate.left(b"c", now_ms) == most
            taken.append((now_ms, amount))
            rate.note(b"c", amount, now_ms)
        for start_ms, _ in taken:
            some = [amount for at_ms, amount in taken if at_ms >= start_ms]
            assert sum(some) <= most + most * (now_ms - start_ms) // within_ms + max(some)
    rate.note(b"late", 1, now_ms + 1000 * within_ms)
    assert set(rate._owed_until) == {b"late"}


async def test_who_had_much_compiled_has_no_more_compiled_for_a_while(monkeypatch):
    monkeypatch.setattr(compilers, "COMPILE_MS_A_PEER_MAX", 1)
    pool = PoolSandbox(1, WatchedClock(), SilentLog(), own=b"own")
    await pool.start()
    modules = [
        job("fib", "fib", i32(1)),
        job("add64", "add", i64(1), i64(2)),
        job("multi", "nothing"),
    ]
    pool._compiler._taken.note(b"c", 3, pool._clock.monotonic_ms())
    with pytest.raises(RateLimited, match="to compile modules of this customer") as refused:
        await pool.run(replace(modules[0], customer=b"c"))
    assert 0 < refused.value.retry_after_s <= RETRY_AFTER_S_MAX
    # Others, this node, and what is compiled already are not concerned.
    for customer in (b"another", b"c"):
        assert (await pool.run(replace(modules[0], customer=customer))).trap is None
    for each in modules[1:]:
        pool._compiler._taken.note(b"own", 9, pool._clock.monotonic_ms())
        assert (await pool.run(replace(each, customer=b"own"))).trap is None
    pool._clock.added_ms = 3 * COMPILE_SHARE_MS
    assert (await pool.run(replace(ADD, customer=b"c"))).trap is None
    await pool.stop()


async def test_what_a_compilation_takes_is_counted_however_it_ends(pool):
    clock, compiler = pool._clock, pool._compiler
    (jail,) = compiler._idle
    os.kill(jail.pid, signal.SIGSTOP)
    output = OutputBuffer(clock)
    running = asyncio.create_task(run_streamed(pool, replace(ADD, customer=b"c"), output))
    await until(lambda: output.compiled)
    output.cancel()
    done = await running
    # It is compiled all the same, and billed so.
    assert (done.trap, done.compiled) == ("cancelled", True)
    clock.added_ms += COMPILE_MS_A_PEER_MAX
    os.kill(jail.pid, signal.SIGCONT)
    await until(lambda: not compiler._under_way)
    assert compiler._taken.wait_ms(b"c", 1, clock.monotonic_ms()) > 0


async def test_so_many_modules_of_a_customer_wait_to_be_compiled_and_others_have_their_own(pool):
    compiler = pool._compiler
    (jail,) = compiler._idle
    os.kill(jail.pid, signal.SIGSTOP)

    def asked(customer, number):
        module = replace(ADD, customer=customer, module_hash=bytes([number]) * 32)
        return asyncio.create_task(compiler.code(module, b"config"))

    waiting = [asked(b"c", number) for number in range(COMPILES_QUEUED_A_PEER_MAX)]
    await until(lambda: len(compiler._under_way) == COMPILES_QUEUED_A_PEER_MAX)
    with pytest.raises(RateLimited, match="too many modules wait"):
        await asked(b"c", 100)
    # A module that is being compiled takes no further place.
    again = asked(b"c", 0)
    other = asked(b"another", 101)
    await until(lambda: len(compiler._under_way) == COMPILES_QUEUED_A_PEER_MAX + 1)
    for task in (*waiting, again, other):
        task.cancel()
    await asyncio.gather(*waiting, again, other, return_exceptions=True)
    os.kill(jail.pid, signal.SIGCONT)
    await compiler.stop()
    assert not compiler._queued.held(b"c")


async def test_this_node_has_its_modules_compiled_whatever_many_others_bring(pool):
    compiler = pool._compiler
    (jail,) = compiler._idle
    os.kill(jail.pid, signal.SIGSTOP)

    def asked(customer, number):
        module = replace(ADD, customer=customer, module_hash=bytes([number]) * 32)
        return asyncio.create_task(compiler.code(module, b"config"))

    many = [asked(bytes([number]), number) for number in range(COMPILES_QUEUED_MAX)]
    most = COMPILES_QUEUED_MAX - COMPILES_QUEUED_A_PEER_MAX
    await until(lambda: sum(task.done() for task in many) == COMPILES_QUEUED_A_PEER_MAX)
    assert len(compiler._under_way) == most
    own = asked(b"own", 200)
    await until(lambda: len(compiler._under_way) == most + 1)
    for task in (*many, own):
        task.cancel()
    await asyncio.gather(*many, own, return_exceptions=True)
    os.kill(jail.pid, signal.SIGCONT)
    await compiler.stop()


async def test_no_module_is_compiled_for_a_job_that_finds_no_place(pool):
    running = await spinning(pool, b"own")
    before = pool.describe()["compiled"]
    many = [replace(SPIN, customer=bytes([n % 4])) for n in range(JOBS_QUEUED_MAX)]
    waiting = [asyncio.create_task(pool.run(each)) for each in many]
    await until(lambda: pool.describe()["queued"] == JOBS_QUEUED_MAX)
    with pytest.raises(RateLimited, match="wait already"):
        await pool.run(replace(ADD, customer=b"new"))
    assert pool.describe()["compiled"] == before
    for task in (running, *waiting):
        task.cancel()
    await asyncio.gather(running, *waiting, return_exceptions=True)
