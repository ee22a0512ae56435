"""The holder's side of a service: takes deployments of peers, and runs a program per request.

A request runs with the deployment that is active when its turn comes, to its end, whatever
is deployed meanwhile. It also runs to its end where its caller goes away: killing a worker
costs more than letting it finish. The holder keeps a receipt of each paid request until the
owner has fetched it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from xsc.base import encoding, errors, fields, ids, limits, merkle, peering
from xsc.base.clock import run_sized
from xsc.base.peering import Answered, Header, Parts
from xsc.compute.deployments import pages, rules, wagi
from xsc.compute.deployments.registry import ServiceEntry, ServiceRegistry
from xsc.compute.deployments.rules import fault_answer
from xsc.compute.deployments.wagi import Response
from xsc.compute.jobs.receipts import billed_steps, standing_order
from xsc.compute.jobs.runner import NONCE_BYTES, GrantedOrder, JobRunner
from xsc.compute.ports import ServiceBook
from xsc.compute.wasm import program, sandbox
from xsc.compute.wasm.inputs import digest_of, input_hash
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.terms import execution, lease
from xsc.terms.deployment import Deployment

SERVICE_QUEUE_MAX = 64
"""Requests that wait for one service."""
SERVICE_WAIT_MS_MAX = 10_000
"""How long a request waits for its turn."""
SERVICE_UNPAID_ROWS_MAX = 2048
"""Receipts that the owner has not fetched; beyond that the service does not run."""
SERVICE_UNPAID_BYTES_MAX = 8 * limits.MIB
"""The same in bytes: each holds the deployment, whole."""
SERVICE_PAGE_BYTES_MAX = 512 * limits.KIB
SERVICE_LEASE_WAIT_MS = 3_000
"""How long a request waits at a holder for the owner to bring another lease."""
SERVICE_UNPAID_KEPT_MS = 24 * 3_600_000
"""How long a service is held whose owner says nothing."""
assert SERVICE_UNPAID_ROWS_MAX + limits.SERVICE_PAGE_ROWS_MAX < limits.SERVICE_LOG_ROWS_MAX
assert limits.SERVICE_RECORD_BYTES_MAX + SERVICE_PAGE_BYTES_MAX < limits.FRAME_HEADER_BYTES_MAX

_RETRY_S = 1
_UNPAID_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Served:
    """What the caller of a service is answered."""

    response: Response
    request_id: str = ""
    """Empty where nothing ran."""


class ServiceHolder:
    """Holds services, its own node's and those of peers, and answers their requests."""

    def __init__(
        self,
        context: Context,
        registry: ServiceRegistry,
        *,
        book: ServiceBook,
        runner: JobRunner,
        serving: bool,
    ) -> None:
        """`serving`: whether this node listens for requests, and so takes services of peers."""
        self._context = context
        self._own = context.key.node_id
        self._executor = context.executor
        self._clock = context.clock
        self._log = context.log
        self._registry = registry
        self._book = book
        self._runner = runner
        self._serving = serving
        self._tasks: set[asyncio.Task[Served]] = set()

    async def stop(self) -> None:
        """Cancel running requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what peers may call."""
        return {
            "service.deploy": self._on_deploy,
            "service.undeploy": self._on_undeploy,
            "service.collect": self._on_collect,
        }

    def holds(self, owner: bytes, name: str) -> bool:
        """Say whether a service answers at this node."""
        service = self._registry.get((owner, name))
        return service is not None and service.active.record.provider == self._own

    async def answer(
        self,
        owner: bytes,
        name: str,
        request: wagi.Request,
        *,
        done: Callable[[], None] = lambda: None,
    ) -> Served:
        """Return what a service answers; whatever goes wrong is an answer, too.

        `done` is called once nothing needs the request any more, before this returns; where
        the caller goes away, when what runs has come to its end.
        """
        task: asyncio.Task[Served] | None = None
        try:
            service = self._registry.get((owner, name))
            if service is None or not self.holds(owner, name):
                return Served(fault_answer(404, "there is no such service here"))
            try:
                await self._take_turn(service)
            except errors.RateLimited as fault:
                service.refused += 1
                return Served(fault_answer(429, fault.message, retry_after_s=_RETRY_S))
            task = asyncio.create_task(self._work(service, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: done())
        finally:
            if task is None:
                done()
        # It goes on where the caller goes away.
        return await asyncio.shield(task)

    async def _take_turn(self, service: ServiceEntry) -> None:
        """Return once a request may run beside the others of its service, and count it.

        Raises:
            RateLimited: too many wait already, or it waited for too long.
        """
        if not service.has_turn() and service.waiting >= SERVICE_QUEUE_MAX:
            raise errors.RateLimited(f"{SERVICE_QUEUE_MAX} requests wait for this service already")
        service.waiting += 1
        try:
            async with asyncio.timeout(SERVICE_WAIT_MS_MAX / 1000), service.turn:
                await service.turn.wait_for(service.has_turn)
                service.running += 1
        except TimeoutError:
            raise errors.RateLimited(
                f"no request could be taken within {SERVICE_WAIT_MS_MAX} ms"
            ) from None
        finally:
            service.waiting -= 1

    async def _work(self, service: ServiceEntry, request: wagi.Request) -> Served:
        try:
            return await self._served(service, service.active, request)
        except (errors.UnavailableError, errors.RateLimited) as fault:
            service.refused += 1
            retry_after_s = fault.retry_after_s or _RETRY_S
            return Served(fault_answer(503, fault.message, retry_after_s=retry_after_s))
        except (errors.CreditExceeded, errors.LeaseExhausted):
            service.refused += 1
            service.starved = True
            reason = "the owner of this service does not pay for it at the moment"
            return Served(fault_answer(503, reason, retry_after_s=_UNPAID_RETRY_S))
        except errors.XscError as fault:
            service.failures += 1
            return Served(fault_answer(502, f"the service cannot run: {fault.message}"))
        finally:
            service.running -= 1
            await service.look_again()

    async def _served(
        self, service: ServiceEntry, signed: Signed[Deployment], request: wagi.Request
    ) -> Served:
        record = signed.record
        given = wagi.input_of(request, dict(record.environment))
        if given is None:
            return Served(fault_answer(431, "the head of the request is more than a program takes"))
        paid = record.owner != self._own
        unpaid_bytes = service.rows * len(signed.raw)
        if paid and (
            service.rows >= SERVICE_UNPAID_ROWS_MAX or unpaid_bytes >= SERVICE_UNPAID_BYTES_MAX
        ):
            raise errors.LeaseExhausted("the owner does not fetch its receipts")
        module = await self._registry.module(record.module, record.owner)
        steps = rules.steps_of(record)
        lease_id, terms = await self._admitted(service, record, steps)
        told = execution.ServiceRequest(
            lease_id=lease_id,
            nonce=self._context.entropy.token(NONCE_BYTES),
            created_ms=self._clock.now_ms(),
        )
        order = standing_order(signed, told, input_hash(given, record.output_bytes_max))
        granted = GrantedOrder(module, given, record.output_bytes_max, terms)
        used = 0
        try:
            done = await self._runner.fulfil(order, granted, request=told)
            receipt = done.receipt.record
            if receipt.outcome.trap in pages.UNPAID_TRAPS:
                raise sandbox.trap_error(receipt.outcome.trap)
            used = billed_steps(order.record, receipt.outcome, receipt.observed)
        finally:
            self._book.used_compute(lease_id, steps, used)
        response = rules.answer_of(receipt.outcome, done.stdout)
        row = pages.row_of(
            receipt,
            record.version,
            done.receipt.raw if paid else b"",
            number=max(service.last + 1, self._clock.now_ms()),
            method=request.method,
            path=request.raw_path,
            status=response.status,
            note=done.stderr[-pages.SERVICE_NOTE_BYTES_MAX :].decode("utf-8", "replace"),
        )
        if self._registry.get(service.key) is service:
            try:
                self._registry.add(service, [row])
            except errors.XscError as fault:
                # What was answered is answered, and without its row not billed.
                self._log.error("compute.service_log_not_written", reason=fault.message)
        return Served(response, row.request_id)

    async def _admitted(
        self, service: ServiceEntry, record: Deployment, steps: int
    ) -> tuple[bytes, lease.RunTerms]:
        """Admit a request; return its lease and terms.

        It runs at a cleared rate of the owner that has room for it now, else under the lease for
        now. Where the owner's other calls leave too little of that or of credit, it waits until
        they end; where the lease is used up, until the owner brings another, for
        SERVICE_LEASE_WAIT_MS at most. It waits for as long as it may run at most.

        Raises:
            LeaseExhausted, CreditExceeded: the owner does not pay for it.
            RateLimited: those that run did not end in time.
        """
        for lease_id in service.rates:
            with suppress(errors.LeaseExhausted, errors.RateLimited):
                terms = self._book.compute_terms(lease_id, record.owner, steps)
                await self._book.admit_compute(lease_id, record.owner, steps, 0)
                return lease_id, terms
        until_ms = self._clock.monotonic_ms() + record.timeout_ms
        while True:
            lease_id = service.lease_id if record.owner != self._own else lease.OWN_COMPUTE
            left_ms = max(0, until_ms - self._clock.monotonic_ms())
            try:
                terms = self._book.compute_terms(lease_id, record.owner, steps)
                await self._book.admit_compute(lease_id, record.owner, steps, left_ms)
            except errors.LeaseExhausted as fault:
                if not left_ms:
                    raise
                await self._another_lease(service, fault)
            else:
                return lease_id, terms

    async def _another_lease(self, service: ServiceEntry, fault: errors.LeaseExhausted) -> None:
        """Return once the owner has called, which is told that its lease is used up.

        Raises:
            LeaseExhausted: it has not called in time.
        """
        if service.key[0] == self._own:
            raise fault
        service.starved = True
        service.called.clear()
        try:
            async with asyncio.timeout(SERVICE_LEASE_WAIT_MS / 1000):
                await service.called.wait()
        except TimeoutError:
            raise fault from None

    async def drop_silent(self) -> None:
        """Drop services of peers that were silent for SERVICE_UNPAID_KEPT_MS."""
        now_ms = self._clock.monotonic_ms()
        for service in self._registry.all():
            mine = service.key[0] == self._own
            if not mine and now_ms - service.heard_ms > SERVICE_UNPAID_KEPT_MS:
                self._log.info(
                    "compute.service_dropped", owner=ids.short(service.key[0]), name=service.key[1]
                )
                await self._registry.drop(service)

    async def _on_deploy(self, caller: bytes, header: Header, parts: Parts) -> Answered:
        if not self._serving:
            raise errors.NotAllowed(
                f"{ids.short(self._own)} serves no requests",
                hint="its operator sets services_listen",
            )
        signed = open_signed(
            fields.take_bytes(header, "deployment"),
            Deployment,
            network=self._context.network,
            author=caller,
            size_max=limits.SERVICE_RECORD_BYTES_MAX,
        )
        record = signed.record
        lease_id = fields.take_bytes(header, "lease_id", size=32)
        with_module = fields.take_bool(header, "module")
        if (record.owner, record.provider) != (caller, self._own):
            raise errors.RecordInvalid("the deployment is between other nodes")
        if len(parts) != with_module:
            raise errors.RecordInvalid("the request lacks the module or has a part too many")
        rules.check_received(record)
        self._book.compute_terms(lease_id, record.owner, rules.steps_of(record))
        key = (caller, record.name)
        async with self._registry.changing.of(key):
            service = self._registry.get(key)
            if (
                service is None
                or record.version not in service.versions
                or (service.versions[record.version].id != signed.id)
            ):
                service = await self._accept(service, signed, parts)
            service.lease_id, service.starved = lease_id, False
            service.called.set()
            service.heard_ms = self._clock.monotonic_ms()
        return {"url": self._registry.url}, ()

    async def _accept(
        self, service: ServiceEntry | None, signed: Signed[Deployment], parts: Sequence[merkle.Part]
    ) -> ServiceEntry:
        record = signed.record
        key = (record.owner, record.name)
        if service is None:
            service = self._registry.new(key)
        elif record.generation <= service.active.record.generation:
            raise errors.RecordInvalid("a later deployment of this service is held here")
        known, module = self._registry.has_module(record.module), b""
        if known:
            module = await self._registry.module(record.module, record.owner)
        elif parts:
            module = bytes(parts[0].data)
        with self._registry.room_for(key, record.module, len(module)):
            if not known and not parts:
                raise errors.ModuleUnknown("this node does not have the module")
            if not known:
                if await run_sized(self._executor, len(module), digest_of, module) != record.module:
                    raise errors.RecordInvalid(
                        "the module is not the one that the deployment names"
                    )
                rules.check_program(await self._executor.run(program.read, module))
            await self._runner.prepare(record.module, module, record.owner)
            await self._registry.keep(service, signed, module)
        self._log.info("compute.service_held", owner=ids.short(record.owner), name=record.name)
        return service

    def _held(self, caller: bytes, header: dict[str, encoding.Value]) -> ServiceEntry:
        service = self._registry.get((caller, fields.take_str(header, "name")))
        if service is None:
            raise errors.NotFound(
                "this node holds no such service of yours", hint="deploy it again"
            )
        return service

    async def _on_undeploy(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        service = self._held(caller, header)
        async with self._registry.changing.of(service.key):
            await self._registry.drop(service)
        return {}, ()

    async def _on_collect(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        service = self._held(caller, header)
        lease_id = fields.take_bytes(header, "lease_id", size=32)
        rates = tuple(
            fields.take_bytes({"lease_id": each}, "lease_id", size=32)
            for each in fields.take_list(header, "rates", most=limits.SERVICE_RATES_MAX)
        )
        after = fields.take_int(header, "after", most=2**62)
        # What the owner has, need not be kept here; and numbers grow from there on, whatever
        # the clock says after a restart.
        service.last = max(service.last, after)
        service.rows -= self._registry.store.cut(service.key, after)
        service.heard_ms = self._clock.monotonic_ms()
        starved, service.starved = service.starved, False
        service.lease_id, service.rates = lease_id, rates
        service.called.set()  # who waits for another lease looks at the one that it has now
        rows = self._registry.store.rows(
            service.key, most=limits.SERVICE_PAGE_ROWS_MAX, size_max=SERVICE_PAGE_BYTES_MAX
        )
        end_ms = self._book.end_ms(lease_id)
        left_ms = 0 if end_ms is None else max(0, end_ms - self._clock.now_ms())
        return {
            "rows": [row.to_value() for row in rows],
            "more": len(rows) < service.rows,
            "starved": starved,
            "lease_left_ms": left_ms,
            "url": self._registry.url,
        }, ()
