"""Compute, programs and space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from xsc.api import jobs, monitor, programs, services, space
from xsc.api.endpoint import Nothing
from xsc.base.errors import NotFound, XscError
from xsc.dashboard.page import Asked, Page
from xsc.dashboard.source import Node, Rows, fetch
from xsc.space.paths import is_systems

LINES_MAX: Final = 12
SERVICES_MAX: Final = 20
"""Own services whose last requests are shown."""
REQUESTS: Final = 5
EVIDENCE_MAX: Final = 50
PROGRAMS_MAX: Final = 20
"""Programs whose values are shown."""
RECORDS_MAX: Final = 50
TOPS_MAX: Final = 100
VALUE_BYTES_MAX: Final = 1_024
"""Of a value in the space that is shown: a page has the beginning of it."""


async def gather(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what the page of compute shows."""
    own = (await fetch(node, monitor.MEASURES, Nothing()))["status"]["id"]
    rows = await fetch(node, services.LIST, Nothing())
    names = [row["name"] for row in rows if row["owner"] == own][:SERVICES_MAX]
    lines = await fetch(node, monitor.LOG, Nothing())
    return {
        "services": rows,
        "requests": {
            name: (await fetch(node, services.LOG, services.Log(name=name, n=REQUESTS)))[::-1]
            for name in names
        },
        "lines": [row for row in lines[::-1] if row["event"].startswith("compute.")][:LINES_MAX],
        "evidence": await fetch(node, jobs.EVIDENCE, Nothing(), window=slice(0, EVIDENCE_MAX)),
    }


async def gather_programs(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what the page of programs and space shows."""
    rows = await fetch(node, programs.LIST, Nothing())
    # What a user wrote comes before what XSC runs by itself.
    rows.sort(key=lambda row: (row["hash"] != asked.get("program"), row["built_in"]))
    owner, under = asked.get("owner", ""), asked.get("under", "")
    return {
        "programs": [
            await fetch(node, programs.SHOW, programs.Hash(hash=row["hash"]))
            for row in rows[:PROGRAMS_MAX]
        ],
        "others": rows[PROGRAMS_MAX:],
        "diagnostics": await fetch(node, space.DIAGNOSTICS, Nothing()),
        # All records are read for it: not each time that something changed.
        "stats": await fetch(node, space.STATS, Nothing()) if "sizes" in asked else None,
        "owner": owner,
        "under": under,
        **await _records(node, owner, under),
    }


async def _records(node: Node, owner: str, under: str) -> Mapping[str, Any]:
    """Return the records of an owner, and the values of those that are this node's and small."""
    before, tops = f"{owner}:" if owner else "", set[str]()

    def pick(rows: Sequence[space.Record]) -> Sequence[int]:
        tops.update(row.path.partition("/")[0] for row in rows)
        return [
            place for place, row in enumerate(rows) if under or owner or not is_systems(row.path)
        ]

    try:
        asked, most = space.Under(under=before + under), slice(RECORDS_MAX)
        found: Rows = await fetch(node, space.LIST, asked, pick=pick, window=most)
    except XscError as fault:
        return {
            "records": [],
            "tops": [],
            "more_tops": False,
            "values": {},
            "more": False,
            "fault": fault,
        }
    values: dict[str, object] = {}
    for row in [] if owner else found:
        if row["size_bytes"] <= VALUE_BYTES_MAX:
            at = space.Get(at=row["path"])
            with suppress(NotFound):
                values[row["path"]] = (await fetch(node, space.GET, at))["value"]
    return {
        "records": found,
        "tops": sorted(tops)[:TOPS_MAX],
        "more_tops": len(tops) > TOPS_MAX,
        "values": values,
        "more": found.total > len(found),
        "fault": None,
    }


async def gather_why(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what is behind a value; peers are asked for what of it is not followed."""
    at, tree, wrong = asked.get("at", ""), None, None
    names: dict[str, str | None] = defaultdict(lambda: None)
    for row in (await fetch(node, monitor.MEASURES, Nothing()))["peers"]:
        names[row["peer"]] = row["name"]
    try:
        tree = await fetch(node, programs.WHY, programs.Why(at=at)) if at else None
    except XscError as fault:
        wrong = fault
    return {"at": at, "tree": tree, "fault": wrong, "names": names}


PAGES: Final = (
    Page("/compute", "Compute", "compute.html", gather),
    Page("/programs", "Programs and space", "programs.html", gather_programs),
    Page("/programs/why", "Why a value is what it is", "provenance.html", gather_why, listed=False),
)
