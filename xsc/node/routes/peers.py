"""Peer endpoints: invite, join, list, rename, confirm, recognise, block, remove."""

from __future__ import annotations

from xsc.api import peers as api
from xsc.api.endpoint import NamedPeer, Nothing, filled
from xsc.node.build import Node
from xsc.node.routes.ledger import shared_through


def _row(node: Node, peer: bytes) -> api.Peer:
    info = node.peers.roster.info(peer)
    seen = node.health.row(peer)
    quota, now_ms = node.peers.server.quota, node.clock.monotonic_ms()
    units_left, synced_bytes_left = quota.left(peer, now_ms)
    spent = quota.spending.of(peer, now_ms)
    state = "leaving" if peer in node.departures.leaving() else seen.state
    return filled(
        api.Peer,
        info,
        seen,
        node.challenges.summary(peer),
        node.market.unproven(peer),
        id=peer,
        state="blocked" if info.blocked else state,
        recognised_ppm=node.commitments.weight_ppm(peer),
        recognises_ppm=node.commitments.their_weight_ppm(peer),
        tier=node.commitments.tier(peer),
        balance_micro=node.ledger.balance(peer),
        limit_micro=node.ledger.limit(peer),
        shared_through=shared_through(node, peer),
        spent=[
            api.Spent(method=method, units=units, processor_us=spent.processor_us[method])
            for method, units in sorted(spent.units.items())
        ],
        units_left=units_left,
        synced_bytes_left=synced_bytes_left,
    )


async def list_(node: Node, _: Nothing) -> list[api.Peer]:
    """List all known peers."""
    return [_row(node, peer) for peer in node.peers.roster.all_peers()]


async def invite(node: Node, asked: api.Invite) -> api.Invitation:
    """Make an invitation."""
    invitation = node.peers.invite(asked.ttl_ms)
    return api.Invitation(invitation=invitation, expires_ms=node.clock.now_ms() + asked.ttl_ms)


async def join(node: Node, asked: api.Join) -> NamedPeer:
    """Accept another node's invitation."""
    return NamedPeer(id=await node.join(asked.invitation, asked.name))


async def recognise(node: Node, asked: api.Recognise) -> api.RecognisedPeer:
    """Weigh a peer."""
    peer = node.peers.roster.find(asked.who)
    await node.commitments.recognise(peer, asked.weight_ppm)
    return api.RecognisedPeer(id=peer, weight_ppm=asked.weight_ppm)


async def rename(node: Node, asked: api.Rename) -> NamedPeer:
    """Name a peer."""
    peer = node.peers.roster.find(asked.who)
    node.peers.roster.rename(peer, asked.name)
    return NamedPeer(id=peer)


async def confirm(node: Node, asked: api.Who) -> NamedPeer:
    """Answer for an introduced peer."""
    peer = node.peers.roster.find(asked.who)
    node.peers.roster.confirm(peer)
    return NamedPeer(id=peer)


async def block(node: Node, asked: api.Who) -> NamedPeer:
    """Refuse a peer everything."""
    peer = node.peers.roster.find(asked.who)
    # What it signed until now is booked while it can still be asked.
    await node.market.settlement.settle_with(peer)
    node.peers.roster.block(peer)
    return NamedPeer(id=peer)


async def remove(node: Node, asked: api.Who) -> api.Forgotten:
    """Forget a peer."""
    peer = node.peers.roster.find(asked.who)
    gone = api.Forgotten(id=peer, name=node.name_of(peer))
    await node.market.settlement.settle_with(peer)
    node.peers.roster.remove(peer)
    return gone
