from __future__ import annotations

import pytest
from wasmtime import wat2wasm

from tests.unit.compute.programs import FOLDER, wasm
from xsc.base.errors import ExportUnknown, ModuleInvalid
from xsc.base.limits import MODULE_BYTES_MAX
from xsc.compute.program import MemoryShape, prepare, read
from xsc.compute.signature import Signature


def built(text):
    return bytes(wat2wasm(text))


def test_exports_have_their_types():
    program = read(wasm("multi"))
    assert program.functions == {
        "divmod": Signature(("i32", "i32"), ("i32", "i32")),
        "all": Signature((), ("i32", "i64", "f32", "f64")),
        "nothing": Signature((), ()),
    }
    assert program.memory is None
    assert program.start is None


def test_imports_and_memory_are_seen():
    program = read(wasm("sleep"))
    assert program.imports == ("poll_oneoff", "random_get")
    assert program.memory == MemoryShape(2, None)
    assert program.memory_export == "memory"
    assert read(wasm("memory_min")).memory == MemoryShape(65536, None)
    assert read(built("(module (memory 1 7))")).memory == MemoryShape(1, 7)


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
    after = read(prepared.module)
    own = {prepared.start} - {None}
    assert {k: v for k, v in after.functions.items() if k not in own} == program.functions
    assert after.start is None
    assert after.memory == program.memory
    assert prepared.memory == after.memory_export
    assert (prepared.memory is None) == (program.memory is None)
    assert (prepared.start is None) == (program.start is None)
    if program.start is None and program.memory_export:
        assert prepared.module == module


def test_injected_names_avoid_the_modules_own():
    module = built('(module (memory 1) (func (export "__xsc_memory")))')
    prepared = prepare(module, read(module))
    assert prepared.memory == "__xsc_memory_"
    assert read(prepared.module).names == {"__xsc_memory", "__xsc_memory_"}


def test_an_export_section_is_made_where_there_is_none():
    for text in ("(module (memory 1))", "(module (memory 1) (func $f) (start $f))"):
        module = built(text)
        prepared = prepare(module, read(module))
        assert read(prepared.module).memory_export == "__xsc_memory"
