"""Runs jobs, here or on a provider, and runs the orders of others: both sides put together.

The rules are in `xsc.compute.jobs`: `tasks` reads a job, `customer` buys it, `executor`
runs orders, `replies` checks what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import encoding, ids, jobs, limits, peering
from xsc.compute.jobs import customer, output_buffer, quorum, replicated, runner
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.executor import JobExecutor
from xsc.compute.jobs.streams import RemoteOutput
from xsc.compute.ports import ComputeBook, ComputeLeases, InputObject, InputReader
from xsc.compute.wasm.sandbox import Sandbox
from xsc.identity.context import Context


class ComputeService:
    """Runs jobs here or on a provider, and runs the orders of other nodes."""

    def __init__(
        self,
        context: Context,
        *,
        leases: ComputeLeases,
        book: ComputeBook,
        sandbox: Sandbox,
        evidence: EvidenceStore,
        inputs: InputReader,
        compile_ms: int = limits.COMPILE_MS_DEFAULT,
    ) -> None:
        """Put it together; `compile_ms` is how long others may compile a module for this node."""
        self._sandbox = sandbox
        self.runner = runner.JobRunner(context, sandbox)
        self._job_executor = JobExecutor(context, book=book, inputs=inputs, runner=self.runner)
        self._streams = RemoteOutput(context.caller, context.clock, self._job_executor.output_of)
        self._customer = customer.JobCustomer(
            context,
            leases=leases,
            runner=self.runner,
            streams=self._streams,
            compile_ms=compile_ms,
        )
        self._replicated = replicated.ReplicatedRun(
            context, leases=leases, evidence=evidence, customer=self._customer
        )

    async def start(self) -> None:
        """Start the sandbox."""
        await self._sandbox.start()

    async def stop(self) -> None:
        """Stop the sandbox; running orders are not answered."""
        await self._job_executor.stop()
        await self._sandbox.stop()

    def describe(self) -> dict[str, encoding.Value]:
        """Return the sandbox's description of itself."""
        return self._sandbox.describe()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what peers may call."""
        return {**self._job_executor.handlers(), **self._streams.handlers()}

    async def run(
        self,
        spec: jobs.JobSpec,
        *,
        objects: Sequence[InputObject] = (),
        output: output_buffer.OutputBuffer | None = None,
    ) -> jobs.JobResult:
        """Run a job. What ended a run that began is the result's `trap`.

        Args:
            spec: the job; `spec.on` is a whole node id. Limits that it leaves open are the
                defaults of `xsc.base.limits`.
            objects: those that `spec.inputs` names. A provider with shards of one reads it itself.
            output: shows what the program writes while it runs, and can cancel the run; not where
                several providers run it.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch: it cannot run; nothing of a batch
                runs where one line is wrong.
            ArgumentInvalid, TooLarge: an input or limit is malformed or over a bound.
            NoOffers, PeerSilent, SandboxFailed: nobody ran it.
            ReceiptInvalid: the provider's receipt breaks a rule.
            NoAgreement: providers contradict each other.
        """
        task = await self.runner.read(spec, objects)
        on = None if spec.on is None else ids.from_text(spec.on)
        verification = None
        if spec.verify is not None:
            done, verification = await self._replicated.run(task, quorum.read_quorum(spec.verify))
        elif spec.local or on == self.runner.own:
            done = await self.runner.run_here(task, output)
        else:
            done = await self._customer.buy(task, on, output)
        return await self.runner.result(task, done, verification)
