"""Calls exports of modules for programs: jobs of this node that run here, with receipts."""

from __future__ import annotations

from xsc.base.errors import XscError
from xsc.base.jobs import JobSpec
from xsc.compute.service import ComputeService
from xsc.compute.wasm.values import format_number
from xsc.identity.envelope import read_claimed
from xsc.programs.frame import Call, Fault
from xsc.terms.execution import ExecutionReceipt, Number


class Exports:
    """The sandbox as programs use it."""

    def __init__(self, compute: ComputeService, own: bytes, network: bytes) -> None:
        self._compute = compute
        self._own = own
        self._network = network

    async def call(self, module: bytes, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        """Return the results of an export, or why there are none, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """
        asked = call.call
        try:
            spec = JobSpec.invoke(
                module,
                asked.export,
                [format_number(number) for number in call.arguments],
                fuel=asked.fuel,
                memory_bytes=asked.memory_bytes,
                timeout_ms=asked.timeout_ms,
                local=True,
            )
            done = await self._compute.run(spec)
        except XscError as fault:
            return Fault(f"{fault.code}: {fault.message}"), b""
        if done.trap is not None:
            return Fault(f"{done.trap.code}: {done.trap.message}"), done.receipt
        receipt = read_claimed(
            done.receipt, ExecutionReceipt, network=self._network, author=self._own
        )
        return receipt.record.outcome.results, done.receipt
