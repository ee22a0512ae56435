"""Storage: capacity, objects and their hosts, repairs; put and get."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from xsc.api import market, objects, peers
from xsc.api.endpoint import Nothing
from xsc.base.errors import NotFound, XscError
from xsc.base.text import count_of
from xsc.dashboard.page import Action, Asked, Page, Said, number
from xsc.dashboard.source import Node, Pick, Rows, fetch

PAGE_ROWS: Final = 100
REPAIRS_SHOWN: Final = 20
ID_CHARS: Final = 16


def object_id(capability: str) -> str:
    """Return what names an object in a link: it says neither its name nor how it is read."""
    return hashlib.sha256(capability.encode()).hexdigest()[:ID_CHARS]


async def gather(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what the page shows.

    Raises:
        ArgumentInvalid: what names a page of the objects is no number.
    """
    page = number("page", asked.get("page", "1"), least=1)
    part, endangered = asked.get("name", ""), "endangered" in asked
    last = page * PAGE_ROWS
    listed: Rows = await fetch(
        node,
        objects.LIST,
        objects.Under(),
        pick=_newest(part.casefold(), endangered=endangered),
        window=slice(last - PAGE_ROWS, last),
    )
    return {
        "objects": [{**row, "id": object_id(row["capability"])} for row in listed],
        "count": listed.total,
        "number": page,
        "numbers": max(1, -(-listed.total // PAGE_ROWS)),
        "part": part,
        "endangered": endangered,
        "peers": await _peers(node),
        "accounts": await _accounts(node),
        "repairs": await fetch(node, objects.REPAIRS, Nothing(), window=slice(REPAIRS_SHOWN)),
    }


def _newest(part: str, *, endangered: bool) -> Pick:
    """Return what picks objects, the newest first.

    Args:
        part: of their names, in small letters.
        endangered: whether only those that the loss of one more shard makes unreadable.
    """

    def pick(rows: Sequence[objects.Object]) -> Sequence[int]:
        return [
            place
            for place in range(len(rows) - 1, -1, -1)
            if part in rows[place].name.casefold()
            and (rows[place].survives_nodes == 0 or not endangered)
        ]

    return pick


async def _peers(node: Node) -> dict[str, Any]:
    return {row["id"]: row for row in await fetch(node, peers.LIST, Nothing())}


async def _accounts(node: Node) -> dict[str, dict[str, Any]]:
    """Return the open leases of storage, by peer and by who keeps something for whom."""
    found: dict[str, dict[str, Any]] = {}
    for row in await fetch(node, market.LEASES, Nothing(), pick=_open_storage):
        of_peer = {"name": row["name"], "customer": [], "provider": []}
        found.setdefault(row["peer"], of_peer)[row["role"]].append(row)
    return found


def _open_storage(rows: Sequence[market.Lease]) -> Sequence[int]:
    return [
        place
        for place, row in enumerate(rows)
        if row.kind == "storage" and row.state == "open" and (row.held or row.quantity)
    ]


async def _found(node: Node, given: str, *, versions: bool = False) -> dict[str, Any]:
    """Return the object that an id names.

    Args:
        node: is asked.
        given: the id.
        versions: whether it may be an older version of a name.

    Raises:
        NotFound: there is none.
    """

    def pick(rows: Sequence[objects.Object]) -> Sequence[int]:
        same = (place for place, row in enumerate(rows) if object_id(row.capability) == given)
        return [*same][:1]

    found = await fetch(node, objects.LIST, objects.Under(versions=versions), pick=pick)
    if not found:
        raise NotFound(
            "this node lists no such object",
            hint="it was deleted, or a newer version has taken its place: look on the page Storage",
        )
    return {**found[0], "id": given}


async def gather_object(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what the page of one object shows; its hosts are asked.

    Raises:
        NotFound: there is no such object.
    """
    listed = await _found(node, asked.get("id", ""))
    stat, fault = None, None
    try:
        stat = await fetch(node, objects.STAT, objects.Capability(capability=listed["capability"]))
    except XscError as refused:
        fault = refused
    return {"object": listed, "stat": stat, "fault": fault, "peers": await _peers(node)}


async def put(node: Node, request: web.BaseRequest) -> Said:
    """Store the bytes of a request."""
    name = unquote(request.headers.get("XSC-Name", ""))
    asked = objects.Put(name=name, size_bytes=request.content_length)
    done = await node.ask(objects.PUT, asked, body=request.content.read)
    hosts = count_of(len({host["node"] for host in done["hosts"]}), "node")
    lost = done["survives_nodes"]
    says = f"stored at {hosts}; {f'any {lost}' if lost else 'none'} of them may be lost"
    return Said(says, " ".join(done["warnings"]))


async def get(node: Node, form: Mapping[str, str]) -> tuple[str, str]:
    """Return the capability and the name of an object.

    Raises:
        NotFound: there is no such object.
    """
    # The page may show what a put has just replaced.
    found = await _found(node, form.get("id", ""), versions=True)
    return found["capability"], found["name"]


PAGES: Final = (
    Page("/storage", "Storage", "storage.html", gather),
    Page("/storage/object", "Object", "object.html", gather_object, listed=False),
)
ACTIONS: Final = (
    Action("/storage/put", "/storage", stream=put),
    Action("/storage/get", "/storage", download=get),
)
