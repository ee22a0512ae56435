"""xsc store: objects, cut and sealed on this node and kept by others."""

from __future__ import annotations

import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import click

from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid, PeerSilent, ShardsDamaged
from xsc.base.units import format_size
from xsc.cli.options import (
    CAPABILITY,
    CODE,
    PATH,
    RANGE,
    SURVIVE,
    Group,
    Settings,
    pass_settings,
)
from xsc.cli.output import (
    moment,
    progress_bar,
    say,
    short,
    show,
    show_json,
    show_pairs,
    show_table,
    warn,
)
from xsc.client.calls import Calls, unreadable
from xsc.client.core import Document
from xsc.client.files import check_target, size_of, write_whole

STREAM = Path("-")


@click.group(cls=Group)
def store() -> None:
    """Store objects so that any four of six nodes can give them back.

    CAP is a capability: the text that `store put` prints, and all that is
    needed to read the object. @FILE takes it from a file and - from standard
    input, so that it need not stand in a list of processes.
    """


@store.command()
@click.argument("file", type=PATH)
@click.option("--name", metavar="NAME", help="Name in the list of objects.  [the file's name]")
@click.option(
    "--survive",
    type=SURVIVE,
    default="0nodes",
    metavar="2nodes,1site",
    help="Refuse unless so many nodes, sites or owners may be lost.",
)
@click.option("--code", type=CODE, metavar="K,M", help="K data shards and M parity shards.  [4,2]")
@pass_settings
def put(
    settings: Settings, file: Path, name: str | None, survive: str, code: tuple[int, int] | None
) -> None:
    """Store FILE, or standard input (-), and print its capability."""
    calls = settings.calls()
    stored = _upload(calls, file, name=name, survive=survive, code=code)
    for warning in stored["warnings"]:
        warn(warning)
    if settings.json:
        show_json(stored)
        return
    hosts = len({row["node"] for row in stored["hosts"]})
    if sys.stderr.isatty() or settings.verbose:
        say(
            f"stored {format_size(stored['size_bytes'])} on {_count(hosts, 'node')}, "
            f"survives the loss of {stored['survives']}"
        )
    show(stored["capability"])


def _upload(calls: Calls, file: Path, *, name: str | None, **how: Any) -> Document:  # noqa: ANN401
    if file == STREAM:
        with progress_bar("storing", None) as progress:
            return calls.put(sys.stdin.buffer, name=name or "", progress=progress, **how)
    try:
        source = file.open("rb")
    except OSError as fault:
        error = unreadable(file, "file", fault)
        if isinstance(fault, IsADirectoryError):
            error.hint = f"store an archive of it: tar c {file} | xsc store put -"
        raise error from None
    with source:
        size = size_of(source)
        with progress_bar(f"storing {file.name}", size) as progress:
            known_as = file.name if name is None else name
            return calls.put(source, name=known_as, size_bytes=size, progress=progress, **how)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@store.command()
@click.argument("cap", type=CAPABILITY)
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="FILE", help="File to write, or -."
)
@click.option(
    "--range",
    "part",
    type=RANGE,
    metavar="FIRST-LAST",
    help="Only these bytes, like 1000-1999, 1000- or -500.",
)
@pass_settings
def get(settings: Settings, cap: str, output: Path, part: str | None) -> None:
    """Fetch the object that CAP stands for.

    FILE appears when all of it is there and has been checked; after an
    interruption the same command goes on where it was. With - the content goes
    to standard output as it arrives, and the exit code says whether it was all.
    """
    if output == STREAM and settings.json:
        raise ArgumentInvalid("--json and -o - both want standard output")
    if output != STREAM:
        check_target(output)
    calls = settings.calls()
    if output != STREAM and part is None:
        size = calls.fetch(cap, output, lambda total: progress_bar("fetching", total))
    else:
        with (
            calls.open(cap, part) as download,
            progress_bar("fetching", download.size_bytes) as progress,
        ):
            if output == STREAM:
                for block in download.blocks(progress):
                    sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
                return
            size = write_whole(output, download.blocks(progress))
    if settings.json:
        show_json({"file": str(output), "size_bytes": size})
    elif settings.verbose:
        say(f"fetched {format_size(size)} to {output}")


@store.command("ls")
@pass_settings
def listing(settings: Settings) -> None:
    """List the objects that this node has stored."""
    answer = settings.calls().objects()
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["name", "<size", "stored", "<margin", "capability"],
        [
            [
                row["name"] or "-",
                format_size(row["size_bytes"]),
                moment(row["created_ms"]),
                str(row["margin"]),
                row["capability"],
            ]
            for row in answer["objects"]
        ],
        "this node has stored nothing",
    )


def _margin(margin: int) -> str:
    if margin < 0:
        return f"{_count(-margin, 'shard')} too few"
    return f"{_count(margin, 'more shard')} may be lost"


@store.command()
@click.argument("cap", type=CAPABILITY)
@pass_settings
def stat(settings: Settings, cap: str) -> None:
    """Ask an object's hosts which of its shards they still hold."""
    answer = settings.calls().stat(cap)
    if settings.json:
        show_json(answer)
        return
    code = answer["code"]
    show_pairs(
        [
            ("size", format_size(answer["size_bytes"])),
            ("code", f"any {code['k']} of {code['k'] + code['m']} shards"),
            ("readable", "yes" if answer["readable"] else "no"),
            ("margin", _margin(answer["margin"])),
            ("healable", "yes" if answer["healable"] else "no"),
        ]
    )
    show_table(
        ["<shard", "node", "state"],
        [[str(row["shard"]), short(row["node"]), row["state"]] for row in answer["hosts"]],
        "it has no shards: its content is in the manifest",
    )


@store.command()
@click.argument("cap", type=CAPABILITY)
@click.option("--deep", is_flag=True, help="Read every shard and verify it.")
@pass_settings
def check(settings: Settings, cap: str, *, deep: bool) -> None:
    """Say what an object's placement is worth: what it survives, and for how long.

    Exits with 6 if a shard is damaged or missing, and with 5 if it only cannot
    be asked for.
    """
    answer = settings.calls().check(cap, deep=deep)
    if settings.json:
        show_json(answer)
    else:
        loss_ppb = answer["yearly_loss_ppb"]
        show_pairs(
            [
                ("size", format_size(answer["size_bytes"])),
                ("readable", "yes" if answer["readable"] else "no"),
                ("margin", _margin(answer["margin"])),
                ("healable", "yes" if answer["healable"] else "no"),
                ("survives", f"the loss of {answer['survives']}"),
                ("yearly loss", f"{loss_ppb // 10**7}.{loss_ppb % 10**7:07d}% (an estimate)"),
                *([("read", format_size(answer["read_bytes"]))] if deep else []),
            ]
        )
        if answer["bad"]:
            show_table(
                ["<segment", "<shard", "node", "reason"],
                [
                    [str(row["segment"]), str(row["shard"]), short(row["node"]), row["reason"]]
                    for row in answer["bad"]
                ],
                "",
            )
    states = {row["state"] for row in answer["hosts"]}
    lost = sum(row["state"] != "ok" for row in answer["hosts"])
    if states & {"corrupt", "missing"}:
        raise ShardsDamaged(f"{_count(lost, 'shard')} of it are damaged or gone")
    if lost:
        raise PeerSilent(f"{_count(lost, 'shard')} of it cannot be asked for")


@store.command()
@click.argument("cap", type=CAPABILITY)
@click.option(
    "--receipts", type=PATH, metavar="DIR", help="Write the hosts' signed confirmations there."
)
@pass_settings
def rm(settings: Settings, cap: str, receipts: Path | None) -> int:
    """Delete an object at all of its hosts.

    Exits with 7 if a host has not confirmed it; what it holds runs out with
    its lease.
    """
    if receipts is not None:
        try:
            receipts.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise ArgumentInvalid(f"{receipts} cannot be made: {fault.strerror}") from None
    answer = settings.calls().remove(cap)
    if receipts is not None:
        for host, receipt in answer["receipts"].items():
            write_whole(receipts / f"{host}.receipt", [b64decode(receipt)])
    if settings.json:
        show_json(answer)
    else:
        show(f"deleted at {_count(len(answer['confirmed']), 'node')}")
    for host in answer["unconfirmed"]:
        warn(f"{short(host)} has not confirmed that it deleted its shards")
    return EXIT_PARTLY if answer["unconfirmed"] else 0
