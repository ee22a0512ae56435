"""The wasmtime engine: one job at a time, metered, in a fresh store.

Only this module knows wasmtime. `xsc.compute.worker.main` runs it in a
process that can be killed, `xsc.compute.worker.local` in this one. Decisions about a
module are in `xsc.compute.wasm.program`, host calls in `xsc.compute.wasm.wasi`.

How a run ends is named so: a trap of the engine by its code; a run that traps
while its memory stands at its limit has exceeded its memory (a refused
`memory.grow` gives -1 and no trap, and what follows is up to the program), and
the engine's own reason stays in the text. A refused grow that the program gets
over is no trap.

Known traps of wasmtime-py 50 that are met here: an exception in a host function
goes through a global of the package, therefore one job at a time; `set_fuel`
takes -1 for 2^64-1, therefore limits are validated before; Python floats quiet a
signalling f32 NaN, therefore numbers are handed over as raw bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._extern import wrap_extern
from wasmtime._func import enter_wasm

from xsc.base import bounded, encoding, limits
from xsc.base.errors import ExportUnknown, ModuleInvalid, SandboxFailed, SignatureMismatch
from xsc.compute.wasm import code_format as codes
from xsc.compute.wasm import program as programs
from xsc.compute.wasm import rows, wasi
from xsc.compute.wasm.code_format import MachineCode
from xsc.compute.wasm.program import PAGE_BYTES, Program
from xsc.compute.wasm.sandbox import Job, SandboxResult
from xsc.compute.wasm.signature import Signature
from xsc.compute.wasm.values import Bits

STACK_BYTES = 512 * limits.KIB
MODULES_COMPILED_MAX = 32
MODULES_COMPILED_BYTES_MAX = 64 * limits.MIB
"""Compiled modules that one worker keeps, and the bytes they came from: code is four times that."""

ENGINE = f"wasmtime-py/{version('wasmtime')}"
_OPTIONS: dict[str, bool | int] = {
    # Metering and deadlines
    "consume_fuel": True,
    "epoch_interruption": True,
    "max_wasm_stack": STACK_BYTES,
    # The same bits everywhere
    "cranelift_nan_canonicalization": True,
    "wasm_relaxed_simd_deterministic": True,
    "wasm_threads": False,
    "shared_memory": False,
    # One memory, no garbage collector, no features that nothing here can meter
    "wasm_multi_memory": False,
    "wasm_memory64": False,
    "wasm_custom_page_sizes": False,
    "wasm_function_references": False,
    "wasm_gc": False,
    "wasm_exceptions": False,
    "wasm_stack_switching": False,
    "wasm_wide_arithmetic": False,
    # Little address space: a worker's is bounded
    "memory_reservation": 64 * limits.MIB,
    "memory_guard_size": 64 * 1024,
    "memory_reservation_for_growth": 0,
    # The worker can open no file, and copy-on-write memory is one
    "memory_init_cow": False,
    # A fork or a spawn after a parallel compile deadlocks
    "parallel_compilation": False,
}
ENGINE_CONFIG = encoding.tagged_sha256(
    "engine-config",
    encoding.encode(
        {
            "engine": ENGINE,
            "machine": platform.machine(),
            "options": dict(_OPTIONS),
            "host_call_fuel": limits.HOST_CALL_FUEL,
            "listed_entry_fuel": limits.LISTED_ENTRY_FUEL,
            "moved_entry_fuel": limits.MOVED_ENTRY_FUEL,
            "world": wasi.WORLD,
            "table_elements": limits.TABLE_ELEMENTS_MAX,
        }
    ),
)
"""Fuel and traps are comparable where this is equal, and only there."""

_TRAPS = {
    wasmtime.TrapCode.OUT_OF_FUEL: "fuel_exhausted",
    wasmtime.TrapCode.INTERRUPT: "time_exceeded",
    wasmtime.TrapCode.STACK_OVERFLOW: "stack_exhausted",
}
_KINDS = {
    "i32": ffi.WASMTIME_I32.value,
    "i64": ffi.WASMTIME_I64.value,
    "f32": ffi.WASMTIME_F32.value,
    "f64": ffi.WASMTIME_F64.value,
    "v128": ffi.WASMTIME_V128.value,
}
_VALUE_TYPES = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
_IDLE_S = 3600.0
_SEED_BYTES = 32


class Watchdog:
    """Moves the engine's epoch when a deadline passes, which interrupts the running job.

    Arming does not wake its thread unless the deadline is nearer than what the
    thread waits for: a thread woken for each job would cost as much as the job.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self._wakes = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="xsc-watchdog", daemon=True)
        self._thread.start()

    def arm(self, timeout_ms: int) -> None:
        """Interrupt what runs once that much time has passed."""
        with self._condition:
            self._deadline = time.monotonic() + timeout_ms / 1000
            if self._deadline < self._wakes:
                self._condition.notify()

    def disarm(self) -> None:
        """Interrupt nothing any more; on return no interruption is under way."""
        with self._condition:
            self._deadline = None

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                now = time.monotonic()
                if self._deadline is not None and self._deadline <= now:
                    self._deadline = None
                    self._engine.increment_epoch()
                wait = _IDLE_S if self._deadline is None else self._deadline - now
                self._wakes = now + wait
                self._condition.wait(wait)


class _Host:
    """The running program's memory and fuel, for host calls, and what is held for it beside."""

    def __init__(self, store: wasmtime.Store, memory_bytes_max: int) -> None:
        self._store = store
        self.memory: wasmtime.Memory | None = None
        """Known once the program is instantiated, which runs nothing of it."""
        self.memory_bytes_max = memory_bytes_max
        self.held_bytes = 0
        self._peak_bytes = 0

    def memory_bytes(self) -> int:
        """Return the size of the memory: it never shrinks, so at the end this is the peak."""
        return 0 if self.memory is None else self.memory.data_len(self._store)

    def _place(self, address: int, size: int) -> int:
        if self.memory is None or address + size > self.memory_bytes():
            raise wasi.Fault
        return ctypes.addressof(self.memory.data_ptr(self._store).contents) + address

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the memory."""
        return ctypes.string_at(self._place(address, size), size) if size else b""

    def write(self, address: int, data: bytes) -> None:
        """Write to the memory."""
        if data:
            ctypes.memmove(self._place(address, len(data)), data, len(data))

    def spend(self, fuel: int) -> bool:
        """Take fuel, or all that is left."""
        left = self._store.get_fuel()
        self._store.set_fuel(max(0, left - fuel))
        return fuel <= left

    def hold(self, size: int) -> bool:
        """Hold so much more beside the memory, which may then grow so much less."""
        memory_bytes = self.memory_bytes()
        held_bytes = self.held_bytes + size
        if memory_bytes + held_bytes > self.memory_bytes_max:
            return False
        self.peak_bytes(memory_bytes)
        self.held_bytes = held_bytes
        _limit(self._store, self.memory_bytes_max - held_bytes)
        return True

    def peak_bytes(self, memory_bytes: int) -> int:
        """Return the most that memory and what is held have had, now that the memory has so much.

        The memory never shrinks: the peak is where less is held from then on, or at the end.
        """
        self._peak_bytes = max(self._peak_bytes, memory_bytes + self.held_bytes)
        return self._peak_bytes


def _limit(store: wasmtime.Store, memory_bytes: int) -> None:
    store.set_limits(
        memory_size=memory_bytes,
        table_elements=limits.TABLE_ELEMENTS_MAX,
        instances=1,
        tables=limits.TABLES_MAX,
        memories=1,
    )


class _World:
    """What the host calls of a linked module reach: the state of the one run that is on."""

    state: wasi.Wasi | None = None

    def call(self, name: str, arguments: tuple[int, ...]) -> int:
        """Answer a host call."""
        assert self.state is not None
        return self.state.call(name, arguments)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A module that is ready to run."""

    program: Program
    ready: wasmtime.InstancePre
    """Linked once, for all runs."""
    world: _World
    """Where the host calls of the run that is on find its state."""


def _function_type(signature: Signature) -> wasmtime.FuncType:
    return wasmtime.FuncType(
        [_VALUE_TYPES[item]() for item in signature.params],
        [_VALUE_TYPES[item]() for item in signature.results],
    )


def call_raw(
    store: wasmtime.Store,
    function: wasmtime.Func,
    arguments: Sequence[Bits],
    results: Sequence[str],
) -> tuple[Bits, ...]:
    """Call a function with raw bits: `Func.__call__` goes through floats, and is slow."""
    given = (ffi.wasmtime_val_t * len(arguments))()
    for slot, (kind, bits) in zip(given, arguments, strict=True):
        slot.kind = _KINDS[kind]
        if kind == "v128":
            slot.of.v128[:] = bits
        elif len(bits) == 4:
            slot.of.i32 = int.from_bytes(bits, "little")
        else:
            slot.of.i64 = int.from_bytes(bits, "little")
    taken = (ffi.wasmtime_val_t * len(results))()
    with enter_wasm(store) as trap:
        error = ffi.wasmtime_func_call(
            store._context(),  # noqa: SLF001 - the engine is pinned to one minor version
            ctypes.byref(function._func),  # noqa: SLF001 - the same
            given,
            len(arguments),
            taken,
            len(results),
            trap,
        )
        if error:  # type: ignore[truthy-bool]
            raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001 - the same
    return tuple((name, _bits_in(slot, name)) for slot, name in zip(taken, results, strict=True))


def _bits_in(slot: ffi.wasmtime_val_t, kind: str) -> bytes:
    if kind == "v128":
        return bytes(slot.of.v128)
    if kind.endswith("64"):
        return int(slot.of.i64 % 2**64).to_bytes(8, "little")
    return int(slot.of.i32 % 2**32).to_bytes(4, "little")


def read_global(store: wasmtime.Store, found: wasmtime.Global) -> Bits:
    """Return the value of a global as raw bits.

    Its own `type` cannot be asked: the engine aborts where it is a vector.

    Raises:
        SignatureMismatch: it is a reference.
    """
    slot = ffi.wasmtime_val_t()
    context, place = store._context(), found._global  # noqa: SLF001 - as in `call_raw`
    ffi.wasmtime_global_get(context, ctypes.byref(place), ctypes.byref(slot))
    for kind, number in _KINDS.items():
        if int(slot.kind) == number:
            return kind, _bits_in(slot, kind)
    ffi.wasmtime_val_unroot(ctypes.byref(slot))
    raise SignatureMismatch("the global is a reference")


def name_trap(trap: wasmtime.Trap) -> str:
    """Return a trap of the engine as `SandboxResult.trap` says it."""
    code = trap.trap_code
    assert code is not None
    return _TRAPS.get(code, f"module_trapped: {code.name.lower().replace('_', ' ')}")


def new_engine() -> wasmtime.Engine:
    """Return an engine of the one configuration."""
    config = wasmtime.Config()
    for name, value in _OPTIONS.items():
        setattr(config, name, value)
    return wasmtime.Engine(config)


def translate(
    engine: wasmtime.Engine, module_hash: bytes, source: bytes, linked: Collection[str] = ()
) -> tuple[Program, wasmtime.Module]:
    """Compile a module here; `linked` as `xsc.compute.wasm.program.read` takes it.

    Raises:
        ModuleInvalid: it cannot run.
    """
    if hashlib.sha256(source).digest() != module_hash:
        raise ModuleInvalid("the module is not the one that its hash names")
    program = programs.read(source, linked)
    prepared = programs.prepare(source, program)
    try:
        if prepared is not source:
            # An export declares a function for `ref.func`, a start does not; and a copy has no
            # custom sections.
            wasmtime.Module.validate(engine, source)
        module = wasmtime.Module(engine, prepared)
    except wasmtime.WasmtimeError as fault:
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
        reason = lines[-1].removeprefix("0: ")[:300] if lines else "no reason given"
        raise ModuleInvalid(f"the module is not valid WebAssembly: {reason}") from None
    return program, module


def compile_module(engine: wasmtime.Engine, module_hash: bytes, source: bytes) -> MachineCode:
    """Return the code of a module.

    Raises:
        ModuleInvalid: it cannot run.
    """
    program, module = translate(engine, module_hash, source)
    return MachineCode(codes.describe(program), bytes(module.serialize()))


def _deserialize(
    engine: wasmtime.Engine, machine_code: ctypes.Array[ctypes.c_uint8]
) -> wasmtime.Module:
    """Return the module of code: `Module.deserialize` would copy it once more."""
    made = ctypes.POINTER(ffi.wasmtime_module_t)()
    error = ffi.wasmtime_module_deserialize(
        engine.ptr(), machine_code, len(machine_code), ctypes.byref(made)
    )
    if error:  # type: ignore[truthy-bool]
        raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001 - as in `call_raw`
    return wasmtime.Module._from_ptr(made)  # noqa: SLF001 - the same


class Machine:
    """Compiles modules, keeps them, and runs jobs one after the other.

    Args:
        world: makes what a job's program finds around it.
    """

    def __init__(self, world: Callable[..., wasi.Wasi] = wasi.Wasi) -> None:
        self._world = world
        self._engine = new_engine()
        self._watchdog = Watchdog(self._engine)
        self._modules: bounded.Bounded[bytes, _Compiled] = bounded.Bounded(
            MODULES_COMPILED_MAX,
            size_max=MODULES_COMPILED_BYTES_MAX,
            size_of=lambda compiled: compiled.program.size_bytes,
        )
        # A FuncType belongs to the first engine that it is used with: another one aborts.
        self._types = {name: _function_type(sig) for name, sig in wasi.SIGNATURES.items()}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the watchdog."""
        self._watchdog.close()

    def has(self, module_hash: bytes) -> bool:
        """Say whether that module is compiled: then a job need not bring it."""
        return module_hash in self._modules

    def prepare(self, job: Job) -> None:
        """Compile the module of a job, if it is not compiled yet.

        Raises:
            ModuleInvalid: it cannot run.
        """
        with self._lock:
            if job.module_hash not in self._modules:
                self._compile(job)

    def run(self, job: Job, tell: Callable[[int, bytes], None] | None = None) -> SandboxResult:
        """Return what the job gave.

        `tell` is given what the program writes, and to which stream.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch: it cannot run.
            SandboxFailed: the engine failed.
        """
        with self._lock:
            compiled = self._modules.get(job.module_hash)
            if compiled is None:
                compiled = self._compile(job)
            if job.mode == "batch":
                return self._run_batch(job, compiled)
            return self._run(job, compiled, tell)

    def load(
        self, module_hash: bytes, description: bytes, machine_code: ctypes.Array[ctypes.c_uint8]
    ) -> None:
        """Take the code of a module, which must come from this node: nothing can check it.

        Raises:
            SandboxFailed: it is no code of this engine.
        """
        program = codes.read(description)
        with self._lock:
            self._modules.make_room(program.size_bytes)  # what is kept takes room from loading
            try:
                module = _deserialize(self._engine, machine_code)
            except wasmtime.WasmtimeError as fault:
                raise SandboxFailed(f"the engine refuses code: {str(fault)[:300]}") from None
            self._keep(module_hash, program, module)

    def _run_batch(self, job: Job, compiled: _Compiled) -> SandboxResult:
        shape = rows.shape_of(job.args)
        signature = compiled.program.signature(job.function)
        if not signature.callable:
            raise SignatureMismatch(f"{signature.show(job.function)} takes or gives no numbers")
        rows.check_size(shape.count, signature, job.limits.output_bytes)
        began = time.monotonic()

        def call(
            index: int, arguments: tuple[Bits, ...], fuel: int, timeout_ms: int
        ) -> tuple[rows.ResultRow, int]:
            one = replace(
                job,
                mode="invoke",
                arguments=arguments,
                args=(),
                stdin=b"",
                limits=replace(job.limits, fuel=fuel, timeout_ms=timeout_ms),
                seed=rows.seed_at(job.seed, index),
            )
            result = self._run(one, compiled)
            return rows.ResultRow(result.results, result.trap, result.fuel_used), (
                result.memory_peak_bytes
            )

        def elapsed_ms() -> int:
            return int((time.monotonic() - began) * 1000)

        table, traps, spent, peak = rows.run_all(
            shape,
            signature,
            job.stdin,
            fuel=job.limits.fuel,
            timeout_ms=job.limits.timeout_ms,
            elapsed_ms=elapsed_ms,
            call=call,
        )
        return SandboxResult(
            (), None, None, spent, peak, table, traps, (), ENGINE, ENGINE_CONFIG, elapsed_ms()
        )

    def _compile(self, job: Job) -> _Compiled:
        self._modules.make_room(len(job.module))  # what is kept takes room from compiling
        return self._keep(job.module_hash, *translate(self._engine, job.module_hash, job.module))

    def _keep(self, module_hash: bytes, program: Program, module: wasmtime.Module) -> _Compiled:
        world = _World()
        linker = self._link(program, world)
        try:
            ready = linker.instantiate_pre(module)
        finally:
            linker.close()
        compiled = _Compiled(program, ready, world)
        self._modules.put(module_hash, compiled)
        return compiled

    def _run(
        self, job: Job, compiled: _Compiled, tell: Callable[[int, bytes], None] | None = None
    ) -> SandboxResult:
        began = time.monotonic()
        check_call(job, compiled.program)
        empty = SandboxResult((), None, None, 0, 0, b"", b"", (), ENGINE, ENGINE_CONFIG, 0)
        program = compiled.program
        declared = (program.pages_min or 0) * PAGE_BYTES
        if declared > job.limits.memory_bytes:
            return replace(empty, trap=f"memory_exceeded: it declares {declared} bytes")

        store = wasmtime.Store(self._engine)
        try:
            _limit(store, job.limits.memory_bytes)
            store.set_fuel(job.limits.fuel)
            store.set_epoch_deadline(1)
            host = _Host(store, job.limits.memory_bytes)
            if program.imports:
                compiled.world.state = self._state(job, host, tell)
            run = _Run(store, compiled, host, job)
            self._watchdog.arm(job.limits.timeout_ms)
            try:
                results = run.go()
            finally:
                self._watchdog.disarm()
            left = store.get_fuel()
            # After a trap in a data segment the instance is lost, and nothing could grow yet.
            memory_bytes = declared if host.memory is None else host.memory_bytes()
        finally:
            state, compiled.world.state = compiled.world.state, None
            store.close()

        trap = run.trap
        if trap is not None and trap.startswith("module_trapped"):
            limit = (job.limits.memory_bytes - host.held_bytes) // PAGE_BYTES * PAGE_BYTES
            if program.memory is not None and memory_bytes == limit:
                reason = trap.partition(": ")[2]
                trap = f"memory_exceeded: {reason} with its memory at the limit"
        spent = job.limits.fuel if trap == "fuel_exhausted" else job.limits.fuel - left
        return replace(
            empty,
            results=results,
            exit_code=run.exit_code,
            trap=trap,
            fuel_used=spent,
            memory_peak_bytes=host.peak_bytes(memory_bytes),
            stdout=b"" if state is None else bytes(state.stdout),
            stderr=b"" if state is None else bytes(state.stderr),
            files=() if state is None else tuple(state.files()),
            wall_ms=int((time.monotonic() - began) * 1000),
        )

    def _state(self, job: Job, host: _Host, tell: Callable[[int, bytes], None] | None) -> wasi.Wasi:
        """Return what the program finds around it; one without imports finds nothing."""
        wall = "clock" in job.grants
        return self._world(
            host,
            args=job.args,
            environment=job.environment,
            stdin=job.stdin,
            files=dict(job.files),
            output_bytes=job.limits.output_bytes,
            seed=os.urandom(_SEED_BYTES) if "random" in job.grants else job.seed,
            clock_ms=time.time_ns() // 1_000_000 if wall else job.clock_ms,
            wall_ns=time.monotonic_ns if wall else None,
            tell=tell,
        )

    def _link(self, program: Program, world: _World) -> wasmtime.Linker:
        linker = wasmtime.Linker(self._engine)

        def define(name: str) -> None:
            def called(*arguments: int) -> int:
                return world.call(name, arguments)

            linker.define_func(wasi.MODULE, name, self._types[name], called)

        for name in program.imports:
            define(name)
        return linker


class _Run:
    """One run in its store."""

    def __init__(self, store: wasmtime.Store, compiled: _Compiled, host: _Host, job: Job) -> None:
        self._store = store
        self._compiled = compiled
        self._host = host
        self._job = job
        self.trap: str | None = None
        self.exit_code: int | None = None

    def go(self) -> tuple[Bits, ...]:
        """Run it, and leave in `trap` and `exit_code` how it ended."""
        try:
            results = self._go()
        except wasi.ProgramExit:
            state = self._compiled.world.state
            assert state is not None
            if state.trap is not None:
                self.trap = state.trap
            elif self._job.mode == "run":
                self.exit_code = state.exit_code
            else:
                self.trap = f"module_trapped: it exited with code {state.exit_code}"
            return ()
        except wasmtime.Trap as trap:
            self.trap = name_trap(trap)
            return ()
        except wasmtime.WasmtimeError as fault:
            # What can be the module's fault was refused before: this is the engine's.
            raise SandboxFailed(f"the engine failed: {str(fault)[:300]}") from None
        if self._job.mode == "run":
            self.exit_code = 0
        return results

    def _go(self) -> tuple[Bits, ...]:
        program = self._compiled.program
        instance = self._compiled.ready.instantiate(self._store)
        if program.memory is not None:
            memory = _export(self._store, instance, program.memory)
            assert isinstance(memory, wasmtime.Memory)
            self._host.memory = memory
        before = [program.start] if program.start is not None else []
        if self._job.mode == "invoke" and self._job.function != "_initialize":
            before += ["_initialize"] if _is_command(program, "_initialize") else []
        for name in before:
            function = _export(self._store, instance, name)
            assert isinstance(function, wasmtime.Func)
            call_raw(self._store, function, (), ())
        function = _export(self._store, instance, self._job.function)
        assert isinstance(function, wasmtime.Func)
        signature = program.functions[self._job.function]
        return call_raw(self._store, function, self._job.arguments, signature.results)


def _export(store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> object:
    """Return one export that must be there: `Instance.exports` wraps all of them for each run."""
    item = ffi.wasmtime_extern_t()
    raw = name.encode()
    there = ffi.wasmtime_instance_export_get(
        store._context(),  # noqa: SLF001 - as in `call_raw`
        ctypes.byref(instance._instance),  # noqa: SLF001 - the same
        ctypes.create_string_buffer(raw),
        len(raw),
        ctypes.byref(item),
    )
    assert there
    return wrap_extern(item)


def _is_command(program: Program, name: str) -> bool:
    return program.functions.get(name) == Signature((), ())


def check_call(job: Job, program: Program) -> None:
    """Return if the job fits what the module exports.

    Raises:
        ExportUnknown, SignatureMismatch: it does not.
    """
    signature = program.signature(job.function)
    if job.mode == "run" and not _is_command(program, job.function):
        raise ExportUnknown("the module is no WASI command: its _start takes or gives values")
    given = tuple(kind for kind, _ in job.arguments)
    if given != signature.params or not signature.callable:
        shown = signature.show(job.function)
        raise SignatureMismatch(f"{shown} cannot be called with ({', '.join(given)})")
