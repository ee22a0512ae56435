"""One active program: gathers what has changed, runs frames, and writes what they gave.

A frame reads the newest values, runs, and is written whole: outputs, what is kept for a restart,
and provenance in one write of the space. What changes meanwhile is read by the next frame
(docs/design/programs.md, M1 to M9).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xsc.api.programs import Results, State
from xsc.base.clock import Clock
from xsc.base.errors import NotFound, XscError
from xsc.base.ids import to_text
from xsc.base.log import Log
from xsc.identity.envelope import Signed
from xsc.programs.compile import CompiledProgram
from xsc.programs.document import ModuleCall, Variable
from xsc.programs.evaluations import evaluations_of
from xsc.programs.frame import Call, Execution, Fault, FrameResult, external_value
from xsc.programs.limits import BACK_OFF_MS, BACK_OFF_MS_MAX, GIVEN_BYTES_MAX, OWN_FRAMES_MAX
from xsc.programs.numbers import Value, format_value, same
from xsc.programs.pace import Pace
from xsc.programs.ports import Peers, Recorder, Sandbox
from xsc.programs.runtime import RuntimeState
from xsc.programs.writes import Writes
from xsc.space.port import Space
from xsc.space.record import Change, Entry, SpaceRecord
from xsc.terms.execution import Number

LOAD_MS = 10_000
"""How long a frame waits for a large value of a peer, which does not come with its record."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What all programs of a node share."""

    space: Space
    peers: Peers
    find: Callable[[str], bytes]
    """Returns the node that a name means, or raises PeerUnknown or ArgumentInvalid."""
    sandbox: Sandbox
    recorder: Recorder
    clock: Clock
    log: Log


class RunningProgram:
    """A program between its activation and its deactivation.

    Raises:
        StoreDamaged: what was kept of it does not fit it.
    """

    def __init__(
        self,
        program: CompiledProgram,
        ports: Ports,
        modules: Mapping[bytes, bytes],
        swapped: RuntimeState | None = None,
    ) -> None:
        self.program = program
        self.fault = ""
        """Why it does not run on, though it is active."""
        self.oscillates = False
        self.publications = 0
        self._ports = ports
        self._modules = modules
        self._pace = Pace()
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._told = asyncio.Event()
        self._pending: set[str] = set()
        self._set: dict[str, Value] = {}
        self._sources: dict[str, tuple[bytes, Signed[SpaceRecord]]] = {}
        """Of each variable that had a value at the last frame: the owner and the record of it."""
        self._outside = True
        """Whether something else than its own outputs has changed since the last frame."""
        self._own_frames = 0
        self._own_frames_max = OWN_FRAMES_MAX + max(
            (variable.size for variable, _ in program.variables.values()), default=1
        )
        self._writing: Mapping[str, bytes | None] = {}
        self._fetched = [
            variable for variable, _ in program.variables.values() if variable.kind == "fetch"
        ]
        self.subscribed: dict[tuple[bytes, str], list[str]] = {}
        """Variables by owner and path."""
        for variable, _ in program.variables.values():
            if variable.kind == "subscription":
                key = (self._owner(variable), variable.path)
                self.subscribed.setdefault(key, []).append(variable.name)
        self._begin(swapped)

    def _owner(self, variable: Variable) -> bytes:
        return variable.owner if isinstance(variable.owner, bytes) else self._ports.space.owner

    def _begin(self, swapped: RuntimeState | None = None) -> None:
        """Go on from what the last frame wrote; what has changed since is pending."""
        program = self.program
        execution = self.execution = Execution.begin(program, swapped)
        self._flags = execution.go_on(self._kept)
        for names in self.subscribed.values():
            for name in names:
                variable, slot = program.variables[name]
                entry = self._have(variable)
                found = external_value(variable, entry.value if entry else None)
                old = execution.errors.get(name) or execution.value(name)
                if isinstance(found, Fault):
                    equal = old == found.message
                else:
                    equal = old is not None and name not in execution.errors
                    equal = equal and same(slot.type, old, found)  # type: ignore[arg-type]
                if equal:
                    self._note_source(variable, entry)
                else:
                    self._pending.add(name)
        if self._pending or execution.waits():
            self._outside = True
            self._woken.set()

    def _note_source(self, variable: Variable, entry: Entry | None) -> None:
        self._sources.pop(variable.name, None)
        if entry is not None and entry.value is not None:
            self._sources[variable.name] = self._owner(variable), entry.signed

    def _kept(self, path: str) -> bytes | None:
        try:
            return self._ports.space.get(path).value
        except NotFound:
            return None

    def _have(self, variable: Variable) -> Entry | None:
        try:
            return self._ports.space.get(variable.path, self._owner(variable))
        except NotFound:
            return None

    # What others see

    @property
    def state(self) -> State:
        """Whether it runs: active, backing_off, oscillates or failed."""
        if self.oscillates:
            return "oscillates"
        if self.fault:
            return "failed"
        if self._woken.is_set() and self._pace.pause_ms(self._ports.clock.monotonic_ms()):
            return "backing_off"
        return "active"

    def results(self) -> Results:
        """Return what it computed last, as text."""
        return shown_of(
            self.execution,
            state=self.state,
            fault=self.fault,
            publications=self.publications,
            built_in=False,
        )

    async def changed(self) -> None:
        """Return after the next frame, or when it comes to another state."""
        await self._told.wait()

    def _tell(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    def end(self) -> None:
        """Wake who waits for a change: there is none any more."""
        self._tell()

    # What changes

    def heard(self, change: Change) -> None:
        """Take in a change of the space."""
        names = self.subscribed.get((change.owner, change.path))
        if names is None:
            return
        own = (
            change.owner == self._ports.space.owner
            and change.path in self._writing
            and self._writing[change.path] == change.value
        )
        self._outside = self._outside or not own
        self._pending.update(names)
        self._woken.set()

    async def set_variable(self, name: str, value: Value) -> FrameResult:
        """Give a variable a checked value, and run a frame."""
        self._set[name] = value
        return await self.execute()

    # Frames

    async def run(self) -> None:
        """Run frames as values change, until cancelled."""
        clock = self._ports.clock
        retry_ms = BACK_OFF_MS
        while True:
            await self._woken.wait()
            pause_ms = self._pace.pause_ms(clock.monotonic_ms())
            if pause_ms:
                self._ports.log.info(
                    "program.backs_off", program=self.program.hash, pause_ms=pause_ms
                )
                self._tell()
            await clock.sleep_ms(max(self.program.program.document.debounce_ms, pause_ms))
            try:
                await self._execute(by_hand=False)
                retry_ms = BACK_OFF_MS
            except XscError as fault:
                self.fault = f"{fault.code}: {fault.message}"
                self._ports.log.warning(
                    "program.failed", program=self.program.hash, code=fault.code
                )
                self._tell()
                await clock.sleep_ms(retry_ms)
                retry_ms = min(2 * retry_ms, BACK_OFF_MS_MAX)

    async def execute(self) -> FrameResult:
        """Run a frame now, over all that has changed.

        Raises:
            XscError: it could not be written; all of it is to be run again.
        """
        result = await self._execute(by_hand=True)
        assert result is not None, "it was asked for"
        return result

    async def _execute(self, *, by_hand: bool) -> FrameResult | None:
        async with self._lock:
            if not by_hand and not self._woken.is_set():
                return None  # a frame that was asked for was quicker
            outside = self._outside or by_hand
            self._own_frames = 0 if outside else self._own_frames + 1
            self._woken.clear()
            self.oscillates = self._own_frames > self._own_frames_max
            if self.oscillates:
                self.fault = (
                    f"program_oscillates: {self._own_frames_max} frames in a row were caused by "
                    "its own outputs alone; it goes on when another input changes"
                )
                self._ports.log.warning("program.oscillates", program=self.program.hash)
                self._tell()
                return None
            pending, self._pending = self._pending, set()
            given, self._set = self._set, {}
            self._outside = False
            try:
                result = await self._frame(pending, given)
            except BaseException:
                # What was not written did not happen: the next frame begins from what was.
                self._pending |= pending
                self._set = given | self._set
                self._outside = True
                self._woken.set()
                self._ports.recorder.forget(self.program.hash)
                self._begin()
                raise
            self.fault = ""
            if result.again:
                self._woken.set()
        self._tell()
        return result

    async def _frame(self, pending: set[str], given: Mapping[str, Value]) -> FrameResult:
        externals: dict[str, Value | Fault] = dict(given)
        read = [self.program.variables[name][0] for name in sorted(pending)] + self._fetched
        for variable, entry in zip(read, await asyncio.gather(*map(self._read, read)), strict=True):
            fault = entry if isinstance(entry, Fault) else None
            found = entry if isinstance(entry, Entry) else None
            self._note_source(variable, found)
            externals[variable.name] = fault or external_value(
                variable, found.value if found else None
            )
        receipts: dict[str, bytes] = {}
        frame = self.execution.frame(externals)
        results = None
        try:
            while True:
                calls = frame.send(results)  # type: ignore[arg-type]
                done = await asyncio.gather(*map(self._call, calls))
                receipts |= {
                    call.computation: raw for call, (_, raw) in zip(calls, done, strict=True)
                }
                results = [found for found, _ in done]
        except StopIteration as stopped:
            result: FrameResult = stopped.value
        await self._write(externals, result, receipts)
        return result

    async def _call(self, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        assert isinstance(call.call.module, bytes), "a resolved program names modules by hash"
        return await self._ports.sandbox.call(self._modules[call.call.module], call)

    async def _read(self, variable: Variable) -> Entry | Fault | None:
        """Return the newest record for a variable; None where there is none."""
        owner, own = self._owner(variable), self._ports.space.owner
        if variable.kind == "subscription" or owner == own:
            entry = self._have(variable)
            whole = entry is None or entry.value is not None
            if whole or entry is None or entry.signed.record.digest is None:
                return entry
            wait_ms = LOAD_MS
        else:
            wait_ms = variable.wait_ms
        asked = asyncio.ensure_future(self._ports.peers.read(owner, variable.path))
        late = asyncio.ensure_future(self._ports.clock.sleep_ms(wait_ms))
        try:
            await asyncio.wait({asked, late}, return_when=asyncio.FIRST_COMPLETED)
            entry = asked.result() if asked.done() else self._have(variable)
        except NotFound:
            return None
        except XscError as fault:
            return Fault(f"the value at '{variable.path}': {fault.message}")
        finally:
            asked.cancel()
            late.cancel()
        if entry is not None and entry.value is None and entry.signed.record.digest is not None:
            return Fault(f"the value at '{variable.path}' is not on this node")
        return entry

    async def _write(
        self, externals: Mapping[str, object], result: FrameResult, receipts: Mapping[str, bytes]
    ) -> None:
        program, execution, writes = self.program, self.execution, Writes()
        entered = {
            name
            for name, (variable, _) in program.variables.items()
            if name in externals or variable.kind == "local" or not self._flags
        }
        writes.write_frame(execution, result, entered, self._flags, self._kept)
        if result.executed:
            made = evaluations_of(program, result, self._sources, receipts)
            writes.write_provenance(self._ports.recorder.record(program, made))
        if writes.values:
            self._writing = writes.values
            try:
                await self._ports.space.put_all(writes.values)
            finally:
                self._writing = {}
            self._pace.wrote(self._ports.clock.monotonic_ms())
            self.publications += 1
        self._flags = execution.flags()


def shown_of(
    execution: Execution,
    *,
    state: State,
    fault: str,
    publications: int,
    built_in: bool,
    bytes_max: int = GIVEN_BYTES_MAX,
) -> Results:
    """Return what a program computed last, as text; of longer bytes their number."""

    def text(type_: str, value: Value | None) -> str | None:
        if isinstance(value, bytes) and len(value) > bytes_max:
            return f"({len(value)} bytes)"
        return None if value is None else format_value(type_, value)

    program = execution.program
    outputs = {o.name: o for step in program.steps for o in step.outputs}
    return Results(
        id=program.program.document.id,
        hash=to_text(program.hash),
        state=state,
        frame=execution.runtime.frame_id,
        fault=fault,
        publications=publications,
        built_in=built_in,
        variables={
            name: text(slot.type, execution.value(name))
            for name, slot in sorted(program.names.items())
        },
        outputs={
            name: text(output.slot.type, execution.output(name))
            for name, output in sorted(outputs.items())
        },
        errors=dict(sorted(execution.errors.items())),
        stale=sorted(execution.stale),
    )


def modules_of(program: CompiledProgram) -> frozenset[bytes]:
    """Return the hashes of the modules that a program calls."""
    calls = (step.function for step in program.steps)
    return frozenset(
        call.module
        for call in calls
        if isinstance(call, ModuleCall) and isinstance(call.module, bytes)
    )
