"""The process behind a session: `python -I scripts/session_worker.py`.

It is confined like a sandbox worker and speaks the same frames, but it compiles
what it is given, links modules with one another, and keeps their instances
until it is told to begin anew. Only `scripts/session.py` starts it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import BinaryIO, cast

import wasmtime

from xsc.base.encoding import Value
from xsc.base.errors import (
    ArgumentInvalid,
    ExportUnknown,
    ModuleInvalid,
    SandboxFailed,
    SignatureMismatch,
    XscError,
)
from xsc.base.limits import TABLE_ELEMENTS_MAX, TABLES_MAX
from xsc.compute.wasm.engine import (
    ENGINE,
    ENGINE_CONFIG,
    Watchdog,
    call_raw,
    name_trap,
    new_engine,
    read_global,
    translate,
)
from xsc.compute.wasm.program import Program
from xsc.compute.wasm.signature import NUMBERS
from xsc.compute.wasm.values import Bits
from xsc.compute.worker import frames
from xsc.compute.worker.confine import confine, no_more_threads
from xsc.compute.worker.main import WARM_UP

INSTANCES_MAX = 256
_VALUES = NUMBERS | {"v128"}
Message = dict[str, Value]


def _gave(results: tuple[Bits, ...] = (), fuel_used: int = 0) -> Message:
    return {
        "kind": "gave",
        "results": [[kind, bits] for kind, bits in results],
        "fuel": fuel_used,
    }


class Linked:
    """The instances of one session, in one store."""

    def __init__(self) -> None:
        self._engine = new_engine()
        self._watchdog = Watchdog(self._engine)
        self.begin([1, 1, 1])

    def begin(self, limits: list[int]) -> Message:
        """Forget every instance; limits are fuel and time of a call, and bytes of a memory."""
        self._limits = limits
        self._store = wasmtime.Store(self._engine)
        self._store.set_limits(
            memory_size=limits[1],
            table_elements=TABLE_ELEMENTS_MAX,
            instances=INSTANCES_MAX,
            tables=INSTANCES_MAX * TABLES_MAX,
            memories=INSTANCES_MAX,
        )
        self._linker = wasmtime.Linker(self._engine)
        self._linker.allow_shadowing = True
        self._linked: set[str] = set()
        self._instances: dict[str, tuple[wasmtime.Instance, Program]] = {}
        return _gave()

    def start(self, name: str, source: bytes) -> Message:
        """Compile a module, link it with those that are registered, and run its start."""
        program, module = translate(
            self._engine, hashlib.sha256(source).digest(), source, self._linked
        )
        if program.imports:
            raise ModuleInvalid("a session has no WASI: its modules import from one another")

        def go() -> tuple[Bits, ...]:
            try:
                instance = self._linker.instantiate(self._store, module)
            except wasmtime.Trap:
                raise
            except wasmtime.WasmtimeError as fault:
                reason = str(fault).splitlines()[0][:300]
                raise ModuleInvalid(f"the module cannot be linked: {reason}") from None
            if program.start is not None:
                function = instance.exports(self._store)[program.start]
                call_raw(self._store, cast("wasmtime.Func", function), (), ())
            self._instances[name] = instance, program
            return ()

        return self._guarded(go)

    def register(self, name: str, as_name: str) -> Message:
        """Let later modules import from an instance."""
        self._linker.define_instance(self._store, as_name, self._instance(name)[0])
        self._linked.add(as_name)
        return _gave()

    def call(self, name: str, function: str, arguments: tuple[Bits, ...]) -> Message:
        """Call an export of an instance."""
        instance, program = self._instance(name)
        signature = program.signature(function)
        if signature.params != tuple(item for item, _ in arguments) or not _VALUES.issuperset(
            signature.results
        ):
            raise SignatureMismatch(f"{signature.show(function)} cannot be called so")
        found = cast("wasmtime.Func", instance.exports(self._store)[function])
        results = signature.results
        return self._guarded(lambda: call_raw(self._store, found, arguments, results))

    def read(self, name: str, exported: str) -> Message:
        """Return the value of an exported global."""
        instance, _ = self._instance(name)
        found = instance.exports(self._store).get(exported)
        if not isinstance(found, wasmtime.Global):
            raise ExportUnknown(f"the instance exports no global '{exported[:100]}'")
        return _gave((read_global(self._store, found),))

    def _instance(self, name: str) -> tuple[wasmtime.Instance, Program]:
        if name not in self._instances:
            raise ArgumentInvalid(f"the session has no instance '{name[:100]}'")
        return self._instances[name]

    def _guarded(self, go: Callable[[], tuple[Bits, ...]]) -> Message:
        """Run with fuel and a deadline, and say how it ended."""
        fuel, _, timeout_ms = self._limits
        self._store.set_fuel(fuel)
        self._store.set_epoch_deadline(1)
        self._watchdog.arm(timeout_ms)
        try:
            results = go()
        except wasmtime.Trap as trap:
            return {"kind": "trap", "trap": name_trap(trap)}
        except wasmtime.WasmtimeError as fault:
            raise SandboxFailed(f"the engine failed: {str(fault)[:300]}") from None
        finally:
            self._watchdog.disarm()
        return _gave(results, fuel - self._store.get_fuel())


def answer(linked: Linked, message: Message) -> Message:
    """Do what a message asks for."""
    asked = cast("dict[str, object]", message)
    try:
        match message.get("kind"):
            case "begin":
                return linked.begin(cast("list[int]", asked["limits"]))
            case "start":
                return linked.start(cast("str", asked["name"]), cast("bytes", asked["module"]))
            case "register":
                return linked.register(cast("str", asked["name"]), cast("str", asked["as"]))
            case "read":
                return linked.read(cast("str", asked["name"]), cast("str", asked["export"]))
            case _:
                pairs = cast("list[Bits]", asked["arguments"])
                arguments = tuple((kind, bits) for kind, bits in pairs)
                name, function = cast("str", asked["name"]), cast("str", asked["export"])
                return linked.call(name, function, arguments)
    except XscError as error:
        return frames.error_message(error)


def serve(linked: Linked, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer each message until the input ends."""
    while len(prefix := source.read(frames.PREFIX_BYTES)) == frames.PREFIX_BYTES:
        message = frames.from_frame(source.read(frames.length_of(prefix)))
        sink.write(frames.to_frame(answer(linked, message)))
        sink.flush()


def main() -> None:
    """Be the process of a session."""
    linked = Linked()
    linked.begin([10_000, 1 << 20, 1_000])
    linked.start("", WARM_UP)  # what this loads from the disk is loaded before there is no disk
    linked.call("", "run", ())
    report = confine()
    no_more_threads()
    sys.stdout.buffer.write(frames.to_frame(frames.hello_message(ENGINE, ENGINE_CONFIG, report)))
    sys.stdout.buffer.flush()
    serve(linked, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
