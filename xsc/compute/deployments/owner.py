"""The owner's side of a service: signs deployments, places them, checks receipts and pays.

A deployment is held by this node or by a peer. For one at a peer the owner keeps a lease
open, fetches its receipts, checks each, and pays what holds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from xsc.base import clock, encoding, errors, fields, ids, merkle
from xsc.base.limits import (
    LEASE_TIMEOUT_MS,
    PEER_TIMEOUT_MS,
    SERVICE_COLLECT_TIMEOUT_MS,
    SERVICE_PAGE_ROWS_MAX,
    SERVICE_RATE_MS,
    SERVICE_RATES_MAX,
)
from xsc.compute.deployments import pages, rules
from xsc.compute.deployments.registry import ServiceEntry, ServiceRegistry, least_rate
from xsc.compute.deployments.store import LogRow, ServiceKey
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.ports import ServiceLeases
from xsc.compute.wasm import inputs, program
from xsc.compute.wasm.limits import Limits
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.terms.deployment import Deployment

_PAGES_A_TURN = 64
"""A holder that always has more to tell keeps no other service waiting."""
_STEPS_MAX = 2**63 - 1
"""Of a lease."""


class ServiceOwner:
    """Deploys services and pays for those at peers."""

    def __init__(
        self,
        context: Context,
        registry: ServiceRegistry,
        *,
        leases: ServiceLeases,
        runner: JobRunner,
        compile_ms: int,
    ) -> None:
        """`compile_ms`: how long others may compile a module for this node."""
        self._context = context
        self._own = context.key.node_id
        self._executor = context.executor
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._registry = registry
        self._leases = leases
        self._runner = runner
        self._began_ms = context.clock.monotonic_ms()
        self._place_timeout_ms = compile_ms + PEER_TIMEOUT_MS

    async def deploy(
        self,
        module: bytes,
        name: str,
        *,
        version: str | None = None,
        environment: Mapping[str, str] | None = None,
        limits: Limits,
        concurrency: int,
        on: bytes | None = None,
    ) -> ServiceEntry:
        """Make a module a service, or the next version of one, from now on.

        Args:
            module: a WASI command.
            name: of the service.
            version: its name; the next whole number where None.
            environment: variables beside those of each request.
            limits: of each request.
            concurrency: how many requests may run at once.
            on: the node that holds it; this one where None.

        Raises:
            ArgumentInvalid: a value is malformed, the version was another module, or the
                service is at another node.
            ModuleInvalid, ExportUnknown: it is no WASI command.
            SpaceExhausted: there are too many services or modules already.
            XscError: the peer does not take it.
        """
        rules.check_name(name)
        variables = rules.check_environment(environment or {})
        rules.check_concurrency(concurrency)
        if version is not None:
            rules.check_version(version)
        rules.check_program(await self._executor.run(program.read, module))
        digest = await clock.run_sized(self._executor, len(module), inputs.digest_of, module)
        key = (self._own, name)
        provider = self._own if on is None else on
        async with self._registry.changing.of(key):
            known = self._registry.get(key)
            versions = {} if known is None else known.versions
            if known is not None and known.active.record.provider != provider:
                raise errors.ArgumentInvalid(
                    f"'{name}' is deployed at {ids.short(known.active.record.provider)}",
                    hint="undeploy it there first, or choose another name",
                )
            now_ms = self._clock.now_ms()
            record = Deployment(
                owner=self._own,
                provider=provider,
                name=name,
                version=version or rules.next_version(versions),
                generation=rules.next_generation(versions.values(), now_ms),
                module=digest,
                environment=variables,
                fuel_max=limits.fuel,
                memory_bytes_max=limits.memory_bytes,
                timeout_ms=limits.timeout_ms,
                output_bytes_max=limits.output_bytes,
                concurrency=concurrency,
                created_ms=now_ms,
            )
            if record.version in versions and not rules.is_same_version(
                versions[record.version].record, record
            ):
                raise errors.ArgumentInvalid(
                    f"version {record.version} of '{name}' is another deployment already",
                    hint="choose another name for this version",
                )
            with self._registry.room_for(key, digest, len(module)):
                return await self._activate(key, record, module)

    async def rollback(self, name: str, to: str | None = None) -> ServiceEntry:
        """Go back to a version: requests that run end with the one that they began with.

        Args:
            name: of an own service.
            to: the version; what was active before where None.

        Raises:
            NotFound: no such service or version.
            XscError: the peer that holds it does not answer.
        """
        async with self._registry.changing.of((self._own, name)):
            service = self._registry.mine(name)
            chosen = rules.to_roll_back(name, service.versions, to).record
            now_ms = self._clock.now_ms()
            record = chosen.model_copy(
                update={
                    "generation": rules.next_generation(service.versions.values(), now_ms),
                    "created_ms": now_ms,
                }
            )
            return await self._activate(
                service.key, record, await self._registry.module(record.module, self._own)
            )

    async def undeploy(self, name: str) -> str:
        """Remove an own service with its versions and its log; return a warning, or nothing.

        A peer that does not answer finds out by itself, because nobody pays it any more.

        Raises:
            NotFound: there is none.
        """
        async with self._registry.changing.of((self._own, name)):
            service = self._registry.mine(name)
            provider = service.active.record.provider
            warning = ""
            if provider != self._own:
                warning = await self._part(service, provider)
            await self._registry.drop(service)
            return warning

    async def _part(self, service: ServiceEntry, provider: bytes) -> str:
        """Pay a holder for the last time and tell it to go; return a warning, or nothing."""
        warning = ""
        try:
            if not service.refuted:
                await self._collect(service)
        except errors.NotFound:
            return ""  # it is gone there already
        except errors.PeerSilent as fault:
            return _not_told(provider, fault)
        except errors.XscError as fault:
            warning = f"{ids.short(provider)} is not paid for the last requests: {fault.message}"
        try:
            await self._caller.call(
                provider,
                "service.undeploy",
                {"name": service.key[1]},
                timeout_ms=SERVICE_COLLECT_TIMEOUT_MS,
            )
        except errors.NotFound:
            pass
        except errors.XscError as fault:
            return _not_told(provider, fault)
        return warning

    async def _activate(self, key: ServiceKey, record: Deployment, module: bytes) -> ServiceEntry:
        signed = sign(record, self._context.key, self._context.network)
        service = self._registry.get(key) or self._registry.new(key)
        if record.provider != self._own:
            await self._place(service, signed, module)
        else:
            await self._runner.prepare(record.module, module, self._own)
        await self._registry.keep(service, signed, module)
        self._log.info("compute.service_deployed", service=record.name, version=record.version)
        return service

    async def _place(
        self, service: ServiceEntry, signed: Signed[Deployment], module: bytes
    ) -> None:
        """Have a peer hold a deployment, under a lease of its own."""
        record = signed.record
        await self._take_lease(service, record)
        header: dict[str, encoding.Value] = {
            "deployment": signed.raw,
            "lease_id": service.lease_id,
            "module": False,
        }
        try:
            reply = await self._caller.call(
                record.provider, "service.deploy", header, timeout_ms=self._place_timeout_ms
            )
        except errors.ModuleUnknown:
            root = await clock.run_sized(self._executor, len(module), merkle.root_of, module)
            reply = await self._caller.call(
                record.provider,
                "service.deploy",
                {**header, "module": True},
                [merkle.Part(module, root)],
                timeout_ms=self._place_timeout_ms,
            )
        service.url = pages.url_in(reply.header)
        service.fault, service.refuted, service.starved = "", False, False

    async def _take_lease(self, service: ServiceEntry, record: Deployment) -> None:
        """Take a lease under which two requests or more can be billed."""
        steps = min(2 * rules.steps_of(record), _STEPS_MAX)
        lease = await self._leases.lease_service(fuel_steps=steps, on=record.provider)
        service.lease_id = lease.lease_id
        # Until the holder says how much of it is left.
        service.lease_end_ms = self._clock.monotonic_ms() + 2 * LEASE_TIMEOUT_MS

    async def _see_to_lease(self, service: ServiceEntry, record: Deployment) -> None:
        """Replace the lease of a service in time: it ends, or has no room for two at once."""
        left_ms = service.lease_end_ms - self._clock.monotonic_ms()
        if not service.lease_id or service.starved or left_ms < LEASE_TIMEOUT_MS:
            await self._take_lease(service, record)
        elif self._requests_left(service, record) < 2:
            with suppress(errors.LimitError):  # the present one serves on, fewer at once
                await self._take_lease(service, record)

    def _requests_left(self, service: ServiceEntry, record: Deployment) -> int:
        """Return for how many requests at once there is room under the lease of a service."""
        known = self._leases.price_and_room(service.lease_id, record.provider)
        if known is None:
            return 2
        return known[1] // rules.steps_of(record)

    def rates(self, stated: Mapping[bytes, int]) -> dict[bytes, int]:
        """Return by holder the fuel steps a second that services of this node need there.

        Args:
            stated: by holder, what was stated before. What ran before this start is not known, so
                that does not fall until it has been measured for SERVICE_RATE_MS.
        """
        found, now_ms = Counter[bytes](), self._clock.now_ms()
        for service in self._registry.all():
            record = service.active.record
            if record.provider != self._own and not service.refuted:
                found[record.provider] += max(least_rate(record), service.ran.a_second(now_ms))
        if self._clock.monotonic_ms() - self._began_ms >= SERVICE_RATE_MS:
            return found
        return {node: max(rate, stated.get(node, 0)) for node, rate in found.items()}

    async def look_after_all(self) -> None:
        """Collect receipts of all services at peers, and pay them."""
        placed = [
            service
            for service in self._registry.all()
            if service.active.record.provider != self._own
        ]
        await asyncio.gather(*map(self._look_after, placed))

    async def _look_after(self, service: ServiceEntry) -> None:
        """Keep a service at a peer paid and its log here; what fails is tried again."""
        try:
            async with self._registry.changing.of(service.key):
                if self._registry.get(service.key) is service and not service.refuted:
                    await self._collect(service)
        except errors.XscError as fault:
            if service.fault != fault.message:
                self._log.warning(
                    "compute.service_not_reached", service=service.key[1], reason=fault.message
                )
            service.fault = fault.message

    async def _collect(self, service: ServiceEntry) -> None:
        """Fetch and check receipts, pay what holds, and see to the lease; for so long at most."""
        record = service.active.record
        began_ms = self._clock.monotonic_ms()
        for _ in range(_PAGES_A_TURN):
            before = service.lease_id
            await self._see_to_lease(service, record)
            reply = await self._caller.call(
                record.provider,
                "service.collect",
                {
                    "name": record.name,
                    "after": service.last,
                    "lease_id": service.lease_id,
                    "rates": list(self._leases.rates_at(record.provider)[:SERVICE_RATES_MAX]),
                },
                timeout_ms=SERVICE_COLLECT_TIMEOUT_MS,
            )
            rows = [
                LogRow.from_value(row)
                for row in fields.take_list(reply.header, "rows", most=SERVICE_PAGE_ROWS_MAX)
            ]
            more = fields.take_bool(reply.header, "more")
            service.starved = fields.take_bool(reply.header, "starved")
            left_ms = fields.take_int(reply.header, "lease_left_ms")
            service.lease_end_ms = self._clock.monotonic_ms() + left_ms
            url = pages.url_in(reply.header)
            if service.url != url:
                service.url = url
                self._registry.changed.set()
            if rows:
                await self._pay(service, rows)
            service.fault = ""
            took_ms = self._clock.monotonic_ms() - began_ms
            # Requests wait for another lease: it is taken at once, and not again in this turn.
            goes_on = (rows and more) or (service.starved and before == service.lease_id)
            if not goes_on or took_ms >= SERVICE_COLLECT_TIMEOUT_MS:
                return

    async def _pay(self, service: ServiceEntry, rows: Sequence[LogRow]) -> None:
        provider = service.active.record.provider
        try:
            claims = await self._executor.run(
                pages.open_claims,
                rows,
                after=service.last,
                name=service.key[1],
                owner=self._own,
                provider=provider,
                network=self._context.network,
            )
            leases = {claim.lease_id for claim in claims}
            terms = {lease: self._leases.price_and_room(lease, provider) for lease in leases}
            paid = pages.plan_payment(claims, terms, service.since)
        except (errors.PeerError, errors.TooLarge) as fault:
            service.refuted = True
            raise errors.ReceiptInvalid(
                f"a receipt of {ids.short(provider)} is refused, "
                f"and the service no longer paid: {fault.message}"
            ) from None
        if len(paid) < len(claims):
            count = len(claims) - len(paid)
            self._log.warning("compute.receipts_not_paid", service=service.key[1], count=count)
        self._registry.add(service, [claim.row for claim in paid])
        service.last = max(service.last, rows[-1].number)
        for claim in paid:
            known = self._leases.price_and_room(claim.lease_id, provider)
            # A holder that says more than a rate can have run raises no need by that.
            if known is not None and claim.steps <= known[1]:
                service.ran.note(claim.steps, self._clock.now_ms())
            await self._leases.spent(claim.lease_id, claim.steps)
        # The next call lets the holder forget these rows: row and payment must be on the disk.
        # The row comes first: a power loss in between loses a payment and never doubles one.
        await self._executor.run(self._registry.store.sync)


def _not_told(provider: bytes, fault: errors.XscError) -> str:
    return (
        f"{ids.short(provider)} was not told ({fault.message}): it stops within a "
        "minute, for nobody pays it, and drops the service after a day"
    )
