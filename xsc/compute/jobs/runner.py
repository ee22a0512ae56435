"""Runs tasks and orders in this node's own sandbox, and signs receipts for them.

What this node orders from itself needs no lease, and nobody pays for it. A process without a
node can do that, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xsc.base import jobs, work
from xsc.base.bounded import Bounded
from xsc.base.clock import run_sized
from xsc.base.limits import COMPUTE_WAIT_MS, MIB
from xsc.compute.jobs import receipts, tasks
from xsc.compute.jobs.output_buffer import OutputBuffer, run_streamed
from xsc.compute.jobs.replies import Delivered, result_of
from xsc.compute.ports import InputObject
from xsc.compute.wasm.inputs import RunInput, digest_of, input_hash
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.program import Program, read
from xsc.compute.wasm.rows import calls_of
from xsc.compute.wasm.sandbox import Job, Sandbox
from xsc.identity import batch_signer
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.terms.execution import Order, ServiceRequest
from xsc.terms.lease import OWN_COMPUTE, RunTerms

PROGRAMS_REMEMBERED_MAX = 32
"""Modules whose declarations a customer need not read again."""
MODULES_KEPT_BYTES_MAX = 256 * MIB
"""Modules in memory, of jobs and services."""
NONCE_BYTES = 16
FREE = RunTerms(price=0, tier="mutual", cleared=False)
"""The terms of what a node runs for itself."""


@dataclass(frozen=True, slots=True)
class GrantedOrder:
    """The checked content of an order, and its terms."""

    module: bytes
    given: RunInput
    output_bytes: int
    terms: RunTerms = FREE
    """Those of its lease."""
    wait_ms: int = COMPUTE_WAIT_MS
    """How long it may wait for its turn."""
    saved_bytes: int = 0
    """Bytes of module and input that this node had."""
    brought: bool = False
    """Whether the order brought the module."""


class JobRunner:
    """Runs tasks and orders here."""

    def __init__(self, context: Context, sandbox: Sandbox) -> None:
        self.own = context.key.node_id
        self._clock = context.clock
        self._entropy = context.entropy
        self._executor = context.executor
        self._log = context.log
        self.sandbox = sandbox
        self.modules: Bounded[bytes, bytes] = Bounded(size_max=MODULES_KEPT_BYTES_MAX)
        """In memory, by hash; each counts for the customer that brought it first."""
        self.limits = Limits()
        """Those of jobs that name none."""
        self._signer = batch_signer.BatchSigner(context.key, context.network)
        self._programs: Bounded[bytes, Program] = Bounded(PROGRAMS_REMEMBERED_MAX)

    async def prepare(self, module_hash: bytes, module: bytes, customer: bytes) -> None:
        """Have a module compiled before its first run; errors as `Sandbox.prepare` names them."""
        await self.sandbox.prepare(Job(module_hash, module, "run", customer=customer))

    async def read(
        self, spec: jobs.JobSpec, objects: Sequence[InputObject], digest: bytes | None = None
    ) -> tasks.Task:
        """Return a job as a task; `digest` is its module's SHA-256 where that is known.

        Raises:
            ModuleInvalid, ExportUnknown, SignatureMismatch, ArgumentInvalid, TooLarge: it cannot.
        """
        if digest is None:
            digest = await run_sized(self._executor, len(spec.module), digest_of, spec.module)
        program = self._programs.get(digest)
        if program is None:
            program = await self._executor.run(read, spec.module)
            self._programs.put(digest, program)
        given = (spec, program, digest, objects, self.limits)
        if spec.mode != "batch":
            return tasks.task_of(*given)
        return await self._executor.run(tasks.task_of, *given)

    async def result(
        self, task: tasks.Task, done: Delivered, verification: jobs.Verification | None = None
    ) -> jobs.JobResult:
        """Return the result of a task; that of a batch is read in a thread."""
        if task.mode != "batch":
            return result_of(task, done, verification)
        return await self._executor.run(result_of, task, done, verification)

    async def run_here(self, task: tasks.Task, output: OutputBuffer | None) -> Delivered:
        """Run a task of this node here, where nobody is paid."""
        task = await brought(task, task.objects)
        order = await self.order(task, self.own, OWN_COMPUTE)
        granted = GrantedOrder(
            task.module, task.given, task.limits.output_bytes, wait_ms=task.wait_ms
        )
        return await self.fulfil(order, granted, output)

    async def order(self, task: tasks.Task, provider: bytes, lease_id: bytes) -> Signed[Order]:
        """Return a signed order of this node for a task."""
        order = task.order(
            nonce=self._entropy.token(NONCE_BYTES),
            lease_id=lease_id,
            customer=self.own,
            provider=provider,
            input_hash=await run_sized(
                self._executor,
                task.given.size_bytes,
                input_hash,
                task.given,
                task.limits.output_bytes,
                [(item.name, item.digest) for item in task.objects],
            ),
            now_ms=self._clock.now_ms(),
        )
        return await self._signer.sign(order)

    async def fulfil(
        self,
        order: Signed[Order],
        granted: GrantedOrder,
        output: OutputBuffer | None = None,
        waited_ms: int = 0,
        request: ServiceRequest | None = None,
    ) -> Delivered:
        """Run an order and sign its receipt.

        Args:
            order: of a customer, or the one that a deployment stands for.
            granted: what it brings, and its terms.
            output: shows what the program writes.
            waited_ms: counts towards how long it may wait.
            request: the request that it is for, where a deployment stands for it.
        """
        started_ms = self._clock.now_ms()
        began_ms = self._clock.monotonic_ms()
        job = replace(
            receipts.job_of(order.record, granted.module, granted.given, granted.output_bytes),
            service=request is not None,
            # A service of this node is apart from its own runs; those of a peer share its place.
            customer=order.id if request and order.author == self.own else order.record.customer,
            tier=granted.terms.tier,
            cleared=granted.terms.cleared,
            wait_ms=max(0, granted.wait_ms - waited_ms),
        )
        if output is None:
            result = await self.sandbox.run(job)
        else:
            result = await run_streamed(self.sandbox, job, output)
        wall_ms = self._clock.monotonic_ms() - began_ms
        if result.trap in ("cancelled", "compile_limit"):
            wall_ms = result.wall_ms
        work.worked(1000 * result.wall_ms)
        receipt = receipts.make_receipt(
            order,
            result,
            price=granted.terms.price,
            started_ms=started_ms,
            wall_ms=wall_ms,
            saved_bytes=granted.saved_bytes,
            compiled_bytes=len(granted.module) if granted.brought and result.compiled else 0,
            calls=calls_of(order.record.mode, granted.given.args),
            request=request,
        )
        signed = await self._signer.sign(receipt)
        self._log.info(
            "compute.ran", peer=order.record.customer, **receipts.line_of(order.record, receipt)
        )
        return Delivered(signed, result.stdout, result.stderr, result.files)


async def brought(task: tasks.Task, objects: Sequence[InputObject]) -> tasks.Task:
    """Return a task with these of its objects read, as files of its input."""
    if not objects:
        return task
    files = [*task.given.files, *[(item.name, await item.read()) for item in objects]]
    given = replace(task.given, files=tuple(sorted(files)))
    others = tuple(item for item in task.objects if item not in objects)
    return replace(task, given=given, objects=others)
