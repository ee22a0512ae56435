"""Evidence endpoints: what providers signed that cannot be true."""

from __future__ import annotations

from aiohttp import web

from xsc.base.ids import to_text
from xsc.node.api.app import reply
from xsc.node.build import Node


def routes(node: Node) -> list[web.RouteDef]:
    """Return the evidence endpoints of a node."""

    async def every(_: web.Request) -> web.Response:
        rows = [
            {
                "id": to_text(item.id),
                "found_ms": item.found_ms,
                "module": item.module.hex(),
                "function": item.function,
                "first": to_text(item.first),
                "first_name": node.name_of(item.first),
                "second": to_text(item.second),
                "second_name": node.name_of(item.second),
                "differs": list(item.differs),
            }
            for item in node.evidence.list()
        ]
        return reply({"evidence": rows})

    async def one(request: web.Request) -> web.Response:
        raw = node.evidence.get(request.match_info["id"])
        return web.Response(body=raw, content_type="application/cbor")

    return [web.get("/v1/compute/evidence", every), web.get("/v1/compute/evidence/{id}", one)]
