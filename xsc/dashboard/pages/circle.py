"""The circle: who is in it, how it answers, who introduced whom; invite and recognise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from xsc.api import monitor, peers
from xsc.api.endpoint import Nothing
from xsc.base.units import format_share, format_time, parse_duration_ms
from xsc.dashboard.page import Action, Asked, Page, Said, number
from xsc.dashboard.source import Document, Node, fetch

LINES_SHOWN: Final = 10
"""Of the log."""


class Box(NamedTuple):
    """A peer in the picture of who introduced whom."""

    peer: Document
    depth: int
    """Introductions from this node."""
    line: int
    from_line: int
    """Of who introduced it."""


async def gather(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what the page shows."""
    rows = await fetch(node, peers.LIST, Nothing())
    return {
        "peers": rows,
        "boxes": boxes(rows),
        "alerts": await fetch(node, monitor.ALERTS, Nothing()),
        "lines": (await fetch(node, monitor.LOG, Nothing(), window=slice(-LINES_SHOWN, None)))[
            ::-1
        ],
    }


def boxes(rows: Sequence[Document]) -> list[Box]:
    """Return where peers stand in the picture of who introduced whom.

    Each stands to the right of its introducer: the first on the same line, the others below.
    """
    known = {row["id"] for row in rows}
    brought = defaultdict[str | None, list[Document]](list)
    for row in rows:
        brought[row["introducer"] if row["introducer"] in known else None].append(row)
    found: dict[str, Box] = {}
    line = 0

    def place(row: Document, depth: int, from_line: int) -> None:
        nonlocal line
        if row["id"] in found:
            return
        found[row["id"]] = Box(row, depth, line, from_line)
        begun = line
        for each in brought[row["id"]]:
            place(each, depth + 1, begun)
        line = max(line, begun + 1)

    # Those at the end are only left if introducers go in a circle.
    for row in (*brought[None], *rows):
        place(row, 1, 0)
    return [*found.values()]


async def invite(node: Node, form: Mapping[str, str]) -> Said:
    """Make an invitation."""
    ttl_ms = parse_duration_ms(form.get("ttl", ""))
    made = await node.ask(peers.INVITE, peers.Invite(ttl_ms=ttl_ms))
    until = format_time(made["expires_ms"])
    return Said(
        f"good for one peer until {until}", "it is added with: xsc peer add …", made["invitation"]
    )


async def recognise(node: Node, form: Mapping[str, str]) -> Said:
    """Weigh a peer."""
    weight_ppm = number("weight_ppm", form.get("weight_ppm", ""))
    asked = peers.Recognise(who=form.get("who", ""), weight_ppm=weight_ppm)
    done = await node.ask(peers.RECOGNISE, asked)
    return Said(f"{done['name']} is recognised with {format_share(done['weight_ppm'])}")


PAGES: Final = (Page("/circle", "Circle", "circle.html", gather),)
ACTIONS: Final = (
    Action("/circle/invite", "/circle", change=invite),
    Action("/circle/recognise", "/circle", change=recognise),
)
