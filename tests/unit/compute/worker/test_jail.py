"""What is hard to compile ends by name, apart from all else; what was compiled is kept sealed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path

import pytest
import pytest_asyncio
import wasmtime
from blake3 import blake3

from tests.settle import until
from tests.unit.compute import attacks
from tests.unit.compute.programs import SteadyClock, i32, job, job_of, wasm
from xsc.base.errors import CompileLimit, ModuleInvalid, SandboxFailed
from xsc.base.limits import COMPILE_MS_MAX
from xsc.base.log import SilentLog
from xsc.compute.wasm.code_format import MachineCode, from_file, to_file
from xsc.compute.worker.code_cache import CodeCache
from xsc.compute.worker.pool import PoolSandbox

KEY = b"k" * 32
PROC = Path("/proc")
ADD = job("add", "add", i32(1), i32(2))
LITTLE_TIME_MS = 250

BOMBS = {
    "loops with phis": attacks.loops_with_phis(2000),
    "nested loops": attacks.nested_loops(50_000),
    "straight line": attacks.straight_adds(150_000),
    "tiny functions": attacks.tiny_functions(100_000),
    "branch tables": attacks.branch_tables(500, 2000),
}


@pytest_asyncio.fixture
async def pool():
    made = PoolSandbox(1, SteadyClock(), SilentLog())
    await made.start()
    yield made
    await made.stop()


def pids(pool):
    return [worker.pid for worker in pool._workers.alive]


@pytest.mark.parametrize("name", BOMBS)
async def test_what_compiles_for_too_long_ends_in_time_and_troubles_no_worker(
    pool, name, monkeypatch
):
    monkeypatch.setattr(pool._compiler, "_limit_ms", LITTLE_TIME_MS)
    before = pids(pool)
    await pool.run(job("fib", "fib", i32(5)))
    bomb = asyncio.create_task(pool.run(job_of(BOMBS[name], "go", customer=b"bomber")))
    await asyncio.sleep(0)
    assert (await pool.run(job("fib", "fib", i32(10)))).results == (i32(55),)
    assert (await bomb).trap in ("compile_limit", None)  # None: a fast machine
    monkeypatch.undo()
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pids(pool) == before


async def test_a_node_may_have_modules_compiled_for_longer():
    """What its setting says holds for the clock and for the processor time of the jail."""
    made = PoolSandbox(1, SteadyClock(), SilentLog(), compile_ms=COMPILE_MS_MAX)
    await made.start()
    (jail,) = made._compiler._idle
    assert made._compiler._limit_ms == COMPILE_MS_MAX
    assert (PROC / str(jail.pid) / "cmdline").read_bytes().endswith(b"\0%d\0" % COMPILE_MS_MAX)
    assert (await made.run(ADD)).results == (i32(3),)
    await made.stop()


async def test_a_module_that_went_over_is_refused_for_a_while(pool, monkeypatch):
    monkeypatch.setattr(pool._compiler, "_limit_ms", 10)
    (jail,) = pool._compiler._idle
    os.kill(jail.pid, signal.SIGSTOP)
    ended = await pool.run(ADD)
    assert ended.trap == "compile_limit"
    assert ended.wall_ms >= 10  # what is billed, however long it waited before
    monkeypatch.undo()
    with pytest.raises(CompileLimit, match="a short while ago"):
        await pool.run(ADD)  # not billed again: nothing was done


async def test_a_jail_that_died_while_it_was_idle_fails_no_module(pool):
    (jail,) = pool._compiler._idle
    os.kill(jail.pid, signal.SIGKILL)  # by an operator, or for want of memory
    assert (await pool.run(ADD)).results == (i32(3),)
    (jail,) = pool._compiler._idle
    os.kill(jail.pid, signal.SIGKILL)
    await jail.pipes.exited
    assert (await pool.run(job("fib", "fib", i32(10)))).results == (i32(55),)


async def _with_jail(source):
    made = PoolSandbox(1, SteadyClock(), SilentLog(), jail=(sys.executable, "-I", "-c", source))
    await made.start()
    return made


async def test_a_module_that_takes_all_memory_to_compile_is_a_compile_limit():
    # A jail with little room stands for a module that needs much.
    pool = await _with_jail(
        "from xsc.compute.worker import jail\njail.COMPILE_ADDRESS_BYTES = 160 << 20\njail.main()"
    )
    assert (await pool.run(job_of(BOMBS["straight line"], "go"))).trap == "compile_limit"
    assert (await pool.run(ADD)).results == (i32(3),)
    await pool.stop()


async def test_a_module_that_takes_all_processor_time_is_a_compile_limit():
    pool = await _with_jail(
        "import sys\nfrom xsc.compute.worker import jail\nsys.argv[-1] = '0'\njail.main()"
    )
    assert (await pool.run(job_of(BOMBS["loops with phis"], "go"))).trap == "compile_limit"
    await pool.stop()


LIAR = """
import sys
from xsc.base.encoding import Value
from xsc.compute.worker import frames
say = sys.stdout.buffer
say.write(frames.to_frame({"kind": "hello", "engine": "liar", "config": bytes(32), "confined": {}}))
say.flush()
sys.stdin.buffer.read(4)
ANSWER
say.flush()
sys.stdin.buffer.read()
"""


@pytest.mark.parametrize(
    "answer",
    [
        'say.write(b"\\xff" * 4)',
        'say.write(frames.to_frame({"kind": "ended", "status": 0, "size": 0}))',
        'say.write(frames.to_frame({"kind": "ended", "status": 0, "size": 4}) + bytes(4))',
        'say.write(frames.to_frame({"kind": "ended", "status": 0, "size": 2**62}))',
        'say.write(frames.to_frame({"kind": "ended", "status": 3, "size": 0}))',
        "say.close()",
    ],
)
async def test_a_jail_that_breaks_the_protocol_fails_its_job_alone(answer):
    pool = await _with_jail(LIAR.replace("ANSWER", answer))
    with pytest.raises(SandboxFailed, match="compiled the module ended"):
        await pool.run(ADD)
    await pool.stop()


async def test_the_module_must_be_the_one_that_is_named(pool):
    given = job_of(wasm("add"), "add")
    with pytest.raises(ModuleInvalid, match="not the one"):
        await pool.run(job_of(wasm("fib"), "fib").__class__(given.module_hash, wasm("fib")))


# The cache


async def _pool(cache):
    made = PoolSandbox(1, SteadyClock(), SilentLog(), cache)
    await made.start()
    return made


async def test_what_was_compiled_is_not_compiled_again_after_a_restart(tmp_path):
    for compiled in (1, 0):
        pool = await _pool(CodeCache(tmp_path / "cache", KEY))
        assert (await pool.run(ADD)).results == (i32(3),)
        assert pool.describe()["compiled"] == compiled
        await pool.stop()
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_a_damaged_file_is_removed_and_its_module_compiled_again(tmp_path):
    cache = CodeCache(tmp_path / "cache", KEY)
    pool = await _pool(cache)
    await pool.run(ADD)
    config = pool._workers.config
    await pool.stop()
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for place in [*range(200), *range(200, len(whole), 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        cache = CodeCache(tmp_path / "cache", KEY)
        assert cache.get(ADD.module_hash, config) is None
        assert not file.exists()
    for cut in (0, 10, 43, 44, 47, 48, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert CodeCache(tmp_path / "cache", KEY).get(ADD.module_hash, config) is None
    file.write_bytes(whole + b"\0")
    pool = await _pool(CodeCache(tmp_path / "cache", KEY))
    assert (await pool.run(ADD)).results == (i32(3),)
    assert pool.describe()["compiled"] == 1
    await pool.stop()
    assert file.read_bytes()[:11] == b"XSC code 3\n"


CODE = MachineCode(b"about", b"machine code")


def test_a_seal_is_for_one_key_one_module_and_one_engine():
    raw = to_file(CODE, KEY, b"m" * 32, b"c" * 32)
    assert from_file(raw, KEY, b"m" * 32, b"c" * 32) == CODE
    assert from_file(raw, b"K" * 32, b"m" * 32, b"c" * 32) is None
    assert from_file(raw, KEY, b"M" * 32, b"c" * 32) is None
    assert from_file(raw, KEY, b"m" * 32, b"C" * 32) is None
    assert from_file(raw.replace(b"code 3", b"code 1"), KEY, b"m" * 32, b"c" * 32) is None


def test_a_seal_is_a_keyed_hash_of_all_that_it_binds():
    module, config = b"m" * 32, b"c" * 32
    content = len(CODE.about).to_bytes(4, "big") + CODE.about + CODE.machine
    bound = b"XSC/1/compiled-code\0" + module + config
    seal = blake3(bound + content, key=KEY).digest()
    assert to_file(CODE, KEY, module, config) == b"XSC code 3\n" + seal + content
    assert from_file(b"XSC code 3\n" + seal + content[:-1], KEY, module, config) is None


def test_the_longest_unused_goes_first_also_after_a_restart(tmp_path):
    size = len(to_file(CODE, KEY, bytes(32), bytes(32)))
    cache = CodeCache(tmp_path / "cache", KEY, 3 * size)
    for number in range(3):
        cache.put(bytes([number]) * 32, bytes(32), CODE)
    assert cache.get(bytes(32), bytes(32)) == CODE
    cache = CodeCache(tmp_path / "cache", KEY, 3 * size)
    cache.put(b"3" * 32, bytes(32), CODE)
    assert cache.describe() == {"files": 3, "bytes": 3 * size}
    assert cache.get(b"\1" * 32, bytes(32)) is None
    assert cache.get(bytes(32), bytes(32)) == CODE
    cache.put(b"4" * 32, bytes(32), MachineCode(b"", bytes(4 * size)))
    assert cache.get(b"4" * 32, bytes(32)) is None


def test_what_is_no_directory_or_no_file_of_ours_is_not_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    cache = CodeCache(tmp_path / "cache", KEY)
    cache.put(bytes(32), bytes(32), CODE)
    assert cache.get(bytes(32), bytes(32)) is None
    assert not list((tmp_path / "elsewhere").iterdir())
    cache = CodeCache(tmp_path / "own", KEY)
    cache.put(bytes(32), bytes(32), CODE)
    (file,) = (tmp_path / "own").iterdir()
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    assert CodeCache(tmp_path / "own", KEY).get(bytes(32), bytes(32)) is None
    assert (tmp_path / "moved").exists()
    file.mkdir()
    assert CodeCache(tmp_path / "own", KEY).get(bytes(32), bytes(32)) is None


def test_directory_that_others_can_read_is_closed(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    CodeCache(tmp_path / "cache", KEY).put(bytes(32), bytes(32), CODE)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def memory_of(pid):
    """Return what a process has in memory that it can write to."""
    found = []
    with (PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
        for line in (PROC / str(pid) / "maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                begin, end = (int(number, 16) for number in place.split("-"))
                memory.seek(begin)
                found.append(memory.read(end - begin))
    return found


def is_held(pid, secret):
    try:
        return any(secret in each for each in memory_of(pid))
    except OSError:  # a part was given back between the look at the map and that at the memory
        return True


async def test_nothing_of_a_module_is_in_the_jail_for_the_next(pool):
    # The next module is compiled by a copy of that process: what is there, a fault of the
    # compiler would lay open to another customer.
    secret = hashlib.sha256(b"what only one customer knows").digest() * 2
    (jail,) = pool._compiler._idle
    known = pool._workers.config  # what the node says to it, and it to the node, is not secret
    assert any(known in each for each in memory_of(jail.pid))
    for size in (100, 50_000, 3_000_000):
        text = "".join(f"\\{byte:02x}" for byte in secret)
        module = bytes(
            wasmtime.wat2wasm(
                f'(module (memory (export "memory") 60) (data (i32.const {size}) "{text}")'
                f' (data (i32.const 0) "{"x" * size}") (func (export "go")))'
            )
        )
        assert secret in module
        assert (await pool.run(job_of(module, "go"))).trap is None
    assert pool._compiler._idle == [jail]
    # The answer may be here before its memory is given back.
    await until(lambda: not is_held(jail.pid, secret[:32]))
