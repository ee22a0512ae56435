"""What the node is and does."""

from __future__ import annotations

from collections import Counter

from xsc import __version__
from xsc.api.endpoint import Nothing
from xsc.api.status import (
    ComputeStatus,
    LeasesStatus,
    PeerHealth,
    PeersStatus,
    Status,
    StorageStatus,
    TrafficStatus,
    Version,
)
from xsc.base.fields import take_int
from xsc.node.build import Node
from xsc.node.routes.market import own_granted
from xsc.terms.quote import Kind
from xsc.terms.slot import STEP


async def status(node: Node, _: Nothing) -> Status:
    """Return the node's status."""
    sandbox = node.compute.describe()
    offered, granted = _levels(node)
    return Status(
        id=node.key.node_id,
        name=node.config.name,
        version=__version__,
        network=node.network,
        state="running",
        home=str(node.home),
        api_url=node.api_url,
        peer_url=node.peer_url,
        addresses=list(node.peers.own_address.addresses()),
        uptime_s=(node.clock.monotonic_ms() - node.started_ms) // 1000,
        peers=_peers(node),
        storage=StorageStatus(
            capacity_bytes=node.shards.capacity_bytes,
            used_bytes=node.shards.used_bytes,
            reserved_bytes=node.shards.reserved_bytes,
            offered_bytes=offered["storage"],
            granted_bytes=granted["storage"],
        ),
        compute=ComputeStatus(
            workers=take_int(sandbox, "workers"),
            running=take_int(sandbox, "running"),
            queued=take_int(sandbox, "queued"),
            offered_fuel_per_s=offered["compute"],
            granted_fuel_per_s=granted["compute"],
        ),
        leases=_leases(node),
        traffic=TrafficStatus(
            sent_bytes=node.peers.traffic.sent_bytes,
            received_bytes=node.peers.traffic.received_bytes,
        ),
    )


def _levels(node: Node) -> tuple[Counter[Kind], Counter[Kind]]:
    """Return what own slots offer now, and what they grant, by kind."""
    steps, now_ms = own_granted(node), node.clock.now_ms()
    offered, granted = Counter[Kind](), Counter[Kind]()
    for slot in node.commitments.own.slots:
        granted[slot.kind] += steps[slot.slot_id] * STEP[slot.kind]
        if slot.window_at(now_ms) is not None:
            offered[slot.kind] += slot.quantity * STEP[slot.kind]
    return offered, granted


def _peers(node: Node) -> PeersStatus:
    rows = node.health.table()
    up = [row for row in rows if row.state == "up"]
    return PeersStatus(
        known=len(rows),
        healthy=sum(node.health.is_up(row.node) for row in rows),
        reached_by=sum(row.reaches_us is True for row in up),
        not_reached_by=sum(row.reaches_us is False for row in up),
        clock_refused_by=sum(row.clock_refused for row in rows),
    )


def _leases(node: Node) -> LeasesStatus:
    soon = node.market.signing.ending(node.config.warned_ms)
    return LeasesStatus(
        ending=len(soon),
        # The list of objects is gone through only where there is something to find.
        objects=sum(bool(row.ending) for row in node.storage.ls()) if soon else 0,
        first_end_ms=soon[0].end_ms if soon else None,
        reasons=sorted({item.reason for item in soon if item.reason}),
    )


async def version(node: Node, _: Nothing) -> Version:
    """Say which XSC the node runs."""
    return Version(name=node.config.name, version=__version__, network=node.network)


async def health(node: Node, _: Nothing) -> list[PeerHealth]:
    """Return what probes say of each peer, and which clearing of it does not recompute."""
    false = node.allocator.records.false_clearings()
    return [
        PeerHealth(
            id=row.node,
            state=row.state,
            availability_ppm=row.availability_ppm,
            response_ms=row.response_ms,
            quality_ppm=row.quality_ppm,
            probes=row.probes,
            misses=row.misses,
            wrong=row.wrong,
            last_seen_ms=row.last_seen_ms,
            skew_ms=row.skew_ms,
            false_clearing=false.get(row.node),
        )
        for row in node.health.table()
    ]
