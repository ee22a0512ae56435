"""Peer endpoints: invite, join, list, rename, confirm, recognise, block, remove."""

from __future__ import annotations

from aiohttp import web

from xsc.api.schema import (
    Empty,
    InvitationRequest,
    JoinRequest,
    Peer,
    RecogniseRequest,
    RenameRequest,
)
from xsc.base.ids import to_text
from xsc.node.api.app import read_body, reply
from xsc.node.build import Node
from xsc.node.routes.ledger import shared_through


def _row(node: Node, peer: bytes) -> dict[str, object]:
    info = node.peers.info(peer)
    seen = node.health.row(peer)
    introducer = info.introducer
    return Peer(
        id=to_text(peer),
        name=info.name,
        addresses=list(info.addresses),
        state="blocked" if info.blocked else seen.state,
        reaches_us=seen.reaches_us,
        clock_refused=seen.clock_refused,
        introducer=None if introducer is None else to_text(introducer),
        introducer_name=None if introducer is None else node.name_of(introducer),
        hops=info.hops,
        confirmed=info.confirmed,
        availability_ppm=seen.availability_ppm,
        response_ms=seen.response_ms,
        last_seen_ms=seen.last_seen_ms,
        recognised_ppm=node.allocation.weight_ppm(peer),
        recognises_ppm=node.allocation.their_weight_ppm(peer),
        tier=node.allocation.tier(peer),
        balance_micro=node.ledger.balance(peer),
        limit_micro=node.ledger.limit(peer),
        shared_through=shared_through(node, peer),
    ).model_dump()


def routes(node: Node) -> list[web.RouteDef]:
    """Return the peer endpoints of a node."""

    def named(peer: bytes) -> dict[str, object]:
        return {"id": to_text(peer), "name": node.peers.info(peer).name}

    async def listing(_: web.Request) -> web.Response:
        return reply({"peers": [_row(node, peer) for peer in node.peers.roster.all_peers()]})

    async def invite(request: web.Request) -> web.Response:
        asked = await read_body(request, InvitationRequest)
        invitation = node.peers.joining.invite(asked.ttl_ms)
        return reply(
            {"invitation": invitation, "expires_ms": node.clock.now_ms() + asked.ttl_ms},
            status=201,
        )

    async def join(request: web.Request) -> web.Response:
        asked = await read_body(request, JoinRequest)
        peer = await node.join(asked.invitation, asked.name)
        return reply(named(peer), status=201)

    async def recognise(request: web.Request) -> web.Response:
        asked = await read_body(request, RecogniseRequest)
        peer = node.peers.find(request.match_info["who"])
        await node.allocation.recognise(peer, asked.weight_ppm)
        return reply({**named(peer), "weight_ppm": asked.weight_ppm})

    async def rename(request: web.Request) -> web.Response:
        asked = await read_body(request, RenameRequest)
        peer = node.peers.find(request.match_info["who"])
        node.peers.roster.rename(peer, asked.name)
        return reply(named(peer))

    async def confirm(request: web.Request) -> web.Response:
        await read_body(request, Empty)
        peer = node.peers.find(request.match_info["who"])
        node.peers.roster.confirm(peer)
        return reply(named(peer))

    async def block(request: web.Request) -> web.Response:
        await read_body(request, Empty)
        peer = node.peers.find(request.match_info["who"])
        # What it signed until now is booked while it can still be asked.
        await node.market.settlement.settle_with(peer)
        node.peers.roster.block(peer)
        return reply(named(peer))

    async def remove(request: web.Request) -> web.Response:
        peer = node.peers.find(request.match_info["who"])
        gone = named(peer)
        await node.market.settlement.settle_with(peer)
        node.peers.roster.remove(peer)
        return reply(gone)

    return [
        web.get("/v1/peers", listing),
        web.post("/v1/peers", join),
        web.post("/v1/peers/invitations", invite),
        web.post("/v1/peers/{who}/recognise", recognise),
        web.post("/v1/peers/{who}/rename", rename),
        web.post("/v1/peers/{who}/confirm", confirm),
        web.post("/v1/peers/{who}/block", block),
        web.delete("/v1/peers/{who}", remove),
    ]
