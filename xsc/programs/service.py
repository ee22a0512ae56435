"""The programs of a node: registered by hash, activated, and run as their inputs change.

`programs/registry` and `programs/active` in the own space say what is there; modules are kept in
the node's own database. So a restart goes on with the frame that was written last.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from xsc.api.programs import Program, Results, State
from xsc.base import errors, keyvalue
from xsc.base.ids import from_text, short, to_text
from xsc.base.limits import MODULE_BYTES_MAX
from xsc.programs import frame, limits, runtime, why
from xsc.programs.compile import CompiledProgram, compile_program
from xsc.programs.document import Document, Form, naming, parse, portable, resolve
from xsc.programs.functions import Function, Functions
from xsc.programs.numbers import Value, check_value, parse_value, to_space
from xsc.programs.running import (
    Ports,
    RunningProgram,
    ServedProgram,
    Writes,
    modules_of,
    state_write,
    subscriptions_of,
)
from xsc.space.paths import UserSpacePaths, below
from xsc.space.port import Space

MODULE = b"programs/module/"
Start = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]
"""Runs a named loop in the background until its task is cancelled."""


class ComputeRuntimeManager:
    """Registers, activates and runs programs.

    Args:
        ports: the node's values, space, peers, sandbox and recorder.
        start: runs a loop in the background.
        functions: what computations may call.
    """

    def __init__(
        self,
        ports: Ports,
        *,
        start: Start,
        functions: Functions,
    ) -> None:
        self._ports = ports
        self._space = ports.space
        self._log = ports.context.log
        self._state = ports.context.state
        self._executor = ports.context.executor
        self._start = start
        self._functions = functions
        self._modules: dict[bytes, bytes] = {}
        self._registered: dict[bytes, CompiledProgram] = {}
        """In the order in which they were registered."""
        self._running: dict[bytes, RunningProgram] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._served: dict[bytes, ServedProgram] = {}
        """Those that come with XSC."""
        self._again = Functions()
        """What a replay calls."""
        self._failed: dict[bytes, str] = {}
        """Why a registered program cannot run."""
        self._lock = asyncio.Lock()
        self._ended = False

    async def open(self) -> None:
        """Read what is registered, and go on with what is active."""
        stored = await self._executor.run(
            lambda: list(self._state.scan(MODULE, keyvalue.prefix_end(MODULE)))
        )
        self._modules = {key.removeprefix(MODULE): raw for key, raw in stored}
        rows = sorted(self._space.ls(UserSpacePaths.REGISTRY), key=lambda record: record.sequence)
        for record in rows:
            program = from_text(record.path.rpartition("/")[2])
            try:
                document = self._space.get(record.path).value or b""
                compiled = self._compile(parse(document, "json"))
                if compiled.hash != program:
                    raise errors.StoreDamaged("its document has another hash")
                self._registered[program] = compiled
            except errors.XscError as fault:
                self._failed[program] = f"{fault.code}: {fault.message}"
                self._log.warning("program.not_read", program=program, code=fault.code)
        active = sorted(self._space.ls(UserSpacePaths.ACTIVE), key=lambda record: record.sequence)
        for record in active:
            program = from_text(record.path.rpartition("/")[2])
            if program in self._registered:
                self._run(program)

    def serve(
        self, raw: bytes, functions: Iterable[Function], again: Iterable[Function]
    ) -> ServedProgram:
        """Take in a program that comes with XSC, and return it for the service that runs it.

        Args:
            raw: its document, as TOML.
            functions: what it calls.
            again: the same for a replay, which takes nothing that was computed before.

        Raises:
            ProgramInvalid: it does not compile.
        """
        for function in again:
            self._again.register(function)
        resolved = resolve(parse(raw, "toml"), {}, {})
        program = compile_program(resolved, Functions(functions), built_in=True)
        served = ServedProgram(program, self._space, self._ports.recorder)
        self._served[program.hash] = served
        return served

    def _compile(
        self,
        document: Document,
        nodes: Mapping[str, bytes] | None = None,
        modules: Mapping[str, bytes] | None = None,
    ) -> CompiledProgram:
        named = {digest.hex(): raw for digest, raw in self._modules.items()}
        program = resolve(document, nodes or {}, {**named, **(modules or {})})
        return compile_program(program, self._functions)

    # The registry

    async def register(
        self, raw: bytes, form: Form, modules: Mapping[str, bytes] | None = None
    ) -> bytes:
        """Keep a program, and return its hash.

        Args:
            raw: the document.
            form: its form.
            modules: the bytes of the modules that it names.

        Raises:
            ProgramInvalid, TooLarge: what is wrong with it, with line and path.
            SpaceExhausted: its modules, or the programs that are active, take all room.
        """
        document = parse(raw, form)
        given = dict(modules or {})
        for name, module in given.items():
            if len(module) > MODULE_BYTES_MAX:
                raise errors.TooLarge(
                    f"the module '{name}' is over its bound of {MODULE_BYTES_MAX} bytes",
                    hint="build it smaller: without debug information, optimised for size",
                )
        nodes = {}
        for name in document.owners:
            try:
                nodes[name] = self._ports.find(name)
            except (errors.PeerUnknown, errors.ArgumentInvalid) as fault:
                raise document.fault(naming(document, name), fault.message) from None
        compiled = self._compile(document, nodes, given)
        kept = portable(raw, form, compiled.program)
        for (owner, path), names in subscriptions_of(compiled, self._space.owner).items():
            try:
                _listed_at(self._space.owner, owner, path)
            except errors.ArgumentInvalid as fault:
                place = ("variables", names[0].partition(".")[0], "path")
                raise document.fault(place, fault.message) from None
        async with self._lock:
            await self._keep(compiled, kept, given)
        return compiled.hash

    async def _keep(
        self, compiled: CompiledProgram, kept: bytes, modules: Mapping[str, bytes]
    ) -> None:
        program = compiled.hash
        if program in self._registered:
            return
        dropped = None
        if len(self._registered.keys() | self._failed.keys() - {program}) >= limits.PROGRAMS_MAX:
            idle = (old for old in self._registered if not self._is_marked(old))
            dropped = next(idle, None) or next(iter(self._failed), None)
            if dropped is None:
                raise errors.SpaceExhausted(
                    f"{limits.PROGRAMS_MAX} programs are active, which is all that a node runs",
                    hint="deactivate one: xsc program deactivate HASH",
                )
        others = [other for old, other in self._registered.items() if old != dropped]
        needed = modules_of(compiled).union(*map(modules_of, others))
        brought = {hashlib.sha256(raw).digest(): raw for raw in modules.values()}
        have = {
            digest: raw for digest, raw in {**self._modules, **brought}.items() if digest in needed
        }
        most = limits.PROGRAM_MODULES_BYTES_MAX
        if sum(map(len, have.values())) > most:
            raise errors.SpaceExhausted(f"the modules of all programs take more than {most} bytes")
        # Modules first: a program is never registered without them.
        added = [(MODULE + d, raw) for d, raw in have.items() if d not in self._modules]
        if added:
            await self._executor.run(lambda: self._state.write([*added], sync=True))
        self._modules |= have
        writes: Writes = {below(UserSpacePaths.REGISTRY, program): kept}
        if dropped is not None:
            writes[below(UserSpacePaths.REGISTRY, dropped)] = None
            at = UserSpacePaths
            for prefix in (at.ACTIVE, at.COMPUTE, at.PROVENANCE):
                writes |= {each.path: None for each in self._space.ls(below(prefix, dropped))}
            writes |= self._list_reader(dropped, ())
        await self._space.put_all(writes)
        if dropped is not None:
            self._ports.recorder.forget(dropped)
            self._registered.pop(dropped, None)
            self._failed.pop(dropped, None)
            gone = self._modules.keys() - have.keys()
            if gone:
                await self._executor.run(
                    lambda: self._state.write([(MODULE + d, None) for d in gone], sync=True)
                )
            self._modules = have
        self._registered[program] = compiled
        self._failed.pop(program, None)

    async def activate(self, program: bytes) -> None:
        """Run a registered program from now on. Other versions of it go on until deactivated.

        Raises:
            NotFound: it is not registered.
            ProgramInvalid: it cannot run here any more.
        """
        async with self._lock:
            compiled = self._get(program)
            if program in self._running:
                return
            swapped = None
            if not self._space.ls(below(UserSpacePaths.COMPUTE, program)):
                swapped = _swapped(compiled, self._running.values())
            running = RunningProgram(compiled, self._ports, self._modules)
            mark = below(UserSpacePaths.ACTIVE, program)
            writes: Writes = {mark: compiled.program.document.id.encode()}
            writes |= self._list_reader(program, running.subscribed)
            if swapped is not None:
                saved = frame.Execution.begin(compiled, swapped).save()
                writes |= state_write(program, swapped.frame_id, saved)
            await self._space.put_all(writes)
            # Anew from the space: nobody heard what changed while it was written.
            self._run(program)

    def _get(self, program: bytes) -> CompiledProgram:
        if program in self._served:
            raise errors.ArgumentInvalid("the program comes with XSC, which runs it by itself")
        if program in self._failed:
            raise errors.ProgramInvalid(f"the program cannot run here: {self._failed[program]}")
        try:
            return self._registered[program]
        except KeyError:
            raise errors.NotFound(
                f"no program {short(program)} is registered",
                hint="register it: xsc program register",
            ) from None

    def _list_reader(self, program: bytes, read: Iterable[tuple[bytes, str]]) -> Writes:
        """Return what lists a program as a reader of some paths, and of no others."""
        listed = {_listed_at(self._space.owner, *key) for key in read}
        lists = {record.path for record in self._space.ls(UserSpacePaths.SUBSCRIPTIONS)}
        writes: Writes = {}
        for path in sorted(listed | lists):
            raw = self._space.get(path).value if path in lists else None
            before = set(json.loads(raw or b"[]"))
            after = before - {to_text(program)}
            if path in listed:
                after.add(to_text(program))
            if before != after:
                writes[path] = json.dumps(sorted(after)).encode() if after else None
        return writes

    def _run(self, program: bytes) -> None:
        try:
            running = RunningProgram(self._registered[program], self._ports, self._modules)
        except errors.StoreDamaged as fault:
            self._failed[program] = f"{fault.code}: {fault.message}"
            self._log.warning("program.not_read", program=program, code=fault.code)
            return
        self._running[program] = running
        self._space.on_change(running.heard)
        for owner, path in running.subscribed:
            if owner != self._space.owner:
                self._ports.peers.watch(owner, path)
        self._tasks[program] = self._start(f"program_{short(program)}", running.run)

    async def deactivate(self, program: bytes) -> None:
        """Run a program no more; its outputs stay where they are.

        Raises:
            NotFound: it is not active.
        """
        async with self._lock:
            if not self._is_marked(program):
                self._active(program)
            mark = below(UserSpacePaths.ACTIVE, program)
            await self._space.put_all({mark: None, **self._list_reader(program, ())})
            await self._end(program)

    async def stop(self, program: bytes) -> None:
        """End a program until it is activated again, or the node starts; it stays active.

        Raises:
            NotFound: it does not run.
        """
        async with self._lock:
            self._active(program)
            await self._end(program)

    async def _end(self, program: bytes) -> None:
        running = self._running.get(program)
        if running is None:
            return  # it was stopped
        task = self._tasks.pop(program)
        task.cancel()
        await asyncio.wait([task])
        del self._running[program]
        self._space.off_change(running.heard)
        for owner, path in running.subscribed:
            if owner != self._space.owner:
                self._ports.peers.unwatch(owner, path)
        running.tell()

    def _is_marked(self, program: bytes) -> bool:
        """Say whether a program is active, though it may have been stopped."""
        return bool(self._space.ls(below(UserSpacePaths.ACTIVE, program)))

    async def start(
        self, raw: bytes, form: Form, modules: Mapping[str, bytes] | None = None
    ) -> bytes:
        """Register and activate a program; return its hash."""
        program = await self.register(raw, form, modules)
        await self.activate(program)
        return program

    def _active(self, program: bytes) -> RunningProgram:
        if program in self._served:
            raise errors.ArgumentInvalid("the program comes with XSC, which runs it by itself")
        try:
            return self._running[program]
        except KeyError:
            raise errors.NotFound(
                f"no program {short(program)} is active", hint="activate it: xsc program activate"
            ) from None

    def find(self, text: str) -> bytes:
        """Return the program that a hash or the beginning of one means.

        Raises:
            NotFound: none, or more than one.
        """
        known = [*self._served, *self._registered, *self._failed]
        found = {program for program in known if to_text(program).startswith(text)}
        if len(text) < 4 or len(found) != 1:
            many = "more than one program" if len(text) >= 4 and found else "no program"
            raise errors.NotFound(
                f"{many} has a hash that begins with '{text[:60]}'",
                hint="list them: xsc program ls",
            )
        return found.pop()

    # What runs

    async def execute(self, program: bytes) -> frame.FrameResult:
        """Run a frame of an active program now.

        Raises:
            NotFound: it is not active.
            XscError: the frame could not be written.
        """
        return await self._active(program).execute()

    async def set_variable(self, program: bytes, name: str, text: str) -> frame.FrameResult:
        """Give a variable of kind `value` or `local` the value of a text, and run a frame.

        Raises:
            NotFound: the program is not active.
            ArgumentInvalid: it has no such variable, or the text is no value of its type.
        """
        running = self._active(program)
        variable, _ = running.program.variables.get(name, (None, None))
        if variable is None or variable.kind not in {"value", "local"}:
            raise errors.ArgumentInvalid(f"no variable '{name[:64]}' that can be set")
        return await running.set_variable(name, parse_value(variable.type, text))

    def get_results(self, program: bytes) -> Results:
        """Return state, frame, variables, outputs and errors of a registered program, as text.

        Raises:
            NotFound: it is not registered.
        """
        if program in self._served:
            return self._served[program].results()
        if program in self._running:
            return self._running[program].results()
        if program in self._failed:
            return self._row(program, "failed", fault=self._failed[program])
        self._get(program)
        return self._row(program, "stopped" if self._is_marked(program) else "registered")

    async def changed(self, program: bytes) -> None:
        """Return after the next frame of an active program, or once it is none any more.

        Raises:
            NotFound: it is not active, or the node stops.
        """
        if self._ended:
            raise errors.NotFound("the node stops")
        await self._active(program).changed()

    def end_watches(self) -> None:
        """Wake all who wait for a change: the node stops."""
        self._ended = True
        for running in self._running.values():
            running.tell()

    def _row(self, program: bytes, state: State, fault: str = "") -> Results:
        compiled = self._registered.get(program)
        id_ = compiled.program.document.id if compiled else ""
        return Results(id=id_, hash=to_text(program), state=state, fault=fault)

    def status(self) -> list[Program]:
        """Return a row for each program: those of XSC, then in the order of their registration."""
        names = [each.name for each in fields(Program)]
        programs = dict.fromkeys([*self._served, *self._registered, *self._failed])
        found = [self.get_results(program) for program in programs]
        return [Program(**{name: getattr(row, name) for name in names}) for row in found]

    async def rerun(self, root: why.Step) -> None:
        """Run again all functions and modules behind a value, and note what they give."""

        async def call(needed: frame.Call) -> frame.Given | frame.Fault | None:
            digest = needed.call.module
            module = self._modules.get(digest) if isinstance(digest, bytes) else None
            return None if module is None else (await self._ports.sandbox.call(module, needed))[0]

        await why.replay(root, self._again, call, self._executor)


def _listed_at(own: bytes, owner: bytes, path: str) -> str:
    """Return where it is listed who subscribes to a path."""
    if owner == own:
        return below(UserSpacePaths.SUBSCRIBED_HERE, path)
    return below(UserSpacePaths.SUBSCRIBED_AT_PEERS, owner, path)


def _swapped(
    compiled: CompiledProgram, running: Iterable[RunningProgram]
) -> runtime.RuntimeState | None:
    """Return the stores of the newest version that runs, for a new one to go on with."""
    named = [it for it in running if it.program.program.document.id == compiled.program.document.id]
    return runtime.hot_swap(named[-1].execution.runtime, compiled) if named else None


# Cells and propagators for code inside of a node: programs made from a few arguments


class SyncedCell:
    """One value out of what its sources say; a program of its own keeps it."""

    def __init__(
        self, manager: CellSyncManager, name: str, type_: str, merge: str, sources: Iterable[str]
    ) -> None:
        self.name = name
        path = below(UserSpacePaths.CELLS, name)
        self.variable: dict[str, Any] = {"kind": "cell", "type": type_, "path": path}
        self.variable |= {"merge": merge, "sources": list(sources)}
        """As it stands in the document of a program."""
        self.program = b""
        self._manager = manager

    def strongest(self) -> Value | None:
        """Return what the sources come to; None where they contradict each other or say nothing."""
        text = self._manager.programs.get_results(self.program).variables[self.name]
        return None if text is None else parse_value(self.variable["type"], text)

    async def load_strongest(self) -> Value | None:
        """Return the same, with what is too large to have come by itself loaded from its owner."""
        await self._manager.programs.execute(self.program)
        return self.strongest()

    async def update(self, value: Value) -> None:
        """Say something as this node; it counts where this node is one of the sources.

        Raises:
            ArgumentInvalid: no value of the cell's type.
        """
        raw = to_space(self.variable["type"], check_value(self.variable["type"], value))
        await self._manager.space.put(self.variable["path"], raw)


class CarriedCell(SyncedCell):
    """A cell that holds the names of other cells, which are read when they are asked for."""

    def children(self) -> list[str]:
        """Return the names."""
        found = self.strongest()
        return [str(name) for name in found] if isinstance(found, tuple) else []

    async def child(self, name: str, type_: str, merge: str = "last") -> SyncedCell:
        """Return one of the cells, with the sources of this one."""
        cell = SyncedCell(self._manager, name, type_, merge, self.variable["sources"])
        return await self._manager.follow(cell)


class CellSyncManager:
    """The cells and propagators that code of one node made."""

    def __init__(self, programs: ComputeRuntimeManager, space: Space) -> None:
        self.programs = programs
        self.space = space

    async def cell(
        self, name: str, type_: str, merge: str = "last", sources: Iterable[bytes] = ()
    ) -> SyncedCell:
        """Return a cell that is followed; this node is its only source where none are given.

        Raises:
            ProgramInvalid: no such name, type or rule.
        """
        return await self.follow(SyncedCell(self, name, type_, merge, map(to_text, sources)))

    async def carried(self, name: str, sources: Iterable[bytes] = ()) -> CarriedCell:
        """Return a cell of the names of cells: all that its sources name."""
        cell = CarriedCell(self, name, "[text]", "union", map(to_text, sources))
        await self.follow(cell)
        return cell

    async def follow(self, cell: SyncedCell) -> SyncedCell:
        """Begin to follow a cell, and return it."""
        outputs = {"strongest": {"memory": True}}
        cell.program = await self._start(f"cell-{cell.name}", "merge.last", {"said": cell}, outputs)
        return cell

    async def unfollow(self, cell: SyncedCell) -> None:
        """Follow a cell no longer."""
        await self.programs.deactivate(cell.program)

    async def register_propagator(
        self, name: str, function: str, inputs: Mapping[str, SyncedCell], output: SyncedCell
    ) -> bytes:
        """Compute a cell from others whenever they change; return the hash of the program.

        Args:
            name: of the program.
            function: one of this node's; its name alone leaves the node.
            inputs: cells by the parameter of the function.
            output: where this node says what the function gives.

        Raises:
            ProgramInvalid: no such function, or types that do not fit.
        """
        outputs = {"said": {"path": output.variable["path"]}}
        return await self._start(name, function, inputs, outputs)

    async def _start(
        self,
        id_: str,
        function: str,
        inputs: Mapping[str, SyncedCell],
        outputs: Mapping[str, Mapping[str, object]],
    ) -> bytes:
        named = {param: cell.name for param, cell in inputs.items()}
        document = {
            "id": id_,
            "variables": {cell.name: cell.variable for cell in inputs.values()},
            "computations": {
                "propagator": {"function": function, "inputs": named, "outputs": outputs}
            },
        }
        return await self.programs.start(json.dumps(document).encode(), "json")
