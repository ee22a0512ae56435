"""Market endpoints: slots and needs, quotes of the peers, and the leases of both roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from xsc.allocation.declaring import Statement
from xsc.api.schema import SlotMade, SlotRow, SlotStatement, SlotWritten
from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.ids import to_text
from xsc.node.api.app import read_body, reply
from xsc.node.build import Node
from xsc.terms.quote import UNITS
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot


def _both(commitment: Commitment) -> tuple[AvailabilitySlot | NeedSlot, ...]:
    return (*commitment.slots, *commitment.needs)


def _statement(body: SlotStatement, find: Callable[[str], bytes]) -> Statement:
    """Return what a body states; `find` returns the node that a name or id means."""
    filters = None if body.filters is None else dict(body.filters)
    if filters is not None and "node" in filters:
        filters["node"] = to_text(find(filters["node"]))
    return Statement(
        quantity=body.quantity,
        quantity_min=body.quantity_min,
        from_ms=body.from_ms,
        to_ms=body.to_ms,
        every=body.every,
        price=body.price_micro,
        filters=None if filters is None else tuple(filters.items()),
        location=body.location,
        rule=body.rule,
    )


def routes(node: Node) -> list[web.RouteDef]:
    """Return the market endpoints of a node."""

    async def quotes(_: web.Request) -> web.Response:
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
        return reply({"quotes": rows})

    def slot_of(request: web.Request) -> bytes:
        """Return the id of the own slot or need that the path names by how it begins."""
        text, own = request.match_info["id"], _both(node.commitments.own)
        ids = [slot.slot_id for slot in own if to_text(slot.slot_id).startswith(text)]
        if len(ids) != 1:
            raise NotFound(
                f"{'no' if not ids else 'more than one'} own offer or need has an id that begins"
                f" with '{text}'",
                hint="`xsc market slots` lists them",
            )
        return ids[0]

    async def slots(_: web.Request) -> web.Response:
        rows = [
            SlotRow(
                id=to_text(slot.slot_id),
                role="offer" if isinstance(slot, AvailabilitySlot) else "need",
                node=to_text(owner),
                name=node.name_of(owner),
                kind=slot.kind,
                quantity=slot.quantity,
                price=slot.reserve if isinstance(slot, AvailabilitySlot) else slot.price_max,
                windows=list(slot.windows),
            ).model_dump()
            for owner in (node.key.node_id, *sorted(node.peers.roster.peers()))
            for slot in _both(node.commitments.of(owner))
        ]
        return reply({"slots": rows})

    async def declare(request: web.Request) -> web.Response:
        body = await read_body(request, SlotMade)
        said = _statement(body, node.find)
        if body.role == "offer":
            slot_id = await node.commitments.offer(body.kind, said)
        elif body.price_micro is None:
            most = node.config.storage_price_max_micro
            if body.kind == "compute":
                most = node.config.compute_price_max_micro
            elif body.kind == "egress":
                raise ArgumentInvalid(
                    "egress has no price of its own", hint="say what it may cost: --price"
                )
            slot_id = await node.commitments.need(body.kind, replace(said, price=most))
        else:
            slot_id = await node.commitments.need(body.kind, said)
        return reply(SlotWritten(id=to_text(slot_id)))

    async def edit(request: web.Request) -> web.Response:
        body = await read_body(request, SlotStatement)
        slot_id = slot_of(request)
        await node.commitments.edit(slot_id, _statement(body, node.find))
        return reply(SlotWritten(id=to_text(slot_id)))

    async def withdraw(request: web.Request) -> web.Response:
        slot_id = slot_of(request)
        await node.commitments.withdraw(slot_id)
        return reply(SlotWritten(id=to_text(slot_id)))

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
        web.get("/v1/market/slots", slots),
        web.post("/v1/market/slots", declare),
        web.put("/v1/market/slots/{id}", edit),
        web.delete("/v1/market/slots/{id}", withdraw),
        web.get("/v1/market/quotes", quotes),
        web.get("/v1/market/leases", leases),
        web.get("/v1/market/leases/{id}", lease),
    ]
