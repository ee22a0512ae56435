"""What the computations of a frame did, with the records that their inputs came from."""

from __future__ import annotations

from collections.abc import Mapping

from xsc.identity.envelope import Signed
from xsc.programs.compile import CompiledProgram, Step
from xsc.programs.document import Computation, ModuleCall
from xsc.programs.frame import Executed, FrameResult
from xsc.programs.numbers import Value, same
from xsc.programs.provenance import Evaluation, Input, Output, Source
from xsc.space.record import SpaceRecord


def evaluations_of(
    program: CompiledProgram,
    result: FrameResult,
    records: Mapping[str, tuple[bytes, Signed[SpaceRecord]]],
    receipts: Mapping[str, bytes],
) -> tuple[Evaluation, ...]:
    """Return what each computation of a frame did, in the order in which they ran.

    Args:
        program: whose frame it was.
        result: of the frame.
        records: by variable, the owner and the record that it had; those without a record are
            left out.
        receipts: of modules, by computation.
    """
    steps = {step.id: step for step in program.steps}
    computations = {item.id: item for item in program.program.document.computations}
    found = []
    for ran in result.executed:
        step = steps[ran.computation]
        call = step.function
        module = isinstance(call, ModuleCall)
        found.append(
            Evaluation(
                program=program.hash,
                frame=result.frame,
                computation=step.id,
                function=call.export if isinstance(call, ModuleCall) else call.name,
                version=call.module if isinstance(call, ModuleCall) else call.hash,  # type: ignore[arg-type]
                inputs=_inputs(program, step, computations[step.id], ran, records),
                outputs=tuple(
                    Output(o.name, o.slot.type, ran.outputs[o.name], o.path, o.local, o.result)
                    for o in step.outputs
                ),
                receipt=receipts.get(step.id) if module else None,
            )
        )
    return tuple(found)


def _inputs(
    program: CompiledProgram,
    step: Step,
    computation: Computation,
    ran: Executed,
    records: Mapping[str, tuple[bytes, Signed[SpaceRecord]]],
) -> tuple[Input, ...]:
    return tuple(
        Input(
            name,
            slot.type,
            ran.inputs[name],
            _source(program, computation.inputs[name], ran.inputs[name], records),
        )
        for name, slot in step.inputs
    )


def _source(
    program: CompiledProgram,
    name: str,
    value: Value,
    records: Mapping[str, tuple[bytes, Signed[SpaceRecord]]],
) -> Source:
    if name not in program.variables:
        derived = next(v for v in program.program.document.variables if v.name == name)
        return Source(kind="computation", place=f"{derived.computation}.{derived.output}")
    variable, slot = program.variables[name]
    if variable.kind == "local":
        return Source(kind="local", place=name)
    if variable.kind == "given":
        return Source(kind="given", place=name)
    if variable.kind == "value":
        kept = variable.default is not None and same(slot.type, value, variable.default)
        return Source(kind="value" if kept else "set")
    if name not in records:
        return Source(kind="default", place=variable.path)
    owner, signed = records[name]
    record = signed.record
    return Source(
        kind="space",
        place=record.path,
        owner=owner,
        sequence=record.sequence,
        record=signed.id,
        value=record.digest,
    )
