"""xsc node: make a home, run its node, and ask it how it is."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

import click

from xsc import api
from xsc.base.errors import ArgumentInvalid, StoreDamaged, UnavailableError, unwritable
from xsc.base.units import format_credits, format_duration, format_level, format_size
from xsc.cli.node.backup import backup, restore, warn_of_lost
from xsc.cli.node.drain import drain
from xsc.cli.options import (
    INVITATION,
    PASSPHRASE,
    PATH,
    Command,
    Group,
    Settings,
    ask_passphrase,
    key_passphrase,
    read_key_file,
)
from xsc.cli.output import Columns, moment, say, short, show, show_fields, warn
from xsc.client.calls import FSCK_TIMEOUT_S
from xsc.client.core import Document
from xsc.client.files import check_target


@click.group(cls=Group)
def node() -> None:
    """Run this machine's node.

    A key file may be locked by a passphrase, which is taken from the variable
    XSC_PASSPHRASE or asked for on a terminal.
    """


@node.command()
@click.option("--name", metavar="NAME", help="Name shown to peers.  [the host's name]")
@click.option(
    "--network", metavar="NAME", help="Network; nodes of another one cannot be joined.  [xsc]"
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the key.")
def init(settings: Settings, name: str | None, network: str | None, *, passphrase: bool) -> None:
    """Make a home with a new identity in an empty directory."""
    from xsc.node.home.folder import init_home

    secret = _new_passphrase(ask=passphrase)
    made = init_home(settings.home, passphrase=secret, name=name, network=network)
    settings.view(made, made["id"])
    if not settings.json:
        say(f"made {made['home']}; keep a copy of the key: xsc node identity export FILE")


@node.command()
@click.argument("identity", type=PATH, required=False)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    required=True,
    type=INVITATION,
    metavar="PEER",
    help="A peer: its invitation (or @FILE), or ID@HOST:PORT. May be repeated.",
)
@click.option("--name", metavar="NAME", help="Name shown to peers.  [the host's name]")
@click.option("--network", metavar="NAME", help="Its network.  [that of the invitation, or xsc]")
def recover(
    settings: Settings,
    identity: Path | None,
    peers: tuple[str, ...],
    name: str | None,
    network: str | None,
) -> None:
    """Bring a lost node back, from its exported key IDENTITY and at least one peer.

    The home must be empty. Objects can be read again first; then the ledger goes
    on, under a new incarnation, with all that the peers show of it. Nobody is
    waited for: what a silent peer holds is listed as unproven, and taken when it
    answers. A recovery that broke off goes on without IDENTITY, or with the next
    start of the node.
    """
    from xsc.base.ids import to_text
    from xsc.node.daemon import recover_home

    text = None
    if identity is not None:
        text = read_key_file(identity)
    node_id, done = recover_home(
        settings.home,
        text,
        peers,
        network=network,
        name=name,
        passphrase=key_passphrase(settings.home),
    )
    warn_of_lost(done.found.lost)
    for peer in done.silent:
        warn(f"{short(to_text(peer))} does not answer, and is heard when it does")
    for peer, amount in sorted(done.unproven.items()):
        who = "it owed" if amount > 0 else "it was owed"
        warn(
            f"unproven with {short(to_text(peer))}: {who} {format_credits(abs(amount))} credits "
            "more than any entry that was shown"
        )
    answer = {
        "id": node_id,
        "home": str(settings.home),
        "state": "signing",
        "peers": done.peers,
        "objects": done.found.objects,
        "entries": done.entries,
        "incarnation": done.incarnation,
        "silent": [to_text(peer) for peer in done.silent],
        "unproven": [
            {"peer": to_text(peer), "amount_micro": amount}
            for peer, amount in sorted(done.unproven.items())
        ],
        "lost": list(done.found.lost),
    }
    settings.view(answer, node_id)
    if not settings.json:
        say(
            f"recovered {done.found.objects} objects, {done.peers} peers and {done.entries} ledger "
            "entries; `xsc node start` runs it"
        )


class _StartCommand(Command):
    """Takes every setting as an option; they are loaded only when this command is meant."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the shared options and one for every setting of docs/configuration.md."""
        from xsc.node.config import KEYS

        settings = [
            click.Option(
                [f"--{name.replace('_', '-')}"],
                metavar="VALUE",
                help=f"{key.meaning[:1].upper()}{key.meaning[1:]}."
                + (f"  [{key.default}]" if key.default else ""),
            )
            for name, key in KEYS.items()
        ]
        return [*settings, *super().get_params(ctx)]


@node.command(cls=_StartCommand)
@click.option("--wait", is_flag=True, help="Run it in the background; return when it serves.")
def start(settings: Settings, /, *, wait: bool, **given: str | None) -> int:
    """Run the node until it is told to stop (SIGTERM, Ctrl-C).

    A home that does not exist is made first. Every setting of config.toml can
    be given as an option, which is stronger than the file. With --wait the node
    goes on in the background, logs to HOME/node.log, and ends by
    `kill $(cat HOME/node.pid)`.
    """
    overrides = {name: text for name, text in given.items() if text is not None}
    passphrase = key_passphrase(settings.home)
    if wait:
        _start_in_background(settings, overrides, passphrase)
        return 0
    from xsc.node.daemon import main

    return main(settings.home, overrides, passphrase)


def _start_in_background(settings: Settings, overrides: dict[str, str], passphrase: str) -> None:
    from xsc.cli.background import LOG, start_and_wait
    from xsc.node.home.folder import lock

    # Says who has the home, and whether it may be one, before a log is written there.
    lock(settings.home).close()
    options = [f"--{name.replace('_', '-')}={text}" for name, text in overrides.items()]
    answer = start_and_wait(settings.home, options, passphrase)
    log = str(settings.home / LOG)
    shown = ("id", "name", "home", "pid", "api_url", "peer_url", "addresses")
    settings.view(
        {**{key: answer[key] for key in shown}, "log": log},
        f"node {answer['id']} serves: API at {answer['api_url']}, "
        f"peers at {', '.join(answer['addresses'])}",
    )
    if not settings.json:
        say(f"it logs to {log}")


@node.command()
def status(settings: Settings) -> None:
    """Show what the node is, holds and does."""
    settings.view(settings.ask(api.status.STATUS), _show_status)


@node.command()
def version(settings: Settings) -> None:
    """Say which XSC the node runs."""
    settings.view(settings.ask(api.status.VERSION), lambda answer: show_fields(answer, _VERSION))


_VERSION: Final[Columns] = {"node": "name", "runs": "version", "network": "network"}


def _sizes(text: str, part: Document, *names: str) -> str:
    return text.format(*(format_size(part[f"{name}_bytes"]) for name in names))


def _slots(answer: Document, kind: str, unit: str) -> str:
    offered, granted = (
        format_level(kind, answer[kind][f"{what}_{unit}"]) for what in ("offered", "granted")
    )
    return f"{offered} offered, {granted} granted of it"


_STORAGE: Final = "{} used and {} reserved of {}"
_TRAFFIC: Final = "{} sent to peers and {} received, since the start"
_STATUS: Final[Columns] = {
    "id": "id",
    "name": "name",
    "network": "network",
    "version": "version",
    "home": "home",
    "API": "api_url",
    "peers at": lambda answer: ", ".join(answer["addresses"]) or answer["peer_url"],
    "up for": lambda answer: format_duration(answer["uptime_s"] * 1000),
    "peers": ("peers", "{healthy} of {known} answer".format_map),
    "storage": ("storage", lambda part: _sizes(_STORAGE, part, "used", "reserved", "capacity")),
    "traffic": ("traffic", lambda part: _sizes(_TRAFFIC, part, "sent", "received")),
    "compute": ("compute", "{running} running and {queued} queued on {workers} workers".format_map),
    "storage slots": lambda answer: _slots(answer, "storage", "bytes"),
    "compute slots": lambda answer: _slots(answer, "compute", "fuel_per_s"),
}


def _show_status(answer: Document) -> None:
    show_fields(answer, _STATUS)
    leases = answer["leases"]
    if leases["ending"]:
        why = "; ".join(leases["reasons"]) or "not asked yet"
        warn(
            f"leases that end soon: {leases['ending']}, under objects: {leases['objects']}, "
            f"the first {moment(leases['first_end_ms'])}: {why}; see: xsc store ls --ending"
        )


@node.command()
@click.option("--deep", is_flag=True, help="Check the root of every shard, too.")
@click.option(
    "--salvage",
    is_flag=True,
    help="Make the shard store anew out of what can be read; the node must be stopped.",
)
def fsck(settings: Settings, *, deep: bool, salvage: bool) -> int:
    """Check that the node can still give back all that it holds for others, and its space.

    Works beside a running node, which only reports, and on the home of a
    stopped one, where an index that is wrong is rebuilt. Exits with 6 if
    something is damaged; what is stays listed until it is stored anew or
    deleted.
    """
    running = settings.runs()
    if running and salvage:
        raise ArgumentInvalid("the node runs", hint="stop it first")
    if running:
        answer = settings.ask(api.home.FSCK, api.home.Fsck(deep=deep), timeout_s=FSCK_TIMEOUT_S)
    else:
        from xsc.api import serial
        from xsc.node.offline.fsck import check_home

        found = check_home(settings.home, deep=deep, salvaged=salvage).shown()
        answer = serial.document(found)
    fields: Columns = {
        "bodies": ("bodies", str),
        "held": ("bytes_held", format_size),
        "counted": ("bytes_counted", format_size),
        "index": "index",
        "damaged": lambda _: str(len(answer["damaged"])),
        "space": ("space_records", "{} records".format),
    }
    settings.fields(answer, fields)
    for fault in [*answer["index_faults"], *answer["space_faults"]]:
        warn(fault)
    for first, last in answer["unreadable"]:
        warn(f"what was stored as {first} to {last} cannot be read")
    for row in answer["damaged"]:
        where = f" segment {row['segment']}, column {row['column']}" if "column" in row else ""
        warn(f"{row['kind']} of object {short(row['locate'])}{where} is {row['reason']}")
    if answer["kept"] is not None:
        say(f"the damaged directory is {answer['kept']}; delete it when nothing is missed")
    return 0 if answer["whole"] else StoreDamaged.exit_code


@node.command()
def doctor(settings: Settings) -> int:
    """Check that this machine and this home can run a node well.

    Looks at clock, disk, modes of files, settings, storage and the sandbox, and
    at the node if it runs. Changes nothing. Exits with 5 if something does not
    work.
    """
    from dataclasses import asdict

    from xsc.node.offline.doctor import examine

    found = examine(settings.home, partial(settings.ask, api.status.STATUS))
    failed = any(finding.verdict == "fail" for finding in found)
    answer = {"works": not failed, "findings": [asdict(finding) for finding in found]}
    settings.view(answer, _show_findings)
    return UnavailableError.exit_code if failed else 0


def _show_findings(answer: Document) -> None:
    for finding in answer["findings"]:
        show(f"{finding['verdict']:<4}  {finding['check']:<10}  {finding['text']}")
        if finding["hint"]:
            show(f"      {'':<10}  hint: {finding['hint']}")


node.add_command(drain)
node.add_command(backup)
node.add_command(restore)


@node.group(cls=Group)
def identity() -> None:
    """Keep the node's key safe."""


@identity.command()
@click.argument("file", type=PATH)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the copy.")
def export(settings: Settings, file: Path, *, passphrase: bool) -> None:
    """Write a copy of the node's key to FILE, readable by its owner only.

    The copy of a locked key is locked by the same passphrase.
    """
    from xsc.base.ids import to_text
    from xsc.identity import keyfile
    from xsc.node.home.folder import read_identity
    from xsc.node.system import SystemEntropy

    check_target(file)
    opened_by = key_passphrase(settings.home)
    key = read_identity(settings.home, opened_by)
    locked_by = _new_passphrase(ask=True) if passphrase else opened_by
    try:
        keyfile.write(file, keyfile.to_line(key, SystemEntropy(), locked_by))
    except OSError as fault:
        raise unwritable(f"{file} cannot be written", fault) from None
    node_id = to_text(key.node_id)
    settings.view({"id": node_id, "file": str(file), "locked": bool(locked_by)}, node_id)
    if not locked_by:
        say(f"{file} is not locked: who can read it, is this node")


def _new_passphrase(*, ask: bool) -> str:
    """Return the passphrase for a new key file; an empty one locks nothing."""
    given = os.environ.get(PASSPHRASE, "")
    if given or not ask:
        return given
    return ask_passphrase(f"set {PASSPHRASE}", twice=True)
