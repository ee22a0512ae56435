"""Every numeric instruction at its edges, beside a model in exact arithmetic.

Instructions that never trap are all run by one program, which goes through
tables of operands in its memory and writes every result to its output; those
that may trap are called for each set of operands.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import pytest
import wasmtime

from tests.unit.compute.numerics import EDGES, INSTRUCTIONS, PAIRED, WIDTHS, Trapped
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.rows import Shape, read_rows
from xsc.compute.wasm.sandbox import Job, is_trap

LIMITS = Limits(timeout_ms=600_000)


def may_trap(name):
    return any(part in name for part in (".div_", ".rem_", ".trunc_f"))


STEADY = [name for name in INSTRUCTIONS if not may_trap(name)]
TRAPPING = [name for name in INSTRUCTIONS if may_trap(name)]


def edges_of(name):
    return EDGES if len(INSTRUCTIONS[name][0]) == 1 else PAIRED


def calls_of(name):
    return itertools.product(*(edges_of(name)[kind] for kind in INSTRUCTIONS[name][0]))


def raw(kind, bits):
    return bits.to_bytes(WIDTHS[kind] // 8, "little")


def expected(name, given):
    _, result, model = INSTRUCTIONS[name]
    try:
        return int(model(*given)) % 2 ** WIDTHS[result]
    except Trapped as trap:
        return f"module_trapped: {trap}"


def job_of(text, mode, function, **fields):
    module = bytes(wasmtime.wat2wasm(text))
    digest = hashlib.sha256(module).digest()
    return Job(digest, module, mode, function, limits=LIMITS, **fields)


@pytest.fixture(scope="module")
def machine():
    made = Machine()
    yield made
    made.close()


# Where the tables of operands stand in the memory.
PLACES, DATA = {}, b""
for table in (EDGES, PAIRED):
    for kind in table:
        PLACES[id(table), kind] = len(DATA)
        DATA += b"".join(raw(kind, bits) for bits in table[kind])
OUT = 16 + len(DATA)


def loops(name):
    """The text that stores an instruction's results for all its operands."""
    params, result, _ = INSTRUCTIONS[name]
    table, given, text = edges_of(name), "", ""
    for place, kind in enumerate(params):
        size, start = WIDTHS[kind] // 8, 16 + PLACES[id(table), kind]
        given += f"({kind}.load offset={start} (i32.mul (local.get {place}) (i32.const {size})))"
    text = (
        f"({result}.store (global.get $out) ({name} {given}))"
        f"(global.set $out (i32.add (global.get $out) (i32.const {WIDTHS[result] // 8})))"
    )
    for place in reversed(range(len(params))):
        count = len(table[params[place]])
        text = (
            f"(local.set {place} (i32.const 0)) (loop {text}"
            f"(local.set {place} (i32.add (local.get {place}) (i32.const 1)))"
            f"(br_if 0 (i32.lt_u (local.get {place}) (i32.const {count}))))"
        )
    return f"(func (local i32 i32) {text})"


@pytest.fixture(scope="module")
def found(machine):
    """What each instruction that never traps gave, in the order of its calls."""
    hexed = "".join(f"\\{byte:02x}" for byte in DATA)
    write = '"wasi_snapshot_preview1" "fd_write"'
    done = machine.run(
        job_of(
            f"""(module
              (import {write} (func $write (param i32 i32 i32 i32) (result i32)))
              (memory (export "memory") 40)
              (data (i32.const 16) "{hexed}")
              (global $out (mut i32) (i32.const {OUT}))
              {"".join(map(loops, STEADY))}
              (func (export "_start")
                {"".join(f"(call {place + 1})" for place in range(len(STEADY)))}
                (i32.store (i32.const 0) (i32.const {OUT}))
                (i32.store (i32.const 4) (i32.sub (global.get $out) (i32.const {OUT})))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""",
            "run",
            "_start",
        )
    )
    assert done.trap is None
    values, at = {}, 0
    for name in STEADY:
        size = WIDTHS[INSTRUCTIONS[name][1]] // 8
        values[name] = []
        for _ in calls_of(name):
            values[name].append(int.from_bytes(done.stdout[at : at + size], "little"))
            at += size
    assert at == len(done.stdout)
    return values


def test_the_model_has_every_numeric_instruction():
    # The opcodes of chapter 5.4.7 from i32.eqz (0x45) to i64.extend32_s (0xc4), and those
    # that truncate without a trap (0xfc 0 to 7).
    assert len(INSTRUCTIONS) == 0xC4 - 0x45 + 1 + 8


@pytest.mark.parametrize("name", STEADY)
def test_an_instruction_gives_what_the_specification_says(found, name):
    for given, value in zip(calls_of(name), found[name], strict=True):
        assert value == expected(name, given), [hex(bits) for bits in given]


@pytest.fixture(scope="module")
def trapping():
    text = ""
    for name in TRAPPING:
        params, result, _ = INSTRUCTIONS[name]
        given = " ".join(f"(local.get {place})" for place in range(len(params)))
        head = f'(func (export "{name}") (param {" ".join(params)}) (result {result})'
        text += f"{head} ({name} {given}))"
    return f"(module {text})"


@pytest.mark.parametrize("name", TRAPPING)
def test_an_instruction_that_may_trap_does_so_by_its_name(machine, trapping, name):
    params, result, _ = INSTRUCTIONS[name]
    calls = list(calls_of(name))
    table = b"".join(raw(*pair) for call in calls for pair in zip(params, call, strict=True))
    shape = Shape(len(calls), 100)
    done = machine.run(job_of(trapping, "batch", name, args=shape.texts(), stdin=table))
    traps = {"fuel": LIMITS.fuel, "timeout_ms": LIMITS.timeout_ms, "is_trap": is_trap}
    rows, _ = read_rows(shape, (result,), done.stdout, done.stderr, **traps)
    met = Counter()
    for call, row in zip(calls, rows, strict=True):
        value = row.trap or int.from_bytes(row.results[0][1], "little")
        assert value == expected(name, call), [hex(bits) for bits in call]
        met[row.trap is None] += 1
    assert met[True]
    assert met[False]
