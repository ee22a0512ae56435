"""Programs whose every bound is drawn: what they write, how deep, and how long they run."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from wasmtime import wat2wasm

from xsc.base.limits import FILE_NAME_BYTES_MAX

_WAT = """(module
  (import "wasi_snapshot_preview1" "path_create_directory"
    (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $fd i32) (local $left i32)
    (local.set $fd (i32.const 4))
    (memory.fill (i32.const 1024) (i32.const 97) (i32.const 65536))
    (local.set $left (i32.const {depth}))
    (block $made (loop $down
      (br_if $made (i32.eqz (local.get $left)))
      (br_if $made (call $mkdir (local.get $fd) (i32.const 1024) (i32.const {name})))
      (br_if $made (call $open (local.get $fd) (i32.const 0) (i32.const 1024) (i32.const {name})
        (i32.const 2) (i64.const 2) (i64.const -1) (i32.const 0) (i32.const 0)))
      (local.set $fd (i32.load (i32.const 0)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $down)))
    (drop (call $open (local.get $fd) (i32.const 0) (i32.const 1024) (i32.const {name})
      (i32.const 1) (i64.const 66) (i64.const -1) (i32.const 0) (i32.const 0)))
    (i32.store (i32.const 8) (i32.const 1024))
    (i32.store (i32.const 12) (i32.const {output}))
    (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))
    (local.set $left (i32.const {turns}))
    (loop $burn
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $burn (i32.gt_s (local.get $left) (i32.const 0))))
    (call $exit (i32.const {code}))))"""


@lru_cache(maxsize=64)
def program(depth: int, name: int, output: int, turns: int, code: int) -> bytes:
    """Return a command that nests directories, writes a file and output, and burns fuel."""
    text = _WAT.format(depth=depth, name=name, output=output, turns=turns, code=code)
    return bytes(wat2wasm(text))


def hostile_program(rng: Random) -> bytes:
    """Return a program with everything at one of its bounds, or bytes that are none."""
    if rng.random() < 0.05:
        return rng.choice((b"", b"\0asm", rng.randbytes(100)))
    return program(
        depth=rng.choice((0, 1, 40)),
        name=rng.choice((1, FILE_NAME_BYTES_MAX - 1, FILE_NAME_BYTES_MAX + 1)),
        output=rng.choice((0, 65_536)),
        turns=rng.choice((0, 300_000)),
        code=rng.choice((0, 1)),
    )
