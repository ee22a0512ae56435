"""xsc space: the signed key space that this node and its peers share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Final

import click

from xsc import api
from xsc.base.units import format_duration, format_size
from xsc.cli.options import Group, Parsed, Settings, asks
from xsc.cli.output import Columns, say, short, show, show_fields, show_pairs, show_rows, yes_or_no
from xsc.client.calls import FSCK_TIMEOUT_S, Calls, value_of
from xsc.client.core import Document
from xsc.client.files import read_bounded
from xsc.space.limits import VALUE_BYTES_MAX


def _own_paths(calls: Calls) -> Iterable[str]:
    everything = api.space.Under(under="")
    return [row["path"] for row in calls.ask(api.space.LIST, everything)["records"]]


ADDRESS = Parsed("PATH", str, _own_paths)
_STATS: Final[Columns] = {
    "records": "records",
    "live": ("live_bytes", format_size),
    "on disk": ("disk_bytes", format_size),
    "subscriptions": "subscriptions",
    "received": ("received_bytes", format_size),
    "sent": ("sent_bytes", format_size),
}
_SHARED_PROGRAMS: Final[Columns] = {"program": "path", "<size": ("size_bytes", format_size)}
_RUNNING: Final[Columns] = {"runs": "hash", "id": "id", "state": "state", "<frame": "frame"}
_RECORDS: Final[Columns] = {
    "path": "path",
    "<sequence": "sequence",
    "<size": ("size_bytes", format_size),
}


@click.group(cls=Group)
def space() -> None:
    """Read and write the key space of this node, and read that of peers.

    PATH is parts joined by `/`, of letters, digits and `_ . ~ -`. OWNER is a
    node's name or id; without it this node is meant.
    """


@space.command(context_settings={"ignore_unknown_options": True})
@click.argument("path", metavar="PATH", type=ADDRESS)
@click.argument("value", metavar="VALUE|-")
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
    answer = settings.ask(api.space.PUT, api.space.At(at=path), data)
    settings.view(answer, str(answer["sequence"]))


@asks(space, api.space.GET)
@click.argument("at", metavar="[OWNER:]PATH", type=ADDRESS)
@click.option(
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
            show(line)
    else:
        click.echo(value, nl=False)


_own = click.argument("at", metavar="PATH", type=ADDRESS)
_below = click.argument("under", metavar="[OWNER:][PREFIX]", type=ADDRESS, default="")


@asks(space, api.space.REMOVE)
@_own
def rm(_: Document) -> None:
    """Delete a path of this node."""


@asks(space, api.space.LIST)
@_below
def ls(answer: Document) -> None:
    """List what is at a path and below it; everything without PREFIX."""
    show_rows(answer["records"], _RECORDS, "nothing is there")


@asks(space, api.space.VERSIONS)
@_own
def versions(answer: Document) -> None:
    """List the replaced values of a path of this node that are kept, the newest first."""
    show_rows(answer["records"], _RECORDS, "no replaced value is kept")


@space.command()
@_below
def watch(settings: Settings, under: str) -> None:
    """Print each change at a path and below it, from now on, until Ctrl-C."""
    with settings.calls().events(api.space.WATCH, api.space.Under(under=under)) as changes:
        say("watching")
        for change in changes:
            settings.view(change, _change)


def _change(change: Document) -> str:
    return f"{change['path']}  {change['sequence']}  {_shown(change['value'])}"


def _shown(value: str | dict[str, str] | None) -> str:
    if value is None:
        return "deleted"
    return value if isinstance(value, str) else format_size(len(value_of(value)))


@asks(space, api.space.STATS)
def stats(answer: Document) -> None:
    """Show how much the space of this node holds."""
    show_fields(answer, _STATS)


def _age(age_ms: int | None) -> str:
    return "never" if age_ms is None else format_duration(age_ms)


_NODES: Final[Columns] = {
    "node": "name",
    "active": ("active", yes_or_no),
    "<last head": ("head_age_ms", _age),
}


@asks(space, api.space.DIAGNOSTICS)
def diagnostics(answer: Document) -> None:
    """Show what this node lists and follows, who is active, and its place in causality."""
    names = {row["node"]: row["name"] for row in answer["nodes"]}
    follows: Columns = {
        "follows": lambda row: names.get(row["owner"], short(row["owner"])),
        "prefix": "prefix",
        "<cursor": "cursor",
    }
    show_rows(answer["programs"], _SHARED_PROGRAMS, "no programs")
    show_rows(answer["running"], _RUNNING, "no program is registered")
    show_rows(answer["subscriptions"], follows, "nothing is followed")
    show_rows(answer["nodes"], _NODES, "no peers")
    show_pairs(
        [
            ("domain", answer["causality"]["domain"] or "none yet"),
            ("stamp", format_size(answer["causality"]["stamp_bytes"])),
        ]
    )


@asks(space, api.space.COMPACT, timeout_s=FSCK_TIMEOUT_S)
def compact(answer: Document) -> None:
    """Return the room of what was deleted or replaced to the disk; show what is left."""
    show_fields(answer, _STATS)
