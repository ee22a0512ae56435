"""How late a job that hangs is gone, beside how late a timer is on this machine.

Two workers, one job at a time. A job may hang in its own code, in a call of the
host that takes long, or with its whole process stopped, where the pool must kill
it; each is given 20 ms, and what is printed is how long after those its result
was there. A compile bomb is held against the bound of compiling.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

import wasmtime

from benchmarks.size import least
from xsc.base.limits import COMPILE_MS_DEFAULT, FUEL_MAX, MIB
from xsc.base.log import SilentLog
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Job
from xsc.compute.worker.pool import PoolSandbox
from xsc.node.system import SystemClock

ALLOWED_MS = 20
WORKERS = 2
SPIN = '(module (func (export "go") (loop br 0)))'
HASHING = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 960)
  (func (export "go") (loop (drop (call $random (i32.const 0) (i32.const 60000000))) (br 0))))"""


def job(text: str) -> Job:
    module = bytes(wasmtime.wat2wasm(text))
    limits = Limits(fuel=FUEL_MAX, memory_bytes=64 * MIB, timeout_ms=ALLOWED_MS)
    return Job(hashlib.sha256(module).digest(), module, function="go", limits=limits)


def bomb() -> Job:
    """Nested loops, each with a local that changes in it: 20 KB that take minutes to compile."""
    depth = 3000
    begin = "".join(
        f"(loop (local.set {n % 200} (i32.add (local.get {n % 200}) (i32.const 1)))"
        for n in range(depth)
    )
    end = "".join(f"(br_if 0 (local.get {n % 200})))" for n in reversed(range(depth)))
    given = f'(module (func (export "go") (local {"i32 " * 200}) {begin}{end}))'
    return job(given)


async def timer() -> None:
    await asyncio.sleep(ALLOWED_MS / 1000)


async def lateness(
    pool: PoolSandbox, work: Callable[[], Awaitable[object]], times: int, allowed_ms: int
) -> list[float]:
    late = []
    for _ in range(times):
        await rested(pool)
        begun = time.perf_counter()
        await work()
        late.append((time.perf_counter() - begun) * 1000 - allowed_ms)
    return sorted(late)


def show(what: str, late: list[float]) -> None:
    p99 = late[min(len(late) - 1, len(late) * 99 // 100)]
    print(
        f"  {what:28} {len(late):4} times: p50 {late[len(late) // 2]:5.1f}  p99 {p99:5.1f}  "
        f"worst {late[-1]:5.1f} ms late"
    )


async def rested(pool: PoolSandbox) -> None:
    """Wait until every worker is there again: that time is the next job's in the queue."""
    while True:
        state = pool.describe()
        if state["workers"] == WORKERS and not state["running"]:
            return
        await asyncio.sleep(0.005)


async def stopped(pool: PoolSandbox, given: Job) -> None:
    """Run a job whose process is stopped as soon as it has it."""
    running = asyncio.create_task(pool.run(given))
    queues = pool._queues.values()  # noqa: SLF001 - nothing else tells its process
    while not (busy := [queue.worker for queue in queues if queue]):  # noqa: ASYNC110 - no event says it
        await asyncio.sleep(0.001)
    (worker,) = busy
    os.kill(worker.pid, signal.SIGSTOP)
    await running


async def measure(quick: bool) -> None:
    pool = PoolSandbox(WORKERS, SystemClock(), SilentLog())
    await pool.start()
    try:
        times = least(50 if quick else 300, 2)
        show("a timer alone", await lateness(pool, timer, times, ALLOWED_MS))
        for what, text in [("in a loop", SPIN), ("in a call of the host", HASHING)]:
            given = job(text)
            await pool.run(given)
            show(what, await lateness(pool, partial(pool.run, given), times, ALLOWED_MS))
        given = job(SPIN)
        show(
            "with its process stopped",
            await lateness(pool, partial(stopped, pool, given), max(1, times // 5), ALLOWED_MS),
        )
        if not quick:
            show(
                "a compile bomb",
                await lateness(pool, partial(pool.run, bomb()), 1, COMPILE_MS_DEFAULT),
            )
    finally:
        await pool.stop()


def run(quick: bool) -> None:
    print(f"\nhung: jobs that hang, allowed {ALLOWED_MS} ms (target: 50 ms late at p99)")
    asyncio.run(measure(quick))
