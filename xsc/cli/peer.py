"""xsc peer: who is known, and how much of what is scarce is for them."""

from __future__ import annotations

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
    """Print an invitation; who adds it and this node know each other then."""
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


@peer.command("ls")
@pass_settings
def listing(settings: Settings) -> None:
    """List all peers."""
    answer = settings.calls().peers()
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["name", "id", "state", "<availability", "<response", "tier", "<recognised", "<owes us"],
        [
            [
                row["name"],
                short(row["id"]),
                row["state"],
                format_share(row["availability_ppm"]),
                f"{row['response_ms']}ms",
                row["tier"],
                format_share(row["recognised_ppm"]),
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
