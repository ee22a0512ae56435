"""How far past each limit a job can run: what the table in docs/design/compute.md says.

Most rows are hit by the attacks and the contracts; here is what no other test hits.
"""

from __future__ import annotations

import pytest
import wasmtime

from tests.unit.compute.attacks import leb, section, straight_adds
from tests.unit.compute.programs import i32, job_of
from xsc.base.errors import ArgumentInvalid, ModuleInvalid, TooLarge
from xsc.base.limits import (
    ARGUMENT_BYTES_MAX,
    ARGUMENTS_MAX,
    MEMORY_BYTES_MAX,
    TABLE_ELEMENTS_MAX,
    TABLES_MAX,
)
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.inputs import RunInput, check_input

PAGE_BYTES = 65536
GLOBALS_MAX = 1_000_000
"""The engine's own bound; 16 bytes each."""


@pytest.fixture(scope="module")
def machine():
    made = Machine()
    yield made
    made.close()


def module(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


def go(machine, code, **limits):
    return machine.run(job_of(code, "go", **limits))


@pytest.mark.parametrize("count", [1, 100, 1000])
def test_straight_code_goes_on_to_its_end_and_is_billed_no_more_than_allowed(machine, count):
    used = go(machine, straight_adds(count)).fuel_used
    assert used == 4 * count + 1
    for fuel in (2, used - 1):
        result = go(machine, straight_adds(count), fuel=fuel)
        assert (result.trap, result.fuel_used) == (None, fuel)


@pytest.mark.parametrize("before", ["(call $f)", "(loop $l)"])
def test_a_call_or_a_loop_ends_code_whose_fuel_is_spent(machine, before):
    adds = "(local.set 0 (i32.add (local.get 0) (i32.const 1)))" * 100
    code = module(f'(func $f) (func (export "go") (local i32) {adds} {before} {adds})')
    result = go(machine, code, fuel=10)
    assert (result.trap, result.fuel_used) == ("fuel_exhausted", 10)


def test_one_bulk_instruction_is_not_followed_by_another(machine):
    fill = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))"
    result = go(machine, module(f'(memory 1) (func (export "go") {fill * 3})'), fuel=100)
    assert (result.trap, result.fuel_used) == ("fuel_exhausted", 100)
    # With the fuel of one it ends before the second, and with that of all not at all.
    enough = go(machine, module(f'(memory 1) (func (export "go") {fill * 3})')).fuel_used
    assert enough > 3 * PAGE_BYTES
    assert go(machine, module(f'(memory 1) (func (export "go") {fill * 3})'), fuel=enough // 3).trap


@pytest.mark.parametrize(
    ("limit", "pages"),
    [(PAGE_BYTES, 1), (2 * PAGE_BYTES - 1, 1), (2 * PAGE_BYTES, 2), (MEMORY_BYTES_MAX, 16384)],
)
def test_a_memory_has_whole_pages_within_its_limit(machine, limit, pages):
    grow = module(
        f'(memory 1) (func (export "go") (result i32 i32)'
        f"(memory.grow (i32.const {pages - 1})) (memory.grow (i32.const 1)))"
    )
    result = go(machine, grow, memory_bytes=limit)
    assert result.results == (i32(1), i32(-1))
    assert result.memory_peak_bytes == pages * PAGE_BYTES <= limit
    assert (
        go(machine, module(f'(memory {pages}) (func (export "go"))'), memory_bytes=limit).trap
        is None
    )
    more = go(machine, module(f'(memory {pages + 1}) (func (export "go"))'), memory_bytes=limit)
    assert more.trap.startswith("memory_exceeded")
    assert (more.fuel_used, more.memory_peak_bytes) == (0, 0)


def test_tables_grow_to_their_bound_and_not_an_element_more(machine):
    table = f"(table {TABLE_ELEMENTS_MAX - 1} funcref)"
    grow = "(table.grow 0 (ref.null func) (i32.const 1))"
    result = go(machine, module(f'{table} (func (export "go") (result i32 i32) {grow * 2})'))
    assert result.results == (i32(TABLE_ELEMENTS_MAX - 1), i32(-1))


def test_as_many_tables_as_there_may_be_share_the_elements(machine):
    several = "(table 1 funcref)" * TABLES_MAX
    assert go(machine, module(f'{several} (func (export "go"))')).trap is None
    with pytest.raises(ModuleInvalid):
        go(machine, module(f'{several} (table 1 funcref) (func (export "go"))'))


def globals_module(count: int) -> bytes:
    content = leb(count) + b"\x7e\1\x42\0\x0b" * count
    return (
        b"\0asm\1\0\0\0"
        + section(1, b"\x60\0\0")
        + section(3, b"\0")
        + bytes([6])
        + leb(len(content))
        + content
        + section(7, b"\x02go\0\0")
        + section(10, b"\x02\0\x0b")
    )


def test_globals_are_bounded_by_number(machine):
    assert go(machine, globals_module(1000)).trap is None
    with pytest.raises(ModuleInvalid, match=f"limit of {GLOBALS_MAX}"):
        go(machine, globals_module(GLOBALS_MAX + 1))


def test_arguments_are_given_up_to_their_bound_and_not_one_more():
    check_input(RunInput(args=("x" * (ARGUMENT_BYTES_MAX // ARGUMENTS_MAX - 1),) * ARGUMENTS_MAX))
    for args in (("",) * (ARGUMENTS_MAX + 1), ("x" * ARGUMENT_BYTES_MAX,)):
        with pytest.raises((ArgumentInvalid, TooLarge)):
            check_input(RunInput(args=args))
