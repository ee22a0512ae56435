"""Buys runs: chooses a provider, orders, and pays for what it delivers once that was checked.

An order is sent without the module first. A provider that lacks the module says so, and is
sent the order again with it. The provider's side is `xsc.compute.jobs.executor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from xsc.base import clock, errors, limits, merkle, peering
from xsc.base.bounded import Bounded
from xsc.base.encoding import Value
from xsc.compute.jobs import locality, output_buffer, receipts, tasks
from xsc.compute.jobs.executor import RUN
from xsc.compute.jobs.replies import Asked, Delivered, read_reply
from xsc.compute.jobs.runner import JobRunner, brought
from xsc.compute.jobs.streams import RemoteOutput, settle_output
from xsc.compute.ports import ComputeLeases, InputObject
from xsc.compute.worker.quick import PATIENCE_MS, QuickFunctions
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.terms.execution import Order
from xsc.terms.lease import LeaseHandle

RATE_PAUSE_MS = 100
"""Before a provider that has too many requests of this node is asked again, within `--wait`."""


@dataclass(slots=True)
class Purchase:
    """A task that is being bought."""

    task: tasks.Task
    output: output_buffer.OutputBuffer | None
    """Where to show what it writes."""
    until_ms: int
    """Until when it may wait for its turn, by the steady clock."""
    module_sent_to: set[bytes] = field(default_factory=set)


class JobCustomer:
    """The customer's side of runs."""

    def __init__(
        self,
        context: Context,
        *,
        leases: ComputeLeases,
        runner: JobRunner,
        streams: RemoteOutput,
        compile_ms: int,
    ) -> None:
        """`runner` runs what this node orders from itself; `compile_ms` as for the service."""
        self._context = context
        self._leases = leases
        self._runner = runner
        self._streams = streams
        self._compile_ms = compile_ms
        self._holders = locality.ModuleHolders()
        self._quick = QuickFunctions()
        self._lost: Bounded[tuple[bytes, bytes], int] = Bounded(limits.MODULES_REMEMBERED_MAX)
        """When this node heard of a lost worker, by provider and module."""

    async def buy(
        self, task: tasks.Task, on: bytes | None, output: output_buffer.OutputBuffer | None
    ) -> Delivered:
        """Run a task on that node, or on the best of the market, and pay for it.

        Raises:
            NoOffers, PeerSilent, SandboxFailed, RateLimited: nobody ran it.
            ReceiptInvalid: the provider's receipt breaks a rule.
        """
        now = self._context.clock.monotonic_ms
        ordered: dict[bytes, Signed[Order]] = {}
        last: errors.XscError | None = None
        # As a rule, a module that some provider has need not be paid for again.
        compiling = not self._holders.of(task.module_hash)
        purchase = self.purchase(task, output)
        for _ in range(limits.PROVIDERS_TRIED_MAX):
            steps_max = task.steps(compiling=compiling)
            lease = await self._leases.lease_compute(
                fuel_steps=steps_max,
                on=on,
                wait_ms=max(0, purchase.until_ms - now()),
                saved=task.saved_by(self._holders.of(task.module_hash)),
            )
            if lease.node == self._runner.own:
                return await self._runner.run_here(task, output)
            # A second try under the same lease sends the same order: it is run once.
            if lease.lease_id not in ordered:
                ordered[lease.lease_id] = await self.order(task, lease)
            order = ordered[lease.lease_id]
            try:
                done = await self.bought(purchase, lease, order, steps_max)
            except (errors.PeerSilent, errors.SandboxFailed, errors.RateLimited) as fault:
                self._context.log.warning(
                    "compute.order_not_run", provider=lease.node.hex(), reason=fault.code
                )
                last = fault
                if output is not None and output.size_bytes:
                    break  # another run would not begin with the output that was shown
                if isinstance(fault, errors.RateLimited) and task.wait_ms:
                    if now() >= purchase.until_ms:
                        break
                    await self._context.clock.sleep_ms(RATE_PAUSE_MS)
            except errors.LeaseExhausted as fault:
                if compiling or lease.node not in purchase.module_sent_to:
                    # Another one is taken: this one is over by the provider's clock, or spent.
                    await self._leases.refused(lease.lease_id)
                compiling, last = True, fault
            else:
                receipt = done.receipt.record
                steps = receipts.billed_steps(order.record, receipt.outcome, receipt.observed)
                await self._leases.spent(lease.lease_id, steps)
                return done
        assert last is not None
        raise last

    def purchase(
        self, task: tasks.Task, output: output_buffer.OutputBuffer | None = None
    ) -> Purchase:
        """Begin to buy a task."""
        return Purchase(task, output, self._context.clock.monotonic_ms() + task.wait_ms)

    async def order(self, task: tasks.Task, lease: LeaseHandle) -> Signed[Order]:
        """Return an order for a task under a lease."""
        return await self._runner.order(task, lease.node, lease.lease_id)

    async def bought(
        self, purchase: Purchase, lease: LeaseHandle, order: Signed[Order], steps_max: int
    ) -> Delivered:
        """Return what a provider delivers; where it gives nothing, the run is not under way."""
        try:
            done = await self._ask(purchase, lease, order)
        except errors.XscError:
            self._leases.unused(lease.lease_id, steps_max)
            raise
        line = receipts.line_of(order.record, done.receipt.record)
        self._context.log.info("compute.invoked", peer=lease.node, **line)
        return done

    async def _ask(self, purchase: Purchase, lease: LeaseHandle, order: Signed[Order]) -> Delivered:
        """Return what a provider delivers, checked; nothing is paid."""
        output = purchase.output
        if output is None:
            return await self._deliver(purchase, lease, order)
        output_max = purchase.task.limits.output_bytes
        attending = asyncio.create_task(
            self._streams.attend(lease.node, order.record.nonce, output, output_max)
        )
        try:
            done = await self._deliver(purchase, lease, order)
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
        settle_output(output, done.stdout, done.stderr)
        return done

    async def _deliver(
        self, purchase: Purchase, lease: LeaseHandle, order: Signed[Order]
    ) -> Delivered:
        task, node = purchase.task, lease.node
        referred = locality.referred_to(node, task.objects)
        with_module = False
        reply: peering.Reply | None = None
        while reply is None:
            try:
                reply = await self._send(purchase, node, order, referred, with_module=with_module)
            except errors.ModuleUnknown:
                self._holders.forget(task.module_hash, node)
                if with_module:
                    raise
                with_module = True
                purchase.module_sent_to.add(node)
            except errors.InputUnavailable:
                if not referred:
                    raise
                referred = []
        now_ms = self._context.clock.now_ms()
        heard_ms = self._lost.get((node, task.module_hash))
        made_ms = order.record.created_ms
        asked = Asked(
            order,
            node,
            lease.price,
            module_sent=node in purchase.module_sent_to,
            saved_max=locality.saved_max(node, referred, 0 if with_module else len(task.module)),
            cancelled=purchase.output is not None and purchase.output.cancelled.is_set(),
            passed_ms=now_ms - made_ms,
            lost_before=heard_ms is not None
            and heard_ms < made_ms < heard_ms + limits.MODULE_LOST_MS // 2,
        )
        done = await clock.run_sized(
            self._context.executor,
            sum(map(len, reply.parts)),
            read_reply,
            task,
            asked,
            reply,
            self._context.network,
        )
        self._holders.note(task.module_hash, node)
        receipt = done.receipt.record
        if receipt.outcome.trap == "worker_lost":
            self._lost.put((node, task.module_hash), now_ms)
        if task.mode == "invoke":
            function = (task.module_hash, task.function)
            self._quick.took(function, receipt.outcome.fuel_used, receipt.observed.wall_ms)
        return done

    async def _send(
        self,
        purchase: Purchase,
        node: bytes,
        order: Signed[Order],
        referred: Sequence[InputObject],
        *,
        with_module: bool,
    ) -> peering.Reply:
        """Return the reply to an order; the provider reads the referred objects itself."""
        task = purchase.task
        wait_ms = max(0, purchase.until_ms - self._context.clock.monotonic_ms())
        here = [item for item in task.objects if item not in referred]
        header, bodies = tasks.message_of(
            await brought(task, here),
            order.raw,
            with_module=with_module,
            streamed=purchase.output is not None,
            wait_ms=wait_ms,
        )
        parts = await clock.run_sized(self._context.executor, sum(map(len, bodies)), _bind, bodies)
        if not with_module:
            reply = await self._send_shared(task, node, header, parts)
            if reply is not None:
                return reply
        timeout_ms = wait_ms + task.limits.timeout_ms + self._compile_ms + limits.PEER_TIMEOUT_MS
        return await self._context.caller.call(node, RUN, header, parts, timeout_ms=timeout_ms)

    async def _send_shared(
        self, task: tasks.Task, node: bytes, header: dict[str, Value], parts: Sequence[merkle.Part]
    ) -> peering.Reply | None:
        """Return the reply to a quick order, which may share its request; None: send it alone."""
        function = (task.module_hash, task.function)
        if task.mode != "invoke" or function not in self._quick:
            return None
        try:
            return await self._context.caller.call(
                node, RUN, {**header, "patience_ms": PATIENCE_MS}, parts
            )
        except errors.JobUnfinished:
            self._quick.failed(function)
            return None
        except errors.PeerSilent:
            self._quick.failed(function)
            raise


def _bind(bodies: Sequence[bytes]) -> list[merkle.Part]:
    return [merkle.Part(body, merkle.root_of(body)) for body in bodies]
