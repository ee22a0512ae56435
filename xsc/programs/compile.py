"""A resolved program as a schedule: typed slots, state cells, and computations in their order.

The order is Kahn's, ties by id, so that it does not depend on the order of lines. What would
go wrong in every frame is refused here (docs/design/programs.md, C1 to C7).
"""

from __future__ import annotations

import dataclasses
import graphlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xsc.base import errors, ids
from xsc.programs import limits, numbers, values
from xsc.programs.document import Computation, Document, ModuleCall, Output, Program, Variable
from xsc.programs.functions import Function, Functions
from xsc.programs.state import Const, ConstPool, StateCellLayout, StateLayout
from xsc.space.paths import UserSpacePaths, is_systems


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value is, and its type."""

    slot: int
    type: str


@dataclass(frozen=True, slots=True)
class Read:
    """An input of a step: its parameter, and the variable that is read."""

    param: str
    variable: Variable
    slot: Slot


@dataclass(frozen=True, slots=True)
class Published:
    """An output of a step: its slot, and where its value goes besides."""

    name: str
    slot: Slot
    path: str
    local: str
    result: int


@dataclass(frozen=True, slots=True)
class Step:
    """A computation with its inputs in the order of its parameters."""

    id: str
    function: Function | ModuleCall
    bound: str
    """What the type variable of a function stands for."""
    inputs: tuple[Read, ...]
    outputs: tuple[Published, ...]

    @property
    def merges(self) -> bool:
        """Whether it merges what the sources of a cell say."""
        return isinstance(self.function, Function) and self.function.merges

    @property
    def is_hidden(self) -> bool:
        """Whether it is that of a cell, and not in the document."""
        return "." in self.id


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """What frames run."""

    program: Program
    slot_meta: tuple[values.SlotMeta, ...]
    state_layout: StateLayout
    constants: ConstPool
    variables: Mapping[str, tuple[Variable, Slot]]
    """Those that a frame writes at its beginning: all but derived ones."""
    names: Mapping[str, Slot]
    """The slots of all variables."""
    steps: tuple[Step, ...]

    @property
    def hash(self) -> bytes:
        """The program hash."""
        return self.program.hash

    @property
    def slots(self) -> list[Slot]:
        """The slots of the variables that a frame writes, and of all outputs."""
        outputs = [output.slot for step in self.steps for output in step.outputs]
        return [*(slot for _, slot in self.variables.values()), *outputs]

    def place_of(self, output: Published) -> str:
        """Return where the value of an output is kept: at its own path, or below the program's."""
        return output.path or UserSpacePaths.result(self.hash, output.name)


def state_key(variable: str) -> tuple[str, str]:
    """Return the key of a local variable's cell."""
    return variable, "local"


def order(depends: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return ids so that each follows all that it depends on; of several, the least first.

    Raises:
        CycleError: some depend on each other; its second argument is the circle, backwards.
    """
    sorter = graphlib.TopologicalSorter(depends)
    sorter.prepare()
    ready, found = list(sorter.get_ready()), []
    heapq.heapify(ready)
    while ready:
        found.append(heapq.heappop(ready))
        sorter.done(found[-1])
        for name in sorter.get_ready():
            heapq.heappush(ready, name)
    return tuple(found)


class _Compiler:
    def __init__(self, document: Document, functions: Functions, built_in: bool) -> None:
        self.document = document
        self.functions = functions
        self.built_in = built_in
        self.computations = {item.id: item for item in document.computations}
        self.variables = {item.name: item for item in document.variables}
        self.metas: list[values.SlotMeta] = []
        self.sizes: dict[str, int] = {}
        self.values_bytes = 0
        self.outputs: dict[tuple[str, str], Slot] = {}
        self.slots: dict[str, Slot] = {}
        self.writers: dict[tuple[str, str], str] = {}

    def fault(self, message: str, *path: str) -> errors.ProgramInvalid:
        return self.document.fault(path, message)

    def slot(self, type_: str) -> Slot:
        storage = type_ if type_ in values.CODES else "object"
        offset = self.sizes.get(storage, 0)
        self.sizes[storage] = offset + 1
        self.values_bytes += numbers.size_max(type_)
        slot = Slot(len(self.metas), type_)
        self.metas.append(values.SlotMeta(slot.slot, storage, offset))
        return slot

    def schedule(self) -> tuple[str, ...]:
        """Return the order of the computations, after all references were checked."""
        for variable in self.variables.values():
            if variable.kind == "given" and not self.built_in:
                message = "'given' is a kind for programs that come with XSC"
                raise self.fault(message, "variables", variable.name, "kind")
            if variable.kind != "derived":
                continue
            source = self.computations.get(variable.computation)
            if source is None:
                message = f"no computation '{variable.computation}'"
                raise self.fault(message, "variables", variable.name, "computation")
            if variable.output not in {output.name for output in source.outputs}:
                message = f"the computation '{source.id}' has no output '{variable.output}'"
                raise self.fault(message, "variables", variable.name, "output")
        depends: dict[str, set[str]] = {}
        for name, computation in self.computations.items():
            if name in self.variables:
                raise self.fault("is the name of a variable too", "computations", name)
            depends[name] = set()
            for param, read in computation.inputs.items():
                if read not in self.variables:
                    message = f"no variable '{read}'"
                    raise self.fault(message, "computations", name, "inputs", param)
                if self.variables[read].kind == "derived":
                    depends[name].add(self.variables[read].computation)
        try:
            return order(depends)
        except graphlib.CycleError as fault:
            circle = fault.args[1][:0:-1]
            first = circle.index(min(circle))
            named = " < ".join([*circle[first:], *circle[:first], circle[first]])
            raise self.fault(f"depends on itself: {named}", "computations", min(circle)) from None

    def step(self, computation: Computation) -> Step:
        types = {param: self.slots[name].type for param, name in computation.inputs.items()}
        at = ("computations", computation.id)
        call = computation.function
        function: Function | ModuleCall
        if isinstance(call, ModuleCall):
            function, bound, results = call, "", []
            ordered = tuple(sorted(types))
            for param, type_ in types.items():
                if not call.is_filter and type_ not in numbers.EXPORTED:
                    message = f"a module takes no {type_} by an export"
                    raise self.fault(message, *at, "inputs", param)
            wanted = {output.result for output in computation.outputs}
            if wanted != set(range(len(wanted))):
                raise self.fault("the results of a module are used from 0 on", *at, "outputs")
        else:
            try:
                function = self.functions.get(call)
                ordered = function.order(types)
                bound, result = function.bind(types)
            except errors.ProgramInvalid as fault:
                raise self.fault(fault.message, *at) from None
            results = [result]
        outputs = []
        for output in computation.outputs:
            place = (*at, "outputs", output.name)
            if isinstance(function, ModuleCall):
                if not function.is_filter and output.type not in numbers.EXPORTED:
                    raise self.fault("a module's output needs a type of numbers", *place)
                if not output.type:
                    raise self.fault("a module's output needs a type", *place)
                type_ = output.type
            else:
                if output.result:
                    raise self.fault("a function has one result", *place, "result")
                type_ = results[0]
                if output.type not in {"", type_}:
                    raise self.fault(f"{function.show()} gives a {type_}", *place, "type")
            self.claim("the output name", output.name, place)
            if output.path:
                self.claim("the path", output.path, place)
                if is_systems(output.path) and not self.built_in:
                    raise self.fault(f"XSC alone writes at '{output.path}'", *place, "path")
            if output.local:
                self.claim("the local variable", output.local, place)
                target = self.variables.get(output.local)
                if target is None or target.kind != "local":
                    raise self.fault(f"no local variable '{output.local}'", *place, "local")
                if target.type != type_:
                    message = f"a {type_} does not fit the {target.type} '{target.name}'"
                    raise self.fault(message, *place, "local")
            slot = self.slot(type_)
            self.outputs[computation.id, output.name] = slot
            outputs.append(Published(output.name, slot, output.path, output.local, output.result))
        inputs = tuple(
            Read(param, self.variables[name], self.slots[name])
            for param, name in ((param, computation.inputs[param]) for param in ordered)
        )
        return Step(computation.id, function, bound, inputs, tuple(outputs))

    def claim(self, what: str, name: str, place: tuple[str, ...]) -> None:
        """Refuse a second writer."""
        if other := self.writers.get((what, name)):
            message = f"{what} '{name}' has two writers: {other} and {place[1]}"
            raise self.fault(message, *place)
        self.writers[what, name] = place[1]

    def state(self) -> tuple[StateLayout, ConstPool]:
        sizes = {"f64": 0, "f32": 0, "i32": 0}
        cells, constants = [], {}
        for name, variable in self.variables.items():
            if variable.kind != "local" or variable.default is None:
                continue
            kind = variable.type
            constants[name] = Const(kind, variable.default)
            node, role = state_key(name)
            cells.append(StateCellLayout(name, kind, sizes[kind], variable.size, node, role, name))
            sizes[kind] += variable.size
        if sum(sizes.values()) > limits.STATE_CELLS_MAX:
            kept, most = sum(sizes.values()), limits.STATE_CELLS_MAX
            raise self.fault(f"local variables keep {kept} values, {most} at most", "variables")
        return StateLayout(tuple(cells), sizes["f64"], sizes["f32"], sizes["i32"]), constants

    def compile(self, program: Program) -> CompiledProgram:
        schedule = self.schedule()
        entering = {}
        for name, variable in self.variables.items():
            if variable.kind != "derived":
                self.slots[name] = self.slot(variable.value_type)
                entering[name] = (variable, self.slots[name])
        derived: dict[str, list[Variable]] = {}
        for variable in self.variables.values():
            if variable.kind == "derived":
                derived.setdefault(variable.computation, []).append(variable)
        steps = []
        for name in schedule:
            steps.append(self.step(self.computations[name]))
            for variable in derived.get(name, ()):
                self.slots[variable.name] = self.outputs[name, variable.output]
        if self.values_bytes > limits.PROGRAM_VALUES_BYTES_MAX:
            message = (
                f"variables and outputs can take {self.values_bytes} bytes, "
                f"{limits.PROGRAM_VALUES_BYTES_MAX} at most"
            )
            raise self.fault(message, "variables")
        layout, constants = self.state()
        return CompiledProgram(
            program, tuple(self.metas), layout, constants, entering, dict(self.slots), tuple(steps)
        )


def without_cells(document: Document) -> Document:
    """Return a document in which cells are what they stand for.

    Each is the output of a computation that merges subscriptions, one to each source.
    """
    variables, computations = [], list(document.computations)
    for variable in document.variables:
        name = variable.name
        if variable.kind != "cell":
            variables.append(variable)
            continue
        read = {}
        for source in variable.sources or (None,):
            label = "own" if source is None else ids.short(source)  # type: ignore[arg-type]
            read[label] = f"{name}.{label}"
            part = {"name": read[label], "kind": "subscription", "owner": source}
            variables.append(dataclasses.replace(variable, **part))  # type: ignore[arg-type]
        merged = f"{name}.merge"
        variables.append(Variable(name, "derived", computation=merged, output=merged))
        computations.append(Computation(merged, f"merge.{variable.merge}", read, (Output(merged),)))
    return dataclasses.replace(
        document, variables=tuple(variables), computations=tuple(computations)
    )


def compile_program(
    program: Program, functions: Functions, *, built_in: bool = False
) -> CompiledProgram:
    """Return the schedule of a program.

    Args:
        program: as `resolve` returns it.
        functions: what computations may call.
        built_in: whether it is XSC's own, and may publish where XSC writes.

    Raises:
        ProgramInvalid: the message names line and path.
    """
    return _Compiler(without_cells(program.document), functions, built_in).compile(program)
