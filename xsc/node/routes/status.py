"""What the node is and does, and the link to its pages for a browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xsc import __version__
from xsc.api import status as api
from xsc.api.endpoint import Nothing, filled
from xsc.base.fields import take_int
from xsc.dashboard.session import CODE_MS
from xsc.health.service import HealthRow
from xsc.market.signing import LeaseExpiry
from xsc.node.build import Node
from xsc.node.routes.market import OwnSteps, own_steps
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP


async def status(node: Node, _: Nothing) -> api.Status:
    """Return the node's status."""
    return status_with(node, node.health.table(), own_steps(node))


def status_with(node: Node, peers: Sequence[HealthRow], steps: OwnSteps) -> api.Status:
    """Return the node's status, with peers as probes found them, and the steps of own slots."""
    sandbox = node.compute.describe()
    offered, granted = _levels(node, steps)
    return filled(
        api.Status,
        node,
        node.config,
        id=node.key.node_id,
        version=__version__,
        state="leaving" if node.departures.here else "running",
        home=str(node.home),
        addresses=list(node.peers.own_address.addresses()),
        uptime_s=(node.clock.monotonic_ms() - node.started_ms) // 1000,
        peers=_peers(node, peers),
        storage=filled(
            api.StorageStatus,
            node.shards,
            node.shards.writer,
            offered_bytes=offered["storage"],
            granted_bytes=granted["storage"],
            disk_free_bytes=node.parts.disk_free_bytes(),
        ),
        compute=api.ComputeStatus(
            **{name: take_int(sandbox, name) for name in ("workers", "running", "queued")},
            offered_fuel_per_s=offered["compute"],
            granted_fuel_per_s=granted["compute"],
        ),
        leases=_leases(node),
        traffic=filled(api.TrafficStatus, node.peers.traffic),
        alerts=len(node.alerts.shown()),
    )


def _levels(node: Node, steps: OwnSteps) -> tuple[Counter[Kind], Counter[Kind]]:
    """Return what own slots offer now, nothing of a node that leaves, and what they grant."""
    now_ms = node.clock.now_ms()
    offered, granted = Counter[Kind](), Counter[Kind]()
    for slot in node.commitments.own.slots:
        granted[slot.kind] += steps.granted[slot.slot_id] * STEP[slot.kind]
        if slot.window_at(now_ms) is not None and not node.departures.here:
            offered[slot.kind] += slot.quantity * STEP[slot.kind]
    return offered, granted


def _peers(node: Node, rows: Sequence[HealthRow]) -> api.PeersStatus:
    up = [row for row in rows if row.state == "up"]
    return api.PeersStatus(
        known=len(rows),
        healthy=sum(node.health.is_up(row.node) for row in rows),
        reached_by=sum(row.reaches_us is True for row in up),
        not_reached_by=sum(row.reaches_us is False for row in up),
        clock_refused_by=sum(row.clock_refused for row in rows),
    )


def _leases(node: Node) -> api.LeasesStatus:
    soon = node.market.signing.ending(node.config.warned_ms)
    return api.LeasesStatus(
        ending=len(soon),
        objects=_objects_under(node, soon),
        first_end_ms=soon[0].end_ms if soon else None,
        reasons=sorted({item.reason for item in soon if item.reason}),
    )


def _objects_under(node: Node, leases: Sequence[LeaseExpiry]) -> int:
    """Return how many own objects have something under leases that end.

    Going through all objects takes long: only where one or the other has changed.
    """
    seen = leases, node.directory.generation
    if node.watch.ending[0] != seen:
        objects = sum(bool(row.ending) for row in node.storage.ls()) if leases else 0
        node.watch.ending = seen, objects
    return node.watch.ending[1]


async def version(node: Node, _: Nothing) -> api.Version:
    """Say which XSC the node runs."""
    return api.Version(name=node.config.name, version=__version__, network=node.network)


async def health(node: Node, _: Nothing) -> list[api.PeerHealth]:
    """Return what probes say of each peer, and which clearing of it does not recompute."""
    false = node.allocator.records.false_clearings()
    return [
        filled(
            api.PeerHealth,
            row,
            node.challenges.summary(row.node),
            node.market.unproven(row.node),
            id=row.node,
            false_clearing=false.get(row.node),
        )
        for row in node.health.table()
    ]


async def login(node: Node, _: Nothing) -> api.Link:
    """Make a link to the dashboard."""
    return api.Link(url=f"{node.api_url}/login?code={node.sessions.new_code()}", good_ms=CODE_MS)
