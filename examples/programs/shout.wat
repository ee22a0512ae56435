;; A filter: reads a list of one text as canonical CBOR, writes the same with A to Z for a to z.
(module
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $end i32) (local $at i32) (local $byte i32)
    ;; Memory: 0 where bytes are, 4 how many, 8 how many were read or written, 16 the bytes.
    (local.set $end (i32.const 16))
    (loop $more
      (i32.store (i32.const 0) (local.get $end))
      (i32.store (i32.const 4) (i32.sub (i32.const 65536) (local.get $end)))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $end (i32.add (local.get $end) (i32.load (i32.const 8))))
      (br_if $more (i32.load (i32.const 8))))
    ;; The head of the list has a byte; that of the text has 1, 2 or 3, by its size.
    (local.set $byte (i32.and (i32.load8_u (i32.const 17)) (i32.const 31)))
    (local.set $at (i32.const 18))
    (if (i32.ge_u (local.get $byte) (i32.const 24))
      (then (local.set $at (i32.add (local.get $at) (i32.sub (local.get $byte) (i32.const 23))))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $byte (i32.load8_u (local.get $at)))
        (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 97)) (i32.const 26))
          (then (i32.store8 (local.get $at) (i32.sub (local.get $byte) (i32.const 32)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.sub (local.get $end) (i32.const 16)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
