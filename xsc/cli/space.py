"""xsc space: the signed key space that this node and its peers share."""

from __future__ import annotations

import os
import sys
from typing import Final

import click
from click import argument, option

from xsc import api
from xsc.base.units import format_duration, format_size
from xsc.cli import options, show
from xsc.cli.options import Group, Settings, asks
from xsc.client.calls import FSCK_TIMEOUT_S, value_of
from xsc.client.core import Document
from xsc.client.files import read_bounded
from xsc.space.limits import VALUE_BYTES_MAX

ADDRESS = options.Parsed("PATH", str, options.known(lambda: [(api.space.LIST, "path")]))


_RECORDS: Final = "path <sequence <size"


@click.group(cls=Group)
def space() -> None:
    """Read and write the key space of this node, and read that of peers.

    PATH is parts joined by `/`, of letters, digits and `_ . ~ -`. OWNER is a
    node's name or id; without it this node is meant.
    """


@space.command(context_settings={"ignore_unknown_options": True})
@argument("path", metavar="PATH", type=ADDRESS)
@argument("value", metavar="VALUE|-")
def put(settings: Settings, path: str, value: str) -> None:
    """Write a value at a path of this node, and print its sequence.

    `-` reads the value from standard input.
    """
    if value == "-":
        data = read_bounded(
            sys.stdin.buffer,
            "value",
            VALUE_BYTES_MAX,
            hint="store it with `xsc store put`, and put its capability here",
        )
    else:
        data = os.fsencode(value)
    answer = settings.ask(api.space.PUT, data, at=path)
    settings.view(answer, str(answer["sequence"]))


@asks(space, api.space.GET)
@argument("at", metavar="[OWNER:]PATH", type=ADDRESS)
@option(
    "--sequence",
    metavar="N",
    type=click.IntRange(min=1),
    help="A replaced value of this node, as `versions` lists them.",
)
def get(answer: Document) -> None:
    """Print the value at a path, byte for byte."""
    value = value_of(answer["value"])
    if sys.stdout.isatty():
        # Peers choose what it says, and a terminal would obey it.
        for line in value.decode(errors="replace").split("\n"):
            show.line(line)
    elif show.for_people():
        click.echo(value, nl=False)


_own = argument("at", metavar="PATH", type=ADDRESS)
_below = argument("under", metavar="[OWNER:][PREFIX]", type=ADDRESS, default="")


@asks(space, api.space.REMOVE)
@_own
def rm(_: Document) -> None:
    """Delete a path of this node."""


@asks(space, api.space.LIST)
@_below
def ls(answer: Document) -> None:
    """List what is at a path and below it; everything without PREFIX."""
    show.rows(answer["records"], _RECORDS, "nothing is there")


@asks(space, api.space.VERSIONS)
@_own
def versions(answer: Document) -> None:
    """List the replaced values of a path of this node that are kept, the newest first."""
    show.rows(answer["records"], _RECORDS, "no replaced value is kept")


@space.command()
@_below
def watch(settings: Settings, under: str) -> None:
    """Print each change at a path and below it, from now on, until Ctrl-C."""
    with settings.calls().events(api.space.WATCH, under=under) as changes:
        show.say("watching")
        for change in changes:
            shown = _shown(change["value"])
            settings.view(change, f"{change['path']}  {change['sequence']}  {shown}")


def _shown(value: str | dict[str, str] | None) -> str:
    if value is None:
        return "deleted"
    return value if isinstance(value, str) else format_size(len(value_of(value)))


@asks(space, api.space.STATS)
def stats(answer: Document) -> None:
    """Show how much the space of this node holds."""
    show.fields(answer, "records live on_disk=disk subscriptions received sent")


def _age(age_ms: int | None) -> str:
    return "never" if age_ms is None else format_duration(age_ms)


@asks(space, api.space.DIAGNOSTICS)
def diagnostics(answer: Document) -> None:
    """Show what this node lists and follows, who is active, and its place in causality."""
    names = {row["node"]: row["name"] for row in answer["nodes"]}

    show.rows(answer["programs"], "program=path <size", "no programs")
    show.rows(answer["running"], "runs=hash id state <frame", "no program is registered")
    show.rows(
        answer["subscriptions"],
        "follows prefix <cursor",
        "nothing is followed",
        follows=lambda row: names.get(row["owner"], show.short(row["owner"])),
    )
    show.rows(
        answer["nodes"],
        "node=name active <last_head",
        "no peers",
        last_head=("head_age_ms", _age),
    )
    show.pairs(
        [
            ("domain", answer["causality"]["domain"] or "none yet"),
            ("stamp", format_size(answer["causality"]["stamp_bytes"])),
        ]
    )


@asks(space, api.space.COMPACT, timeout_s=FSCK_TIMEOUT_S)
def compact(answer: Document) -> None:
    """Return the room of what was deleted or replaced to the disk; show what is left."""
    stats(answer)
