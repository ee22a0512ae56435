"""One active program: gathers what has changed, runs frames, and writes what they gave.

A frame reads the newest values, runs, and is written whole: outputs, what is kept for a restart,
and provenance in one write of the space. What changes meanwhile is read by the next frame
(docs/design/programs.md, M1 to M9).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from xsc.api.programs import Results, State
from xsc.base import encoding, ids
from xsc.base.errors import NotFound, StoreDamaged, XscError
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.programs import limits
from xsc.programs.compile import CompiledProgram
from xsc.programs.document import ModuleCall, Variable
from xsc.programs.frame import Call, Execution, Fault, FrameResult, Given, external_value
from xsc.programs.numbers import Value, format_value, to_space
from xsc.programs.provenance import Recorder, Sources
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change, Entry, SpaceRecord

Writes: TypeAlias = "dict[str, bytes | None]"
"""The values of one write of the own space, by path; None deletes."""
LOAD_MS = 10_000
"""How long a frame waits for a large value of a peer, which does not come with its record."""
HOUR_MS = 3_600_000


class Peers(Protocol):
    """Who is followed, and for what."""

    def watch(self, owner: bytes, prefix: str) -> None:
        """Follow a prefix of a peer until `unwatch`."""

    def unwatch(self, owner: bytes, prefix: str) -> None:
        """End one `watch`."""

    async def read(self, owner: bytes, path: str) -> Entry:
        """Return what is at a path of a peer, asked for there, or raise NotFound."""


class Sandbox(Protocol):
    """Runs modules."""

    async def call(self, module: bytes, call: Call) -> tuple[Given | Fault, bytes]:
        """Return what a module gives, or why there is nothing, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """


@dataclass(frozen=True, slots=True)
class Ports:
    """What all programs of a node share."""

    context: Context
    space: Space
    peers: Peers
    find: Callable[[str], bytes]
    """Returns the node that a name means, or raises PeerUnknown or ArgumentInvalid."""
    sandbox: Sandbox
    recorder: Recorder


@dataclass(slots=True)
class Pace:
    """The writes of one program within the last hour, by a clock that never goes back.

    Beyond a number of them it backs off, each pause twice the last, so that programs that feed
    each other do not keep two nodes busy for ever.
    """

    _written_ms: deque[int] = field(
        default_factory=lambda: deque(maxlen=limits.PUBLICATIONS_AN_HOUR_MAX)
    )
    _doublings: int = 0

    def pause_ms(self, now_ms: int) -> int:
        """Return how long the program must still wait for its next frame."""
        written = self._written_ms
        if len(written) < limits.PUBLICATIONS_AN_HOUR_MAX or written[0] <= now_ms - HOUR_MS:
            self._doublings = 0
            return 0
        pause_ms = min(limits.BACK_OFF_MS << self._doublings, limits.BACK_OFF_MS_MAX)
        return max(0, written[-1] + pause_ms - now_ms)

    def wrote(self, now_ms: int) -> None:
        """Count a write."""
        written = self._written_ms
        full = len(written) == limits.PUBLICATIONS_AN_HOUR_MAX
        if full and written[0] > now_ms - HOUR_MS:
            self._doublings = min(self._doublings + 1, 20)
        written.append(now_ms)


def state_write(program: bytes, frame: int, saved: bytes) -> Writes:
    """Return the write of how a program stands after a frame (`Execution.save`)."""
    return {UserSpacePaths.state(program): encoding.encode([frame, saved])}


class Frames:
    """The frames of one program, and what is kept of them in the own space.

    Raises:
        StoreDamaged: what was kept of it does not fit it.
    """

    def __init__(self, program: CompiledProgram, space: Space, recorder: Recorder) -> None:
        self.program = program
        self.fault = ""
        """Why it does not run, or ''."""
        self.publications = 0
        self.space = space
        self.recorder = recorder
        self._saved: bytes | None = None
        """How it stood when it was written last."""
        self._saving = b""
        self.execution: Execution
        self._begin()

    def _begin(self) -> None:
        """Go on from what the last written frame has kept."""
        self.execution = Execution.begin(self.program)
        raw = self._kept(UserSpacePaths.state(self.program.hash))
        self._saved = None if raw is None else self.execution.restore(raw, self._kept)
        for name, (variable, _) in self.program.variables.items():
            if variable.kind == "given":
                given = self._kept(UserSpacePaths.variable(self.program.hash, name))
                self.execution.keep(name, external_value(variable, given))

    def _kept(self, path: str) -> bytes | None:
        try:
            return self.space.get(path).value
        except NotFound:
            return None

    def frame_writes(
        self,
        result: FrameResult,
        given: Mapping[str, Value],
        sources: Sources,
        receipts: Mapping[str, bytes],
    ) -> Writes:
        """Return what is to be written of a frame, by path: all together, or nothing.

        Args:
            result: of the frame.
            given: values that the user or the node gave to variables.
            sources: what other variables were read from.
            receipts: of modules, by computation.
        """
        program = self.program
        writes: Writes = {}
        for name, value in given.items():
            variable, _ = program.variables[name]
            raw = to_space(variable.type, value)
            kept = raw if len(raw) <= limits.VALUE_BYTES_MAX else None
            path = UserSpacePaths.variable(program.hash, name)
            if variable.kind != "local" and kept != self._kept(path):
                writes[path] = kept
        self._saving = self.execution.save()
        if self._saving != self._saved:
            writes |= state_write(program.hash, result.frame, self._saving)
        for ran in result.executed:
            for output, value in zip(ran.step.outputs, ran.outputs, strict=True):
                if output.name in result.changed:
                    writes[program.place_of(output)] = to_space(output.slot.type, value)
        if result.executed:
            writes |= self.recorder.record(program, result, sources, receipts)
        return writes

    def wrote(self) -> None:
        """Go on from what was written."""
        self._saved = self._saving
        self.publications += 1

    def undo(self, fault: str = "") -> None:
        """Begin again from what was written last; `fault` says why it was not written."""
        self.recorder.forget(self.program.hash)
        self._begin()
        self.fault = self.fault or fault

    def shown(self, *, state: State, built_in: bool, bytes_max: int) -> Results:
        """Return what it computed last, as text; of longer bytes their number."""

        def text(type_: str, value: Value | None) -> str | None:
            if isinstance(value, bytes) and len(value) > bytes_max:
                return f"({len(value)} bytes)"
            return None if value is None else format_value(type_, value)

        program, execution = self.program, self.execution
        outputs = {o.name: o for step in program.steps for o in step.outputs if not step.is_hidden}
        return Results(
            id=program.program.document.id,
            hash=ids.to_text(program.hash),
            state=state,
            frame=execution.runtime.frame_id,
            fault=self.fault,
            publications=self.publications,
            built_in=built_in,
            variables={
                name: text(slot.type, execution.value(name))
                for name, slot in sorted(program.names.items())
            },
            outputs={
                name: text(output.slot.type, execution.output(name))
                for name, output in sorted(outputs.items())
            },
            paths={name: output.path for name, output in sorted(outputs.items()) if output.path},
            errors=dict(sorted(execution.errors.items())),
            stale=sorted(execution.stale),
        )


class ServedProgram(Frames):
    """A program that comes with XSC: the service whose rule it is asks for its frames.

    Its variables are given or local, and it calls no module. The service gives it all that it
    reads, and writes what a frame gives together with its own values.
    """

    def __init__(self, program: CompiledProgram, space: Space, recorder: Recorder) -> None:
        self._is_damaged = False
        self._result: FrameResult | None = None
        self._given: Mapping[str, Value] = {}
        super().__init__(program, space, recorder)

    def _begin(self) -> None:
        try:
            super()._begin()
        except StoreDamaged as fault:
            self._is_damaged, self.fault = True, f"{fault.code}: {fault.message}"
        self._result = None

    def run(self, given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Run a frame, and return its outputs by name; None where it fails, and `fault` says why.

        Args:
            given: values of variables.
        """
        if self._is_damaged:
            return None
        self._given, self._result = given, self.execution.run(given)
        if errors := self.execution.errors:
            name, message = min(errors.items())
            self._begin()  # the next frame runs what this one did, too
            self.fault = f"{name}: {message}"
            return None
        self.fault = ""
        names = [output.name for step in self.program.steps for output in step.outputs]
        return {name: self.execution.output(name) for name in names}  # type: ignore[misc]

    def writes(self) -> Writes:
        """Return what is to be written of the last frame, by path.

        Call `wrote` once it is written, and `undo` where it was not.
        """
        assert self._result is not None, "a frame was run"
        return self.frame_writes(self._result, self._given, {}, {})

    def results(self) -> Results:
        """Return what it computed last, as text."""
        state: State = "failed" if self.fault else "active"
        return self.shown(state=state, built_in=True, bytes_max=limits.INPUT_INLINE_BYTES_MAX)


class RunningProgram(Frames):
    """A program between its activation and its deactivation."""

    def __init__(
        self, program: CompiledProgram, ports: Ports, modules: Mapping[bytes, bytes]
    ) -> None:
        self.oscillates = False
        self._ports = ports
        self._modules = modules
        self._pace = Pace()
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._told = asyncio.Event()
        self._pending: dict[str, Change | None] = {}
        """Variables that have changed, with the change where it brought the value."""
        self._set: dict[str, Value] = {}
        self._sources: dict[str, tuple[bytes, Signed[SpaceRecord]]] = {}
        """Of each variable that had a value at the last frame: the owner and the record of it."""
        self._outside = True
        """Whether something else than its own outputs has changed since the last frame."""
        self._own_frames = 0
        variables = [variable for variable, _ in program.variables.values()]
        longest = max((variable.size for variable in variables), default=1)
        self._own_frames_max = limits.OWN_FRAMES_MAX + longest
        self._writing: Mapping[str, bytes | None] = {}
        self._owner = ports.space.owner
        self._fetched = [variable.name for variable in variables if variable.kind == "fetch"]
        self.subscribed = subscriptions_of(program, self._owner)
        self._last: dict[str, list[str]] = {}
        """The sources of each cell that is what was said last: subscriptions by cell."""
        for variable in variables:
            if variable.merge == "last":
                cell = variable.name.partition(".")[0]
                self._last.setdefault(cell, []).append(variable.name)
        super().__init__(program, ports.space, ports.recorder)

    def _owner_of(self, variable: Variable) -> bytes:
        return variable.owner if isinstance(variable.owner, bytes) else self._owner

    def _begin(self) -> None:
        """Go on from what the last frame wrote; what has changed since is pending."""
        super()._begin()
        read: dict[str, Entry | Fault | None] = {
            name: self._have(variable)
            for name, (variable, _) in self.program.variables.items()
            if variable.kind not in {"local", "given"}
        }
        for name, value in self._values_of(read).items():
            variable, _ = self.program.variables[name]
            if not self.execution.keep(name, value) and variable.kind == "subscription":
                self._pending[name] = None
        if self._pending or self.execution.waits():
            self._outside = True
            self._woken.set()

    def _have(self, variable: Variable) -> Entry | None:
        path = variable.path
        if variable.kind == "value":
            path = UserSpacePaths.variable(self.program.hash, variable.name)
        try:
            return self.space.get(path, self._owner_of(variable))
        except NotFound:
            return None

    def _values_of(self, read: Mapping[str, Entry | Fault | None]) -> dict[str, Value | Fault]:
        """Return the values of variables by what was read, and note where they are from."""
        found: dict[str, Value | Fault] = {}
        for name, entry in read.items():
            variable, _ = self.program.variables[name]
            self._sources.pop(name, None)
            if isinstance(entry, Fault):
                found[name] = entry
                continue
            raw = None if entry is None else entry.value
            found[name] = external_value(variable, raw)
            if entry is not None and raw is not None:
                self._sources[name] = self._owner_of(variable), entry.signed
        for parts in self._last.values():
            said = {
                name: self._sources[name][1]
                for name in parts
                if name in found and not isinstance(found[name], Fault)
            }
            for name in said.keys() - {latest(said)}:
                found[name] = Fault("")
        return found

    # What others see

    @property
    def state(self) -> State:
        """Whether it runs: active, backing_off, oscillates or failed."""
        if self.oscillates:
            return "oscillates"
        if self.fault:
            return "failed"
        if self._woken.is_set() and self._pace.pause_ms(self._ports.context.clock.monotonic_ms()):
            return "backing_off"
        return "active"

    def results(self) -> Results:
        """Return what it computed last, as text."""
        return self.shown(state=self.state, built_in=False, bytes_max=limits.GIVEN_BYTES_MAX)

    async def changed(self) -> None:
        """Return after the next frame, or when it comes to another state."""
        await self._told.wait()

    def tell(self) -> None:
        """Wake who waits for a change: there was one, or there is none any more."""
        self._told.set()
        self._told = asyncio.Event()

    # What changes

    def heard(self, change: Change) -> None:
        """Take in a change of the space."""
        names = self.subscribed.get((change.owner, change.path))
        if names is None:
            return
        own = (
            change.owner == self._owner
            and change.path in self._writing
            and self._writing[change.path] == change.value
        )
        self._outside = self._outside or not own
        for name in names:
            # What a cell is that says what was said last, is seen from all its sources.
            self._pending.update(dict.fromkeys(self._last.get(name.partition(".")[0], ())))
            self._pending[name] = change if change.loaded else None
        self._woken.set()

    async def set_variable(self, name: str, value: Value) -> FrameResult:
        """Give a variable a checked value, and run a frame."""
        self._set[name] = value
        return await self.execute()

    # Frames

    async def run(self) -> None:
        """Run frames as values change, until cancelled."""
        clock = self._ports.context.clock
        retry_ms = limits.BACK_OFF_MS
        while True:
            await self._woken.wait()
            pause_ms = self._pace.pause_ms(clock.monotonic_ms())
            if pause_ms:
                self._ports.context.log.info(
                    "program.backs_off", program=self.program.hash, pause_ms=pause_ms
                )
                self.tell()
            await clock.sleep_ms(max(self.program.program.document.debounce_ms, pause_ms))
            try:
                await self._frame(by_hand=False)
                retry_ms = limits.BACK_OFF_MS
            except XscError as fault:
                self.fault = f"{fault.code}: {fault.message}"
                self._ports.context.log.warning(
                    "program.failed", program=self.program.hash, code=fault.code
                )
                self.tell()
                await clock.sleep_ms(retry_ms)
                retry_ms = min(2 * retry_ms, limits.BACK_OFF_MS_MAX)

    async def execute(self) -> FrameResult:
        """Run a frame now, over all that has changed.

        Raises:
            XscError: it could not be written; all of it is to be run again.
        """
        result = await self._frame(by_hand=True)
        assert result is not None, "it was asked for"
        return result

    def _is_due(self, *, by_hand: bool) -> bool:
        """Count a frame, and say whether it is to run now: one that was asked for always is."""
        if not by_hand and not self._woken.is_set():
            return False  # one that was asked for was quicker
        outside = self._outside or by_hand
        self._own_frames = 0 if outside else self._own_frames + 1
        self._woken.clear()
        self.oscillates = self._own_frames > self._own_frames_max
        if self.oscillates:
            self.fault = (
                f"program_oscillates: {self._own_frames_max} frames in a row were caused by "
                "its own outputs alone; it goes on when another input changes"
            )
            self._ports.context.log.warning("program.oscillates", program=self.program.hash)
            self.tell()
        return not self.oscillates

    async def _frame(self, *, by_hand: bool) -> FrameResult | None:
        """Run a frame over all that has changed and write it; None where none is due."""
        async with self._lock:
            if not self._is_due(by_hand=by_hand):
                return None
            pending, self._pending = self._pending, {}
            given, self._set = self._set, {}
            self._outside = False
            try:
                read: dict[str, Entry | Fault | None]
                read = {name: change.entry for name, change in pending.items() if change}
                names = sorted({*pending, *self._fetched} - read.keys())
                entries = await asyncio.gather(*map(self._read, names))
                read |= dict(zip(names, entries, strict=True))
                frame = self.execution.frame({**self._values_of(read), **given})
                receipts: dict[str, bytes] = {}
                results = None
                try:
                    while True:
                        calls = frame.send(results)  # type: ignore[arg-type]
                        done = await asyncio.gather(*map(self._call, calls))
                        results = [found for found, _ in done]
                        named = (call.computation for call in calls)
                        receipts |= zip(named, (raw for _, raw in done), strict=True)
                except StopIteration as stopped:
                    result: FrameResult = stopped.value
                self._writing = self.frame_writes(result, given, self._sources, receipts)
                if self._writing:
                    await self.space.put_all(self._writing)
                    self._pace.wrote(self._ports.context.clock.monotonic_ms())
                    self.wrote()
            except BaseException:
                # What was not written did not happen: the next frame begins from what was.
                self._pending = pending | self._pending
                self._set = given | self._set
                self._outside = True
                self._woken.set()
                self.undo()
                raise
            finally:
                self._writing = {}
            self.fault = ""
            if result.again:
                self._woken.set()
        self.tell()
        return result

    async def _call(self, call: Call) -> tuple[Given | Fault, bytes]:
        assert isinstance(call.call.module, bytes), "a resolved program names modules by hash"
        return await self._ports.sandbox.call(self._modules[call.call.module], call)

    async def _read(self, name: str) -> Entry | Fault | None:
        """Return the newest record for a variable; None where there is none."""
        variable, _ = self.program.variables[name]
        owner, wait_ms = self._owner_of(variable), variable.wait_ms
        if variable.kind != "fetch" or owner == self._owner:
            entry = self._have(variable)
            if entry is None or entry.value is not None or entry.signed.record.digest is None:
                return entry
            wait_ms = LOAD_MS
        asked = asyncio.ensure_future(self._ports.peers.read(owner, variable.path))
        late = asyncio.ensure_future(self._ports.context.clock.sleep_ms(wait_ms))
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


def latest(said: Mapping[str, Signed[SpaceRecord]]) -> str | None:
    """Return which of several records was written last; None where there is none.

    Only those count that no other follows by its stamp. Of several, concurrent ones, the last by
    date counts, then the one with the greater id. Comparing two at a time would not do: with
    skewed clocks three can each be later than the next.
    """
    ends = [
        (signed.record.written_ms, signed.id, name)
        for name, signed in said.items()
        if not any(
            signed.record.causality.before(other.record.causality) for other in said.values()
        )
    ]
    return max(ends)[2] if ends else None


def subscriptions_of(program: CompiledProgram, own: bytes) -> dict[tuple[bytes, str], list[str]]:
    """Return the variables of a program that follow something, by owner and path."""
    found: dict[tuple[bytes, str], list[str]] = {}
    for name, (variable, _) in program.variables.items():
        if variable.kind == "subscription":
            owner = variable.owner if isinstance(variable.owner, bytes) else own
            found.setdefault((owner, variable.path), []).append(name)
    return found


def modules_of(program: CompiledProgram) -> frozenset[bytes]:
    """Return the hashes of the modules that a program calls."""
    calls = (step.function for step in program.steps)
    return frozenset(
        call.module
        for call in calls
        if isinstance(call, ModuleCall) and isinstance(call.module, bytes)
    )
