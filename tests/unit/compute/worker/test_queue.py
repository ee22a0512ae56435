"""Quick calls in a worker's line: each is answered for itself, and none waits for a slow one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
import pytest_asyncio

from tests.settle import settle
from tests.unit.compute.programs import SteadyClock, i32, job, job_of, wasm
from xsc.base.errors import RateLimited, SandboxFailed, SignatureMismatch
from xsc.base.limits import FUEL_MAX, JOBS_QUEUED_A_PEER_MAX, JOBS_QUEUED_MAX
from xsc.base.log import SilentLog
from xsc.compute.wasm.engine import MODULES_COMPILED_MAX
from xsc.compute.worker.pool import PoolSandbox
from xsc.compute.worker.queue import QUEUE_CALLS_MAX

pytestmark = pytest.mark.asyncio(loop_scope="module")


def fib(number, **fields):
    return job("fib", "fib", i32(number), fuel=FUEL_MAX, **fields)


SLOW = fib(200, timeout_ms=20_000)
"""The same function as a quick one; it would run for longer than anybody waits."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared():
    pool = PoolSandbox(1, SteadyClock(), SilentLog())
    await pool.start()
    yield pool
    await pool.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def pool(shared):
    await warm(shared)
    return shared


async def warm(pool):
    """Have every worker know the code, and the function as quick."""
    for _ in range(2):
        await asyncio.gather(*(pool.run(fib(1)) for _ in range(pool.describe()["workers"])))
    while (fib(1).module_hash, "fib") not in pool._quick:  # it was held up by others
        await pool.run(fib(1))


def give(pool, jobs):
    return [asyncio.create_task(pool.run(each)) for each in jobs]


def pids(pool):
    return [worker.pid for worker in pool._workers.alive]


def in_lines(pool):
    return sorted(len(line) for line in pool._queues.values())


async def test_each_call_of_a_line_gets_its_own_answer_in_the_same_worker(pool):
    before = pids(pool)
    os.kill(before[0], signal.SIGSTOP)
    tasks = give(pool, [fib(number) for number in range(20)])
    await settle()
    assert in_lines(pool) == [QUEUE_CALLS_MAX]
    assert pool.describe()["queued"] == 19
    os.kill(before[0], signal.SIGCONT)
    results = await asyncio.gather(*tasks)
    values = [0, 1]
    while len(values) < 20:
        values.append(values[-1] + values[-2])
    assert [each.results for each in results] == [(i32(value),) for value in values]
    alone = [await pool.run(fib(number)) for number in range(20)]
    assert [each.fuel_used for each in results] == [each.fuel_used for each in alone]
    assert {each.engine_config for each in results} == {alone[0].engine_config}
    assert pids(pool) == before
    assert in_lines(pool) == [0]


async def test_what_a_call_refuses_is_its_own_error(pool):
    good, bad, other = give(pool, [fib(2), job("fib", "fib"), fib(3)])
    assert (await good).results == (i32(1),)
    with pytest.raises(SignatureMismatch):
        await bad
    assert (await other).results == (i32(2),)


async def test_a_call_over_its_time_ends_by_it_and_those_behind_it_are_run(pool):
    before = pids(pool)
    slow, *others = give(pool, [fib(200, timeout_ms=60), *map(fib, range(5))])
    assert (await slow).trap == "time_exceeded"
    assert [(await each).trap for each in others] == [None] * 5
    await warm(pool)
    before = pids(pool)
    # A worker that does not is killed at the deadline.
    os.kill(before[0], signal.SIGSTOP)
    hung, *others = give(pool, [fib(1, timeout_ms=20), *map(fib, range(5))])
    result = await hung
    assert (result.trap, result.fuel_used) == ("time_exceeded", 0)
    assert [(await each).trap for each in others] == [None] * 5
    assert pids(pool) != before


async def test_nobody_waits_behind_a_call_that_is_slow_where_another_worker_is():
    pool = PoolSandbox(2, SteadyClock(), SilentLog())
    await pool.start()
    try:
        await warm(pool)
        blocked = give(pool, [fib(24, customer=b"b")])  # on the other worker, for a moment
        slow, *others = give(pool, [SLOW, *map(fib, range(8))])
        await settle()
        assert [(await each).trap for each in [*blocked, *others]] == [None] * 9
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert (await pool.run(fib(5))).trap is None
        # What stands in a line when the pool stops is refused.
        tasks = give(pool, [SLOW, SLOW, fib(1)])
        await settle()
    finally:
        await pool.stop()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ends] == [SandboxFailed] * 3


async def test_a_killed_worker_fails_the_call_that_it_was_at_and_no_other(pool):
    (before,) = pids(pool)
    slow, *others = give(pool, [SLOW, *map(fib, range(5))])
    await settle()
    os.kill(before, signal.SIGKILL)
    assert (await slow).trap == "worker_lost"
    assert [(await each).trap for each in others] == [None] * 5
    assert before not in pids(pool)


async def test_a_cancelled_call_ends_with_its_worker_only_where_it_runs(pool):
    before = pids(pool)
    os.kill(before[0], signal.SIGSTOP)  # so that it does not come to the second
    first, second, third = give(pool, [fib(3), fib(4), fib(5)])
    await settle()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    os.kill(before[0], signal.SIGCONT)
    assert (await first).results == (i32(2),)
    assert (await third).results == (i32(5),)
    assert pids(pool) == before
    slow, other = give(pool, [SLOW, fib(6)])
    await settle()
    slow.cancel()
    assert (await other).results == (i32(8),)
    assert pids(pool) != before


async def test_what_waits_is_bounded_with_lines_as_well(pool):
    os.kill(pids(pool)[0], signal.SIGSTOP)
    most = JOBS_QUEUED_MAX + 1  # and the one that runs
    jobs = [
        fib(1, customer=bytes([number // JOBS_QUEUED_A_PEER_MAX]), timeout_ms=60_000)
        for number in range(most)
    ]
    tasks = give(pool, jobs)
    await settle()
    assert in_lines(pool) == [QUEUE_CALLS_MAX]
    assert pool.describe()["queued"] == JOBS_QUEUED_MAX
    for more in (fib(1, customer=b"new"), job("add", "add", i32(1), i32(2), customer=b"new")):
        with pytest.raises(RateLimited, match="wait already"):
            await pool.run(more)
    os.kill(pids(pool)[0], signal.SIGCONT)
    assert [(await each).trap for each in tasks] == [None] * most


async def test_other_jobs_get_their_turn_between_calls(pool):
    quick = give(pool, [fib(1) for _ in range(5)])
    await settle()
    other = asyncio.create_task(pool.run(job("add", "add", i32(1), i32(2))))
    await settle()
    late = give(pool, [fib(1) for _ in range(5)])
    assert (await other).results == (i32(3),)
    assert [(await each).trap for each in [*quick, *late]] == [None] * 10


async def test_a_module_that_the_worker_forgot_is_brought_again(pool):
    base = wasm("add")
    for number in range(MODULES_COMPILED_MAX):
        tail = b"\x00\x02\x01" + bytes([number])
        assert (await pool.run(job_of(base + tail, "add", i32(1), i32(2)))).trap is None
    results = await asyncio.gather(*give(pool, map(fib, range(5))))
    assert [each.results for each in results] == [(i32(n),) for n in (0, 1, 1, 2, 3)]


LIAR = """
import os
from xsc.compute.worker import frames
hello = {"engine": "liar", "config": bytes(32), "confined": {}}
os.write(1, frames.to_frame(hello))
source = os.fdopen(0, "rb", buffering=0)
def hear():
    return frames.from_frame(source.read(frames.length_of(source.read(4))))
assert hear()["code"]["size"] > 0
result = {"kind": "result", "results": [], "files": [], "fuel": 1, "memory": 0, "stdout": b"",
    "stderr": b"", "engine": "", "config": bytes(32), "wall": 0}
os.write(1, frames.to_frame(result))
assert hear()["kind"] == "calls"
os.write(1, ANSWER)
hear()
"""
TOLD = 'frames.to_frame({{"kind": "answer", "told": {}}})'


@pytest.mark.parametrize(
    "answer",
    [
        'b"\\xff" * 4',
        'frames.to_frame({"kind": "running"})',
        TOLD.format("None"),
        TOLD.format("[[], None, 1, 1, 1]") + " * 2",
    ],
)
async def test_a_worker_that_breaks_the_protocol_of_calls_is_ended(answer):
    command = (sys.executable, "-I", "-c", LIAR.replace("ANSWER", answer))
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=command)
    await pool.start()
    (before,) = pool._workers.alive
    quick = job("add", "add", i32(1), i32(2))
    assert (await pool.run(quick)).fuel_used == 1
    (end,) = await asyncio.gather(*give(pool, [quick]))
    assert end.trap in (None, "worker_lost")
    await before.pipes.exited
    await pool.stop()
