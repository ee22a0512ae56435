"""Every endpoint of `/v1`."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from xsc.node.build import Node
from xsc.node.routes import (
    allocation,
    backup,
    drain,
    evidence,
    jobs,
    ledger,
    market,
    objects,
    peers,
    programs,
    provenance,
    services,
    space,
    status,
    store,
    streams,
)


def all_routes(node: Node, home: Path) -> list[web.RouteDef]:
    """Return the endpoints of a node."""
    faults = objects.Faults()
    return [
        *status.routes(node, home),
        *peers.routes(node),
        *objects.routes(node, faults),
        *backup.routes(node, home, faults),
        *store.routes(node),
        *drain.routes(node),
        *jobs.routes(node),
        *streams.routes(node),
        *evidence.routes(node),
        *services.routes(node),
        *space.routes(node),
        *programs.routes(node),
        *provenance.routes(node),
        *market.routes(node),
        *allocation.routes(node),
        *ledger.routes(node),
    ]
