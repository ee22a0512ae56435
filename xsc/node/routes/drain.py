"""Endpoints of the drain: begin, progress, cancel, and the proof of what has moved."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiohttp import web

from xsc.base.ids import to_text
from xsc.base.limits import MIB
from xsc.node.api.app import reply, whole_number
from xsc.node.build import Node

WAIT_MS_MAX = 30_000


def _wait_ms(request: web.Request) -> int:
    return whole_number(request.query.get("wait_ms", "0"), "wait_ms", WAIT_MS_MAX)


def _spool(spool: IO[bytes], pieces: Iterator[bytes]) -> int:
    """Write all pieces and rewind; return their size in bytes."""
    size = 0
    for piece in pieces:
        size += spool.write(piece)
    spool.seek(0)
    return size


async def _document(node: Node, wait_ms: int = 0) -> dict[str, Any]:
    status = await node.storage.drain.status(wait_ms)
    remaining = status.remaining
    owed = [
        lease
        for lease in node.market.leases()
        if lease.role == "provider" and lease.due_micro > lease.settled_micro
    ]
    return {
        "state": status.phase,
        "since_ms": status.since_ms,
        "total_bytes": status.total_bytes,
        "left_bytes": remaining.left_bytes,
        "left_objects": remaining.left_objects,
        "released_objects": status.released_objects,
        "released_bytes": status.released_bytes,
        "peers_told": status.told,
        "peers": len(node.peers.peers()),
        "stuck_objects": remaining.stuck_objects,
        "stuck": [
            {
                "object": item.locate.hex(),
                "owner": to_text(item.customer),
                "size_bytes": item.size_bytes,
                "reason": item.reason,
            }
            for item in remaining.stuck
        ],
        "directories_only_here": [to_text(owner) for owner in remaining.only_here],
        "guarded_at_own_cost": sum(bool(item.held) for _, item in node.storage.custodian.objects()),
        "owed_micro": sum(lease.due_micro - lease.settled_micro for lease in owed),
    }


def routes(node: Node) -> list[web.RouteDef]:
    """Return the endpoints of the drain of a node."""
    drain = node.storage.drain

    async def begin(_: web.Request) -> web.Response:
        await drain.begin()
        return reply(await _document(node), status=202)

    async def look(request: web.Request) -> web.Response:
        return reply(await _document(node, _wait_ms(request)))

    async def cancel(_: web.Request) -> web.Response:
        await drain.cancel()
        return reply(await _document(node))

    async def proof(request: web.Request) -> web.StreamResponse:
        pieces = drain.proof()
        with SpooledTemporaryFile(max_size=8 * MIB) as spool:
            size = await node.parts.executor.run(_spool, spool, pieces)
            response = web.StreamResponse(
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            )
            await response.prepare(request)
            while block := spool.read(MIB):
                await response.write(block)
            await response.write_eof()
        return response

    return [
        web.post("/v1/drain", begin),
        web.get("/v1/drain", look),
        web.delete("/v1/drain", cancel),
        web.get("/v1/drain/proof", proof),
    ]
