"""xsc space: the signed key space that this node and its peers share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click

from xsc.base.units import format_duration, format_size
from xsc.cli.options import Group, Parsed, Settings, pass_settings
from xsc.cli.output import say, show, show_json, show_pairs, show_table
from xsc.client.calls import Calls, read_bounded
from xsc.client.core import Document
from xsc.client.space import SpaceCalls, address_of, value_of
from xsc.space.limits import VALUE_BYTES_MAX


def _calls(settings: Settings) -> SpaceCalls:
    return SpaceCalls(settings.calls().core)


def _own_paths(calls: Calls) -> Iterable[str]:
    return [row["path"] for row in SpaceCalls(calls.core).records()["records"]]


ADDRESS = Parsed("PATH", address_of, _own_paths)


@click.group(cls=Group)
def space() -> None:
    """Read and write the key space of this node, and read that of peers.

    PATH is parts joined by `/`, of letters, digits and `_ . ~ -`. OWNER is a
    node's name or id; without it this node is meant.
    """


@space.command(context_settings={"ignore_unknown_options": True})
@click.argument("path", metavar="PATH", type=ADDRESS)
@click.argument("value", metavar="VALUE|-")
@pass_settings
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
    answer = _calls(settings).put(path, data)
    if settings.json:
        show_json(answer)
    else:
        show(str(answer["sequence"]))


@space.command()
@click.argument("path", metavar="[OWNER:]PATH", type=ADDRESS)
@click.option(
    "--sequence",
    metavar="N",
    type=click.IntRange(min=1),
    help="A replaced value of this node, as `versions` lists them.",
)
@pass_settings
def get(settings: Settings, path: str, sequence: int | None) -> None:
    """Print the value at a path, byte for byte."""
    answer = _calls(settings).get(path, sequence)
    if settings.json:
        show_json(answer)
    elif sys.stdout.isatty():
        # Peers choose what it says, and a terminal would obey it.
        for line in value_of(answer["value"]).decode(errors="replace").split("\n"):
            show(line)
    else:
        click.echo(value_of(answer["value"]), nl=False)


@space.command()
@click.argument("path", metavar="PATH", type=ADDRESS)
@pass_settings
def rm(settings: Settings, path: str) -> None:
    """Delete a path of this node."""
    answer = _calls(settings).remove(path)
    if settings.json:
        show_json(answer)


@space.command()
@click.argument("prefix", metavar="[OWNER:][PREFIX]", type=ADDRESS, default="")
@pass_settings
def ls(settings: Settings, prefix: str) -> None:
    """List what is at a path and below it; everything without PREFIX."""
    _show_records(settings, _calls(settings).records(prefix), "nothing is there")


@space.command()
@click.argument("path", metavar="PATH", type=ADDRESS)
@pass_settings
def versions(settings: Settings, path: str) -> None:
    """List the replaced values of a path of this node that are kept, the newest first."""
    _show_records(settings, _calls(settings).versions(path), "no replaced value is kept")


def _show_records(settings: Settings, answer: Document, nothing: str) -> None:
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["path", "<sequence", "<size"],
        [
            [row["path"], str(row["sequence"]), format_size(row["size_bytes"])]
            for row in answer["records"]
        ],
        nothing,
    )


@space.command()
@click.argument("prefix", metavar="[OWNER:][PREFIX]", type=ADDRESS, default="")
@pass_settings
def watch(settings: Settings, prefix: str) -> None:
    """Print each change at a path and below it, from now on, until Ctrl-C."""
    with _calls(settings).watch(prefix) as changes:
        say("watching")
        for change in changes:
            if settings.json:
                show_json(change)
            else:
                show(f"{change['path']}  {change['sequence']}  {_shown(change['value'])}")


def _shown(value: str | dict[str, str] | None) -> str:
    if value is None:
        return "deleted"
    return value if isinstance(value, str) else format_size(len(value_of(value)))


@space.command()
@pass_settings
def stats(settings: Settings) -> None:
    """Show how much the space of this node holds."""
    _show_stats(settings, _calls(settings).stats())


@space.command()
@pass_settings
def diagnostics(settings: Settings) -> None:
    """Show what this node lists and follows, who is active, and its place in causality."""
    answer = _calls(settings).diagnostics()
    if settings.json:
        show_json(answer)
        return
    names = {row["node"]: row["name"] for row in answer["nodes"]}
    show_table(
        ["program", "<size"],
        [[row["path"], format_size(row["size_bytes"])] for row in answer["programs"]],
        "no programs",
    )
    show_table(
        ["runs", "id", "state", "<frame"],
        [[row["hash"], row["id"], row["state"], str(row["frame"])] for row in answer["running"]],
        "no program is registered",
    )
    show_table(
        ["follows", "prefix", "<cursor"],
        [
            [names.get(row["owner"], row["owner"][:10]), row["prefix"], str(row["cursor"])]
            for row in answer["subscriptions"]
        ],
        "nothing is followed",
    )
    show_table(
        ["node", "active", "<last head"],
        [
            [
                row["name"],
                "yes" if row["active"] else "no",
                "never" if row["head_age_ms"] is None else format_duration(row["head_age_ms"]),
            ]
            for row in answer["nodes"]
        ],
        "no peers",
    )
    show_pairs(
        [
            ("domain", answer["causality"]["domain"] or "none yet"),
            ("stamp", format_size(answer["causality"]["stamp_bytes"])),
        ]
    )


@space.command()
@pass_settings
def compact(settings: Settings) -> None:
    """Return the room of what was deleted or replaced to the disk; show what is left."""
    _show_stats(settings, _calls(settings).compact())


def _show_stats(settings: Settings, answer: Document) -> None:
    if settings.json:
        show_json(answer)
        return
    show_pairs(
        [
            ("records", str(answer["records"])),
            ("live", format_size(answer["live_bytes"])),
            ("on disk", format_size(answer["disk_bytes"])),
            ("subscriptions", str(answer["subscriptions"])),
            ("received", format_size(answer["received_bytes"])),
            ("sent", format_size(answer["sent_bytes"])),
        ]
    )
