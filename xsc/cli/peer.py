"""xsc peer: who is known, and how much of what is scarce is for them."""

from __future__ import annotations

from typing import Final

import click

from xsc import api
from xsc.base.units import format_credits, format_share, format_size
from xsc.cli.options import (
    DURATION,
    INVITATION,
    PEER,
    SHARE,
    Group,
    Settings,
)
from xsc.cli.output import Columns, moment, say, short, show_rows
from xsc.client.core import Document


@click.group(cls=Group)
def peer() -> None:
    """Invite, add and recognise other nodes.

    PEER is a peer's name, its id, or the beginning of its id if no other
    begins so.
    """


who_argument = click.argument("who", metavar="PEER", type=PEER)


def _called(answer: Document) -> str:
    return f"{answer['name']} ({short(answer['id'])})"


@peer.command()
@click.option("--ttl", type=DURATION, help="Valid for so long.  [1d]")
def invite(settings: Settings, ttl: int | None) -> None:
    """Print an invitation, by which one node becomes a member of the circle.

    Who adds it and this node know each other then. This node introduces it to its
    peers, and these to it, where they take introductions (setting `accept_peers`).
    """
    asked = api.peers.Invite() if ttl is None else api.peers.Invite(ttl_ms=ttl)
    answer = settings.ask(api.peers.INVITE, asked)
    settings.view(answer, answer["invitation"])
    if not settings.json:
        until = moment(answer["expires_ms"])
        say(f"valid for one node until {until}; use: xsc peer add INVITATION")


@peer.command()
@click.argument("invitation", type=INVITATION)
@click.option("--name", metavar="NAME", help="Call it so here.  [the name it gives itself]")
def add(settings: Settings, invitation: str, name: str | None) -> None:
    """Add the node that gave the INVITATION (or @FILE, or -)."""
    answer = settings.ask(api.peers.JOIN, api.peers.Join(invitation=invitation, name=name))
    settings.view(answer, f"added {_called(answer)}")


def _reaches(row: Document) -> str:
    """Return what a peer says of the way to this node."""
    if row["clock_refused"]:
        return "clocks differ"
    return {True: "yes", False: "no", None: "-"}[row["reaches_us"]]


def _came_by(row: Document) -> str:
    """Return who made a peer known here."""
    if row["introducer"] is None:
        return "invitation"
    return f"{row['introducer_name']}{', confirmed' if row['confirmed'] else ''}"


_PEERS: Final[Columns] = {
    "name": "name",
    "id": ("id", short),
    "state": "state",
    "reaches us": _reaches,
    "came by": _came_by,
    "tier": "tier",
    "<recognised": ("recognised_ppm", format_share),
    "<recognises us": ("recognises_ppm", format_share),
    "<owes us": ("balance_micro", format_credits),
}


_COSTS: Final[Columns] = {
    "name": "name",
    "method": "method",
    "<units": "units",
    "<processor us": "processor_us",
    "<units left": "units_left",
    "<synced left": ("synced_bytes_left", format_size),
}


@peer.command("ls")
@click.option("--costs", is_flag=True, help="Show what each had this node do within a minute.")
def listing(settings: Settings, costs: bool) -> None:
    """List all peers, and who introduced whom.

    "reaches us" is what the peer says: whether it reaches this node at the addresses
    that it was told.

    With `--costs`, a line for each method that a peer called within the last minute: the
    units that it was charged, the processor time that was measured, and what is left of its
    share. A unit is about a microsecond of a processor.
    """
    answer = settings.ask(api.peers.LIST)
    if costs:
        rows = [row | spent for row in answer["peers"] for spent in row["spent"]]
        empty = "no peer called this node within the last minute"
        settings.view(answer, lambda _: show_rows(rows, _COSTS, empty))
    else:
        empty = "this node knows no peers; `xsc peer invite` makes an invitation for one"
        settings.table(answer, "peers", _PEERS, empty)


@peer.command()
@who_argument
def rm(settings: Settings, who: str) -> None:
    """Forget a peer; it can be added again."""
    answer = settings.ask(api.peers.REMOVE, api.peers.Who(who=who))
    settings.view(answer, f"removed {_called(answer)}")


@peer.command()
@who_argument
@click.argument("name", metavar="NAME")
def rename(settings: Settings, who: str, name: str) -> None:
    """Call a peer NAME on this node; others call it as they like."""
    answer = settings.ask(api.peers.RENAME, api.peers.Rename(who=who, name=name))
    settings.view(answer, f"{short(answer['id'])} is called {answer['name']}")


@peer.command()
@who_argument
def confirm(settings: Settings, who: str) -> None:
    """Answer for an introduced peer as for one that you invited.

    It has a credit of its own then, is counted apart from those that came through
    the same introducer, and may introduce others.
    """
    answer = settings.ask(api.peers.CONFIRM, api.peers.Who(who=who))
    settings.view(answer, f"confirmed {_called(answer)}")


@peer.command()
@who_argument
def block(settings: Settings, who: str) -> None:
    """Refuse a peer everything from now on."""
    answer = settings.ask(api.peers.BLOCK, api.peers.Who(who=who))
    settings.view(answer, f"blocked {_called(answer)}")


@peer.command()
@who_argument
@click.argument("share", type=SHARE)
def recognise(settings: Settings, who: str, share: int) -> None:
    """Recognise a peer with a SHARE, for example 25%.

    All shares of a node are at most 100% together. Peers that recognise each
    other come first and pay least. 0% takes the recognition back.
    """
    asked = api.peers.Recognise(who=who, weight_ppm=share)
    answer = settings.ask(api.peers.RECOGNISE, asked)
    share_shown = format_share(answer["weight_ppm"])
    settings.view(answer, f"{answer['name']} is recognised with {share_shown}")
