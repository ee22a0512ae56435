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

from xsc.base import encoding, errors
from xsc.base.text import cut
from xsc.programs import document, functions, limits, numbers
from xsc.programs.compile import CompiledProgram, Slot, Step, state_key
from xsc.programs.numbers import Value, check_value, same
from xsc.programs.runtime import RuntimeState, create_runtime_state
from xsc.programs.state import SavedCell
from xsc.space.limits import VALUE_BYTES_MAX as SPACE_VALUE_BYTES_MAX
from xsc.terms.execution import Number

ERROR_CHARS_MAX = 100
"""Of an error that is kept across a restart."""
_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no value: one sentence, or nothing where a source of a cell is silent."""

    message: str


Given: TypeAlias = "tuple[Number, ...] | bytes"
"""What a module is given, or gives: numbers of an export, or the canonical bytes of a filter."""


@dataclass(frozen=True, slots=True)
class Call:
    """A module that a frame needs to be called: an export with numbers, or a filter with bytes."""

    computation: str
    call: document.ModuleCall
    given: Given


Calls: TypeAlias = tuple[Call, ...]
Results: TypeAlias = "Sequence[Given | Fault]"
"""One for each call, in their order."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A computation that ran: its inputs in the order of its step, and what it gave."""

    step: Step
    inputs: tuple[Value | None, ...]
    """None for a source of a cell that says nothing."""
    outputs: tuple[Value, ...]


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


def external_value(variable: document.Variable, raw: bytes | None) -> Value | Fault:
    """Return the value of a variable: of a record's bytes, or where there is none."""
    if raw is None:
        if variable.default is not None:
            return variable.default
        if variable.kind == "given":
            return Fault("the node has not given it yet")
        if variable.merge:
            return Fault("")
        return Fault(f"there is no value at '{variable.path}', and no default")
    try:
        value = numbers.from_space(variable.type, raw)
        functions.check_said(variable.merge, variable.type, value, len(variable.sources) or 1)
    except errors.ArgumentInvalid as fault:
        return Fault(f"the value at '{variable.path}': {fault.message}")
    return value


def given_to(call: document.ModuleCall, inputs: Iterable[tuple[str, Value]]) -> Given:
    """Return the inputs of a module, types and values in their order, as it takes them."""
    if call.is_filter:
        return encoding.encode([numbers.to_record(type_, value) for type_, value in inputs])
    return tuple(numbers.to_number(type_, value) for type_, value in inputs)


def results_in(found: Given) -> Sequence[Any]:
    """Return the results that a module gave, one by one.

    Raises:
        TooLarge, RecordInvalid, ArgumentInvalid: a filter wrote something else than a list.
    """
    if isinstance(found, tuple):
        return found
    results = encoding.decode(found, size_max=SPACE_VALUE_BYTES_MAX)
    if not isinstance(results, list):
        raise errors.ArgumentInvalid("the filter gives no list of results")
    return results


def result_as(type_: str, result: Any) -> Value:  # noqa: ANN401
    """Return one result of a module as a value.

    Raises:
        ArgumentInvalid: it is none of the type.
    """
    read = numbers.from_number if isinstance(result, Number) else numbers.from_record
    return read(type_, result)


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
    _digests: dict[int, bytes] = field(default_factory=dict)
    """The hashes of values, also of those of the last written frame that are not read again yet."""
    _changed: set[str] = field(default_factory=set)
    _pushes: dict[str, Value] = field(default_factory=dict)
    _readers: dict[int, list[Step]] = field(default_factory=dict)
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
            execution._reads[step.id] = frozenset(read.slot.slot for read in step.inputs)
            execution._gives[step.id] = frozenset(output.slot.slot for output in step.outputs)
            for read in step.inputs:
                execution._readers.setdefault(read.slot.slot, []).append(step)
        for name, (variable, _) in program.variables.items():
            missing = external_value(variable, None)
            if isinstance(missing, Fault):
                execution._fail(name, missing)
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
                raise errors.ArgumentInvalid(f"no variable '{name}' that can be set")
        frame = self.runtime.begin_frame()
        self._enter(given)
        left: Iterable[Step] = self.program.steps
        while True:
            needed: list[Step] = []
            waiting: list[Step] = []
            pending: set[int] = set()
            for step in left:
                if not pending.isdisjoint(self._reads[step.id]):
                    waiting.append(step)
                elif not self._is_due(step):
                    continue
                elif isinstance(step.function, document.ModuleCall):
                    needed.append(step)
                else:
                    inputs = self._inputs(step)
                    self._settle(step, inputs, _compute(step, inputs))
                    continue
                pending |= self._gives[step.id]
            if not needed:
                return self._end(frame)
            left = waiting
            calls = tuple(_call(step, self._inputs(step)) for step in needed)
            results = yield calls
            if len(results) != len(calls):
                raise errors.ArgumentInvalid(f"{len(results)} results for {len(calls)} calls")
            for step, result in zip(needed, results, strict=True):
                self._settle(step, self._inputs(step), _results_of(step, result))

    def run(self, externals: Mapping[str, Value | Fault] | None = None) -> FrameResult:
        """Run a frame of a program that calls no modules.

        Raises:
            ProgramInvalid: it calls one.
        """
        try:
            next(self.frame(externals))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        raise errors.ProgramInvalid("the program calls a module, which needs a sandbox")

    def value(self, name: str) -> Value | None:
        """Return what a variable is; None while it has no value, or none that counts."""
        return self._read(self.program.names.get(name))

    def output(self, name: str) -> Value | None:
        """Return what an output is; None while it has no value, or none that counts."""
        found = (o.slot for step in self.program.steps for o in step.outputs if o.name == name)
        return self._read(next(found, None))

    def waits(self) -> bool:
        """Say whether a frame would run something though nothing new enters."""
        for step in self.program.steps:
            if step.id in self._dirty and not self._lacks(step):
                return True
        return any(
            slot.slot in self._readers and self._differs(slot, self._cell(variable))
            for variable, slot in self.program.variables.values()
            if variable.kind == "local"
        )

    # What is kept

    def save(self) -> bytes:
        """Return what a restart needs beside values: cells, the hashes of values, and the errors.

        Values are kept where they are read again: those of the space by their owners, outputs at
        their own paths.
        """
        cells, variables = self.runtime.state.save(), self.program.variables
        for slot in self.program.slots:
            if slot.slot in self._had and slot.slot not in self._digests:
                raw = numbers.value_bytes(slot.type, self._at(slot))
                self._digests[slot.slot] = numbers.digest_of(raw)
        missing = [name for name, (_, slot) in variables.items() if slot.slot in self._bad]
        return encoding.encode(
            {
                "cells": {key[0]: saved.bits for key, saved in cells.items()},
                "hashes": b"".join(self._digests.get(s.slot, _NO_HASH) for s in self.program.slots),
                "errors": {name: cut(said, ERROR_CHARS_MAX) for name, said in self.errors.items()},
                "missing": [*missing],
                "stale": [*sorted(self.stale)],
                "dirty": [*sorted(self._dirty)],
            }
        )

    def restore(self, raw: bytes, kept: Callable[[str], bytes | None]) -> bytes:
        """Go on from what was kept, before the first frame: nothing runs that had run.

        Args:
            raw: the number of the frame, and what `save` returned, which is returned.
            kept: returns what is at a path of the own space.

        Raises:
            StoreDamaged: what was kept is not of this program.
        """
        try:
            found: Any = encoding.decode(raw, size_max=SPACE_VALUE_BYTES_MAX)
            self.runtime.frame_id, saved = int(found[0]), bytes(found[1])
            self._restore(encoding.decode(saved, size_max=SPACE_VALUE_BYTES_MAX), kept)
        except (errors.XscError, LookupError, TypeError, ValueError) as fault:
            raise errors.StoreDamaged(f"what was kept of the program is damaged: {fault}") from None
        return saved

    def _restore(self, state: Any, kept: Callable[[str], bytes | None]) -> None:  # noqa: ANN401
        self.errors = dict(state["errors"])
        self.stale, self._dirty = set(state["stale"]), set(state["dirty"])
        self._bad = {self.program.variables[name][1].slot for name in state["missing"]}
        hashes, slots = bytes(state["hashes"]), self.program.slots
        if len(hashes) != 32 * len(slots):
            raise ValueError("it has other variables and outputs")
        for number, slot in enumerate(slots):
            digest = hashes[32 * number : 32 * (number + 1)]
            if digest != _NO_HASH:
                self._digests[slot.slot] = digest
        for name, (variable, _) in self.program.variables.items():
            if variable.kind == "local":
                saved = SavedCell(variable.type, state["cells"][name])
                if not self.runtime.state.restore({state_key(name): saved}):
                    raise ValueError(f"{name} has another size")
                self.keep(name, self._cell(variable))
        for step in self.program.steps:
            for output in step.outputs:
                if output.slot.slot in self._digests:
                    raw = kept(self.program.place_of(output))
                    if raw is None or not self._take(output.slot, raw):
                        self._dirty.add(step.id)
            if step.id in self.stale or step.id in self.errors:
                self._bad |= self._gives[step.id]

    def _take(self, slot: Slot, raw: bytes) -> bool:
        """Take in an output that was written; False where something else is at its path."""
        try:
            value = numbers.from_space(slot.type, raw)
        except errors.ArgumentInvalid:
            return False
        return not self._differs(slot, value) and self._put(slot, value)

    def keep(self, name: str, value: Value | Fault) -> bool:
        """Say whether a variable is what it was in the last written frame; then it is read so."""
        _, slot = self.program.variables[name]
        if isinstance(value, Fault):
            said = cut(value.message, ERROR_CHARS_MAX)
            return self.errors.get(name, "") in {said, value.message} and slot.slot in self._bad
        if slot.slot in self._bad or self._differs(slot, value):
            return False
        return self._put(slot, value)

    def _put(self, slot: Slot, value: Value) -> bool:
        """Put a value into its slot outside of any frame."""
        self.runtime.values.clear()
        self.runtime.values.write(slot.slot, value)
        self._had.add(slot.slot)
        return True

    # A frame

    def _at(self, slot: Slot) -> Value:
        return self.runtime.values.read(slot.slot)  # type: ignore[no-any-return]

    def _cell(self, variable: document.Variable) -> Value:
        """Return what a local variable keeps now."""
        kept = self.runtime.state.read(state_key(variable.name))
        return kept if variable.size > 1 else kept[0]

    def _read(self, slot: Slot | None) -> Value | None:
        if slot is None or slot.slot in self._bad or slot.slot not in self._had:
            return None
        return self._at(slot)

    def _differs(self, slot: Slot, value: Value) -> bool:
        """Say whether a checked value has other bits than the last one of its slot."""
        if slot.slot in self._had:
            return not same(slot.type, self._at(slot), value)
        known = self._digests.get(slot.slot)
        return known is None or known != numbers.digest_of(numbers.value_bytes(slot.type, value))

    def _write(self, slot: Slot, value: Value) -> bool:
        """Write a checked value; say whether its bits changed."""
        if changed := self._differs(slot, value):
            self._digests.pop(slot.slot, None)
        self.runtime.values.write(slot.slot, value)
        self._had.add(slot.slot)
        if changed:
            self._dirty.update(step.id for step in self._readers.get(slot.slot, ()))
        return changed

    def _fail(self, name: str, fault: Fault) -> None:
        """Note that a variable has no value that counts."""
        slot = self.program.variables[name][1].slot
        if slot not in self._bad:
            self._bad.add(slot)
            self._stir(slot)
        self.errors.pop(name, None)
        if fault.message:
            self.errors[name] = fault.message

    def _stir(self, slot: int) -> None:
        """Have the rules run again of cells of which a source came or went."""
        self._dirty.update(step.id for step in self._readers.get(slot, ()) if step.merges)

    def _enter(self, given: Mapping[str, Value | Fault]) -> None:
        for name, (variable, slot) in self.program.variables.items():
            value = given.get(name)
            try:
                if variable.kind == "local":
                    if value is not None and not isinstance(value, Fault):
                        self.runtime.state.push(state_key(name), value)
                    value = self._cell(variable)
                elif value is None and slot.slot not in self._had | self._bad:
                    value = variable.default
                if value is None:
                    continue
                if isinstance(value, Fault):
                    self._fail(name, value)
                    continue
                self._write(slot, _checked(variable, slot, value))
            except errors.ArgumentInvalid as fault:
                self._fail(name, Fault(fault.message))
                continue
            self.errors.pop(name, None)
            if slot.slot in self._bad:
                self._bad.discard(slot.slot)
                self._stir(slot.slot)

    def _lacks(self, step: Step) -> bool:
        """Say whether a computation lacks an input; the rule of a cell lacks one without any."""
        reads = self._reads[step.id]
        return reads <= self._bad if step.merges else not self._bad.isdisjoint(reads)

    def _is_due(self, step: Step) -> bool:
        """Say whether a computation must run, and mark what it gives as stale where it cannot."""
        if self._lacks(step):
            self.stale.add(step.id)
            if self.errors.pop(step.id, None) is not None:
                # What it failed with is forgotten with its error, so it must run again.
                self._dirty.add(step.id)
            self._bad |= self._gives[step.id]
            return False
        if step.id not in self._dirty and step.id in self.stale:
            # Its inputs are back, and are what it ran with.
            self.stale.discard(step.id)
            self._bad -= self._gives[step.id]
        return step.id in self._dirty

    def _inputs(self, step: Step) -> tuple[Value | None, ...]:
        return tuple(self._read(read.slot) for read in step.inputs)

    def _settle(
        self, step: Step, inputs: tuple[Value | None, ...], found: list[Value] | Fault
    ) -> None:
        """Record what a computation gave, and write it."""
        self._dirty.discard(step.id)
        self.stale.discard(step.id)
        if isinstance(found, Fault):
            self.errors[step.id] = found.message
            self._bad |= self._gives[step.id]
            return
        self.errors.pop(step.id, None)
        self._bad -= self._gives[step.id]
        for output, value in zip(step.outputs, found, strict=True):
            if self._write(output.slot, value):
                self._changed.add(output.name)
            if output.local:
                self._pushes[output.local] = value
        self._executed[step.id] = Executed(step, inputs, tuple(found))

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


def _call(step: Step, inputs: Sequence[Value | None]) -> Call:
    assert isinstance(step.function, document.ModuleCall)
    types = [read.slot.type for read in step.inputs]
    given = [(type_, one) for type_, one in zip(types, inputs, strict=True) if one is not None]
    return Call(step.id, step.function, given_to(step.function, given))


def _compute(step: Step, inputs: Sequence[Value | None]) -> list[Value] | Fault:
    assert not isinstance(step.function, document.ModuleCall)
    try:
        value = step.function.run(step.bound, *(one for one in inputs if one is not None))
        return [check_value(output.slot.type, value) for output in step.outputs]
    except (errors.XscError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
        return Fault(str(fault) or type(fault).__name__)


def _checked(variable: document.Variable, slot: Slot, value: Value) -> Value:
    if variable.kind == "given" and isinstance(value, bytes):
        # Larger than a program may make or read one: the node bounds it.
        if len(value) > limits.GIVEN_BYTES_MAX:
            raise errors.ArgumentInvalid(
                f"{len(value)} bytes are over the bound of {limits.GIVEN_BYTES_MAX}"
            )
        return value
    return check_value(slot.type, value)


def _results_of(step: Step, found: Given | Fault) -> list[Value] | Fault:
    if isinstance(found, Fault):
        return found
    wanted = 1 + max((output.result for output in step.outputs), default=-1)
    try:
        results = results_in(found)
        if len(results) != wanted:
            return Fault(f"the module gives {len(results)} results, and {wanted} are named")
        return [result_as(output.slot.type, results[output.result]) for output in step.outputs]
    except errors.XscError as fault:
        return Fault(fault.message)
