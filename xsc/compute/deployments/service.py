"""Programs that answer requests: deployed by an owner, held and run by a node.

Puts both sides together: `owner` deploys and pays, `holder` takes deployments and answers
requests, `registry` keeps what both know. Each request writes a row to the service's log;
rows of a service at a peer are made from its receipts, which is what the owner pays for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.api.services import WAIT_MS_MAX, Service, State
from xsc.base import errors, ids, limits, peering
from xsc.compute.deployments import holder, registry, store
from xsc.compute.deployments.owner import ServiceOwner
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.ports import ServiceBook, ServiceLeases
from xsc.identity.context import Context


class DeploymentService:
    """Deploys the services of this node, and serves those of its peers."""

    def __init__(
        self,
        context: Context,
        *,
        leases: ServiceLeases,
        book: ServiceBook,
        runner: JobRunner,
        serving: bool,
        compile_ms: int = limits.COMPILE_MS_DEFAULT,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Put it together.

        Args:
            context, leases, book, runner: what it consists of.
            serving: whether this node listens for requests, and so takes services of peers.
            compile_ms: how long others may compile a module for this node.
            on_change: called when a service is deployed, moved or removed.
        """
        self._own = context.key.node_id
        self._clock = context.clock
        self.registry = registry.ServiceRegistry(context, runner.modules, on_change)
        self.owner = ServiceOwner(
            context, self.registry, leases=leases, runner=runner, compile_ms=compile_ms
        )
        self.holder = holder.ServiceHolder(
            context, self.registry, book=book, runner=runner, serving=serving
        )

    async def start(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it fails its check.
        """
        self.registry.load()

    async def stop(self) -> None:
        """Cancel running requests."""
        await self.holder.stop()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what peers may call."""
        return self.holder.handlers()

    async def run(self) -> None:
        """Pay and watch services at peers, and drop those whose owner stays silent; no end."""
        while True:
            await self._clock.sleep_ms(limits.SERVICE_COLLECT_MS)
            await self.owner.look_after_all()
            await self.holder.drop_silent()

    async def module(self, digest: bytes) -> bytes | None:
        """Return the module of that SHA-256 where a service that is held here has it whole."""
        try:
            if self.registry.has_module(digest):
                return await self.registry.module(digest, self._own)
        except (errors.NotFound, errors.StoreDamaged):
            pass
        return None

    def views(self) -> list[Service]:
        """Return all services, own ones first, by name."""
        found = sorted(self.registry.all(), key=lambda each: (each.key[0] != self._own, each.key))
        return [self.view(service) for service in found]

    def view(self, service: registry.ServiceEntry) -> Service:
        """Return a service as the node's owner sees it."""
        record = service.active.record
        newest = sorted(
            service.versions.values(), key=lambda each: each.record.generation, reverse=True
        )
        here = record.provider == self._own
        base = self.registry.url if here else service.url
        owner = ids.to_text(record.owner)
        state: State = "placed"
        if here:
            state = "serving" if self.registry.url else "off"
            if record.owner != self._own and service.starved:
                state = "unpaid"
        return Service(
            owner=record.owner,
            name=record.name,
            node=record.provider,
            version=record.version,
            versions=tuple(each.record.version for each in newest),
            url=f"{base}/fn/{owner}/{record.name}" if base else "",
            state=state,
            fault=service.fault,
            running=service.running,
            waiting=service.waiting,
            requests=service.requests,
            failures=service.failures,
            refused=service.refused,
        )

    async def log_rows(
        self, name: str, *, after: int | None, most: int, wait_ms: int = 0
    ) -> list[store.LogRow]:
        """Return rows of an own service's log, in order.

        Args:
            name: of the service.
            after: the oldest rows after that number; None for the newest of all.
            most: how many at most.
            wait_ms: how long to wait for the first one, where there is none.

        Raises:
            NotFound: there is no such service.
        """
        service = self.registry.mine(name)
        told = service.told
        most = min(most, limits.SERVICE_LOG_ROWS_MAX)

        def found() -> list[store.LogRow]:
            return self.registry.store.rows(
                service.key,
                after=after or 0,
                newest=after is None,
                most=most,
                size_max=limits.SERVICE_LOG_ROWS_MAX * limits.RECORD_BYTES_MAX,
            )

        rows = found()
        if rows or not wait_ms:
            return rows
        try:
            async with asyncio.timeout(min(wait_ms, WAIT_MS_MAX) / 1000):
                await told.wait()
        except TimeoutError:
            return []
        return found()
