"""Lists the services of this node's owner in its space, for whoever wants to call them.

Also those at peers: who looks for them asks their owner. What a node holds for others is listed
by those.
"""

from __future__ import annotations

import json

from xsc.base.ids import to_text
from xsc.compute.deployments.registry import ServiceEntry, ServiceRegistry
from xsc.space import paths, port


class ServiceListing:
    """Keeps the list in step with the own services."""

    def __init__(self, registry: ServiceRegistry, space: port.Space) -> None:
        self._registry = registry
        self._space = space

    async def run(self) -> None:
        """Write what has changed, now and after each change, until cancelled."""
        while True:
            self._registry.changed.clear()
            await self.publish()
            await self._registry.changed.wait()

    async def publish(self) -> None:
        """Write what the list lacks, and delete what is no service any more."""
        wanted = {
            paths.below(paths.UserSpacePaths.SERVICES, service.key[1]): self._row(service)
            for service in self._registry.all()
            if service.key[0] == self._space.owner
        }
        listed = {record.path for record in self._space.ls(paths.UserSpacePaths.SERVICES)}
        for path in listed - set(wanted):
            await self._space.rm(path)
        for path, value in wanted.items():
            if path not in listed or self._space.get(path).value != value:
                await self._space.put(path, value)

    def _row(self, service: ServiceEntry) -> bytes:
        record = service.active.record
        here = record.provider == self._space.owner
        base = self._registry.url if here else service.url
        row = {
            "version": record.version,
            "node": to_text(record.provider),
            "url": f"{base}/fn/{to_text(record.owner)}/{record.name}" if base else "",
            "module": record.module.hex(),
        }
        return json.dumps(row, sort_keys=True).encode()
