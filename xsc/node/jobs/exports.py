"""Calls exports of modules for programs: jobs of this node that run here, with receipts."""

from __future__ import annotations

from xsc.base.errors import XscError
from xsc.base.jobs import JobSpec
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.wasm.sandbox import trap_error
from xsc.compute.wasm.values import format_number
from xsc.programs.frame import Call, Fault
from xsc.terms.execution import Number


class Exports:
    """The sandbox as programs use it."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    async def call(self, module: bytes, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        """Return the results of an export, or why there are none, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """
        asked = call.call
        assert isinstance(asked.module, bytes), "a resolved program names modules by hash"
        try:
            spec = JobSpec.invoke(
                module,
                asked.export,
                [format_number(number) for number in call.arguments],
                fuel=asked.fuel,
                memory_bytes=asked.memory_bytes,
                timeout_ms=asked.timeout_ms,
            )
            task = await self._runner.read(spec, (), asked.module)
            receipt = (await self._runner.run_here(task, None)).receipt
        except XscError as fault:
            return Fault(f"{fault.code}: {fault.message}"), b""
        outcome = receipt.record.outcome
        if outcome.trap is not None:
            trap = trap_error(outcome.trap)
            return Fault(f"{trap.code}: {trap.message}"), receipt.raw
        return outcome.results, receipt.raw
