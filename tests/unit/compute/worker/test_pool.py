from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.settle import settle, until
from tests.unit.compute.programs import SteadyClock, i32, job, job_of, wasm
from xsc.base.errors import CompileLimit, ModuleInvalid, RateLimited, SandboxFailed
from xsc.base.limits import FUEL_MAX, JOBS_QUEUED_A_PEER_MAX, JOBS_QUEUED_MAX
from xsc.base.log import SilentLog
from xsc.compute.jobs.output_buffer import OutputBuffer
from xsc.compute.wasm.engine import MODULES_COMPILED_MAX
from xsc.compute.worker.code_cache import CodeCache
from xsc.compute.worker.pool import PoolSandbox

ADD = job("add", "add", i32(1), i32(2))
SPIN_1 = job("endless", "spin", fuel=1)
SPIN = job("endless", "spin", fuel=FUEL_MAX, timeout_ms=60_000)


@pytest_asyncio.fixture
async def pool():
    made = PoolSandbox(1, SteadyClock(), SilentLog())
    await made.start()
    yield made
    await made.stop()


def read_lines(path):
    return path.read_text().splitlines()


def names_in(path):
    return {entry.name for entry in path.iterdir()}


async def _known(pool):
    """Have what is run here compiled: then a job waits for a worker and nothing else."""
    await pool.run(ADD)
    await pool.run(SPIN_1)


def pids(pool):
    return [worker.pid for worker in pool._workers.alive]


async def test_a_worker_killed_in_the_middle_fails_its_job_and_no_other(pool):
    before = pids(pool)
    await _known(pool)
    running = asyncio.create_task(pool.run(SPIN))
    waiting = asyncio.create_task(pool.run(ADD))
    await settle()
    assert pool.describe()["queued"] == 1
    os.kill(before[0], signal.SIGKILL)
    assert (await running).trap == "worker_lost"
    assert (await waiting).results == (i32(3),)
    assert pids(pool) != before


async def test_a_stop_refuses_the_call_of_a_worker_that_has_just_ended(pool):
    await _known(pool)
    running = asyncio.create_task(pool.run(SPIN))
    await settle()
    (queue,) = pool._queues.values()
    pool.broken(queue, "it ended")
    await pool.stop()
    await settle()
    assert running.done()
    with pytest.raises(SandboxFailed, match="stopped"):
        await running


async def test_a_stop_refuses_the_call_whose_code_did_not_reach_its_worker(pool):
    await pool.prepare(ADD)
    (worker,) = pool._workers.alive
    worker.mailbox.close()
    bringing = asyncio.create_task(pool.run(ADD))
    await until(lambda: not pool._queues)
    await pool.stop()
    await settle()
    assert bringing.done()
    with pytest.raises(SandboxFailed, match="stopped"):
        await bringing


async def test_a_call_whose_code_is_there_after_a_stop_is_refused(pool, monkeypatch):
    compiling, compiled, code = asyncio.Event(), asyncio.Event(), pool._compiler.code

    async def slow(*what):
        found = await code(*what)
        compiling.set()
        await compiled.wait()
        return found

    monkeypatch.setattr(pool._compiler, "code", slow)
    waiting = asyncio.create_task(pool.run(replace(ADD, wait_ms=60_000)))
    await compiling.wait()
    await pool.stop()
    compiled.set()
    await settle()
    assert waiting.done()
    with pytest.raises(SandboxFailed, match="stopped"):
        await waiting


async def test_a_worker_that_does_not_answer_is_killed_at_the_deadline(pool):
    await pool.run(SPIN_1)
    (worker,) = pool._workers.alive
    os.kill(worker.pid, signal.SIGSTOP)
    result = await pool.run(job("endless", "spin", timeout_ms=20))
    assert (result.trap, result.fuel_used) == ("time_exceeded", 0)
    assert (await pool.run(ADD)).results == (i32(3),)


async def test_a_job_cancelled_while_its_code_is_read_costs_no_worker(pool, monkeypatch):
    await pool.prepare(ADD)
    before, kept = pids(pool), pool._compiler.kept
    reading, read = asyncio.Event(), asyncio.Event()

    async def slow(*slot):
        reading.set()
        await read.wait()
        return await kept(*slot)

    monkeypatch.setattr(pool._compiler, "kept", slow)
    gone = asyncio.create_task(pool.run(ADD))
    await reading.wait()
    gone.cancel()
    await asyncio.wait([gone])
    waits = asyncio.create_task(pool.run(ADD))
    await settle()
    read.set()
    assert (await waits).results == (i32(3),)
    assert pids(pool) == before
    assert pool.describe()["running"] == 0


async def test_what_a_worker_gave_up(pool):
    (pid,) = pids(pool)
    folder = Path("/proc") / str(pid)
    limits = {line[:26].strip(): line[26:].split()[:2] for line in read_lines(folder / "limits")}
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
    assert limits["Max processes"] == ["0", "0"]
    assert names_in(folder / "fd") == {"0", "1", "2"}
    (mailbox,) = [line for line in read_lines(folder / "maps") if "memfd" in line]
    assert mailbox.split()[1] == "r--s"
    status = dict(line.split(":\t", 1) for line in read_lines(folder / "status"))
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert read_lines(folder / "environ") == []
    confined = pool.describe()["confined"]
    assert all(confined[name] for name in confined if name != "landlock")


ATTEMPTS = """
import os, socket, subprocess, sys, ctypes, resource
from xsc.compute.worker import frames
from xsc.compute.worker.confine import confine
confine()
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, do):
    try:
        do()
    except (OSError, ValueError) as fault:
        return [name, type(fault).__name__]
    return [name, "done"]
tries = [
    attempt("open", lambda: open("/etc/passwd")),
    attempt("create", lambda: os.mkdir("/tmp/xsc-worker-was-here")),
    attempt("list", lambda: os.listdir("/")),
    attempt("socket", lambda: socket.socket()),
    attempt("pair", lambda: socket.socketpair()),
    attempt("program", lambda: os.execv("/bin/true", ["true"])),
    attempt("limits", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))),
    attempt("signal", lambda: os.kill(os.getppid(), 0)),
]
os.write(1, frames.to_frame({"engine": "", "config": bytes(32), "confined": dict(tries)}))
os.read(0, 1)
"""


async def test_a_confined_process_gets_at_nothing():
    pool = PoolSandbox(
        1, SteadyClock(), SilentLog(), command=(sys.executable, "-I", "-c", ATTEMPTS)
    )
    await pool.start()
    tries = pool.describe()["confined"]
    await pool.stop()
    refused = {name for name, what in tries.items() if what != "done"}
    assert refused >= {"open", "list", "socket", "pair", "limits"}
    if (await _landlock_version()) >= 6:
        assert refused == set(tries)


async def _landlock_version():
    made = PoolSandbox(1, SteadyClock(), SilentLog())
    await made.start()
    version = made.describe()["confined"]["landlock"]
    await made.stop()
    return version


async def test_the_queue_is_bounded_for_all_and_for_each_customer(pool):
    await _known(pool)
    running = asyncio.create_task(pool.run(SPIN))
    await asyncio.sleep(0)
    waiting = []
    for number in range(JOBS_QUEUED_MAX):
        customer = bytes([number // (JOBS_QUEUED_A_PEER_MAX - 1)])
        given = job("add", "add", i32(1), i32(2), customer=customer)
        waiting.append(asyncio.create_task(pool.run(given)))
    await asyncio.sleep(0)
    assert pool.describe()["queued"] == JOBS_QUEUED_MAX
    with pytest.raises(RateLimited, match="wait already"):
        await pool.run(job("add", "add", i32(1), i32(2), customer=b"new"))
    for task in (running, *waiting):
        task.cancel()
    await asyncio.gather(running, *waiting, return_exceptions=True)
    assert (await pool.run(ADD)).results == (i32(3),)


async def test_one_customer_cannot_fill_the_queue(pool):
    tasks = [asyncio.create_task(pool.run(SPIN)) for _ in range(JOBS_QUEUED_A_PEER_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match="of this customer"):
        await pool.run(SPIN)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


SAYS_IT_TOOK_ALL_ITS_TIME = """
from dataclasses import replace
from xsc.compute.worker import main as worker
from xsc.compute.wasm.engine import Machine
def run(self, job, tell=None, run=Machine.run):
    return replace(run(self, job, tell=tell), wall_ms=job.limits.timeout_ms)
Machine.run = run
worker.main()
"""


async def test_a_full_queue_says_when_to_come_again():
    command = (sys.executable, "-I", "-c", SAYS_IT_TOOK_ALL_ITS_TIME)
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=command)
    await pool.start()
    try:
        for took_ms, least_s, most_s in [(1, 1, 9), (2_000, 16, 30), (60_000, 60, 60)]:
            await pool.run(replace(SPIN_1, limits=replace(SPIN_1.limits, timeout_ms=took_ms)))
            tasks = [asyncio.create_task(pool.run(SPIN)) for _ in range(JOBS_QUEUED_A_PEER_MAX)]
            await asyncio.sleep(0)
            with pytest.raises(RateLimited) as refused:
                await pool.run(SPIN)
            assert least_s <= refused.value.retry_after_s <= most_s
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await pool.stop()


async def test_a_worker_asks_again_for_a_module_it_forgot(pool):
    base = wasm("add")
    for number in range(MODULES_COMPILED_MAX + 1):
        tail = b"\x00\x02\x01" + bytes([number])  # a custom section: the same, with another hash
        assert (await pool.run(job_of(base + tail, "add", i32(1), i32(2)))).trap is None
    again = base + b"\x00\x02\x01\x00"
    assert (await pool.run(job_of(again, "add", i32(1), i32(2)))).results == (i32(3),)


async def test_a_worker_whose_module_cannot_be_brought_again_takes_the_next_job(pool):
    many = [
        job_of(wasm("add") + b"\0\2\1" + bytes([i]), "add", i32(1), i32(2))
        for i in range(MODULES_COMPILED_MAX + 1)
    ]
    for each in many:
        await pool.run(each)
    first = many[0]
    pool._compiler._kept.clear()
    pool._compiler._bombs.put(first.module_hash, 2**62)
    with pytest.raises(CompileLimit):
        await pool.run(first)
    before = pids(pool)
    assert (await pool.run(many[-1])).results == (i32(3),)
    assert pids(pool) == before


ASKS_NOT = """
import sys
from xsc.compute.worker import main as worker
def answered(self, job, message, answer=worker.Worker._answer):
    told = answer(self, job, message)
    assert told["kind"] != "code_wanted", "it had to ask"
    return told
worker.Worker._answer = answered
worker.main()
"""


async def test_code_comes_with_the_job_and_leaves_nothing_behind(tmp_path):
    """Each worker is brought what it has not got, and not again what it has."""
    cache = CodeCache(tmp_path / "cache", b"k" * 32)
    command = (sys.executable, "-I", "-c", ASKS_NOT)
    pool = PoolSandbox(2, SteadyClock(), SilentLog(), cache, command=command)
    await pool.start()
    before = pids(pool)
    for _ in range(4):
        worker = next(iter(pool._queues))
        busy = pool._queues.pop(worker)  # so that it is the other one's turn
        assert (await pool.run(ADD)).results == (i32(3),)
        pool._queues[worker] = busy
    assert sorted(len(worker.seen) for worker in pool._workers.alive) == [1, 1]
    assert [os.fstat(worker.mailbox._handle).st_blocks for worker in pool._workers.alive] == [0, 0]
    assert pids(pool) == before
    assert pool.describe()["compiled"] == 1
    await pool.stop()


REFUSES = """
from xsc.base.errors import SandboxFailed
from xsc.compute.worker import main as worker
from xsc.compute.wasm.engine import Machine
loads = []
def refuses(self, *code, load=Machine.load):
    loads.append(code)
    if len(loads) == 2:  # the first is to warm up
        raise SandboxFailed("the engine refuses code")
    load(self, *code)
Machine.load = refuses
worker.main()
"""


async def test_code_that_a_worker_refuses_is_not_left_in_memory():
    command = (sys.executable, "-I", "-c", REFUSES)
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=command)
    await pool.start()
    before = pids(pool)
    (worker,) = pool._workers.alive
    with pytest.raises(SandboxFailed, match="refuses code"):
        await pool.run(ADD)
    assert os.fstat(worker.mailbox._handle).st_blocks == 0
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pids(pool) == before
    await pool.stop()


async def test_a_worker_whose_code_cannot_be_brought_takes_the_next_job():
    pool = PoolSandbox(2, SteadyClock(), SilentLog())
    await pool.start()
    before = pids(pool)
    await pool.run(SPIN_1)
    await pool.run(ADD)  # by the same worker, which both are known to
    held = asyncio.create_task(pool.run(SPIN))
    await asyncio.sleep(0)
    pool._compiler._kept.clear()
    pool._compiler._bombs.put(ADD.module_hash, 2**62)
    for _ in range(3):
        with pytest.raises(CompileLimit):
            await pool.run(ADD)
    pool._compiler._bombs.clear()
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pids(pool) == before
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await pool.stop()


async def test_a_worker_for_whose_code_there_is_no_memory_is_replaced(pool):
    before = pids(pool)
    (worker,) = pool._workers.alive
    worker.mailbox.close()
    with pytest.raises(SandboxFailed, match="before the job began"):
        await pool.run(ADD)
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pids(pool) != before


async def test_the_same_worker_goes_on_after_a_refusal(pool):
    before = pids(pool)
    with pytest.raises(ModuleInvalid):
        await pool.run(job_of(b"\0asm", "add"))
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pids(pool) == before


LIAR = """
import os
from xsc.compute.worker import frames
hello = {"engine": "liar", "config": bytes(32), "confined": {}}
os.write(1, frames.to_frame(hello))
os.read(0, 1)
os.write(1, ANSWER)
os.read(0, 1 << 20)
os.read(0, 1)
"""


TOO_MUCH_FUEL = """frames.to_frame({"kind": "result",
"told": [[], None, None, [2**62, 0, 0], [b"", b""], []]})"""


@pytest.mark.parametrize(
    "answer",
    [
        'b"\\xff" * 4',
        'b"\\0\\0\\0\\1\\xff"',
        'frames.to_frame({"kind": "result"})',
        'frames.to_frame({"kind": "running"}) * 2',
        'frames.to_frame({"kind": "code_wanted"})',
        'frames.to_frame({"kind": "running"}) + frames.to_frame({"kind": "code_wanted"})',
        TOO_MUCH_FUEL,
    ],
)
async def test_a_worker_that_breaks_the_protocol_is_ended(answer):
    source = LIAR.replace("ANSWER", answer)
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=(sys.executable, "-I", "-c", source))
    await pool.start()
    assert (await pool.run(ADD)).trap == "worker_lost"
    await pool.stop()


SAID = 'frames.to_frame(frames.output_message({stream}, b"{data}"))'
RESULT = """frames.to_frame({"kind": "result",
"told": [[], 0, None, [1, 0, 0], [b"ab", b""], []]})"""


@pytest.mark.parametrize(
    ("said", "watched", "fine"),
    [
        ([(1, "a"), (1, "b")], True, True),
        ([(1, "a")], True, True),
        ([], True, True),
        ([(1, "ab")], False, False),  # nobody asked to see it
        ([(1, "b")], True, False),  # the result says something else
        ([(2, "a")], True, False),
        ([(0, "a")], True, False),
        ([(3, "a")], True, False),
        ([(1, "")], True, False),
        ([(1, "abc")], True, False),  # over what the job may write
        ([(1, "a")] * 3, True, False),
    ],
)
async def test_what_a_worker_shows_is_the_beginning_of_its_output(said, watched, fine):
    frames = [SAID.format(stream=stream, data=data) for stream, data in said]
    source = LIAR.replace("ANSWER", " + ".join([*frames, RESULT]))
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=(sys.executable, "-I", "-c", source))
    await pool.start()
    job = replace(ADD, limits=replace(ADD.limits, output_bytes=2))
    watch = OutputBuffer(SteadyClock()) if watched else None
    if fine:
        assert (await pool.run(job, watch)).stdout == b"ab"
        assert watch.done
        assert watch.written() == (b"ab", b"")
    else:
        assert (await pool.run(job, watch)).trap == "worker_lost"
    await pool.stop()


async def test_a_sandbox_that_cannot_start_says_so():
    pool = PoolSandbox(1, SteadyClock(), SilentLog(), command=(sys.executable, "-c", "exit(9)"))
    with pytest.raises(SandboxFailed, match="does not start"):
        await pool.start()
    with pytest.raises(SandboxFailed, match="not running"):
        await pool.run(ADD)


ONE_FAILS = """
import os, runpy, sys
try:
    os.mkdir(sys.argv[1])
except FileExistsError:
    runpy.run_module("xsc.compute.worker.main", run_name="__main__", alter_sys=True)
else:
    sys.exit(9)
"""


async def test_where_one_worker_does_not_start_no_other_is_left(tmp_path):
    command = (sys.executable, "-I", "-c", ONE_FAILS, str(tmp_path / "first"))
    pool = PoolSandbox(3, SteadyClock(), SilentLog(), command=command)
    with pytest.raises(SandboxFailed, match="does not start"):
        await pool.start()
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
    assert pool._workers.alive == set()


async def test_who_has_one_job_waits_for_one_of_each_other_and_not_for_all(pool):
    await _known(pool)
    ended = []

    async def run(given, name):
        await pool.run(given)
        ended.append(name)

    many = replace(SPIN_1, customer=b"many")
    held = asyncio.create_task(pool.run(SPIN))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(run(many, "many")) for _ in range(JOBS_QUEUED_A_PEER_MAX)]
    await until(lambda: pool.describe()["queued"] == JOBS_QUEUED_A_PEER_MAX)
    tasks.append(asyncio.create_task(run(replace(ADD, customer=b"one"), "one")))
    await until(lambda: pool.describe()["queued"] == JOBS_QUEUED_A_PEER_MAX + 1)
    held.cancel()
    await asyncio.gather(*tasks)
    assert ended.index("one") <= 1


async def test_a_kept_worker_starts_jobs_at_cleared_rates_alone():
    kept = 1
    pool = PoolSandbox(2, SteadyClock(), SilentLog())
    pool.keep_workers(lambda _: kept)
    await pool.start()
    try:
        await _known(pool)
        strangers = [
            asyncio.create_task(pool.run(replace(SPIN, customer=bytes([number % 2]), tier="open")))
            for number in range(2 * JOBS_QUEUED_A_PEER_MAX)
        ]
        await until(lambda: pool.describe()["queued"] == 2 * JOBS_QUEUED_A_PEER_MAX - 1)
        for quick in (SPIN_1, ADD, ADD):  # alone, and in a worker's queue
            cleared = replace(quick, customer=b"me", cleared=True)
            await pool.run(cleared)
            assert pool.describe()["running"] == 1
        assert not any(task.done() for task in strangers)
        kept = 0  # the rate has ended: the worker is found again, though nobody asks
        await until(lambda: pool.describe()["running"] == 2)
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)
    finally:
        await pool.stop()


@pytest.mark.parametrize("wait_ms", [0, 30])
@pytest.mark.parametrize("given", [ADD, SPIN_1])
async def test_a_job_waits_for_a_worker_no_longer_than_it_may(pool, given, wait_ms):
    await _known(pool)
    running = asyncio.create_task(pool.run(SPIN))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match=f"within {wait_ms} ms"):
        await pool.run(replace(given, wait_ms=wait_ms))
    assert pool.describe()["queued"] == 0
    waits = asyncio.create_task(pool.run(ADD))
    await until(lambda: pool.describe()["queued"] == 1)
    running.cancel()
    assert (await waits).results == (i32(3),)
    assert (await pool.run(replace(ADD, wait_ms=0))).results == (i32(3),)


async def test_nothing_is_compiled_for_a_job_before_it_is_its_turn(pool):
    await pool.run(SPIN_1)
    before = pool.describe()["compiled"]
    running = asyncio.create_task(pool.run(SPIN))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match="within 0 ms"):
        await pool.run(replace(ADD, wait_ms=0))
    gone = asyncio.create_task(pool.run(job("greet", "_start", mode="run")))
    waits = asyncio.create_task(pool.run(ADD))
    await until(lambda: pool.describe()["queued"] == 2)
    gone.cancel()
    await until(lambda: pool.describe()["queued"] == 1)
    assert pool.describe() | {"compiled": before, "compiling": 0} == pool.describe()
    running.cancel()
    result = await waits
    assert (result.results, result.compiled) == ((i32(3),), True)
    assert pool.describe()["compiled"] == before + 1


async def test_others_have_the_worker_while_a_module_is_compiled(pool, monkeypatch):
    await pool.run(SPIN_1)
    compile_in_jail, compiled = pool._compiler._in_jail, asyncio.Event()

    async def slowly(jail, given):
        await compiled.wait()
        return await compile_in_jail(jail, given)

    monkeypatch.setattr(pool._compiler, "_in_jail", slowly)
    first = asyncio.create_task(pool.run(ADD))
    await until(lambda: pool.describe()["compiling"] == 1)
    await pool.run(SPIN_1)
    assert not first.done()
    compiled.set()
    assert (await first).results == (i32(3),)
