"""Market endpoints: what peers offer, and the leases of both roles."""

from __future__ import annotations

from aiohttp import web

from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.ids import to_text
from xsc.node.api.app import reply
from xsc.node.build import Node
from xsc.terms.quote import UNITS


def routes(node: Node) -> list[web.RouteDef]:
    """Return the market endpoints of a node."""

    async def offers(_: web.Request) -> web.Response:
        rows = [
            {
                "node": to_text(quote.provider),
                "name": node.name_of(quote.provider),
                "kind": kind,
                "tier": quote.tier,
                "price_micro": quote.price,
                "price_mutual_micro": quote.price_mutual,
                "price_one_way_micro": quote.price_one_way,
                "reserve_micro": quote.reserve,
                "available": quote.available,
                "unit": unit,
                "valid_until_ms": quote.valid_until_ms,
            }
            for kind, unit in UNITS.items()
            for quote in await node.market.quotes.offers(kind)
        ]
        return reply({"offers": rows})

    async def leases(_: web.Request) -> web.Response:
        rows = [
            {
                "lease_id": to_text(lease.lease_id),
                "role": lease.role,
                "peer": to_text(lease.peer),
                "name": node.name_of(lease.peer),
                "kind": lease.kind,
                "state": lease.status,
                "quantity": lease.quantity,
                "held_bytes": lease.held_bytes,
                "used": lease.used,
                "price_micro": lease.price,
                "due_micro": lease.due_micro,
                "settled_micro": lease.settled_micro,
                "start_ms": lease.start_ms,
                "end_ms": lease.end_ms,
                "renewals": lease.renewals,
            }
            for lease in node.market.leases()
        ]
        return reply({"leases": rows})

    async def lease(request: web.Request) -> web.Response:
        text = request.match_info["id"]
        found = {row.lease_id for row in node.market.leases()}
        ids = [lease_id for lease_id in found if to_text(lease_id).startswith(text)]
        if len(ids) != 1:
            raise NotFound(
                f"{'no' if not ids else 'more than one'} lease has an id that begins with '{text}'",
                hint="`xsc market leases` lists them",
            )
        record = node.market.lease_record
        for word, other in (
            ("renewal", node.market.renewal_record),
            ("denial", node.market.denial_record),
        ):
            asked = request.query.get(word, "0")
            if asked not in ("0", "1"):
                raise ArgumentInvalid(f"{word} must be 0 or 1")
            record = other if asked == "1" else record
        raw = record(ids[0])
        return web.Response(body=raw, content_type="application/cbor")

    return [
        web.get("/v1/market/offers", offers),
        web.get("/v1/market/leases", leases),
        web.get("/v1/market/leases/{id}", lease),
    ]
