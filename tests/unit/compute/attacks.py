"""Hostile modules, generated: each is a few lines here and up to a megabyte there."""

from __future__ import annotations

from functools import cache

import wasmtime


def leb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def section(kind: int, *items: bytes) -> bytes:
    content = leb(len(items)) + b"".join(items)
    return bytes([kind]) + leb(len(content)) + content


def _function(body: bytes, locals_: bytes = b"\0") -> bytes:
    code = locals_ + body + b"\x0b"
    return leb(len(code)) + code


def of_bodies(*bodies: bytes, type_: bytes = b"\x60\0\0", locals_: bytes = b"\0") -> bytes:
    """A module of functions of one type; the first is exported as `go`."""
    return (
        b"\0asm\1\0\0\0"
        + section(1, type_)
        + section(3, *([b"\0"] * len(bodies)))
        + section(7, b"\x02go\0\0")
        + section(10, *(_function(body, locals_) for body in bodies))
    )


# What takes long to compile


def loops_with_phis(count: int) -> bytes:
    """Nested loops, each with a local that changes in it: 20 KB take seconds and a gigabyte."""
    body = b""
    for number in range(count):
        index = leb(number % 200)
        body += b"\x03\x40\x20" + index + b"\x41\x01\x6a\x21" + index
    end = b"".join(b"\x20" + leb(number % 200) + b"\x0d\0\x0b" for number in reversed(range(count)))
    return of_bodies(body + end, locals_=b"\x01" + leb(200) + b"\x7f")


def nested_loops(count: int) -> bytes:
    return of_bodies(b"\x03\x40" * count + b"\x0b" * count)


def straight_adds(count: int) -> bytes:
    return of_bodies(b"\x20\0\x41\x01\x6a\x21\0" * count, locals_=b"\x01\x01\x7f")


def tiny_functions(count: int) -> bytes:
    return of_bodies(*([b""] * count))


def branch_tables(count: int, targets: int) -> bytes:
    table = b"\x02\x40\x41\0\x0e" + leb(targets) + b"\0" * (targets + 1) + b"\x0b"
    return of_bodies(table * count)


# What takes long, or much, to run

_WASI = '(import "wasi_snapshot_preview1" "{0}" (func ${0} (param {1}) (result i32)))'
_RUNNING = {
    "spin": '(func (export "go") (loop $l (br $l)))',
    "stores": """(memory 1 16) (func (export "go") (local i32) (loop $l
        (i32.store (local.get 0) (i32.const 1))
        (local.set 0 (i32.and (i32.add (local.get 0) (i32.const 64)) (i32.const 65532)))
        (br $l)))""",
    "page faults": """(memory 1) (func (export "go") (local i32)
        (drop (memory.grow (i32.const 900)))
        (loop $l (i32.store (local.get 0) (i32.const 1))
        (local.set 0 (i32.rem_u (i32.add (local.get 0) (i32.const 4096)) (i32.const 59000000)))
        (br $l)))""",
    "division": """(func (export "go") (local f64) (local.set 0 (f64.const 1e300)) (loop $l
        (local.set 0 (f64.div (f64.sqrt (local.get 0)) (f64.const 1.000001))) (br $l)))""",
    "grow by nothing": """(memory 1) (func (export "go")
        (loop $l (drop (memory.grow (i32.const 0))) (br $l)))""",
    "grow by one": """(memory 1) (func (export "go")
        (loop $l (drop (memory.grow (i32.const 1))) (br $l)))""",
    "bulk fill": """(memory 900) (func (export "go") (loop $l
        (memory.fill (i32.const 0) (i32.const 7) (i32.const 58982400)) (br $l)))""",
    "bulk copy": """(memory 900) (func (export "go") (loop $l
        (memory.copy (i32.const 0) (i32.const 1) (i32.const 58982399)) (br $l)))""",
    "table grow": """(table 1 funcref) (func (export "go") (loop $l
        (drop (table.grow (ref.null func) (i32.const 1000))) (br $l)))""",
    "table fill": """(table 1000000 funcref) (func (export "go") (loop $l
        (table.fill (i32.const 0) (ref.null func) (i32.const 1000000)) (br $l)))""",
    "start": '(func $l (loop $l (br $l))) (start $l) (func (export "go"))',
    "recursion": '(func $f (export "go") (call $f))',
    "mutual recursion": """(type $t (func)) (table 2 2 funcref) (elem (i32.const 0) $a $b)
        (func $a (export "go") (call_indirect (type $t) (i32.const 1)))
        (func $b (call_indirect (type $t) (i32.const 0)))""",
    "output flood": _WASI.format("fd_write", "i32 i32 i32 i32")
    + """(memory (export "memory") 900) (func (export "go")
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 58982000))
        (loop $l (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $l)))""",
    "small output": _WASI.format("fd_write", "i32 i32 i32 i32")
    + """(memory (export "memory") 1) (func (export "go")
        (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 1))
        (loop $l (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $l)))""",
    "random": _WASI.format("random_get", "i32 i32")
    + """(memory (export "memory") 960) (func (export "go") (loop $l
        (drop (call $random_get (i32.const 0) (i32.const 60000000))) (br $l)))""",
    "clock": _WASI.format("clock_time_get", "i32 i64 i32")
    + """(memory (export "memory") 1) (func (export "go") (loop $l
        (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 0))) (br $l)))""",
    "sleep": _WASI.format("poll_oneoff", "i32 i32 i32 i32")
    + """(memory (export "memory") 1) (func (export "go")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3600000000000))
        (loop $l (drop (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 1)
        (i32.const 200))) (br $l)))""",
    "yield": '(import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))'
    '(memory (export "memory") 1) (func (export "go") (loop $l (drop (call $y)) (br $l)))',
}
_REFUSED = {
    "garbage collected heap": """(type $a (array (mut i64)))
        (func (export "go") (local (ref null $a)) (loop $l
        (local.set 0 (array.new $a (i64.const 0) (i32.const 1000000))) (br $l)))""",
    "exceptions": """(tag $e) (func (export "go") (loop $l
        (block $h (try_table (catch $e $h) (throw $e))) (br $l)))""",
    "waiting": """(memory 1 1 shared) (func (export "go")
        (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1))))""",
    "several memories": '(memory 1) (memory 1) (func (export "go"))',
    "64-bit memory": '(memory i64 1) (func (export "go"))',
    "many tables": "(table 1 funcref)" * 17 + '(func (export "go"))',
    "huge table": '(table 10000000 funcref) (func (export "go"))',
    "huge tables": "(table 600000 funcref)" * 2 + '(func (export "go"))',
    "an imported memory": '(import "env" "memory" (memory 1)) (func (export "go"))',
    "an imported global": '(import "env" "g" (global i32)) (func (export "go"))',
    "stack switching": '(type $f (func)) (type $c (cont $f)) (func (export "go"))',
}


@cache
def running(name: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {_RUNNING[name]})"))


@cache
def refused(name: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {_REFUSED[name]})"))


RUNNING = tuple(_RUNNING)
REFUSED = tuple(_REFUSED)
