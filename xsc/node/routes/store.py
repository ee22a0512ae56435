"""Endpoints about this node's own databases: checking them, and what is damaged."""

from __future__ import annotations

import json

from aiohttp import web

from xsc.base.errors import ArgumentInvalid
from xsc.identity.keys import network_id
from xsc.node.api.app import reply
from xsc.node.build import Node
from xsc.node.offline.fsck import document
from xsc.space import fsck

DAMAGED_MAX = 10_000
"""Listed at once; the number of all stands beside them."""


def routes(node: Node) -> list[web.RouteDef]:
    """Return the endpoints of the shard store of a node."""

    async def check(request: web.Request) -> web.Response:
        try:
            asked = json.loads(await request.text() or "{}")
        except ValueError:
            raise ArgumentInvalid("the request is no JSON document") from None
        if not isinstance(asked, dict) or not set(asked) <= {"deep"}:
            raise ArgumentInvalid("the request may say 'deep' and nothing else")
        deep = asked.get("deep", False)
        if not isinstance(deep, bool):
            raise ArgumentInvalid("'deep' must be true or false")
        audit = await node.shards.audit(deep=deep)
        parts = node.parts
        space = await parts.executor.run(fsck.audit, parts.space, network=network_id(node.network))
        index = "wrong" if audit.index_faults else "ok"
        return reply(document(audit, space) | {"index": index, "kept": None})

    async def damaged(_: web.Request) -> web.Response:
        known = node.shards.damaged
        return reply(
            {"damaged": [item.to_json() for item in known[:DAMAGED_MAX]], "count": len(known)}
        )

    async def collect(_: web.Request) -> web.Response:
        done = await node.collect_garbage()
        return reply(
            {
                "expired_bytes": done.swept.expired_bytes,
                "leftover_bytes": done.swept.leftover_bytes,
                "objects": done.swept.objects,
                "deletions_confirmed": done.deletions_confirmed,
                "deletions_open": done.deletions_open,
                "deletions_given_up": done.deletions_given_up,
                "reclaimed_bytes": done.reclaimed_bytes,
            }
        )

    return [
        web.post("/v1/storage/gc", collect),
        web.post("/v1/storage/fsck", check),
        web.get("/v1/storage/damaged", damaged),
    ]
