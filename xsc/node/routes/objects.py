"""Object endpoints: put, get, list, stat, remove.

A capability travels in a header and never in a path, so that no log of
requests holds one.
"""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import lru_cache
from urllib.parse import unquote

from aiohttp import web

from xsc.api import ranges
from xsc.api.problems import problem
from xsc.base.bounded import Bounded
from xsc.base.errors import (
    ArgumentInvalid,
    CapabilityInvalid,
    NotFound,
    RangeUnsatisfiable,
    XscError,
)
from xsc.base.ids import from_text, to_text
from xsc.base.limits import (
    DATA_SHARDS_DEFAULT,
    KIB,
    MIB,
    PARITY_SHARDS_DEFAULT,
    PEERS_MAX,
    SHARDS_MAX,
)
from xsc.net.peers.circle import introducer_shares
from xsc.net.transport.parser import SmallRequest
from xsc.node.api.app import FastPathHandler, problem_response, reply, whole_number
from xsc.node.build import Node
from xsc.storage.catalogue.names import PART, check_name, listed
from xsc.storage.object.durability import parse as parse_contract
from xsc.storage.reports import ObjectCheck

PATH = "/v1/objects"
VERSION_MAX = 2**63 - 1
FAULTS_KEPT = 256
PIECE_BYTES = 256 * KIB
"""Written at once of an object."""
SOCKET_BYTES = 512 * KIB
"""Held by the system of what was written and not read."""
_node_text = lru_cache(maxsize=PEERS_MAX)(to_text)
"""Base32 is slow, and hosts are always the same."""


def _introducers(node: Node, found: ObjectCheck) -> list[dict[str, object]]:
    """Return the introducers of an object's hosts, the one of most hosts first."""
    hosts = {host.node for host in found.stat.hosts if host.state == "ok" and host.node}
    shares = introducer_shares(
        {to_text(host): node.peers.roster.introducer_of(host) for host in hosts}
    )
    return [
        {
            "id": share.introducer,
            "name": node.name_of(from_text(share.introducer)),
            "hosts": share.hosts,
            "brought": share.brought,
        }
        for share in shares
    ]


def _capability(request: web.Request) -> str:
    given = request.headers.get("XSC-Capability")
    if not given:
        raise CapabilityInvalid("the request carries no capability")
    return given


def _name(headers: Mapping[str, str], header: str) -> str:
    name = unquote(headers.get(header.lower(), ""))
    check_name(name)
    return name


def _number(headers: Mapping[str, str], header: str, most: int) -> int | None:
    given = headers.get(header.lower())
    return None if given is None else whole_number(given, f"the header {header}", most)


def _code(given: str | None) -> tuple[int, int]:
    if given is None:
        return DATA_SHARDS_DEFAULT, PARITY_SHARDS_DEFAULT
    match = re.fullmatch(r"([0-9]{1,3}),([0-9]{1,3})", given)
    if match is None or int(match[1]) < 1 or int(match[1]) + int(match[2]) > SHARDS_MAX:
        raise ArgumentInvalid(
            f"'{given}' is no code: K,M with K at least 1 and K+M at most {SHARDS_MAX}",
            hint="write for example 4,2",
        )
    return int(match[1]), int(match[2])


def _part(given: str) -> str:
    """Return the name of a file of a stored directory; it stands in no list of names."""
    if not re.fullmatch(r"[0-9a-f]{64}/[0-9a-f]{64}", given):
        raise ArgumentInvalid("a part is named by two times 64 hexadecimal digits")
    return PART + given


async def _write(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Write in pieces: the event loop copies what the socket does not take at once."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        await response.write(view[start : start + PIECE_BYTES])


def _hold_little(request: web.Request) -> None:
    """Have little of an answer held between us and a client that may go before it has read it.

    What was written is with the system, none of it in this process: it outlives us.
    """
    if request.transport is None:
        return
    request.transport.set_write_buffer_limits(high=0)
    held = request.transport.get_extra_info("socket")
    if held is not None:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)


def _upload_id(given: str | None) -> bytes | None:
    if given is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise ArgumentInvalid("the id of an upload must be 64 hexadecimal digits")
    return bytes.fromhex(given)


class Faults:
    """Remembers how streams broke off: a response that has begun can carry no problem."""

    def __init__(self) -> None:
        self._kept: Bounded[str, dict[str, object]] = Bounded(FAULTS_KEPT)
        self._next = 0

    def begin(self) -> str:
        """Return the id of a request."""
        self._next += 1
        return str(self._next)

    def keep(self, request_id: str, fault: XscError) -> None:
        """Remember a fault, at most FAULTS_KEPT of them."""
        self._kept.put(request_id, problem(fault))

    def break_off(
        self,
        request: web.Request,
        response: web.StreamResponse,
        request_id: str,
        fault: XscError,
    ) -> web.StreamResponse:
        """End a response that has begun with its connection, and remember why."""
        self.keep(request_id, fault)
        response.force_close()
        if request.transport is not None:
            request.transport.close()
        return response

    def find(self, request_id: str) -> dict[str, object]:
        """Return the problem document of a request.

        Raises:
            NotFound: it did not break off, or too long ago.
        """
        found = self._kept.get(request_id)
        if found is None:
            raise NotFound("nothing is known of that request")
        return found


async def _stored(
    node: Node, headers: Mapping[str, str], body: AsyncIterator[bytes]
) -> dict[str, object]:
    """Store a body as the fields of its request say; names of fields may be in lower case only."""
    part = headers.get("xsc-part")
    contract = headers.get("xsc-survive")
    name = _name(headers, "XSC-Name") if part is None else _part(part)
    code = _code(headers.get("xsc-code"))
    done = await node.storage.put(
        body,
        name=name,
        size_hint=_number(headers, "XSC-Size", 2**62),
        contract=None if contract is None else parse_contract(contract),
        code=code,
        resume=_upload_id(headers.get("xsc-resume")),
    )
    warnings = list(done.warnings)
    if _number(headers, "XSC-Wait-For-Name", 1):
        told, wanted = await node.directory.told(code[0])
        if told < wanted:
            warnings.append(
                f"the name is at {told} of {wanted} peers by now: if this home were lost at this "
                "moment, its recovery might not know the name; the node goes on telling them"
            )
    return {
        "capability": done.capability,
        "size_bytes": done.size_bytes,
        "name": name,
        "version": done.version,
        "hosts": [
            {"shard": shard, "node": _node_text(host)} for shard, host in enumerate(done.hosts)
        ],
        "survives_nodes": done.survives.nodes,
        "survives": done.survives.to_text(),
        "warnings": warnings,
    }


def fast_path_handlers(node: Node) -> dict[str, FastPathHandler]:
    """Return the handler of puts that are small requests."""

    async def handle(request: SmallRequest) -> tuple[int, dict[str, object]]:
        async def body() -> AsyncIterator[bytes]:
            yield request.body

        return 201, await _stored(node, request.headers, body())

    return {PATH: handle}


def _content_routes(node: Node, faults: Faults) -> list[web.RouteDef]:
    """Return the endpoints that take and give the bytes of objects."""

    async def put(request: web.Request) -> web.Response:
        async def body() -> AsyncIterator[bytes]:
            async for chunk in request.content.iter_chunked(MIB):
                yield chunk

        return reply(await _stored(node, request.headers, body()), status=201)

    async def get(request: web.Request) -> web.StreamResponse:
        reader = await node.storage.open(_capability(request))
        asked = request.headers.get("Range")
        start, stop = 0, reader.size_bytes
        if asked is not None:
            try:
                start, stop = ranges.from_header(asked, reader.size_bytes)
            except RangeUnsatisfiable as fault:
                answer = problem_response(fault)
                answer.headers["Content-Range"] = f"bytes */{reader.size_bytes}"
                return answer
        # Closed in time: what a client that goes was given last is kept for its return.
        async with aclosing(reader.stream(start, stop)) as stream:
            # The first bytes are fetched before the head is sent: most faults show here.
            first = await anext(stream, b"")
            request_id = faults.begin()
            response = web.StreamResponse(
                status=200 if asked is None else 206,
                headers={
                    "Accept-Ranges": "bytes",
                    "Content-Length": str(stop - start),
                    "Content-Type": "application/octet-stream",
                    "XSC-Request-Id": request_id,
                },
            )
            if asked is not None:
                part = ranges.content_range(start, stop, reader.size_bytes)
                response.headers["Content-Range"] = part
            await response.prepare(request)
            _hold_little(request)
            try:
                await _write(response, first)
                async for chunk in stream:
                    await _write(response, chunk)
            except XscError as fault:
                node.log.warning("api.get_interrupted", code=fault.code, fault=fault.message)
                return faults.break_off(request, response, request_id, fault)
            await response.write_eof()
            return response

    async def upload(request: web.Request) -> web.Response:
        asked = _upload_id(request.match_info["id"]) or b""
        return reply({"stored_bytes": await node.storage.resume_journals.stored_bytes(asked)})

    async def fault_of(request: web.Request) -> web.Response:
        return reply(faults.find(request.match_info["id"]))

    return [
        web.post(PATH, put),
        web.get("/v1/uploads/{id}", upload),
        web.get("/v1/object", get),
        web.get("/v1/requests/{id}", fault_of),
    ]


def _name_routes(node: Node) -> list[web.RouteDef]:
    """Return the endpoints that list objects and restore versions by name."""

    async def listing(request: web.Request) -> web.Response:
        prefix = _name(request.headers, "XSC-Prefix")
        versions = _number(request.headers, "XSC-Versions", 1) == 1
        rows = listed(node.storage.ls(), prefix, versions=versions)
        return reply({"objects": [row.to_json() for row in rows]})

    async def parts(request: web.Request) -> web.Response:
        tree = request.headers.get("XSC-Part", "")
        if not re.fullmatch(r"[0-9a-f]{64}", tree):
            raise ArgumentInvalid("a directory is named by 64 hexadecimal digits")
        prefix = f"{PART}{tree}/"
        return reply(
            {
                "parts": [
                    {
                        "part": entry.name.removeprefix(prefix),
                        "capability": entry.capability,
                        "created_ms": entry.created_ms,
                    }
                    for _, entry in node.storage.catalogue.entries()
                    if entry.name.startswith(prefix) and not entry.deleting
                ]
            }
        )

    async def restore(request: web.Request) -> web.Response:
        version = _number(request.headers, "XSC-Version", VERSION_MAX)
        if version is None:
            raise ArgumentInvalid("the version that is to be restored is not named")
        made = await node.storage.catalogue.restore(_name(request.headers, "XSC-Name"), version)
        return reply({"version": made})

    async def named(request: web.Request) -> web.Response:
        version = _number(request.headers, "XSC-Version", VERSION_MAX)
        deleting = _number(request.headers, "XSC-Deleting", 1) == 1
        found = node.storage.catalogue.named(
            _name(request.headers, "XSC-Name"), version, deleting=deleting
        )
        return reply({"capabilities": found})

    return [
        web.get(PATH, listing),
        web.get("/v1/objects/named", named),
        web.get("/v1/objects/parts", parts),
        web.post("/v1/objects/restore", restore),
    ]


def _health_routes(node: Node) -> list[web.RouteDef]:
    """Return the endpoints that check, repair and remove an object."""

    async def stat(request: web.Request) -> web.Response:
        return reply((await node.storage.stat(_capability(request))).to_json())

    async def repair(request: web.Request) -> web.Response:
        done = await node.storage.repair(_capability(request))
        return reply(
            {
                "margin": done.margin,
                "moved": [
                    {
                        "shard": item.column,
                        "from": to_text(item.source),
                        "to": to_text(item.target),
                    }
                    for item in done.moved
                ],
                "left": list(done.left),
                "reason": done.reason,
                "patched": done.rewritten,
                "waiting": done.waiting,
            }
        )

    async def check(request: web.Request) -> web.Response:
        deep = request.query.get("deep", "0")
        if deep not in ("0", "1"):
            raise ArgumentInvalid("deep must be 0 or 1")
        found = await node.storage.check(
            _capability(request),
            deep=deep == "1",
            lives_ms=node.config.lives_ms,
            repair_ms=node.config.repair_time_ms,
        )
        return reply({**found.to_json(), "introducers": _introducers(node, found)})

    async def remove(request: web.Request) -> web.Response:
        done = await node.storage.rm(_capability(request))
        return reply(
            {
                "confirmed": [to_text(host) for host in done.confirmed],
                "unconfirmed": [to_text(host) for host in done.unreachable],
                "name": done.name,
                "receipts": {
                    to_text(receipt.author): b64encode(receipt.raw).decode()
                    for receipt in done.receipts
                },
            }
        )

    return [
        web.get("/v1/object/stat", stat),
        web.get("/v1/object/check", check),
        web.post("/v1/object/repair", repair),
        web.delete("/v1/object", remove),
    ]


def routes(node: Node, faults: Faults) -> list[web.RouteDef]:
    """Return the object endpoints of a node."""
    return [*_content_routes(node, faults), *_name_routes(node), *_health_routes(node)]
