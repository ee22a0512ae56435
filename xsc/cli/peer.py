"""xsc peer and xsc health: who is known, how much is for them, and how they answer."""

from __future__ import annotations

import time
from typing import Final

import click
from click import argument, option

from xsc import api
from xsc.base.errors import CorruptionError, UnavailableError
from xsc.base.limits import PPM
from xsc.base.units import format_share, format_size
from xsc.cli import options, show
from xsc.cli.devnet import poll
from xsc.cli.options import Group, Settings, asks
from xsc.client.core import Document

REACH_S: Final = 20.0
"""A peer has missed two probes by then, and was asked once more."""


@click.group(cls=Group)
def peer() -> None:
    """Invite, add and recognise other nodes.

    PEER is a peer's name, its id, or the beginning of its id if no other
    begins so.
    """


_who = argument("who", metavar="PEER", type=options.PEER)


def _called(answer: Document) -> str:
    return f"{answer['name']} ({show.short(answer['id'])})"


_TTL: Final = options.durations(api.peers.INVITATION_TTL_MS_MAX, api.peers.INVITATION_TTL_MS_MIN)


@asks(peer, api.peers.INVITE)
@option("--ttl", "ttl_ms", type=_TTL, help="Valid for so long.  [1d]")
def invite(answer: Document) -> None:
    """Print an invitation, by which one node becomes a member of the circle.

    Who adds it and this node know each other then. This node introduces it to its
    peers, and these to it, where they take introductions (setting `accept_peers`).
    """
    show.line(answer["invitation"])
    until = show.moment(answer["expires_ms"])
    show.note(f"valid for one node until {until}; use: xsc peer add INVITATION")


@peer.command()
@argument("invitation", type=options.INVITATION)
@option("--name", metavar="NAME", help="Call it so here.  [the name it gives itself]")
def add(settings: Settings, **asked: str) -> None:
    """Add the node that gave the INVITATION (or @FILE, or -).

    The first one is waited for, some seconds, until it says whether it reaches this node.
    """
    first = show.for_people() and not settings.ask(api.peers.LIST)["peers"]
    answer = settings.ask(api.peers.JOIN, **asked)
    settings.view(answer, f"added {_called(answer)}")
    if first:
        _warn_if_unreached(settings)


def _warn_if_unreached(settings: Settings) -> None:
    """Say how this node becomes reachable, if peers that it reaches do not reach it."""
    from xsc.net.transport.addresses import is_loopback, split
    from xsc.node.offline.doctor import judge_reach

    for _ in poll(time.monotonic() + REACH_S):
        status = settings.ask(api.status.STATUS)
        if all(is_loopback(split(address)[0]) for address in status["addresses"]):
            return
        peers = status["peers"]
        for found in judge_reach(peers["reached_by"], peers["not_reached_by"], status["addresses"]):
            if found.verdict != "ok":
                show.warn(found.text)
                show.say(f"hint: {found.hint}")
            return
    show.note("it has not said yet whether it reaches this node; later `xsc node doctor` knows")


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


NO_PEERS: Final = "this node knows no peers; `xsc peer invite` makes an invitation for one"


@peer.command()
@option("--costs", is_flag=True, help="Show what each had this node do within a minute.")
def ls(settings: Settings, costs: bool) -> None:
    """List all peers, and who introduced whom.

    "reaches us" is what the peer says: whether it reaches this node at the addresses
    that it was told.

    With `--costs`, a line for each method that a peer called within the last minute: the
    units that it was charged, the processor time that was measured, and what is left of its
    share. A unit is about a microsecond of a processor.
    """
    answer = settings.ask(api.peers.LIST)
    settings.view(answer)
    if costs:
        rows = [row | spent for row in answer["peers"] for spent in row["spent"]]
        show.rows(
            rows,
            "name method <units <processor_us <units_left <synced_left",
            "no peer called this node within the last minute",
            synced_left=("synced_bytes_left", format_size),
        )
    else:
        show.rows(
            answer["peers"],
            "name id state reaches_us came_by tier <recognised <recognises_us=recognises "
            "<owes_us=balance",
            NO_PEERS,
            id=("id", show.short),
            reaches_us=_reaches,
            came_by=_came_by,
        )


@asks(peer, api.peers.REMOVE)
@_who
def rm(answer: Document) -> str:
    """Forget a peer; it can be added again."""
    return f"removed {_called(answer)}"


@asks(peer, api.peers.RENAME)
@_who
@argument("name", metavar="NAME")
def rename(answer: Document) -> str:
    """Call a peer NAME on this node; others call it as they like."""
    return f"{show.short(answer['id'])} is called {answer['name']}"


@asks(peer, api.peers.CONFIRM)
@_who
def confirm(answer: Document) -> str:
    """Answer for an introduced peer as for one that you invited.

    It has a credit of its own then, is counted apart from those that came through
    the same introducer, and may introduce others.
    """
    return f"confirmed {_called(answer)}"


@asks(peer, api.peers.BLOCK)
@_who
def block(answer: Document) -> str:
    """Refuse a peer everything from now on."""
    return f"blocked {_called(answer)}"


@asks(peer, api.peers.RECOGNISE)
@_who
@argument("weight_ppm", metavar="SHARE", type=options.SHARE)
def recognise(answer: Document) -> str:
    """Recognise a peer with a SHARE, for example 25%.

    All shares of a node are at most 100% together. Peers that recognise each
    other come first and pay least. 0% takes the recognition back.
    """
    return f"{answer['name']} is recognised with {format_share(answer['weight_ppm'])}"


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def health(ctx: click.Context) -> None:
    """Show how peers answer probes, what they prove to hold, and how they are judged."""
    if ctx.invoked_subcommand is not None:
        return
    settings = ctx.ensure_object(Settings)
    answer = settings.ask(api.status.HEALTH)
    settings.view(answer)
    show.rows(
        answer["peers"],
        "peer state grade <availability <quality <response seen=last_seen challenge=outcome "
        "proven unproven since owed_unproven false_clearing",
        NO_PEERS,
        peer=lambda row: show.named(row, "id"),
        response=("response_ms", "{}ms".format),
        since=(
            "unproven_since_ms",
            lambda at_ms: show.or_dash(None if at_ms is None else show.moment(at_ms)),
        ),
        false_clearing=("false_clearing", lambda found: found[:10] if found else ""),
    )


_FOLLOWS: Final = {
    "new": "it ranks behind those that are known",
    "vetted": "nothing is held against it",
    "watch": "it counts half in the market",
    "suspended": "it takes nothing new while there are others",
    "barred": "it takes nothing new, and is granted nothing new",
}
_CAUSES: Final = {
    "missing": "it admitted that it lost what it stored",
    "bad_proof": "it signed that it has something, and gave something else",
    "shard_mismatch": "it gave other bytes than it stored",
    "record_invalid": "it gave a record that does not hold",
    "dissent": "others found another result than it did",
    "receipt_invalid": "it gave a receipt that does not hold",
    "lease_count": "it counts more than this node used",
    "lease_denial": "it denies a lease that it granted",
    "booking_refused": "it refuses to book what it signed",
    "clearing": "it signed a clearing that does not recompute",
}


def _judgement(answer: Document) -> None:
    """Show what was observed, and what came of it."""
    show.rows(
        answer["observed"],
        "dimension <good <bad <rank <upper",
        good=("good_ppm", _hours),
        bad=("bad_ppm", _hours),
    )
    show.rows(
        answer["events"],
        "when=at before after dimension cause evidence",
        "nothing was ever held against it",
        cause=lambda row: _CAUSES.get(row["cause"], str(row["cause"])),
    )


def _hours(amount_ppm: int) -> str:
    return f"{amount_ppm // PPM}.{amount_ppm % PPM * 10 // PPM} h"


def _next(row: Document) -> str:
    until = "" if row["until_ms"] is None else f", from {show.moment(row['until_ms'])}"
    return f"{row['next_step']}{until}"


@asks(health, api.health.WHY)
@_who
def why(answer: Document) -> None:
    """Say how this node judges PEER, and why.

    Hours count as good or bad in each dimension, and decay. Peers are ranked by a lower bound of
    the good share, as if each had begun with some good hours, and judged by the upper bound of
    what was observed. What others observed counts in the rank alone.
    """
    show.line(f"{_called(answer)} is {answer['grade']}: {_FOLLOWS[answer['grade']]}")
    show.line(f"next: {_next(answer)}")
    show.line(f"in auctions its price is divided by {format_share(answer['quality_ppm'])}")
    _judgement(answer)
    if answer["reports"]:
        told = (
            f"{each['name']} ({format_share(each['recognition_ppm'])})"
            for each in answer["reports"]
        )
        show.line(f"also counts in its rank what was observed by {', '.join(told)}")


@asks(health, api.health.ME)
def me(answer: Document) -> None:
    """Ask the peers how they judge this node, and why."""
    for row in answer["peers"]:
        show.line(f"{_called(row)} says: {row['grade']}; {_next(row)}")
        if row["events"]:
            _judgement(row)
    for row in answer["unheard"]:
        show.line(f"{_called(row)} does not say: {row['reason']}")


@asks(health, api.health.LIFT)
@_who
def lift(answer: Document) -> str:
    """Hold nothing against PEER that was found until now.

    What is found later counts anew.
    """
    return f"{_called(answer)} is {answer['grade']}: {_next(answer)}"


@asks(health, api.health.CHALLENGE)
@argument("who", metavar="[PEER]", type=options.PEER, required=False)
def challenge(answer: Document) -> int:
    """Have PEER, or all peers, prove now that they hold what this node has there.

    Within an hour the same is asked again. Exits with 6 if a peer has lost something or gave
    something else, and with 5 if one did not answer. What is lost is repaired.
    """
    rows = answer["challenged"]
    show.rows(
        rows,
        "peer customer=customer_name outcome reason",
        "this node has nothing at them",
        peer=lambda row: show.named(row, "id"),
    )
    outcomes = {row["outcome"] for row in rows}
    if outcomes & {"bad_proof", "missing"}:
        return CorruptionError.exit_code
    return UnavailableError.exit_code if outcomes & {"timeout", "unreachable"} else 0
