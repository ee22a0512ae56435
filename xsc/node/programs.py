"""What programs have of this node: its sandbox, and the program that comes with XSC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xsc.base import errors, jobs
from xsc.base.text import cut
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.wasm import sandbox, values
from xsc.programs.frame import Call, Fault, Given
from xsc.programs.functions import Function

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
    """Runs modules for programs: jobs of this node that run here, with receipts."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    async def call(self, module: bytes, call: Call) -> tuple[Given | Fault, bytes]:
        """Return what a module gives, or why there is nothing, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """
        asked = call.call
        assert isinstance(asked.module, bytes), "a resolved program names modules by hash"
        limits: jobs.LimitOptions = {
            "fuel": asked.fuel,
            "memory_bytes": asked.memory_bytes,
            "timeout_ms": asked.timeout_ms,
        }
        if isinstance(call.given, bytes):
            spec = jobs.JobSpec.run(module, stdin=call.given, **limits)
        else:
            numbers = [values.format_bits(number.type, number.bits) for number in call.given]
            spec = jobs.JobSpec.invoke(module, asked.export, numbers, **limits)
        try:
            task = await self._runner.read(spec, (), asked.module)
            done = await self._runner.run_here(task, None)
        except errors.XscError as fault:
            return Fault(f"{fault.code}: {fault.message}"), b""
        receipt = done.receipt
        outcome = receipt.record.outcome
        if outcome.trap is not None:
            trap = sandbox.trap_error(outcome.trap)
            return Fault(f"{trap.code}: {trap.message}"), receipt.raw
        if outcome.exit_code:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            return Fault(cut(f"the filter ends with {outcome.exit_code}: {said}", 200)), receipt.raw
        return done.stdout if asked.is_filter else outcome.results, receipt.raw
