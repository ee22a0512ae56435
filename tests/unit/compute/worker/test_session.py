"""A session keeps its instances, links them, and stays within its limits."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import wasmtime

from tests.unit.compute.programs import i32, i64, wasm
from xsc.base.errors import (
    ArgumentInvalid,
    ExportUnknown,
    FuelExhausted,
    MemoryExceeded,
    ModuleInvalid,
    ModuleTrapped,
    SandboxFailed,
    SignatureMismatch,
    StackExhausted,
    TimeExceeded,
    TooLarge,
)
from xsc.base.limits import FUEL_MAX, MODULE_BYTES_MAX
from xsc.compute.wasm.engine import ENGINE
from xsc.compute.wasm.limits import Limits

SCRIPTS = Path(__file__).parents[4] / "scripts"
INSTANCES_MAX = 256

COUNTER = """(module
  (global $count (export "count") (mut i32) (i32.const 40))
  (memory (export "memory") 1)
  (func $up (export "up") (param i32) (result i32)
    (global.set $count (i32.add (global.get $count) (local.get 0)))
    (global.get $count))
  (func (export "fail") unreachable)
  (func (export "spin") (loop br 0))
  (func $deep (export "deep") call $deep)
  (func (export "not") (param v128) (result v128) (v128.not (local.get 0)))
  (func (export "grow") (result i32) (memory.grow (i32.const 1)))
  (global (export "vector") v128 (v128.const i32x4 1 2 3 4))
  (global (export "nothing") externref (ref.null extern))
  (func (export "reference") (result externref) (ref.null extern)))"""
USER = """(module
  (import "counter" "up" (func $up (param i32) (result i32)))
  (import "counter" "memory" (memory 1))
  (func (export "twice") (param i32) (result i32)
    (drop (call $up (local.get 0))) (call $up (local.get 0)))
  (func $started (i32.store8 (i32.const 0) (i32.const 7)))
  (start $started))"""


def build(text):
    return bytes(wasmtime.wat2wasm(text))


@pytest.fixture
def new_session(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import session

    yield session.Session
    sys.modules.pop("session")


@pytest.fixture
async def session(new_session):
    limits = Limits(fuel=1_000_000, memory_bytes=1 << 20, timeout_ms=30_000)
    async with new_session(limits) as made:
        yield made


async def test_an_instance_keeps_what_calls_leave_in_it(session):
    await session.start(build(COUNTER))
    assert (await session.call("up", i32(1))).results == (i32(41),)
    gave = await session.call("up", i32(1))
    assert (gave.results, gave.fuel_used > 0) == ((i32(42),), True)
    assert await session.read("count") == i32(42)
    await session.begin()
    with pytest.raises(ArgumentInvalid, match="no instance"):
        await session.call("up", i32(1))


async def test_modules_import_from_those_that_are_registered(session):
    await session.start(build(COUNTER), "counter")
    with pytest.raises(ModuleInvalid, match=r"imports the function 'counter\.up'"):
        await session.start(build(USER))
    await session.register("counter", "counter")
    await session.start(build(USER), "user")
    assert (await session.call("twice", i32(1), name="user")).results == (i32(42),)
    assert await session.read("count", name="counter") == i32(42)
    wrong = build('(module (import "counter" "up" (func (param i64))))')
    with pytest.raises(ModuleInvalid, match="cannot be linked"):
        await session.start(wrong)


async def test_vectors_are_bits(session):
    await session.start(build(COUNTER))
    given = bytes(range(16))
    results = (await session.call("not", ("v128", given))).results
    assert results == (("v128", bytes(255 - byte for byte in given)),)
    assert await session.read("vector") == (
        "v128",
        b"".join(bits for _, bits in map(i32, [1, 2, 3, 4])),
    )


async def test_how_a_call_ends_is_named_and_the_instance_stays(session):
    await session.start(build(COUNTER))
    with pytest.raises(ModuleTrapped, match="unreachable"):
        await session.call("fail")
    with pytest.raises(FuelExhausted):
        await session.call("spin")
    with pytest.raises(StackExhausted):
        await session.call("deep")
    for _ in range(14):
        await session.call("grow")
    assert (await session.call("grow")).results == (i32(15),)
    assert (await session.call("grow")).results == (i32(-1),)
    assert (await session.call("up", i32(2))).results == (i32(42),)


async def test_what_cannot_be_called_or_read_is_refused(session):
    await session.start(build(COUNTER))
    for function, *arguments in [("up",), ("up", i64(1)), ("reference",)]:
        with pytest.raises(SignatureMismatch):
            await session.call(function, *arguments)
    for function in ("down", "count", "memory"):
        with pytest.raises(ExportUnknown):
            await session.call(function)
    with pytest.raises(ExportUnknown):
        await session.read("up")
    with pytest.raises(SignatureMismatch, match="reference"):
        await session.read("nothing")


async def test_what_cannot_start_is_refused(session):
    with pytest.raises(ModuleInvalid, match="no WASI"):
        await session.start(wasm("wordcount"))
    with pytest.raises(ModuleInvalid, match="no WebAssembly"):
        await session.start(b"text")
    with pytest.raises(TooLarge):
        await session.start(bytes(MODULE_BYTES_MAX + 1))
    with pytest.raises(ModuleTrapped, match="unreachable"):
        await session.start(build("(module (func unreachable) (start 0))"))
    with pytest.raises((MemoryExceeded, ModuleInvalid), match="memory"):
        await session.start(build("(module (memory 17))"))


async def test_instances_are_bounded_in_number(session):
    empty = build("(module)")
    for _ in range(INSTANCES_MAX):
        await session.start(empty)
    with pytest.raises(ModuleInvalid, match="instance"):
        await session.start(empty)
    await session.begin()
    await session.start(empty)


async def test_a_function_that_only_starts_is_not_declared_for_references(session):
    # The start becomes an export in the copy that is compiled, which would declare it.
    module = build("(module (func $f (drop (ref.func $f))) (elem declare func $f) (start $f))")
    await session.start(module)
    declared = module.index(bytes([9]), module.index(bytes([8, 1, 0])))
    size = module[declared + 1] + 2
    with pytest.raises(ModuleInvalid, match="undeclared"):
        await session.start(module[:declared] + module[declared + size :])


async def test_time_runs_out_by_name_also_where_the_process_hangs(new_session):
    async with new_session(Limits(fuel=FUEL_MAX, timeout_ms=500)) as session:
        await session.start(build(COUNTER))
        with pytest.raises(TimeExceeded):
            await session.call("spin")
        assert (await session.call("up", i32(2))).results == (i32(42),)
        os.kill(session._process.pid, signal.SIGSTOP)
        with pytest.raises(TimeExceeded):
            await session.call("up", i32(2))
        with pytest.raises(ArgumentInvalid, match="no instance"):  # a new process, an empty session
            await session.call("up", i32(2))


async def test_a_process_that_is_lost_is_said_and_replaced(session):
    await session.start(build(COUNTER))
    assert session._process.engine == ENGINE
    assert session._process.confined["no_descriptors"] == 1
    session._process.transport.kill()
    with pytest.raises(SandboxFailed, match="gone"):
        await session.call("up", i32(2))
    await session.start(build(COUNTER))
