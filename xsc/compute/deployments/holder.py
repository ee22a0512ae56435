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
from dataclasses import dataclass, replace

from xsc.base.clock import run_sized
from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    LeaseExhausted,
    ModuleUnknown,
    NotAllowed,
    NotFound,
    RateLimited,
    RecordInvalid,
    SpaceExhausted,
    UnavailableError,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_str
from xsc.base.ids import short
from xsc.base.limits import (
    FRAME_HEADER_BYTES_MAX,
    KIB,
    MIB,
    SERVICE_LOG_ROWS_MAX,
    SERVICE_PAGE_ROWS_MAX,
    SERVICE_RATES_MAX,
    SERVICE_RECORD_BYTES_MAX,
)
from xsc.base.merkle import Part
from xsc.compute.deployments import rules, wagi
from xsc.compute.deployments.pages import failures_in, noted, row_of
from xsc.compute.deployments.registry import ServiceEntry, ServiceRegistry
from xsc.compute.deployments.rules import ServiceAnswer, fault_answer
from xsc.compute.ports import Handler, ServiceBook
from xsc.compute.wasm.inputs import digest_of
from xsc.compute.wasm.program import read
from xsc.compute.wasm.sandbox import Sandbox
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.terms.deployment import Deployment
from xsc.terms.lease import OWN_COMPUTE, RunTerms

SERVICES_A_PEER_MAX = 8
SERVICE_UNPAID_ROWS_MAX = 2048
"""Receipts that the owner has not fetched; beyond that the service does not run."""
SERVICE_UNPAID_BYTES_MAX = 8 * MIB
"""The same in bytes: each holds the deployment, whole."""
SERVICE_PAGE_BYTES_MAX = 512 * KIB
SERVICE_LEASE_WAIT_MS = 3_000
"""How long a request waits at a holder for the owner to bring another lease."""
SERVICE_UNPAID_KEPT_MS = 24 * 3_600_000
"""How long a service is held whose owner says nothing."""
assert SERVICE_UNPAID_ROWS_MAX + SERVICE_PAGE_ROWS_MAX < SERVICE_LOG_ROWS_MAX
assert SERVICE_RECORD_BYTES_MAX + SERVICE_PAGE_BYTES_MAX < FRAME_HEADER_BYTES_MAX

_NONCE_BYTES = 16
_RETRY_S = 1
_UNPAID_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Served:
    """The answer to a request."""

    answer: ServiceAnswer
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
        sandbox: Sandbox,
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
        self._sandbox = sandbox
        self._serving = serving
        self._tasks: set[asyncio.Task[Served]] = set()

    async def stop(self) -> None:
        """Cancel running requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handlers(self) -> dict[str, Handler]:
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
                await service.gate.enter(service.active.record.concurrency)
            except RateLimited as fault:
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

    async def _work(self, service: ServiceEntry, request: wagi.Request) -> Served:
        signed = service.active
        try:
            return await self._served(service, signed, request)
        except (UnavailableError, RateLimited) as fault:
            service.refused += 1
            retry_after_s = fault.retry_after_s or _RETRY_S
            return Served(fault_answer(503, fault.message, retry_after_s=retry_after_s))
        except (CreditExceeded, LeaseExhausted):
            service.refused += 1
            service.starved = True
            reason = "the owner of this service does not pay for it at the moment"
            return Served(fault_answer(503, reason, retry_after_s=_UNPAID_RETRY_S))
        except XscError as fault:
            service.failures += 1
            return Served(fault_answer(502, f"the service cannot run: {fault.message}"))
        finally:
            service.gate.leave(service.active.record.concurrency)

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
            raise LeaseExhausted("the owner does not fetch its receipts")
        module = await self._registry.module(record.module)
        steps = rules.steps_of(record, record.fuel_max)
        lease_id, terms = await self._admitted(service, record, steps)
        nonce = self._context.entropy.token(_NONCE_BYTES)
        created_ms = self._clock.now_ms()
        began_ms = self._clock.monotonic_ms()
        used = 0
        try:
            asked = rules.job_of(
                record,
                module,
                given,
                nonce=nonce,
                clock_ms=created_ms,
                # One of this node is apart from its own runs; all of a peer have its one share.
                queue=record.owner if paid else signed.id,
            )
            job = replace(asked, tier=terms.tier, cleared=terms.cleared)
            result = await self._sandbox.run(job)
            used = rules.steps_of(record, rules.fuel_of(record, result))
        finally:
            self._book.used_compute(lease_id, steps, used)
        answer = rules.answer_of(result)
        receipt = rules.make_receipt(
            signed,
            given,
            result,
            lease_id=lease_id,
            price=terms.price,
            number=max(service.last + 1, created_ms),
            nonce=nonce,
            created_ms=created_ms,
            wall_ms=self._clock.monotonic_ms() - began_ms,
            status=answer.response.status,
        )
        raw = sign(receipt, self._context.key, self._context.network).raw if paid else b""
        row = row_of(receipt, record, noted(request, result, raw))
        if self._registry.get(service.key) is service:
            try:
                self._registry.add(service, [row], failures=failures_in([row]))
            except XscError as fault:
                # What was answered is answered, and without its row not billed.
                self._log.error("compute.service_log_not_written", reason=fault.message)
        return Served(answer, row.request_id)

    async def _admitted(
        self, service: ServiceEntry, record: Deployment, steps: int
    ) -> tuple[bytes, RunTerms]:
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
            with suppress(LeaseExhausted, RateLimited):
                terms = self._book.compute_terms(lease_id, record.owner, steps)
                await self._book.admit_compute(lease_id, record.owner, steps, 0)
                return lease_id, terms
        until_ms = self._clock.monotonic_ms() + record.timeout_ms
        while True:
            lease_id = service.lease_id if record.owner != self._own else OWN_COMPUTE
            left_ms = max(0, until_ms - self._clock.monotonic_ms())
            try:
                terms = self._book.compute_terms(lease_id, record.owner, steps)
                await self._book.admit_compute(lease_id, record.owner, steps, left_ms)
            except LeaseExhausted as fault:
                if not left_ms:
                    raise
                await self._another_lease(service, fault)
            else:
                return lease_id, terms

    async def _another_lease(self, service: ServiceEntry, fault: LeaseExhausted) -> None:
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
                    "compute.service_dropped", owner=short(service.key[0]), name=service.key[1]
                )
                await self._registry.drop(service)

    async def _on_deploy(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        if not self._serving:
            raise NotAllowed(
                f"{short(self._own)} serves no requests", hint="its operator sets services_listen"
            )
        signed = open_signed(
            take_bytes(header, "deployment"),
            Deployment,
            network=self._context.network,
            author=caller,
            size_max=SERVICE_RECORD_BYTES_MAX,
        )
        record = signed.record
        lease_id = take_bytes(header, "lease_id", size=32)
        with_module = take_bool(header, "module")
        if (record.owner, record.provider) != (caller, self._own):
            raise RecordInvalid("the deployment is between other nodes")
        if len(parts) != with_module:
            raise RecordInvalid("the request lacks the module or has a part too many")
        rules.check_received(record)
        self._check_lease(lease_id, record)
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
        self, service: ServiceEntry | None, signed: Signed[Deployment], parts: Sequence[Part]
    ) -> ServiceEntry:
        record = signed.record
        key = (record.owner, record.name)
        if service is None:
            held = sum(service.key[0] == record.owner for service in self._registry.all())
            if held >= SERVICES_A_PEER_MAX:
                raise SpaceExhausted(f"this node holds {SERVICES_A_PEER_MAX} services of yours")
            service = self._registry.new(key)
        elif record.generation <= service.active.record.generation:
            raise RecordInvalid("a later deployment of this service is held here")
        if self._registry.has_module(record.module):
            module = await self._registry.module(record.module)
            self._registry.check_room(key, record.module, len(module))
        elif parts:
            module = bytes(parts[0].data)
            self._registry.check_room(key, record.module, len(module))
            if await run_sized(self._executor, len(module), digest_of, module) != record.module:
                raise RecordInvalid("the module is not the one that the deployment names")
            rules.check_module_size(len(module))
            rules.check_program(await self._executor.run(read, module))
        else:
            self._registry.check_room(key, record.module, 0)
            raise ModuleUnknown("this node does not have the module")
        await self._sandbox.prepare(rules.module_job(record, module))
        await self._registry.keep(service, signed, module)
        self._log.info("compute.service_held", owner=short(record.owner), name=record.name)
        return service

    def _check_lease(self, lease_id: bytes, record: Deployment) -> None:
        """Return if a request can be run under the lease."""
        steps = rules.steps_of(record, record.fuel_max)
        self._book.compute_terms(lease_id, record.owner, steps)

    def _held(self, caller: bytes, header: dict[str, Value]) -> ServiceEntry:
        service = self._registry.get((caller, take_str(header, "name")))
        if service is None:
            raise NotFound("this node holds no such service of yours", hint="deploy it again")
        return service

    async def _on_undeploy(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        service = self._held(caller, header)
        async with self._registry.changing.of(service.key):
            await self._registry.drop(service)
        return {}, ()

    async def _on_collect(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        service = self._held(caller, header)
        lease_id = take_bytes(header, "lease_id", size=32)
        rates = tuple(
            take_bytes({"lease_id": each}, "lease_id", size=32)
            for each in take_list(header, "rates", most=SERVICE_RATES_MAX)
        )
        after = take_int(header, "after", most=2**62)
        # What the owner has, need not be kept here; and numbers grow from there on, whatever
        # the clock says after a restart.
        service.last = max(service.last, after)
        service.rows -= self._registry.store.cut(service.key, after)
        service.heard_ms = self._clock.monotonic_ms()
        starved, service.starved = service.starved, False
        service.lease_id, service.rates = lease_id, rates
        service.called.set()  # who waits for another lease looks at the one that it has now
        rows = self._registry.store.rows(
            service.key, most=SERVICE_PAGE_ROWS_MAX, size_max=SERVICE_PAGE_BYTES_MAX
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
