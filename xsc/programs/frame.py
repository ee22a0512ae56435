"""One frame of a program: what has changed enters, and what depends on it is computed.

A computation runs when the bits of one of its inputs have changed. One that fails keeps its
error, and what depends on it is stale: neither run nor written. Rules do not wait, so a frame is
a generator: it yields the calls of modules that it needs, and is sent their results
(docs/design/programs.md, R1 to R9).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from xsc.base.encoding import Value as Encodable
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ArgumentInvalid,
    ProgramInvalid,
    RecordInvalid,
    StoreDamaged,
    XscError,
)
from xsc.programs.compile import CompiledProgram, Published, Slot, Step, state_key
from xsc.programs.document import ModuleCall, Variable
from xsc.programs.limits import GIVEN_BYTES_MAX
from xsc.programs.numbers import (
    Value,
    check_value,
    from_number,
    from_record,
    from_space,
    same,
    to_number,
    to_record,
)
from xsc.programs.runtime import RuntimeState, create_runtime_state
from xsc.programs.state import SavedCell
from xsc.space.limits import VALUE_BYTES_MAX as SPACE_VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.terms.execution import Number


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no value: one sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class Call:
    """A module's export that a frame needs to be called."""

    computation: str
    call: ModuleCall
    arguments: tuple[Number, ...]


Calls: TypeAlias = tuple[Call, ...]
Results: TypeAlias = "Sequence[tuple[Number, ...] | Fault]"
"""One for each call, in their order."""


Flags: TypeAlias = "dict[str, tuple[bool, bool, str | None]]"
"""By computation: whether it must run, is stale, and what it failed with."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A computation that ran: its inputs and what it gave, by parameter and by output."""

    computation: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What a frame did."""

    frame: int
    executed: tuple[Executed, ...]
    """In the order in which they ran, those that failed left out."""
    changed: tuple[str, ...]
    """Outputs whose bits changed, or that have their first value; by name."""
    again: bool
    """Whether a local variable changed, which another frame would read."""


def external_value(variable: Variable, raw: bytes | None) -> Value | Fault:
    """Return the value of a subscription or fetch: of a record's bytes, or where there is none."""
    if raw is None:
        if variable.default is not None:
            return variable.default
        if variable.kind == "given":
            return Fault("the node has not given it yet")
        return Fault(f"there is no value at '{variable.path}', and no default")
    try:
        return from_space(variable.type, raw)
    except ArgumentInvalid as fault:
        return Fault(f"the value at '{variable.path}': {fault.message}")


def saved_values(raw: bytes) -> list[tuple[str, Encodable]]:
    """Return type and record of each value in what is kept of a variable or computation.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    found: Any = decode(raw, size_max=SPACE_VALUE_BYTES_MAX)
    try:
        if isinstance(found[0], str):
            return [(found[0], record) for record in found[1]]
        return [(str(type_), record) for type_, record in found[1]]
    except (IndexError, KeyError, TypeError, ValueError):
        raise RecordInvalid("nothing that is kept of a program") from None


@dataclass(slots=True)
class Execution:
    """A program that runs, frame after frame.

    A frame that is not carried to its end is made up for by the next one.
    """

    program: CompiledProgram
    runtime: RuntimeState
    errors: dict[str, str] = field(default_factory=dict)
    """By computation or variable: why it has no value."""
    stale: set[str] = field(default_factory=set)
    """Computations whose inputs are missing; what they gave before still stands."""
    _dirty: set[str] = field(default_factory=set)
    _bad: set[int] = field(default_factory=set)
    """Slots whose value does not count."""
    _had: set[int] = field(default_factory=set)
    _changed: set[str] = field(default_factory=set)
    _pushes: dict[str, Value] = field(default_factory=dict)
    _readers: dict[int, list[str]] = field(default_factory=dict)
    _reads: dict[str, frozenset[int]] = field(default_factory=dict)
    """The slots that each computation reads; `_gives`, those that it writes."""
    _gives: dict[str, frozenset[int]] = field(default_factory=dict)
    _executed: dict[str, Executed] = field(default_factory=dict)

    @classmethod
    def begin(cls, program: CompiledProgram, runtime: RuntimeState | None = None) -> Execution:
        """Return a program before its first frame; its stores are new ones, or swapped ones."""
        execution = cls(program, runtime or create_runtime_state(program))
        for step in program.steps:
            execution._dirty.add(step.id)
            execution._reads[step.id] = frozenset(slot.slot for _, slot in step.inputs)
            execution._gives[step.id] = frozenset(output.slot.slot for output in step.outputs)
            for _, slot in step.inputs:
                execution._readers.setdefault(slot.slot, []).append(step.id)
        for name, (variable, slot) in program.variables.items():
            missing = external_value(variable, None)
            if isinstance(missing, Fault):
                execution._bad.add(slot.slot)
                execution.errors[name] = missing.message
        return execution

    def frame(
        self, externals: Mapping[str, Value | Fault] | None = None
    ) -> Generator[Calls, Results, FrameResult]:
        """Run one frame.

        Args:
            externals: new values of variables, or why they have none. To a local variable
                they are pushed, one or several; derived ones cannot be set.

        Yields:
            Calls that can be made at once; the results are sent for them.

        Raises:
            ArgumentInvalid: no such variable, or a derived one, or other results than calls.
        """
        given = externals or {}
        for name in given:
            if name not in self.program.variables:
                raise ArgumentInvalid(f"no variable '{name}' that can be set")
        frame = self.runtime.begin_frame()
        self._enter(given)
        left: Iterable[Step] = self.program.steps
        while True:
            needed, left = self._run(left)
            if not needed:
                break
            calls = tuple(self._call(step) for step in needed)
            results = yield calls
            if len(results) != len(calls):
                raise ArgumentInvalid(f"{len(results)} results for {len(calls)} calls")
            for step, result in zip(needed, results, strict=True):
                self._settle(step, self._inputs(step), _outputs_of_call(step, result))
        return self._end(frame)

    def run(self, externals: Mapping[str, Value | Fault] | None = None) -> FrameResult:
        """Run a frame of a program that calls no modules.

        Raises:
            ProgramInvalid: it calls one.
        """
        frame = self.frame(externals)
        try:
            next(frame)
        except StopIteration as done:
            found: FrameResult = done.value
            return found
        frame.close()
        raise ProgramInvalid("the program calls a module, which needs a sandbox")

    def value(self, name: str) -> Value | None:
        """Return what a variable is; None while it has no value, or none that counts."""
        return self._read(self.program.names.get(name))

    def output(self, name: str) -> Value | None:
        """Return what an output is; None while it has no value, or none that counts."""
        found = (o.slot for step in self.program.steps for o in step.outputs if o.name == name)
        return self._read(next(found, None))

    def flags(self) -> Flags:
        """Return of each computation whether it must run, is stale, and what it failed with."""
        return {
            step.id: (step.id in self._dirty, step.id in self.stale, self.errors.get(step.id))
            for step in self.program.steps
        }

    def waits(self) -> bool:
        """Say whether a frame would run something though nothing new enters."""
        for step in self.program.steps:
            if step.id in self._dirty and self._bad.isdisjoint(self._reads[step.id]):
                return True
        for name, (variable, slot) in self.program.variables.items():
            if variable.kind == "local" and slot.slot in self._readers:
                kept = self.runtime.state.read(state_key(name))
                value: Any = kept if variable.size > 1 else kept[0]
                if slot.slot not in self._had or not same(slot.type, self._at(slot), value):
                    return True
        return False

    def save_variable(self, name: str) -> bytes:
        """Return what is kept of a variable: its value as it last entered, and its cell."""
        variable, slot = self.program.variables[name]
        value = [to_record(slot.type, self._at(slot))] if slot.slot in self._had else []
        cell = None
        if variable.kind == "local":
            cell = self.runtime.state.save()[state_key(name)].bits
        return encode([slot.type, value, self.errors.get(name), cell])

    def save_step(self, step: Step) -> bytes:
        """Return what is kept of a computation: its outputs, and how it stands."""
        outputs: list[Encodable] = [
            [output.slot.type, to_record(output.slot.type, self._at(output.slot))]
            for output in step.outputs
            if output.slot.slot in self._had
        ]
        flags = [step.id in self._dirty, step.id in self.stale, self.errors.get(step.id)]
        return encode([self.runtime.frame_id, outputs, *flags])

    def go_on(self, kept: Callable[[str], bytes | None]) -> Flags:
        """Go on from what the last written frame has kept, before the first frame.

        Args:
            kept: returns what is at a path of the own space.

        Returns:
            How the computations stood in that frame; nothing where there was none.

        Raises:
            StoreDamaged: what was kept is not of this program.
        """
        program = self.program
        variables = {n: kept(UserSpacePaths.variable(program.hash, n)) for n in program.variables}
        steps = {s.id: kept(UserSpacePaths.result(program.hash, s.id)) for s in program.steps}
        self.restore(
            {name: raw for name, raw in variables.items() if raw is not None},
            {name: raw for name, raw in steps.items() if raw is not None},
        )
        return self.flags() if any(steps.values()) else {}

    def restore(self, variables: Mapping[str, bytes], steps: Mapping[str, bytes]) -> None:
        """Go on from what was kept, before the first frame: nothing runs that had run.

        Raises:
            StoreDamaged: what was kept is not of this program.
        """
        try:
            for name, raw in variables.items():
                self._restore_variable(name, decode(raw))
            for step in self.program.steps:
                if step.id in steps:
                    self._restore_step(step, decode(steps[step.id]))
        except (ArgumentInvalid, RecordInvalid, KeyError, TypeError, ValueError) as fault:
            raise StoreDamaged(f"what was kept of the program is damaged: {fault}") from None

    def _restore_variable(self, name: str, kept: Any) -> None:  # noqa: ANN401
        variable, slot = self.program.variables[name]
        type_, value, fault, cell = kept
        if type_ != slot.type:
            raise ValueError(f"{name} is a {type_}")
        for record in value:
            self._restore_slot(slot, record)
        if fault is None:
            self._bad.discard(slot.slot)
            self.errors.pop(name, None)
        else:
            self._bad.add(slot.slot)
            self.errors[name] = str(fault)
        if variable.kind == "local":
            saved = {state_key(name): SavedCell(variable.type, cell)}
            if not self.runtime.state.restore(saved):
                raise ValueError(f"{name} has another size")

    def _restore_step(self, step: Step, kept: Any) -> None:  # noqa: ANN401
        frame, outputs, dirty, stale, error = kept
        for output, (type_, record) in zip(step.outputs, outputs, strict=bool(outputs)):
            if type_ != output.slot.type:
                raise ValueError(f"{output.name} is a {type_}")
            self._restore_slot(output.slot, record)
        self.runtime.frame_id = max(self.runtime.frame_id, int(frame))
        if not dirty:
            self._dirty.discard(step.id)
        if stale:
            self.stale.add(step.id)
        if error is not None:
            self.errors[step.id] = str(error)
        if stale or error is not None:
            self._mark_bad(step)

    def _restore_slot(self, slot: Slot, record: Encodable) -> None:
        self.runtime.values.write(slot.slot, from_record(slot.type, record))
        self._had.add(slot.slot)

    def _at(self, slot: Slot) -> Value:
        return self.runtime.values.read(slot.slot)  # type: ignore[no-any-return]

    def _read(self, slot: Slot | None) -> Value | None:
        if slot is None or slot.slot in self._bad or slot.slot not in self._had:
            return None
        return self.runtime.values.read(slot.slot)  # type: ignore[no-any-return]

    def _write(self, slot: Slot, value: Value) -> bool:
        """Write a checked value; say whether its bits changed."""
        number, values = slot.slot, self.runtime.values
        changed = number not in self._had or not same(slot.type, values.read(number), value)
        values.write(number, value)
        self._had.add(number)
        if changed:
            self._dirty.update(self._readers.get(number, ()))
        return changed

    def _enter(self, given: Mapping[str, Value | Fault]) -> None:
        for name, (variable, slot) in self.program.variables.items():
            value: Any = given.get(name)
            if variable.kind == "local":
                if value is not None and not isinstance(value, Fault):
                    try:
                        self.runtime.state.push(state_key(name), value)
                    except ArgumentInvalid as fault:
                        value = Fault(fault.message)
                if not isinstance(value, Fault):
                    kept = self.runtime.state.read(state_key(name))
                    value = kept if variable.size > 1 else kept[0]
            elif variable.kind == "given" and isinstance(value, bytes):
                # Larger than a program may make or read one: the node bounds it.
                if len(value) <= GIVEN_BYTES_MAX:
                    self._write(slot, value)
                    self._bad.discard(slot.slot)
                    self.errors.pop(name, None)
                    continue
                value = Fault(f"{len(value)} bytes are over the bound of {GIVEN_BYTES_MAX}")
            elif value is None and slot.slot not in self._had and slot.slot not in self._bad:
                value = variable.default
            if value is None:
                continue
            if not isinstance(value, Fault):
                try:
                    self._write(slot, check_value(slot.type, value))
                except ArgumentInvalid as fault:
                    value = Fault(fault.message)
            if isinstance(value, Fault):
                self._bad.add(slot.slot)
                self.errors[name] = value.message
            else:
                self._bad.discard(slot.slot)
                self.errors.pop(name, None)

    def _run(self, steps: Iterable[Step]) -> tuple[list[Step], list[Step]]:
        """Run what can run; return steps whose modules must be called, and those that wait."""
        needed: list[Step] = []
        waiting: list[Step] = []
        pending: set[int] = set()
        for step in steps:
            slots = self._reads[step.id]
            if not pending.isdisjoint(slots):
                waiting.append(step)
            elif not self._bad.isdisjoint(slots):
                self.stale.add(step.id)
                if self.errors.pop(step.id, None) is not None:
                    # What it failed with is forgotten with its error, so it must run again.
                    self._dirty.add(step.id)
                self._mark_bad(step)
                continue
            elif step.id not in self._dirty:
                if step.id in self.stale:
                    # Its inputs are back, and are what it ran with.
                    self.stale.discard(step.id)
                    self._mark_good(step)
                continue
            elif isinstance(step.function, ModuleCall):
                needed.append(step)
            else:
                inputs = self._inputs(step)
                self._settle(step, inputs, self._compute(step, inputs))
                continue
            pending |= self._gives[step.id]
        return needed, waiting

    def _mark_bad(self, step: Step) -> None:
        self._bad |= self._gives[step.id]

    def _mark_good(self, step: Step) -> None:
        self._bad -= self._gives[step.id]

    def _inputs(self, step: Step) -> list[Value]:
        read = self.runtime.values.read
        return [read(slot.slot) for _, slot in step.inputs]

    def _call(self, step: Step) -> Call:
        numbers = tuple(
            to_number(slot.type, value)
            for (_, slot), value in zip(step.inputs, self._inputs(step), strict=True)
        )
        assert isinstance(step.function, ModuleCall)
        return Call(step.id, step.function, numbers)

    def _compute(self, step: Step, inputs: Sequence[Value]) -> list[Value] | Fault:
        assert not isinstance(step.function, ModuleCall)
        try:
            value = step.function.run(step.bound, *inputs)
            return [check_value(output.slot.type, value) for output in step.outputs]
        except (XscError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
            return Fault(str(fault) or type(fault).__name__)

    def _settle(self, step: Step, inputs: Sequence[Value], found: list[Value] | Fault) -> None:
        """Record what a computation gave, and write it."""
        self._dirty.discard(step.id)
        self.stale.discard(step.id)
        if isinstance(found, Fault):
            self.errors[step.id] = found.message
            self._mark_bad(step)
            return
        self.errors.pop(step.id, None)
        self._mark_good(step)
        given = {name: value for (name, _), value in zip(step.inputs, inputs, strict=True)}
        outputs = {}
        for output, value in zip(step.outputs, found, strict=True):
            outputs[output.name] = value
            if self._write(output.slot, value):
                self._changed.add(output.name)
            if output.local:
                self._pushes[output.local] = value
        self._executed[step.id] = Executed(step.id, given, outputs)

    def _end(self, frame: int) -> FrameResult:
        """Keep what local variables are from the next frame on: all at once, or nothing."""
        again = False
        for name, value in self._pushes.items():
            before = self.runtime.state.read(state_key(name))
            self.runtime.state.push(state_key(name), value)
            variable, slot = self.program.variables[name]
            after = self.runtime.state.read(state_key(name))
            again = again or (
                slot.slot in self._readers and not same(f"[{variable.type}]", before, after)
            )
        result = FrameResult(
            frame, tuple(self._executed.values()), tuple(sorted(self._changed)), again
        )
        self._pushes, self._executed, self._changed = {}, {}, set()
        return result


def _outputs_of_call(step: Step, found: tuple[Number, ...] | Fault) -> list[Value] | Fault:
    if isinstance(found, Fault):
        return found
    wanted = 1 + max((output.result for output in step.outputs), default=-1)
    if len(found) != wanted:
        return Fault(f"the module gives {len(found)} results, and {wanted} are named")
    try:
        return [_result(output, found) for output in step.outputs]
    except ArgumentInvalid as fault:
        return Fault(fault.message)


def _result(output: Published, found: tuple[Number, ...]) -> Value:
    return from_number(output.slot.type, found[output.result])
