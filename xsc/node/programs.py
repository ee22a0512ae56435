"""What programs have of this node: its sandbox, and the program that comes with XSC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xsc.base import errors, jobs
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.wasm import sandbox, values
from xsc.programs.frame import Call, Fault
from xsc.programs.functions import Function
from xsc.terms.execution import Number

ALLOCATION: Final = b"""
id = "allocation"
version = "4"
description = "What this node grants of its slots, from what it and its peers have published."
debounce_ms = 0

[variables.gathered]    # commitments, recognition, draws, credit, room and time
kind = "given"
type = "bytes"

[variables.last]        # the state that was published before
kind = "given"
type = "bytes"

[computations.grant]
function = "allocation.state"
inputs = { gathered = "gathered", last = "last" }
outputs.state = { path = "allocation/state" }
"""


def allocation_function(state_of: Callable[[bytes, bytes], bytes]) -> Function:
    """Return the function of the allocation program. Who changes what it does raises its version.

    Args:
        state_of: gives the state of what was gathered and the last one.
    """
    params = {"gathered": "bytes", "last": "bytes"}
    return Function(
        "allocation.state", 5, params, "bytes", lambda _, gathered, last: state_of(gathered, last)
    )


class Exports:
    """Calls exports of modules for programs: jobs of this node that run here, with receipts."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    async def call(self, module: bytes, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        """Return the results of an export, or why there are none, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """
        asked = call.call
        assert isinstance(asked.module, bytes), "a resolved program names modules by hash"
        try:
            spec = jobs.JobSpec.invoke(
                module,
                asked.export,
                [values.format_number(number) for number in call.arguments],
                fuel=asked.fuel,
                memory_bytes=asked.memory_bytes,
                timeout_ms=asked.timeout_ms,
            )
            task = await self._runner.read(spec, (), asked.module)
            receipt = (await self._runner.run_here(task, None)).receipt
        except errors.XscError as fault:
            return Fault(f"{fault.code}: {fault.message}"), b""
        outcome = receipt.record.outcome
        if outcome.trap is not None:
            trap = sandbox.trap_error(outcome.trap)
            return Fault(f"{trap.code}: {trap.message}"), receipt.raw
        return outcome.results, receipt.raw
