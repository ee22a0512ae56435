"""Runs tasks and orders in this node's own sandbox, and signs receipts for them.

What this node orders from itself needs no lease, and nobody pays for it. A process without a
node can do that, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from xsc.base.bounded import Bounded
from xsc.base.clock import Clock, Entropy, Executor, run_sized
from xsc.base.jobs import JobResult, JobSpec, Verification
from xsc.base.limits import COMPUTE_WAIT_MS
from xsc.base.work import worked
from xsc.compute.jobs.output_buffer import OutputBuffer, run_streamed
from xsc.compute.jobs.receipts import job_of, make_receipt
from xsc.compute.jobs.replies import Delivered, result_of
from xsc.compute.jobs.tasks import Task, task_of
from xsc.compute.ports import InputObject
from xsc.compute.wasm.inputs import RunInput, digest_of, input_hash
from xsc.compute.wasm.limits import Limits, limits_of
from xsc.compute.wasm.program import Program, read
from xsc.compute.wasm.rows import calls_of
from xsc.compute.wasm.sandbox import Sandbox
from xsc.identity.batch_signer import BatchSigner
from xsc.identity.envelope import Signed
from xsc.identity.keys import KeyPair
from xsc.terms.execution import Order
from xsc.terms.lease import OWN_COMPUTE, RunTerms

PROGRAMS_REMEMBERED_MAX = 32
"""Modules whose declarations a customer need not read again."""

_NONCE_BYTES = 16
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

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        sandbox: Sandbox,
    ) -> None:
        self.own = key.node_id
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._sandbox = sandbox
        self.limits = Limits()
        """Those of jobs that name none."""
        self._signer = BatchSigner(key, network)
        self._programs: Bounded[bytes, Program] = Bounded(PROGRAMS_REMEMBERED_MAX)

    async def read(
        self, spec: JobSpec, objects: Sequence[InputObject], digest: bytes | None = None
    ) -> Task:
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
        spec = replace(spec, **asdict(limits_of(spec, self.limits)))
        if spec.mode != "batch":
            return task_of(spec, program, digest, objects)
        return await self._executor.run(task_of, spec, program, digest, objects)

    async def result(
        self, task: Task, done: Delivered, verification: Verification | None = None
    ) -> JobResult:
        """Return the result of a task; that of a batch is read in a thread."""
        if task.mode != "batch":
            return result_of(task, done, verification)
        return await self._executor.run(result_of, task, done, verification)

    async def run_here(self, task: Task, output: OutputBuffer | None) -> Delivered:
        """Run a task of this node here, where nobody is paid."""
        task = await brought(task, task.objects)
        order = await self.order(task, self.own, OWN_COMPUTE)
        granted = GrantedOrder(
            task.module, task.given, task.limits.output_bytes, wait_ms=task.wait_ms
        )
        return await self.fulfil(order, granted, output)

    async def order(self, task: Task, provider: bytes, lease_id: bytes) -> Signed[Order]:
        """Return a signed order of this node for a task."""
        order = task.order(
            nonce=self._entropy.token(_NONCE_BYTES),
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
    ) -> Delivered:
        """Run an order and sign its receipt; `waited_ms` counts towards how long it may wait."""
        started_ms = self._clock.now_ms()
        began_ms = self._clock.monotonic_ms()
        job = replace(
            job_of(order.record, granted.module, granted.given, granted.output_bytes),
            tier=granted.terms.tier,
            cleared=granted.terms.cleared,
            wait_ms=max(0, granted.wait_ms - waited_ms),
        )
        if output is None:
            result = await self._sandbox.run(job)
        else:
            result = await run_streamed(self._sandbox, job, output)
        wall_ms = self._clock.monotonic_ms() - began_ms
        if result.trap in ("cancelled", "compile_limit"):
            wall_ms = result.wall_ms
        worked(1000 * result.wall_ms)
        receipt = make_receipt(
            order,
            result,
            price=granted.terms.price,
            started_ms=started_ms,
            wall_ms=wall_ms,
            saved_bytes=granted.saved_bytes,
            compiled_bytes=len(granted.module) if granted.brought and result.compiled else 0,
            calls=calls_of(order.record.mode, granted.given.args),
        )
        signed = await self._signer.sign(receipt)
        return Delivered(signed, result.stdout, result.stderr, result.files)


async def brought(task: Task, objects: Sequence[InputObject]) -> Task:
    """Return a task with these of its objects read, as files of its input."""
    if not objects:
        return task
    files = [*task.given.files, *[(item.name, await item.read()) for item in objects]]
    given = replace(task.given, files=tuple(sorted(files)))
    others = tuple(item for item in task.objects if item not in objects)
    return replace(task, given=given, objects=others)
