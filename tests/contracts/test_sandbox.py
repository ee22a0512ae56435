"""What every sandbox does with every test program: one suite, both adapters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import pytest_asyncio
import wasmtime

from tests.unit.compute.programs import (
    FOLDER,
    UNSOUND,
    SteadyClock,
    command,
    f64,
    i32,
    i64,
    job,
    job_of,
    wasm,
)
from xsc.base.clock import InlineExecutor
from xsc.base.errors import ExportUnknown, ModuleInvalid, SignatureMismatch, TooLarge
from xsc.base.limits import ARGUMENTS_MAX, FUEL_MAX, MIB
from xsc.base.log import SilentLog
from xsc.compute.wasm.files import Errno
from xsc.compute.wasm.inputs import is_output_path
from xsc.compute.wasm.sandbox import CLOCK_START_MS
from xsc.compute.worker.local import LocalSandbox
from xsc.compute.worker.pool import PoolSandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = {"text": b"hello, world\n", "second": b""}
INPUTS = tuple(sorted(HELLO.items()))

ENDS = {
    # name: the job, its results or its trap, and where it is exact, its fuel
    "add": (job("add", "add", i32(2), i32(3)), (i32(5),), 4),
    "add wraps": (job("add", "add", i32(2**31 - 1), i32(1)), (i32(-(2**31)),), 4),
    "add64": (job("add64", "add", i64(2**62), i64(1)), (i64(2**62 + 1),), 4),
    "fib": (job("fib", "fib", i32(15)), (i32(610),), None),
    "factorial": (job("factorial", "factorial", i64(20)), (i64(2432902008176640000),), None),
    "float": (job("float", "divide", f64(1), f64(3)), (f64(1 / 3),), None),
    "signalling NaN": (
        job("float", "same32", ("f32", bytes.fromhex("0100a07f"))),
        (("f32", bytes.fromhex("0100a07f")),),
        None,
    ),
    "NaN is canonical": (
        job("float", "divide", f64(0), f64(0)),
        (("f64", bytes.fromhex("000000000000f87f")),),
        None,
    ),
    "several results": (job("multi", "divmod", i32(17), i32(5)), (i32(3), i32(2)), None),
    "no result": (job("multi", "nothing"), (), None),
    "vectors inside": (job("vector", "sum", i32(4)), (i32(8),), None),
    "a refused grow is no trap": (job("memory_hog", "grow", i32(65535)), (i32(-1),), None),
    "start function": (job("start_counts", "next"), (i32(42),), None),
    "virtual sleep": (job("sleep", "nap", i64(3600)), (i32(0),), None),
    "fuel": (job("endless", "spin"), "fuel_exhausted", 10_000_000),
    "fuel before the call": (job("start_endless", "one"), "fuel_exhausted", 10_000_000),
    "fuel in host calls": (job("sleep", "draw", i32(65536)), "fuel_exhausted", 10_000_000),
    "fuel of a sleep": (job("sleep", "nap", i64(10**9)), "fuel_exhausted", 10_000_000),
    "time": (job("endless", "spin", fuel=FUEL_MAX, timeout_ms=30), "time_exceeded", None),
    "stack": (job("recursion", "deeper", i32(0)), "stack_exhausted", None),
    "memory": (
        job("memory_hog", "hog"),
        "memory_exceeded: unreachable with its memory at the limit",
        None,
    ),
    "memory from the start": (
        job("memory_min", "one"),
        "memory_exceeded: it declares 4294967296 bytes",
        0,
    ),
    "output": (command("flood", output_bytes=MIB), "output_too_large", None),
    "unreachable": (job("trap", "unreachable"), "module_trapped: unreachable", None),
    "division": (
        job("trap", "divide", i32(1), i32(0)),
        "module_trapped: integer division by zero",
        None,
    ),
    "overflow": (
        job("trap", "divide", i32(-(2**31)), i32(-1)),
        "module_trapped: integer overflow",
        None,
    ),
    "address": (job("trap", "load", i32(-1)), "module_trapped: memory out of bounds", None),
    "conversion": (
        job("trap", "truncate", f64(1e300)),
        "module_trapped: integer overflow",
        None,
    ),
    "null": (job("trap", "call_null", i32(0)), "module_trapped: indirect call to null", None),
    "table": (job("trap", "call_null", i32(9)), "module_trapped: table out of bounds", None),
}
PROGRAMS = {
    "stdin": (command("wordcount", stdin=b"one two\nthree\n"), 0, b"2 3 14\n", b""),
    "files": (command("wordcount", "/in/text", files=INPUTS), 0, b"1 2 13 /in/text\n", b""),
    "no file": (
        command("wordcount", "/in/gone"),
        1,
        b"",
        b"/in/gone: No such file or directory\n",
    ),
    "exit code": (command("exit3"), 3, b"", b"three\n"),
    "output file": (
        command("upper", files=INPUTS, environment=(("GREETING", "hei"),)),
        0,
        b".\n..\nsecond\ntext\nhei\n",
        b"",
    ),
    "scratch": (command("scratch"), 0, b"/\n", b""),
    "a service": (
        command(
            "greet",
            "name=you",
            stdin=b"abc",
            environment=(("GREETING", "Hei"), ("REQUEST_METHOD", "POST")),
        ),
        0,
        b"Content-Type: text/plain; charset=utf-8\n\nHei, you!\nABC",
        b"",
    ),
    "all that it is told": (
        command("mirror", "x=1", stdin=b"abc", environment=(("HTTP_X_STATUS", "404"),)),
        0,
        (
            b"Status: 404\nContent-Type: text/plain; charset=utf-8\nX-Service: mirror\n\n"
            b"arg x=1\nenv HTTP_X_STATUS=404\nbody abc"
        ),
        b"",
    ),
    "a service that breaks off": (
        command("misbehave", environment=(("PATH_INFO", "/exit"),)),
        3,
        b"",
        b"something is wrong here\n",
    ),
}
REFUSED = {
    "no module": (job_of(b"", "add"), ModuleInvalid),
    "text": (job_of(b"hello", "add"), ModuleInvalid),
    "damaged": (job_of(wasm("add")[:-1], "add"), ModuleInvalid),
    "invalid body": (job_of(wasm("add")[:-2] + b"\x6b\x6b", "add"), ModuleInvalid),
    "unknown import": (job("unknown_import", "go"), ModuleInvalid),
    "another module": (replace(job("add", "add"), module_hash=bytes(32)), ModuleInvalid),
    "unknown function": (job("add", "sub"), ExportUnknown),
    "no command": (job("add", "_start", mode="run"), ExportUnknown),
    "too few": (job("add", "add", i32(1)), SignatureMismatch),
    "other types": (job("add", "add", i64(1), i64(2)), SignatureMismatch),
    "a vector": (job("vector", "vector"), SignatureMismatch),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["local", "pool"])
async def sandbox(request):
    if request.param == "local":
        made = LocalSandbox(InlineExecutor())
    else:
        made = PoolSandbox(2, SteadyClock(), SilentLog())
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other():
    made = LocalSandbox(InlineExecutor())
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("name", ENDS)
async def test_a_function_ends_as_it_must(sandbox, name):
    given, end, fuel = ENDS[name]
    result = await sandbox.run(given)
    if isinstance(end, str):
        assert (result.trap, result.results, result.exit_code) == (end, (), None)
    else:
        assert (result.results, result.trap, result.exit_code) == (end, None, None)
    assert fuel is None or result.fuel_used == fuel
    assert result.fuel_used <= given.limits.fuel
    assert result.memory_peak_bytes <= given.limits.memory_bytes


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_command_gives_its_code_and_output(sandbox, name):
    given, code, stdout, stderr = PROGRAMS[name]
    result = await sandbox.run(given)
    assert (result.exit_code, result.stdout, result.stderr) == (code, stdout, stderr)
    assert result.trap is None


async def test_what_a_command_leaves_in_out_is_given_back(sandbox):
    result = await sandbox.run(command("upper", files=INPUTS))
    assert result.files == (("deep/TEXT", b"HELLO, WORLD\n"),)


_BESIDE = """(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_size"
        (func $resize (param i32 i64) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "tmp/f")
    (func (export "fill") (param $first i64) (param $pages i32) (param $then i64)
        (result i32 i32)
        (local $grown i32)
        (drop (call $open (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 1)
            (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 16)))
        (drop (call $resize (i32.load (i32.const 16)) (local.get $first)))
        (local.set $grown (memory.grow (local.get $pages)))
        (local.get $grown)
        (call $resize (i32.load (i32.const 16)) (local.get $then))))"""


@pytest.mark.parametrize("pages", [1, 4, 15])
async def test_scratch_and_memory_share_one_limit_to_the_byte(sandbox, pages):
    """However they follow on one another; and the peak is that of both together."""
    module = bytes(wasmtime.wat2wasm(_BESIDE))
    limit, page = 16 * 65536, 65536

    async def filled(first, grown, then):
        asked = job_of(module, "fill", i64(first), i32(grown), i64(then), memory_bytes=limit)
        return await sandbox.run(asked)

    room = limit - (1 + pages) * page
    fits = await filled(room, pages, room)
    assert (fits.trap, fits.results) == (None, (i32(1), i32(0)))
    assert fits.memory_peak_bytes == limit
    refused = await filled(room + 1, pages, 0)
    assert (refused.trap, refused.results) == (None, (i32(-1), i32(0)))
    assert refused.memory_peak_bytes == page + room + 1
    freed = await filled(room, pages, 0)
    assert freed.memory_peak_bytes == limit
    over = await filled(room, pages, room + 1)
    assert over.trap == "memory_exceeded: its files outside of /out count as memory"
    assert over.memory_peak_bytes == limit
    whole = await filled(limit, 0, 0)
    assert whole.trap is not None
    assert whole.trap.startswith("memory_exceeded")


async def test_a_program_that_fills_its_current_directory_ends_by_its_memory(sandbox):
    limit = 4 * MIB
    done = await sandbox.run(command("scratch", "2048", memory_bytes=limit))
    assert (done.exit_code, done.trap, done.files) == (0, None, ())
    assert 2 * MIB < done.memory_peak_bytes <= limit
    ended = await sandbox.run(command("scratch", "8192", memory_bytes=limit, fuel=FUEL_MAX))
    assert ended.trap == "memory_exceeded: its files outside of /out count as memory"
    assert limit - 65536 < ended.memory_peak_bytes <= limit


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_run_is_refused_by_name(sandbox, name):
    given, error = REFUSED[name]
    with pytest.raises(error):
        await sandbox.run(given)


async def test_output_stops_at_its_bound(sandbox):
    result = await sandbox.run(command("flood", output_bytes=10_000))
    assert len(result.stdout) <= 10_000


async def test_the_peak_of_a_hidden_memory_is_seen(sandbox):
    result = await sandbox.run(job("hidden_memory", "grow", i32(9)))
    assert result.memory_peak_bytes == 10 * 65536


async def test_memory_is_given_up_to_the_limit_and_not_a_page_more(sandbox):
    limit = 5 * 65536 + 1
    result = await sandbox.run(job("memory_hog", "grow", i32(4), memory_bytes=limit))
    assert result.results == (i32(1),)
    result = await sandbox.run(job("memory_hog", "grow", i32(5), memory_bytes=limit))
    assert result.results == (i32(-1),)


async def test_nothing_of_a_job_is_left_for_the_next(sandbox):
    results = [await sandbox.run(job("start_counts", "next")) for _ in range(4)]
    assert {result.results for result in results} == {(i32(42),)}


async def test_what_is_granted_is_real_and_nothing_else_is(sandbox):
    """Time and chance of the machine are seen where the job says so, each by itself."""

    async def seen(*grants):
        result = await sandbox.run(command("chance", grants=grants, fuel=100_000_000))
        second, slept, chance = result.stdout.split()
        assert int(slept) >= 3600
        return int(second), chance

    plain = [await seen() for _ in range(2)]
    clocks = [await seen("clock") for _ in range(2)]
    draws = [await seen("random") for _ in range(2)]
    both = await seen("clock", "random")
    assert plain[0] == plain[1] == (CLOCK_START_MS // 1000, plain[0][1])
    assert [chance for _, chance in clocks] == [plain[0][1]] * 2
    assert all(abs(second - time.time()) < 3600 for second, _ in [*clocks, both])
    assert [second for second, _ in draws] == [plain[0][0]] * 2
    assert len({plain[0][1], draws[0][1], draws[1][1], both[1]}) == 4


async def test_seed_and_clock_are_all_that_chance_and_time_follow_from(sandbox):
    first = await sandbox.run(command("chance"))
    again = await sandbox.run(command("chance"))
    seeded = await sandbox.run(command("chance", seed=b"another"))
    later = await sandbox.run(command("chance", clock_ms=2_000_000_000_000))
    assert first.stdout == again.stdout
    assert first.stdout.split()[:2] == seeded.stdout.split()[:2] == [b"1767225600", b"3600"]
    assert first.stdout.split()[2] != seeded.stdout.split()[2]
    assert later.stdout.split()[0] == b"2000000000"


async def test_both_sandboxes_agree_bit_for_bit(sandbox, other):
    jobs = [given for given, *_ in (*ENDS.values(), *PROGRAMS.values())]
    for given in [*jobs, command("chance")]:
        if given.limits.timeout_ms < 1000:
            continue  # how far a run gets before its time is over is no law
        here, there = await sandbox.run(given), await other.run(given)
        assert replace(here, wall_ms=0) == replace(there, wall_ms=0)


async def test_jobs_at_once_do_not_mix(sandbox):
    jobs = [job("fib", "fib", i32(10)), job("endless", "spin"), job("trap", "unreachable")]
    results = await asyncio.gather(*(sandbox.run(each) for each in jobs * 5))
    assert [result.trap or result.results for result in results] == [
        (i32(55),),
        "fuel_exhausted",
        "module_trapped: unreachable",
    ] * 5


async def test_every_test_program_is_in_this_suite():
    everything = (*ENDS.values(), *PROGRAMS.values(), *REFUSED.values())
    used = {given.module for given, *_ in everything}
    others = {wasm("hidden_memory"), wasm("chance")}
    assert {path.read_bytes() for path in FOLDER.glob("*.wasm")} <= used | others


async def test_it_says_what_it_is(sandbox):
    said = sandbox.describe()
    assert said["running"] == said["queued"] == 0
    assert said["engine"].startswith("wasmtime-py/50.0.")
    assert len(bytes.fromhex(said["engine_config"])) == 32


async def test_a_module_is_compiled_before_its_first_job_or_refused(sandbox):
    wanted = command("greet", environment=(("REQUEST_METHOD", "GET"),))
    await sandbox.prepare(wanted)
    await sandbox.prepare(wanted)
    assert (await sandbox.run(wanted)).stdout.endswith(b"Hello, world!\n")
    # Two numbers are added that are not there: only the engine sees it.
    with pytest.raises(ModuleInvalid):
        await sandbox.prepare(job_of(UNSOUND, "_start"))


async def test_a_module_is_compiled_for_the_first_job_that_needs_it(sandbox):
    module = wasm("add") + bytes([0, 9, 8]) + b"contract"  # a section of its own: nobody has it
    first = job_of(module, "add", i32(2), i32(3))
    assert [(await sandbox.run(first)).compiled for _ in range(3)] == [True, False, False]


_NESTED = """(module
    (import "wasi_snapshot_preview1" "path_create_directory"
        (func $mkdir (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (local $fd i32) (local $left i32) (local $errno i32)
        (memory.fill (i32.const 1024) (i32.const 97) (i32.const 250))
        (local.set $fd (i32.const 4))
        (local.set $left (i32.const 40))
        (loop $deeper
            (local.set $errno
                (call $mkdir (local.get $fd) (i32.const 1024) (i32.const 250)))
            (if (i32.eqz (local.get $errno)) (then
                (drop (call $open (local.get $fd) (i32.const 0) (i32.const 1024) (i32.const 250)
                    (i32.const 2) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0)))
                (local.set $fd (i32.load (i32.const 0)))
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br_if $deeper (local.get $left)))))
        (drop (call $open (local.get $fd) (i32.const 0) (i32.const 1024) (i32.const 30)
            (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 0)))
        (call $exit (local.get $errno))))"""


async def test_no_program_can_make_a_result_that_cannot_be_told(sandbox):
    """Nobody would bill it: the worker that reports one is ended."""
    module = bytes(wasmtime.wat2wasm(_NESTED))
    result = await sandbox.run(job_of(module, "_start", mode="run"))
    assert (result.exit_code, result.trap) == (Errno.NAMETOOLONG, None)
    ((path, data),) = result.files
    assert (path.split("/")[-1], data) == ("a" * 30, b"")
    assert is_output_path(path)


@pytest.mark.parametrize("count", [ARGUMENTS_MAX, ARGUMENTS_MAX + 1])
@pytest.mark.parametrize("mode", ["invoke", "batch"])
async def test_a_function_gives_and_takes_no_more_than_a_receipt_can_hold(sandbox, count, mode):
    many, consts = " i32" * count, "(i32.const 7)" * count
    module = bytes(
        wasmtime.wat2wasm(
            f'(module (func (export "gives") (result{many}) {consts})'
            f' (func (export "takes") (param{many})))'
        )
    )
    table = {"mode": mode, "args": ("1", "9999")} if mode == "batch" else {}
    numbers = (i32(7),) * count
    bits = b"".join(each for _, each in numbers)
    asked = [
        job_of(module, "gives", **table),
        job_of(module, "takes", stdin=bits, **table)
        if table
        else job_of(module, "takes", *numbers),
    ]
    for each in asked:
        if count > ARGUMENTS_MAX:
            with pytest.raises(SignatureMismatch):
                await sandbox.run(each)
        else:
            result = await sandbox.run(each)
            assert result.trap is None
            assert result.results == (numbers if each.function == "gives" and not table else ())
            assert not table or (bits if each.function == "gives" else b"") in result.stdout


async def test_a_batch_whose_results_are_over_the_orders_bound_is_not_begun(sandbox):
    table = b"".join(bits for _, bits in (i32(1), i32(2)))
    given = {"mode": "batch", "args": ("1", "9999"), "stdin": table}
    with pytest.raises(TooLarge, match="over their bound"):
        await sandbox.run(job("add", "add", output_bytes=1, **given))
    assert (await sandbox.run(job("add", "add", **given))).trap is None
