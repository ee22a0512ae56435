"""Space endpoints: get, put, delete, list, watch, count, diagnose and compact.

The query names a record as `at=[OWNER:]PATH` and a prefix as `under=[OWNER:]PREFIX`. OWNER is this
node or a peer, by name or id; without it this node is meant. Only this node's own space can be
written to, and only of it are replaced values kept: `sequence` names one. The body of a put is the
value itself. A watch is a stream of server-sent events, one a change, from the first line on.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode

from aiohttp import web

from xsc.api.schema import (
    Empty,
    ProgramRow,
    SpaceCausality,
    SpaceChange,
    SpaceDiagnostics,
    SpaceNode,
    SpaceRow,
    SpaceStats,
    SpaceSubscription,
    SpaceValue,
    SpaceWritten,
)
from xsc.base.errors import ArgumentInvalid, NotAllowed, NotFound
from xsc.base.ids import to_text
from xsc.node.api.app import read_body, read_bounded, reply, whole_number
from xsc.node.build import Node
from xsc.space.itc import event_bytes, interval_bytes
from xsc.space.limits import ACTIVE_MS, VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths, is_reserved, parse_address
from xsc.space.record import Entry, SpaceRecord, to_json
from xsc.space.service import Watch
from xsc.space.store import Stats

BEAT_MS = 5_000
"""A watch without a change sends a comment this often, so that each side notices if the other
is gone."""
_COMMENT = b":\n\n"


def _row(owner: bytes, record: SpaceRecord) -> dict[str, object]:
    return {
        "owner": to_text(owner),
        "path": record.path,
        "sequence": record.sequence,
        "size_bytes": record.size_bytes,
    }


def _stamp(record: SpaceRecord) -> dict[str, str]:
    return {"domain": to_text(record.domain), "events": b64encode(record.stamp).decode()}


def routes(node: Node) -> list[web.RouteDef]:
    """Return the space endpoints of a node."""

    def stats_of(found: Stats) -> web.Response:
        return reply(
            SpaceStats(
                records=found.records,
                live_bytes=found.live_bytes,
                disk_bytes=found.disk_bytes,
                subscriptions=node.sync.subscriptions(),
                received_bytes=node.sync.received_bytes,
                sent_bytes=node.sync.sent_bytes,
            )
        )

    def addressed(request: web.Request, name: str) -> tuple[bytes, str]:
        """Return the owner and the path that the query names; the path may be empty."""
        owner, path = parse_address(request.query.get(name, ""))
        return node.key.node_id if owner is None else node.find(owner), path

    def record_at(request: web.Request) -> tuple[bytes, str]:
        owner, path = addressed(request, "at")
        if not path:
            raise ArgumentInvalid("the path is missing", hint="write [OWNER:]part/part")
        return owner, path

    def own_record_at(request: web.Request) -> str:
        owner, path = record_at(request)
        if owner != node.key.node_id:
            raise NotAllowed(
                "only the owner of a space writes there", hint="without OWNER it is your own"
            )
        if is_reserved(path):
            raise ArgumentInvalid(
                f"only the node itself writes at '{path}'", hint="choose another first part"
            )
        return path

    def own_versions(request: web.Request) -> list[Entry]:
        owner, path = record_at(request)
        if owner != node.key.node_id:
            raise NotAllowed(
                "a node keeps replaced values of its own space only",
                hint="without OWNER it is your own",
            )
        return node.space.versions(path)

    async def versions(request: web.Request) -> web.Response:
        rows = [
            SpaceRow.model_validate(_row(entry.signed.author, entry.signed.record)).model_dump()
            for entry in own_versions(request)
        ]
        return reply({"records": rows})

    def version(request: web.Request) -> Entry:
        sequence = whole_number(request.query["sequence"], "sequence", 2**63 - 1)
        for entry in own_versions(request):
            if entry.signed.record.sequence == sequence:
                return entry
        raise NotFound(
            f"no replaced value of that path with the sequence {sequence} is kept",
            hint="`xsc space versions` lists those that are",
        )

    async def get(request: web.Request) -> web.Response:
        owner, path = record_at(request)
        older = "sequence" in request.query
        entry = version(request) if older else await node.read_space(owner, path)
        if entry.value is None:
            raise NotFound(f"the value at '{path}' is not on this node")
        record = entry.signed.record
        shown = _row(owner, record) | {"stamp": _stamp(record), "value": to_json(entry.value)}
        return reply(SpaceValue.model_validate(shown))

    def written(path: str, sequence: int) -> web.Response:
        owner = to_text(node.key.node_id)
        return reply(SpaceWritten(owner=owner, path=path, sequence=sequence))

    async def put(request: web.Request) -> web.Response:
        path = own_record_at(request)
        value = await read_bounded(request, VALUE_BYTES_MAX, "a value")
        return written(path, await node.space.put(path, value))

    async def remove(request: web.Request) -> web.Response:
        path = own_record_at(request)
        return written(path, await node.space.rm(path))

    async def listed(request: web.Request) -> web.Response:
        owner, prefix = addressed(request, "under")
        found = await node.parts.executor.run(node.space.ls, prefix, owner)
        rows = [SpaceRow.model_validate(_row(owner, record)).model_dump() for record in found]
        return reply({"records": rows})

    async def watch(request: web.Request) -> web.StreamResponse:
        owner, prefix = addressed(request, "under")
        watching = node.space.watch(prefix, owner)
        node.following.watch(owner, prefix)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await _tell(watching, response)
            await response.write_eof()
        finally:
            node.following.unwatch(owner, prefix)
            node.space.unwatch(watching)
        return response

    async def stats(_: web.Request) -> web.Response:
        return stats_of(await node.parts.executor.run(node.space.stats))

    async def compact(request: web.Request) -> web.Response:
        await read_body(request, Empty)
        return stats_of(await node.space.compact())

    async def diagnostics(_: web.Request) -> web.Response:
        now_ms, clock = node.clock.now_ms(), node.space_store.clock
        ages = {peer: max(0, now_ms - seen) for peer, seen in node.sync.seen_ms.items()}
        return reply(
            SpaceDiagnostics(
                programs=[
                    SpaceRow.model_validate(_row(node.key.node_id, record))
                    for record in node.space.ls(UserSpacePaths.PROGRAMS)
                ],
                running=[ProgramRow.model_validate(row) for row in node.programs.status()],
                subscriptions=[
                    SpaceSubscription(
                        owner=to_text(owner),
                        prefix=prefix,
                        cursor=cursor,
                        head_age_ms=ages.get(owner),
                    )
                    for owner, prefix, cursor in await node.sync.cursors()
                ],
                nodes=[
                    SpaceNode(
                        node=to_text(peer),
                        name=node.name_of(peer),
                        head_age_ms=ages.get(peer),
                        active=ages.get(peer, ACTIVE_MS + 1) <= ACTIVE_MS,
                    )
                    for peer in node.peers.peers()
                ],
                causality=SpaceCausality(
                    domain=None if clock is None else to_text(clock.domain),
                    interval=None
                    if clock is None
                    else b64encode(interval_bytes(clock.interval)).decode(),
                    stamp_bytes=0 if clock is None else len(event_bytes(clock.event)),
                ),
            )
        )

    return [
        web.get("/v1/space/record", get),
        web.put("/v1/space/record", put),
        web.delete("/v1/space/record", remove),
        web.get("/v1/space/records", listed),
        web.get("/v1/space/versions", versions),
        web.get("/v1/space/watch", watch),
        web.get("/v1/space/stats", stats),
        web.get("/v1/space/diagnostics", diagnostics),
        web.post("/v1/space/compact", compact),
    ]


async def _tell(watching: Watch, response: web.StreamResponse) -> None:
    """Send changes until the watch ends.

    Raises:
        ConnectionError: the client is gone.
    """
    await response.write(_COMMENT)  # the watch is open
    following = asyncio.create_task(watching.next())
    try:
        while True:
            await asyncio.wait({following}, timeout=BEAT_MS / 1000)
            if not following.done():
                await response.write(_COMMENT)
                continue
            change = following.result()
            if change is None:
                return
            shown = SpaceChange(
                owner=to_text(change.owner),
                path=change.path,
                sequence=change.sequence,
                value=to_json(change.value),
            )
            text = json.dumps(shown.model_dump(), ensure_ascii=False)
            await response.write(b"data: " + text.encode() + b"\n\n")
            following = asyncio.create_task(watching.next())
    finally:
        following.cancel()
