"""The WebAssembly specification's own tests, through our wrapper and a confined process.

    make spec TESTSUITE=DIR        DIR: a checkout of github.com/WebAssembly/testsuite

`scripts/wast.py` reads each script; a session (`scripts/session.py`) runs its
commands, with the reader, the limits and the engine configuration that jobs have.
What is not run is counted with its reason. A command that acts on what a module
that is off here would have changed or made is not run either.
Exit code 0: nothing failed; 1: something did, and is listed; 2: a script could not be
read, or there is none, or none of its commands could be run.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime
from session import Session
from wast import Command, Source, Unreadable, Value, commands

from xsc.base.errors import ModuleInvalid, SandboxFailed, StackExhausted, XscError
from xsc.base.limits import FUEL_MAX, MEMORY_BYTES_MAX
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.values import Bits

SPECTEST = """(module
  (global (export "global_i32") i32 (i32.const 666))
  (global (export "global_i64") i64 (i64.const 666))
  (global (export "global_f32") f32 (f32.const 666.6))
  (global (export "global_f64") f64 (f64.const 666.6))
  (table (export "table") 10 20 funcref)
  (memory (export "memory") 1 2)
  (func (export "print"))
  (func (export "print_i32") (param i32))
  (func (export "print_i64") (param i64))
  (func (export "print_f32") (param f32))
  (func (export "print_f64") (param f64))
  (func (export "print_i32_f32") (param i32 f32))
  (func (export "print_f64_f64") (param f64 f64)))"""
"""The module that the scripts import from, as the specification's interpreter has it."""

OFF_HERE = {
    "of a kind that cannot run here": "64-bit memories and tables, and tables of other references",
    "more than one memory": "several memories",
    "multiple memories": "several memories",
    "value type that cannot run here": "typed references, garbage collection and exceptions",
    "that are no functions (GC)": "typed references, garbage collection and exceptions",
    "threads cannot run here": "threads",
    "exceptions proposal not enabled": "typed references, garbage collection and exceptions",
    "exceptions support is not enabled": "typed references, garbage collection and exceptions",
    "without the gc feature": "typed references, garbage collection and exceptions",
    "function references": "typed references, garbage collection and exceptions",
    "global.get of locally defined global": "constants of the garbage collection proposal",
}
"""Refusals by decision (docs/design/compute.md, W1 and S): what they stand for."""

REASONS = {
    "uninitialized element": "indirect call to null",
    "uninitialized element 2": "indirect call to null",
    "undefined element": "table out of bounds",
    "out of bounds memory access": "memory out of bounds",
    "out of bounds table access": "table out of bounds",
    "indirect call type mismatch": "bad signature",
    "invalid conversion to integer": "bad conversion to integer",
    "integer divide by zero": "integer division by zero",
    "integer overflow": "integer overflow",
    "unreachable": "unreachable",
}
"""How the specification says a trap, and how the engine does."""


@dataclass
class Tally:
    """What came of the commands."""

    passed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class NotRun(Exception):
    """A command is not run; the message says why."""


def value_bits(value: Value) -> Bits:
    """Return a given value."""
    return value.type, b"".join(lane for lane in value.lanes if isinstance(lane, bytes))


def is_nan(bits: bytes, sort: str) -> bool:
    """Say whether bits are a NaN of that sort, of either sign."""
    width = len(bits) * 8
    fraction = 23 if width == 32 else 52
    value = int.from_bytes(bits, "little") & ((1 << width - 1) - 1)
    quiet = ((1 << width - 1 - fraction) - 1) << fraction | 1 << fraction - 1
    return value == quiet if sort == "nan:canonical" else value & quiet == quiet


def fits(allowed: tuple[Value, ...], given: Bits) -> bool:
    """Say whether a result is one of the values that it may be."""
    return any(one.type == given[0] and _lanes_fit(one, given[1]) for one in allowed)


def _lanes_fit(wanted: Value, bits: bytes) -> bool:
    width = len(bits) // len(wanted.lanes)
    parts = [bits[at : at + width] for at in range(0, len(bits), width)]
    return all(
        part == lane if isinstance(lane, bytes) else is_nan(part, lane)
        for lane, part in zip(wanted.lanes, parts, strict=True)
    )


def off_here(fault: ModuleInvalid) -> str | None:
    """Return what is off here, where a module was refused for that."""
    return next((what for text, what in OFF_HERE.items() if text in fault.message), None)


class Imports:
    """Says from where a module imports, also one that is off here."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        for name in ("threads", "multi_memory", "memory64", "function_references", "gc"):
            setattr(config, f"wasm_{name}", True)
        config.wasm_exceptions = True
        config.shared_memory = True
        self._engine = wasmtime.Engine(config)

    def of(self, binary: bytes) -> set[str]:
        """Return the names of the modules that it imports from; none of one that is not valid."""
        try:
            return {str(each.module) for each in wasmtime.Module(self._engine, binary).imports}
        except wasmtime.WasmtimeError:
            return set()


class Script:
    """One script's commands, in one session."""

    def __init__(
        self, session: Session, name: str, given: list[Command], tally: Tally, imports: Imports
    ) -> None:
        self._session = session
        self._name = name
        self._commands = given
        self._tally = tally
        self._imports = imports
        # Instances must live on only where a later command names them.
        self._together = any(
            command.type == "register"
            or (command.action is not None and command.action.module)
            or (command.module is not None and command.module.kind == "instance")
            for command in given
        )
        self._definitions: dict[str, bytes] = {}
        self._absent: dict[str, str] = {}
        """Instances that are not there, or not as they should be, and why."""
        self._registered: dict[str, str] = {}
        """Instances by the name under which others import from them."""
        self._current = ""

    async def run(self) -> None:
        """Run every command."""
        await self._begin()
        for command in self._commands:
            failed = ""
            try:
                failed = await self._one(command)
            except NotRun as why:
                self._tally.skipped[str(why)] += 1
                continue
            except SandboxFailed as fault:
                await self._begin()
                failed = fault.message
            except XscError as fault:
                failed = fault.message
            if failed:
                place = f"{self._name}.wast:{command.line}: {command.type}"
                self._tally.failed.append(f"{place}: {failed}")
            else:
                self._tally.passed[command.type] += 1

    async def _begin(self) -> None:
        await self._session.begin()
        self._registered = {}
        await self._session.start(bytes(wasmtime.wat2wasm(SPECTEST)), "spectest")
        await self._session.register("spectest", "spectest")

    async def _one(self, command: Command) -> str:
        """Return nothing where it went as expected, or what was wrong."""
        if command.type == "module":
            await self._module(command)
        elif command.type == "register":
            await self._register(command)
        elif command.module is not None:
            return await self._refused(command)
        else:
            return await self._act(command)
        return ""

    def _binary(self, source: Source) -> bytes:
        if source.kind == "instance":
            return self._definitions[source.of]
        if source.binary is None:
            raise NotRun("the text format, which is read nowhere here")
        return source.binary

    async def _module(self, command: Command) -> None:
        assert command.module is not None
        binary = self._binary(command.module)
        name = command.name or f"#{command.line}"
        if command.module.kind == "definition":
            self._definitions[command.name] = binary
            raise NotRun("definitions, which are run where there are instances of them")
        if not self._together:
            await self._begin()
        self._current = name
        self._absent.pop(name, None)
        try:
            await self._start(binary, name)
        except NotRun as why:
            self._absent[name] = str(why)
            raise

    async def _start(self, binary: bytes, name: str) -> None:
        """Make an instance.

        Raises:
            NotRun: it is off here, or imports from what is not as it should be.
        """
        sources = self._imports.of(binary) if self._together else set()
        for each in sources:
            self._check(self._registered.get(each, ""))
        try:
            await self._session.start(binary, name)
        except ModuleInvalid as fault:
            what = off_here(fault)
            if what is None:
                raise
            # What it would have done to those that it imports from is missing from here on.
            for each in sources - {"spectest"}:
                self._absent[self._registered.get(each, "")] = f"{_BEHIND}: {what}"
            raise NotRun(f"off here: {what}") from None

    def _check(self, name: str) -> None:
        if name in self._absent:
            _, _, what = self._absent[name].rpartition(": ")
            raise NotRun(f"{_BEHIND}: {what}")

    async def _register(self, command: Command) -> None:
        name = command.name or self._current
        self._registered[command.text] = name
        self._check(name)
        await self._session.register(command.text, name)

    async def _refused(self, command: Command) -> str:
        assert command.module is not None
        binary = self._binary(command.module)
        if command.type == "assert_uninstantiable":
            return await self._trapped(self._start(binary, "lost"), command)
        for each in self._imports.of(binary) if self._together else ():
            self._check(self._registered.get(each, ""))
        try:
            await self._session.start(binary, "refused")
        except ModuleInvalid as fault:
            what = off_here(fault)
            if what is not None:  # it would be refused here whatever is wrong with it
                raise NotRun(f"off here: {what}") from None
            return ""
        return f"it was taken ({command.text})"

    async def _act(self, command: Command) -> str:
        action = command.action
        assert action is not None
        name = action.module or self._current
        self._check(name)
        values = (*action.arguments, *(each for allowed in command.allowed for each in allowed))
        if not all(value.lanes for value in values):
            # What it would have done to the instance is missing from here on.
            self._absent[name] = _REFERENCES
            raise NotRun(_REFERENCES)
        arguments = [value_bits(value) for value in action.arguments]
        if action.read:
            doing = self._read(action.field, name)
        else:
            doing = self._call(action.field, arguments, name)
        if command.type == "assert_trap":
            return await self._trapped(doing, command)
        if command.type == "assert_exhaustion":
            try:
                await doing
            except StackExhausted:
                return ""
            return "the stack was not exhausted"
        results = await doing
        if command.type == "action":
            return ""
        allowed = command.allowed
        if len(allowed) == len(results) and all(map(fits, allowed, results)):
            return ""
        return f"{results} is none of {allowed}"

    async def _read(self, exported: str, name: str) -> tuple[Bits, ...]:
        return (await self._session.read(exported, name=name),)

    async def _call(self, function: str, arguments: list[Bits], name: str) -> tuple[Bits, ...]:
        return (await self._session.call(function, *arguments, name=name)).results

    async def _trapped(self, doing: Coroutine[Any, Any, object], command: Command) -> str:
        try:
            await doing
        except XscError as fault:
            wanted = REASONS.get(command.text, command.text)
            return "" if wanted in fault.message else f"{fault.message}, not {wanted}"
        return "it did not trap"


_REFERENCES = "references as arguments or results"
_BEHIND = "behind what is not run"


async def run_all(scripts: dict[str, list[Command]]) -> Tally:
    """Run the commands of every script."""
    tally, imports = Tally(), Imports()
    limits = Limits(fuel=FUEL_MAX, memory_bytes=MEMORY_BYTES_MAX, timeout_ms=60_000)
    async with Session(limits) as session:
        for name, given in scripts.items():
            await Script(session, name, given, tally, imports).run()
    return tally


def read_all(paths: list[Path]) -> tuple[dict[str, list[Command]], list[str]]:
    """Return the commands of each script, and what is wrong with those that cannot be read."""
    scripts, unread = {}, []
    for path in paths:
        try:
            scripts[path.stem] = list(commands(path.read_bytes().decode()))
        except (OSError, UnicodeDecodeError, Unreadable) as fault:
            unread.append(f"{path.name}: {fault}")
    return scripts, unread


def main(arguments: list[str]) -> int:
    """Run, print what came of it, and return the exit code."""
    paths = sorted(Path(arguments[0]).glob("*.wast")) if len(arguments) == 1 else []
    if not paths:
        print("usage: make spec TESTSUITE=DIR, a checkout of WebAssembly/testsuite")
        return 2
    scripts, unread = read_all(paths)
    tally = asyncio.run(run_all(scripts))
    for kind, count in sorted(tally.passed.items()):
        print(f"passed   {count:6}  {kind}")
    for why, count in tally.skipped.most_common():
        print(f"skipped  {count:6}  {why}")
    for line in [*(f"unread   {line}" for line in unread), *tally.failed]:
        print(line[:200])
    passed, failed = tally.passed.total(), len(tally.failed)
    print(f"{passed} passed, {failed} failed of {passed + failed}, in {len(scripts)} scripts")
    if failed:
        return 1
    return 0 if passed and not unread else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
