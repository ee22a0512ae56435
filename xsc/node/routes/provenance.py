"""The provenance endpoint: what is behind the value at a path of this node or of a peer.

The query names the value as `at=[OWNER:]PATH`; `replay=true` runs functions and modules again.
"""

from __future__ import annotations

from aiohttp import web

from xsc.allocation.gathered import parts_of
from xsc.api.schema import ProgramWhy
from xsc.base.errors import ArgumentInvalid
from xsc.node.api.app import reply
from xsc.node.build import Node
from xsc.programs.why import Why, to_json
from xsc.space.paths import parse_address


def routes(node: Node) -> list[web.RouteDef]:
    """Return the provenance endpoint of a node."""

    async def why(request: web.Request) -> web.Response:
        owner, path = parse_address(request.query.get("at", ""))
        if not path:
            raise ArgumentInvalid("the path is missing", hint="write [OWNER:]part/part")
        replayed = request.query.get("replay", "false")
        if replayed not in {"true", "false"}:
            raise ArgumentInvalid("replay is true or false")
        walk = Why(node.read_space, node.peers.network, parts_of, node.parts.executor)
        root = await walk.walk(node.key.node_id if owner is None else node.find(owner), path)
        if replayed == "true":
            await node.programs.rerun(root)
        return reply(ProgramWhy.model_validate(to_json(root)))

    return [web.get("/v1/provenance", why)]
