"""The circle: who is in it, how it answers, who introduced whom; invite and recognise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xsc.api import monitor, peers, status
from xsc.api.endpoint import Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.base.units import format_share, format_time, parse_duration_ms
from xsc.dashboard.page import Action, Asked, Page, Said
from xsc.dashboard.source import Node, fetch


async def gather(node: Node, _: Asked) -> Mapping[str, Any]:
    """Return what the page shows."""
    return {
        "peers": await fetch(node, peers.LIST, Nothing()),
        "health": {row["id"]: row for row in await fetch(node, status.HEALTH, Nothing())},
        "alerts": await fetch(node, monitor.ALERTS, Nothing()),
        "lines": (await fetch(node, monitor.LOG, Nothing()))[::-1][:12],
    }


async def invite(node: Node, form: Mapping[str, str]) -> Said:
    """Make an invitation."""
    ttl_ms = parse_duration_ms(form.get("ttl", ""))
    if not peers.INVITATION_TTL_MS_MIN <= ttl_ms <= peers.INVITATION_TTL_MS_MAX:
        raise ArgumentInvalid("an invitation is good for a second at least, and 30 days at most")
    made = await node.ask(peers.INVITE, peers.Invite(ttl_ms=ttl_ms))
    until = format_time(made["expires_ms"])
    return Said(
        f"good for one peer until {until}", "it is added with: xsc peer add …", made["invitation"]
    )


async def recognise(node: Node, form: Mapping[str, str]) -> Said:
    """Weigh a peer."""
    text = form.get("weight_ppm", "")
    if not text.isdecimal() or int(text[:8]) > 1_000_000:
        raise ArgumentInvalid("a weight is a whole number of parts per million")
    asked = peers.Recognise(who=form.get("who", ""), weight_ppm=int(text))
    done = await node.ask(peers.RECOGNISE, asked)
    return Said(f"{done['name']} is recognised with {format_share(done['weight_ppm'])}")


PAGES: Final = (Page("/circle", "Circle", "circle.html", gather),)
ACTIONS: Final = (
    Action("/circle/invite", "/circle", change=invite),
    Action("/circle/recognise", "/circle", change=recognise),
)
