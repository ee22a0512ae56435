from __future__ import annotations

import ctypes
import hashlib

import pytest
from wasmtime import wat2wasm

from tests.unit.compute.programs import FOLDER, job_of, wasm
from xsc.base.errors import ExportUnknown, ModuleInvalid
from xsc.base.limits import EXPORTS_MAX, MODULE_BYTES_MAX
from xsc.compute.wasm.engine import Machine, compile_module, new_engine
from xsc.compute.wasm.program import prepare, read
from xsc.compute.wasm.signature import Signature


def built(text):
    return bytes(wat2wasm(text))


def test_exports_have_their_types():
    program = read(wasm("multi"))
    assert program.functions == {
        "divmod": Signature(("i32", "i32"), ("i32", "i32")),
        "all": Signature((), ("i32", "i64", "f32", "f64")),
        "nothing": Signature((), ()),
    }
    assert program.pages_min is None
    assert program.memory is None
    assert program.start is None


def test_imports_and_memory_are_seen():
    program = read(wasm("sleep"))
    assert program.imports == ("poll_oneoff", "random_get")
    assert (program.pages_min, program.memory) == (2, "memory")
    assert read(wasm("memory_min")).pages_min == 65536
    assert read(built("(module (memory 1 7))")).pages_min == 1


def test_an_exported_import_has_the_type_of_the_import():
    program = read(
        built(
            '(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))'
            ' (export "rest" (func $y)))'
        )
    )
    assert program.signature("rest") == Signature((), ("i32",))


def test_an_unknown_export_lists_those_there_are():
    with pytest.raises(ExportUnknown) as caught:
        read(wasm("float")).signature("third")
    assert caught.value.message == "the module exports no function 'third'"
    assert caught.value.hint.startswith("it exports half(f32) -> f32; divide(f64, f64) -> f64;")
    with pytest.raises(ExportUnknown) as caught:
        read(built("(module)")).signature("f")
    assert caught.value.hint == "it exports no function at all"


def test_a_long_list_of_exports_is_cut():
    many = "".join(f'(func (export "f{number}"))' for number in range(25))
    with pytest.raises(ExportUnknown) as caught:
        read(built(f"(module {many})")).signature("g")
    assert caught.value.hint.endswith("; and 5 more")


def test_what_is_said_of_a_module_is_short_whatever_its_names_and_types_are():
    types = " i32" * 900
    exports = "".join(f'(export "{"n" * 4000}{number}" (func 0))' for number in range(20))
    module = built(f"(module (func (param{types}) (result{types}) unreachable) {exports})")
    with pytest.raises(ExportUnknown) as caught:
        read(module).signature("x" * 10_000)
    assert len(caught.value.message) < 200
    assert len(caught.value.hint) < 1_200
    assert "i32, … 900 in all" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ('(module (func) (export "\\1b[31mred\\07" (func 0)))', "f\x1b[2J"),
        ('(module (import "\\1b[2J" "\\0d\\0a" (func)))', "f"),
    ],
)
def test_what_is_said_of_a_module_is_printable_whatever_its_names_are(text, called):
    with pytest.raises((ExportUnknown, ModuleInvalid)) as caught:
        read(built(text)).signature(called)
    assert (caught.value.message + caught.value.hint).isprintable()
    assert "\\x1b[" in caught.value.message
    assert str(caught.value) == caught.value.message


def test_as_many_exports_as_there_may_be_can_be_called_and_one_more_is_refused():
    """The worker, which reads the description of the code, takes what was let in here."""
    exports = [f'(export "f{number}" (func 0))' for number in range(EXPORTS_MAX)]
    module = built(f"(module (func) {''.join(exports)})")
    machine = Machine()
    code = compile_module(new_engine(), hashlib.sha256(module).digest(), module)
    machine_code = (ctypes.c_uint8 * len(code.machine)).from_buffer_copy(code.machine)
    asked = job_of(module, f"f{EXPORTS_MAX - 1}")
    machine.load(asked.module_hash, code.about, machine_code)
    assert machine.run(asked).trap is None
    machine.close()
    with pytest.raises(ModuleInvalid, match=f"more than {EXPORTS_MAX} exports"):
        read(built(f'(module (func) {"".join(exports)} (export "more" (func 0)))'))


REFUSED = {
    "shorter": (b"", "does not begin"),
    "text": (b"(module)", "does not begin"),
    "another version": (b"\0asm\2\0\0\0", "version"),
    "component": (b"\0asm\x0d\0\1\0", "component"),
    "cut in a section": (wasm("add")[:-1], "cut short"),
    "unknown section": (b"\0asm\1\0\0\0\x20\0", "unknown or out of order"),
    "section twice": (b"\0asm\1\0\0\0\1\1\0\1\1\0", "out of order"),
    "sections out of order": (b"\0asm\1\0\0\0\3\1\0\1\1\0", "out of order"),
    "too long a number": (b"\0asm\1\0\0\0\1\x80\x80\x80\x80\x80\0", "too long"),
    "too large a number": (b"\0asm\1\0\0\0\1\xff\xff\xff\xff\x7f", "too large"),
    "left over": (b"\0asm\1\0\0\0\1\2\0\0", "longer than its content"),
    "no such type": (b"\0asm\1\0\0\0\3\2\1\7", "type that does not exist"),
    "GC types": (b"\0asm\1\0\0\0\1\3\1\x5f\0", "no functions"),
    "name that is no text": (b"\0asm\1\0\0\0\7\5\1\1\xff\0\0", "UTF-8"),
    "export of nothing": (b"\0asm\1\0\0\0\7\5\1\1f\0\0", "no function of the module"),
    "unknown import": (wasm("unknown_import"), "imports the function 'env.launch'"),
    "imported memory": (built('(module (import "env" "m" (memory 1)))'), "the memory 'env.m'"),
    "imported global": (built('(module (import "env" "g" (global i32)))'), "the global 'env.g'"),
    "imported table": (built('(module (import "env" "t" (table 1 funcref)))'), "the table"),
    "another type of import": (
        built('(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i64))))'),
        "by a type that it does not have",
    ),
    "no such WASI function": (
        built('(module (import "wasi_snapshot_preview1" "fly" (func)))'),
        "does not exist here",
    ),
    "two memories": (built("(module (memory 1) (memory 1))"), "more than one memory"),
    "shared memory": (built("(module (memory 1 1 shared))"), "shared"),
    "64-bit memory": (built("(module (memory i64 1))"), "kind that cannot run"),
    "a huge table": (built("(module (table 2000000 funcref))"), "elements"),
    "many tables": (built("(module" + "(table 1 funcref)" * 17 + ")"), "tables"),
    "a reference type": (
        built('(module (type $f (func)) (func (export "g") (param (ref $f))))'),
        "value type",
    ),
    "too large": (b"\0asm\1\0\0\0" + bytes(MODULE_BYTES_MAX), "over the bound"),
    "long declarations": (
        b"\0asm\1\0\0\0\1\x81\x80\x80\1" + bytes((2 << 20) + 1),
        "over its bound",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(name):
    module, reason = REFUSED[name]
    with pytest.raises(ModuleInvalid, match=reason):
        read(module)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.wasm")), ids=lambda path: path.stem)
def test_the_prepared_copy_declares_the_same_and_hides_nothing(path):
    if path.stem == "unknown_import":
        return
    module = path.read_bytes()
    program = read(module)
    prepared = prepare(module, program)
    after = read(prepared)
    own = {program.start} - {None}
    assert {k: v for k, v in after.functions.items() if k not in own} == program.functions
    assert after.start is None
    assert (after.pages_min, after.memory) == (program.pages_min, program.memory)
    assert (program.memory is None) == (program.pages_min is None)
    if program.start is None and program.memory == "memory":
        assert prepared == module


def test_injected_names_avoid_the_modules_own():
    module = built('(module (memory 1) (func (export "__xsc_memory")))')
    program = read(module)
    assert program.memory == "__xsc_memory_"
    assert b"\x0d__xsc_memory_\2\0" in prepare(module, program)


def test_an_export_section_is_made_where_there_is_none():
    for text in ("(module (memory 1))", "(module (memory 1) (func $f) (start $f))"):
        module = built(text)
        program = read(module)
        assert read(prepare(module, program)).memory == program.memory == "__xsc_memory"
