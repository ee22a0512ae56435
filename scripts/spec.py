"""The WebAssembly specification's own tests, through our wrapper and a confined process.

    make spec TESTSUITE=DIR        DIR: a checkout of github.com/WebAssembly/testsuite

`wast2json` of wabt turns each script into modules and commands; a session
(`xsc.compute.session`) runs them, with the reader, the limits and the engine
configuration that jobs have. What is not run is counted with its reason.
Exit code 0: nothing failed; 1: something did, and is listed; 2: no test was run.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime

from xsc.base.errors import ModuleInvalid, SandboxFailed, StackExhausted, XscError
from xsc.base.limits import FUEL_MAX, MEMORY_BYTES_MAX
from xsc.compute.limits import Limits
from xsc.compute.sandbox import Bits
from xsc.compute.session import Session

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

_WIDTHS = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}


@dataclass
class Tally:
    """What came of the commands."""

    passed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


def number_bits(kind: str, text: str) -> bytes:
    """Return the bits that the JSON gives in decimal."""
    return int(text).to_bytes(_WIDTHS[kind], "little")


def value_bits(value: dict[str, Any]) -> Bits:
    """Return a given value."""
    kind = value["type"]
    if kind == "v128":
        lane = value["lane_type"]
        return kind, b"".join(number_bits(lane, text) for text in value["value"])
    return kind, number_bits(kind, value["value"])


def is_nan(bits: bytes, sort: str) -> bool:
    """Say whether bits are a NaN of that sort, of either sign."""
    width = len(bits) * 8
    fraction = 23 if width == 32 else 52
    value = int.from_bytes(bits, "little") & ((1 << width - 1) - 1)
    quiet = ((1 << width - 1 - fraction) - 1) << fraction | 1 << fraction - 1
    return value == quiet if sort == "nan:canonical" else value & quiet == quiet


def number_fits(kind: str, expected: str, bits: bytes) -> bool:
    """Say whether bits are what the JSON expects."""
    if expected.startswith("nan:"):
        return is_nan(bits, expected)
    return bits == number_bits(kind, expected)


def fits(expected: dict[str, Any], given: Bits) -> bool:
    """Say whether a result is what the JSON expects."""
    kind, bits = given
    if kind != expected["type"]:
        return False
    if kind != "v128":
        return number_fits(kind, expected["value"], bits)
    lane, width = expected["lane_type"], _WIDTHS[expected["lane_type"]]
    lanes = [bits[at : at + width] for at in range(0, 16, width)]
    return all(
        number_fits(lane, text, part) for text, part in zip(expected["value"], lanes, strict=True)
    )


class Script:
    """One script's commands, in one session."""

    def __init__(self, session: Session, path: Path, tally: Tally) -> None:
        self._session = session
        self._folder = path.parent
        self._name = path.stem
        self._tally = tally
        self._commands = json.loads(path.read_text())["commands"]
        # Instances must live on only where a later command names them.
        self._together = any(
            command["type"] == "register" or "module" in command.get("action", {})
            for command in self._commands
        )
        self._absent: dict[str, str] = {}
        """Instances that are not there, and why."""
        self._lost = ""
        """Why what fails from here on in this script says nothing."""
        self._current = ""

    async def run(self) -> None:
        """Run every command."""
        await self._begin()
        for command in self._commands:
            kind = command["type"]
            try:
                why = await self._one(kind, command)
            except SandboxFailed as fault:
                await self._begin()
                why = f"failed: {fault.message}"
            except XscError as fault:
                why = f"failed: {fault.message}"
            if why is None:
                self._tally.passed[kind] += 1
            elif why.startswith("failed: ") and self._lost:
                self._tally.skipped[self._lost] += 1
            elif why.startswith("failed: "):
                place = f"{self._name}.wast:{command['line']}: {kind}"
                self._tally.failed.append(f"{place}: {why.removeprefix('failed: ')}")
            else:
                self._tally.skipped[why] += 1

    async def _begin(self) -> None:
        await self._session.begin()
        await self._session.start(bytes(wasmtime.wat2wasm(SPECTEST)), "spectest")
        await self._session.register("spectest", "spectest")

    def _module(self, command: dict[str, Any]) -> bytes:
        return (self._folder / str(command["filename"])).read_bytes()

    async def _one(self, kind: str, command: dict[str, Any]) -> str | None:
        """Return None where it went as expected, or why not."""
        match kind:
            case "module":
                return await self._start(command)
            case "register":
                name = command.get("name", self._current)
                await self._session.register(command["as"], self._key(name))
            case "assert_malformed" if command["module_type"] == "text":
                return "the text format, which is read nowhere here"
            case "assert_malformed" | "assert_invalid" | "assert_unlinkable":
                return await self._refused(command)
            case "assert_uninstantiable":
                return await self._trapped(
                    self._session.start(self._module(command), "lost"), command
                )
            case _:
                return await self._act(kind, command)
        return None

    def _key(self, name: str) -> str:
        return name or "the last"

    async def _start(self, command: dict[str, Any]) -> str | None:
        if not self._together:
            await self._begin()
        name = self._current = command.get("name", f"#{command['line']}")
        self._absent.pop(name, None)
        try:
            await self._session.start(self._module(command), self._key(name))
        except ModuleInvalid as fault:
            why = self._absent[name] = self._off(fault)
            return why
        return None

    def _off(self, fault: ModuleInvalid) -> str:
        """Return why a module is refused that the specification takes."""
        for text, what in OFF_HERE.items():
            if text in fault.message:
                # What it would have done to shared instances is missing from here on.
                if self._together:
                    self._lost = f"after a module in the same script that is off here: {what}"
                return f"off here: {what}"
        return f"failed: {fault.message}"

    async def _refused(self, command: dict[str, Any]) -> str | None:
        try:
            await self._session.start(self._module(command), "refused")
        except ModuleInvalid:
            return None
        return f"failed: it was taken ({command['text']})"

    async def _act(self, kind: str, command: dict[str, Any]) -> str | None:
        action = command["action"]
        name = action.get("module", self._current)
        if name in self._absent:
            return self._absent[name]
        try:
            arguments = [value_bits(value) for value in action.get("args", [])]
        except KeyError:
            return "references as arguments"
        if action["type"] == "get":
            doing = self._read(action["field"], self._key(name))
        else:
            doing = self._call(action["field"], arguments, self._key(name))
        if kind == "assert_trap":
            return await self._trapped(doing, command)
        if kind == "assert_exhaustion":
            try:
                await doing
            except StackExhausted:
                return None
            return "failed: the stack was not exhausted"
        results = await doing
        if kind == "action":
            return None
        allowed = (
            [[one] for one in command["either"]] if "either" in command else [command["expected"]]
        )
        for expected in allowed:
            if len(expected) == len(results) and all(map(fits, expected, results)):
                return None
        return f"failed: {results} is none of {allowed}"

    async def _read(self, exported: str, name: str) -> tuple[Bits, ...]:
        return (await self._session.read(exported, name=name),)

    async def _call(self, function: str, arguments: list[Bits], name: str) -> tuple[Bits, ...]:
        return (await self._session.call(function, *arguments, name=name)).results

    async def _trapped(self, doing: Any, command: dict[str, Any]) -> str | None:  # noqa: ANN401
        try:
            await doing
        except ModuleInvalid as fault:
            return self._off(fault)
        except XscError as fault:
            wanted = REASONS[command["text"]]
            return None if wanted in fault.message else f"failed: {fault.message}, not {wanted}"
        return "failed: it did not trap"


def convert(testsuite: Path, scratch: Path) -> tuple[list[Path], list[str]]:
    """Return the JSON of each script, and the names of those that `wast2json` cannot read."""
    made, unread = [], []
    for source in sorted(testsuite.glob("*.wast")):
        target = scratch / source.stem / f"{source.stem}.json"
        target.parent.mkdir()
        command = ["wast2json", "--enable-all", str(source), "-o", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            unread.append(source.stem)
        else:
            made.append(target)
    return made, unread


async def run_all(scripts: list[Path]) -> Tally:
    """Run the commands of every script."""
    tally = Tally()
    limits = Limits(fuel=FUEL_MAX, memory_bytes=MEMORY_BYTES_MAX, timeout_ms=60_000)
    async with Session(limits) as session:
        for path in scripts:
            await Script(session, path, tally).run()
    return tally


def main(arguments: list[str]) -> int:
    """Run, print what came of it, and return the exit code."""
    if len(arguments) != 1 or not list(Path(arguments[0]).glob("*.wast")):
        print("usage: make spec TESTSUITE=DIR, a checkout of WebAssembly/testsuite")
        return 2
    if shutil.which("wast2json") is None:
        print("there is no wast2json: install wabt (`apt-get install wabt`)")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        scripts, unread = convert(Path(arguments[0]), Path(scratch))
        tally = asyncio.run(run_all(scripts))
    for kind, count in sorted(tally.passed.items()):
        print(f"passed   {count:6}  {kind}")
    for why, count in tally.skipped.most_common():
        print(f"skipped  {count:6}  {why}")
    print(f"not read by this wast2json: {', '.join(unread)}")
    for line in tally.failed:
        print(f"failed   {line[:200]}")
    passed, failed = tally.passed.total(), len(tally.failed)
    ran = passed + failed
    print(f"{passed} passed, {failed} failed of {ran} ({passed * 1_000_000 // max(1, ran)} ppm)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
