"""`GET /v1/node/backup`: everything that the node knows, as a stream."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from xsc.base.errors import ArgumentInvalid, XscError
from xsc.node.build import Node
from xsc.node.home.backup import letters_of, stream
from xsc.node.routes.objects import Faults

_SWITCH = {"0": False, "1": True}


def _asked(request: web.Request, name: str) -> bool:
    given = request.query.get(name, "1")
    if given not in _SWITCH:
        raise ArgumentInvalid(f"{name} must be 0 or 1")
    return _SWITCH[given]


def routes(node: Node, home: Path, faults: Faults) -> list[web.RouteDef]:
    """Return the backup endpoint of a node."""

    async def backup(request: web.Request) -> web.StreamResponse:
        identity, bodies = _asked(request, "identity"), _asked(request, "bodies")
        parts = node.parts
        pieces = stream(
            home,
            node.network,
            node.key,
            letters_of(parts, bodies=bodies),
            identity=identity,
            now_ms=parts.clock.now_ms(),
        )
        request_id = faults.begin()
        response = web.StreamResponse(
            headers={"Content-Type": "application/octet-stream", "XSC-Request-Id": request_id}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            # One frame at a time: reading, hashing and sealing keep nobody else waiting.
            while piece := await parts.executor.run(next, pieces, b""):
                await response.write(piece)
        except XscError as fault:
            node.log.warning("backup.interrupted", code=fault.code, fault=fault.message)
            return faults.break_off(request, response, request_id, fault)
        await response.write_eof()
        return response

    return [web.get("/v1/node/backup", backup)]
