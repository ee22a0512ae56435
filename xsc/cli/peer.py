"""xsc peer: who is known, and how much of what is scarce is for them."""

from __future__ import annotations

from typing import Any

import click

from xsc.base.units import format_credits, format_share
from xsc.cli.options import DURATION, INVITATION, PEER, SHARE, Group, Settings, pass_settings
from xsc.cli.output import moment, say, short, show, show_json, show_table


@click.group(cls=Group)
def peer() -> None:
    """Invite, add and recognise other nodes.

    PEER is a peer's name, its id, or the beginning of its id if no other
    begins so.
    """


@peer.command()
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Valid for so long.  [1d]")
@pass_settings
def invite(settings: Settings, ttl: int | None) -> None:
    """Print an invitation, by which one node becomes a member of the circle.

    Who adds it and this node know each other then. This node introduces it to its
    peers, and these to it, where they take introductions (setting `accept_peers`).
    """
    answer = settings.calls().invite(ttl)
    if settings.json:
        show_json(answer)
        return
    show(answer["invitation"])
    say(f"valid for one node until {moment(answer['expires_ms'])}; use: xsc peer add INVITATION")


@peer.command()
@click.argument("invitation", type=INVITATION)
@click.option("--name", metavar="NAME", help="Call it so here.  [the name it gives itself]")
@pass_settings
def add(settings: Settings, invitation: str, name: str | None) -> None:
    """Add the node that gave the INVITATION (or @FILE, or -)."""
    answer = settings.calls().join(invitation, name)
    if settings.json:
        show_json(answer)
    else:
        show(f"added {answer['name']} ({short(answer['id'])})")


def _reaches(row: dict[str, Any]) -> str:
    """Return what a peer says of the way to this node."""
    if row["clock_refused"]:
        return "clocks differ"
    return {True: "yes", False: "no", None: "-"}[row["reaches_us"]]


def _came_by(row: dict[str, Any]) -> str:
    """Return who made a peer known here."""
    if row["introducer"] is None:
        return "invitation"
    return f"{row['introducer_name']}{', confirmed' if row['confirmed'] else ''}"


@peer.command("ls")
@pass_settings
def listing(settings: Settings) -> None:
    """List all peers, and who introduced whom.

    "reaches us" is what the peer says: whether it reaches this node at the addresses
    that it was told.
    """
    answer = settings.calls().peers()
    if settings.json:
        show_json(answer)
        return
    show_table(
        [
            "name",
            "id",
            "state",
            "reaches us",
            "came by",
            "tier",
            "<recognised",
            "<recognises us",
            "<owes us",
        ],
        [
            [
                row["name"],
                short(row["id"]),
                row["state"],
                _reaches(row),
                _came_by(row),
                row["tier"],
                format_share(row["recognised_ppm"]),
                format_share(row["recognises_ppm"]),
                format_credits(row["balance_micro"]),
            ]
            for row in answer["peers"]
        ],
        "this node knows no peers; `xsc peer invite` makes an invitation for one",
    )


@peer.command()
@click.argument("who", metavar="PEER", type=PEER)
@pass_settings
def rm(settings: Settings, who: str) -> None:
    """Forget a peer; it can be added again."""
    answer = settings.calls().forget(who)
    if settings.json:
        show_json(answer)
    else:
        show(f"removed {answer['name']} ({short(answer['id'])})")


@peer.command()
@click.argument("who", metavar="PEER", type=PEER)
@click.argument("name", metavar="NAME")
@pass_settings
def rename(settings: Settings, who: str, name: str) -> None:
    """Call a peer NAME on this node; others call it as they like."""
    answer = settings.calls().rename(who, name)
    if settings.json:
        show_json(answer)
    else:
        show(f"{short(answer['id'])} is called {answer['name']}")


@peer.command()
@click.argument("who", metavar="PEER", type=PEER)
@pass_settings
def confirm(settings: Settings, who: str) -> None:
    """Answer for an introduced peer as for one that you invited.

    It has a credit of its own then, is counted apart from those that came through
    the same introducer, and may introduce others.
    """
    answer = settings.calls().confirm(who)
    if settings.json:
        show_json(answer)
    else:
        show(f"confirmed {answer['name']} ({short(answer['id'])})")


@peer.command()
@click.argument("who", metavar="PEER", type=PEER)
@pass_settings
def block(settings: Settings, who: str) -> None:
    """Refuse a peer everything from now on."""
    answer = settings.calls().block(who)
    if settings.json:
        show_json(answer)
    else:
        show(f"blocked {answer['name']} ({short(answer['id'])})")


@peer.command()
@click.argument("who", metavar="PEER", type=PEER)
@click.argument("share", type=SHARE)
@pass_settings
def recognise(settings: Settings, who: str, share: int) -> None:
    """Recognise a peer with a SHARE, for example 25%.

    All shares of a node are at most 100% together. Peers that recognise each
    other come first and pay least. 0% takes the recognition back.
    """
    answer = settings.calls().recognise(who, share)
    if settings.json:
        show_json(answer)
    else:
        show(f"{answer['name']} is recognised with {format_share(answer['weight_ppm'])}")
