"""xsc node: make a home, run its node, and ask it how it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click import argument, option

from xsc import api
from xsc.base import errors, ids, units
from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid
from xsc.base.progress import Progress
from xsc.base.text import count_of
from xsc.cli import options, show
from xsc.cli.options import Command, Group, Settings, asks
from xsc.client.calls import Calls
from xsc.client.core import Document
from xsc.client.files import blocks_of, check_target, opened, write_whole

if TYPE_CHECKING:
    from xsc.identity.keys import KeyPair
    from xsc.node.home.backup import Brought
    from xsc.node.home.recover import Returned

PASSPHRASE_BYTES_MAX = 4096
KEY_FILE_BYTES_MAX = 4096
DRAIN_WAIT_MS = 5_000
"""How long the node may wait for its next count before it answers."""


@click.group(cls=Group)
def node() -> None:
    """Run this machine's node.

    A key file may be locked by a passphrase, which is taken from the variable
    XSC_PASSPHRASE or asked for on a terminal.
    """


@node.command()
@option("--name", metavar="NAME", help="Name shown to peers.  [the host's name]")
@option("--network", metavar="NAME", help="Network; nodes of another one cannot be joined.  [xsc]")
@option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the key.")
def init(settings: Settings, name: str | None, network: str | None, *, passphrase: bool) -> None:
    """Make a home with a new identity in an empty directory."""
    from xsc.node.home.folder import init_home

    secret = _new_passphrase(ask=passphrase)
    made = init_home(settings.home, passphrase=secret, name=name, network=network)
    settings.view(made, made["id"])
    show.note(f"made {made['home']}; keep a copy of the key: xsc node identity export FILE")


@node.command()
@argument("identity", type=options.PATH, required=False)
@option(
    "--peer",
    "peers",
    multiple=True,
    required=True,
    type=options.INVITATION,
    metavar="PEER",
    help="A peer: its invitation (or @FILE), or ID@HOST:PORT. May be repeated.",
)
@option("--name", metavar="NAME", help="Name shown to peers.  [the host's name]")
@option("--network", metavar="NAME", help="Its network.  [that of the invitation, or xsc]")
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
    from xsc.node.daemon import begin_recovery, bring_back

    text = None if identity is None else _read_key_file(identity)
    passphrase = _key_passphrase(settings.home)
    if text is not None:
        begin_recovery(
            settings.home, text, peers, network=network, name=name, passphrase=passphrase
        )
    node_id, done = bring_back(settings.home, "recovering", passphrase, peers, watch=_RECOVERING)
    came_back = _came_back(done)
    answer = {"id": node_id, "home": str(settings.home), "state": "signing", **came_back}
    settings.view(answer, node_id)
    show.note(
        "recovered {objects} objects, {peers} peers and {entries} ledger entries; "
        "`xsc node start` runs it".format_map(came_back)
    )


def _came_back(done: Returned) -> Document:
    """Return with what a node came back, and warn of what its peers have not shown."""
    from xsc.api import serial

    told = serial.document(done)
    for name in told["lost"]:
        show.warn(
            f"the object {name or 'without a name'} is at no host that answers; "
            "it is looked for again"
        )
    for peer in told["silent"]:
        show.warn(f"{show.short(peer)} does not answer, and is heard when it does")
    for row in told["unproven"]:
        due = row["amount_micro"]
        who = "it owed" if due > 0 else "it was owed"
        show.warn(
            f"unproven with {show.short(row['peer'])}: {who} {units.format_credits(abs(due))} "
            "credits more than any entry that was shown"
        )
    return told


class _StartCommand(Command):
    """Takes every setting as an option; they are loaded only when this command is meant."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the shared options and one for every setting of docs/configuration.md."""
        from xsc.node.config import KEYS

        settings = [
            click.Option(
                [f"--{name.replace('_', '-')}"],
                metavar="VALUE",
                hidden=key.file_only,
                help=f"{key.meaning[:1].upper()}{key.meaning[1:]}."
                + (f"  [{key.default}]" if key.default else ""),
            )
            for name, key in KEYS.items()
        ]
        return [*settings, *super().get_params(ctx)]


@node.command(cls=_StartCommand)
@option("--wait", is_flag=True, help="Run it in the background; return when it serves.")
def start(settings: Settings, /, *, wait: bool, **given: str | None) -> int:
    """Run the node until it is told to stop (SIGTERM, Ctrl-C).

    A home that does not exist is made first. Every setting of config.toml but
    `notify` can be given as an option, which is stronger than the file. With --wait the node
    goes on in the background, logs to HOME/node.log, and ends by
    `kill $(cat HOME/node.pid)`.
    """
    overrides = {name: text for name, text in given.items() if text is not None}
    passphrase = _key_passphrase(settings.home)
    if wait:
        _start_in_background(settings, overrides, passphrase)
        return 0
    from xsc.node.daemon import main

    return main(settings.home, overrides, passphrase)


def _start_in_background(settings: Settings, overrides: dict[str, str], passphrase: str) -> None:
    from xsc.cli.devnet import LOG, start_and_wait
    from xsc.node.home.folder import lock

    # Says who has the home, and whether it may be one, before a log is written there.
    lock(settings.home).close()
    words = [f"--{name.replace('_', '-')}={text}" for name, text in overrides.items()]
    environment = {**os.environ, **({options.PASSPHRASE: passphrase} if passphrase else {})}
    answer = start_and_wait(settings.home, words, environment)
    log = str(settings.home / LOG)
    shown = ("id", "name", "home", "pid", "api_url", "peer_url", "addresses")
    settings.view(
        {**{key: answer[key] for key in shown}, "log": log},
        f"node {answer['id']} serves: API at {answer['api_url']}, "
        f"peers at {', '.join(answer['addresses'])}",
    )
    show.note(f"it logs to {log}")


def _sizes(text: str, part: Document, *names: str) -> str:
    return text.format(*(units.format_size(part[f"{name}_bytes"]) for name in names))


def _slots(answer: Document, kind: str, unit: str) -> str:
    offered, granted = (
        units.format_level(kind, answer[kind][f"{what}_{unit}"]) for what in ("offered", "granted")
    )
    return f"{offered} offered, {granted} granted of it"


_RECOVERING: Final = partial(show.progress, "finding objects", form=show.in_number)
_STORAGE: Final = "{} used and {} reserved of {}"
_TRAFFIC: Final = "{} sent to peers and {} received, since the start"


@asks(node, api.status.VERSION)
def version(answer: Document) -> None:
    """Say which XSC the node runs."""
    show.fields(answer, "node=name runs=version network")


@asks(node, api.status.STATUS)
def status(answer: Document) -> None:
    """Show what the node is, holds and does."""
    show.fields(
        answer,
        "id name network version home API=api_url peers_at up_for peers storage traffic compute "
        "storage_slots compute_slots",
        peers_at=lambda answer: ", ".join(answer["addresses"]) or answer["peer_url"],
        up_for=lambda answer: units.format_duration(answer["uptime_s"] * 1000),
        peers=("peers", "{healthy} of {known} answer".format_map),
        storage=("storage", lambda part: _sizes(_STORAGE, part, "used", "reserved", "capacity")),
        traffic=("traffic", lambda part: _sizes(_TRAFFIC, part, "sent", "received")),
        compute=(
            "compute",
            "{running} running and {queued} queued on {workers} workers".format_map,
        ),
        storage_slots=lambda answer: _slots(answer, "storage", "bytes"),
        compute_slots=lambda answer: _slots(answer, "compute", "fuel_per_s"),
    )
    if answer["state"] == "leaving":
        show.warn("this node is leaving the network; see: xsc node drain --status")
    leases = answer["leases"]
    if leases["ending"]:
        why = "; ".join(leases["reasons"]) or "not asked yet"
        show.warn(
            f"leases that end soon: {leases['ending']}, under objects: {leases['objects']}, "
            f"the first {show.moment(leases['first_end_ms'])}: {why}; see: xsc store ls --ending"
        )
    if answer["alerts"]:
        show.warn(f"{count_of(answer['alerts'], 'alert')}; see: xsc node alerts")


@node.command()
@option("--test", is_flag=True, help="Send a test alert to each target of `notify`, and list none.")
def alerts(settings: Settings, *, test: bool) -> int:
    """List what needs you: conditions that hold, and those that held since you last looked.

    They stay until you acknowledge them. The setting `notify` names programs and URLs that
    are told of them. With --test it exits with 5 if one of these does not take it.
    """
    answer = settings.ask(api.monitor.TEST if test else api.monitor.ALERTS)
    settings.view(answer)
    if test:
        show.rows(answer["targets"], "target taken why=reason")
        failed = not all(row["taken"] for row in answer["targets"])
        return errors.UnavailableError.exit_code if failed else 0
    show.rows(
        answer["alerts"],
        "alert=id about=name since over what=says",
        "nothing needs you that you have not acknowledged",
        over=lambda row: "-" if row["over_ms"] is None else show.moment(row["over_ms"]),
    )
    return 0


@asks(node, api.monitor.ACKNOWLEDGE)
@argument("id", metavar="[ALERT]", required=False)
def acknowledge(answer: Document) -> str:
    """Show ALERT, or all alerts, no longer; one that comes again is shown again."""
    return f"acknowledged {count_of(answer['alerts'], 'alert')}"


@asks(node, api.monitor.HISTORY)
@option("--since", "within_ms", type=options.DURATION, help="Those of the last so long.  [30d]")
@option("--points", type=int, help="Thin them out evenly to so many.  [500]")
def history(answer: Document) -> None:
    """Show what was measured every minute, for up to 30 days."""
    show.rows(
        answer["samples"],
        "at <used <granted <margin <price <answering <balance",
        "no sample yet",
        answering=lambda row: _mean_share(row["peers"]),
        balance=lambda row: units.format_credits(sum(p["balance_micro"] for p in row["peers"])),
    )


def _mean_share(peers: Sequence[Document]) -> str:
    """Return how available peers were, in their mean."""
    if not peers:
        return "-"
    return units.format_share(sum(row["availability_ppm"] for row in peers) // len(peers))


@node.command()
@option("--deep", is_flag=True, help="Check the root of every shard, too.")
@option(
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
    running = settings.calls().alive()
    if running and salvage:
        raise ArgumentInvalid("the node runs", hint="stop it first")
    watch = partial(show.progress, "checking")
    if running:
        answer = settings.calls().fsck(watch, deep=deep)
    else:
        from xsc.api import serial
        from xsc.node.offline.fsck import check_home

        found = check_home(settings.home, deep=deep, salvaged=salvage, watch=watch)
        answer = serial.document(found)
    settings.view(answer)
    show.fields(
        answer,
        "bodies held counted index damaged space",
        held=("bytes_held", units.format_size),
        counted=("bytes_counted", units.format_size),
        damaged=lambda answer: str(len(answer["damaged"])),
        space=("space_records", "{} records".format),
    )
    for fault in [*answer["index_faults"], *answer["space_faults"]]:
        show.warn(fault)
    for first, last in answer["unreadable"]:
        show.warn(f"what was stored as {first} to {last} cannot be read")
    for row in answer["damaged"]:
        where = f" segment {row['segment']}, column {row['column']}" if "column" in row else ""
        show.warn(f"{row['kind']} of object {show.short(row['locate'])}{where} is {row['reason']}")
    if answer["kept"] is not None:
        show.say(f"the damaged directory is {answer['kept']}; delete it when nothing is missed")
    return 0 if answer["whole"] else errors.StoreDamaged.exit_code


@node.command()
def doctor(settings: Settings) -> int:
    """Check that this machine and this home can run a node well.

    Looks at clock, disk, modes of files, settings, storage and the sandbox, and
    at the node if it runs. Changes nothing. Exits with 5 if something does not
    work.
    """
    from xsc.node.offline.doctor import examine

    found = examine(settings.home, partial(settings.ask, api.status.STATUS))
    failed = any(finding.verdict == "fail" for finding in found)
    settings.view({"works": not failed, "findings": [asdict(finding) for finding in found]})
    for finding in found:
        show.line(f"{finding.verdict:<4}  {finding.check:<10}  {finding.text}")
        if finding.hint:
            show.line(f"      {'':<10}  hint: {finding.hint}")
    return errors.UnavailableError.exit_code if failed else 0


@node.command()
@option("--status", is_flag=True, help="Say how far it is, and no more.")
@option("--cancel", is_flag=True, help="Stay after all.")
@option("--proof", type=options.TARGET, help="Where the proof goes.  [drain.proof in the home]")
def drain(settings: Settings, proof: Path | None, *, status: bool, cancel: bool) -> int:
    """Move all that the node holds for others to other nodes, so that it can leave.

    Owners move what is theirs and then order its deletion here; reads go on
    meanwhile, and nothing new is taken. The node goes on with it by itself, also
    after a restart. Writes the owners' signed orders as a proof for `xsc verify`.
    Exits with 7 if something cannot be moved.
    """
    if cancel and (status or proof is not None):
        raise ArgumentInvalid("--cancel goes with neither --status nor --proof")
    calls, target = settings.calls(), proof or settings.home / "drain.proof"
    answer = calls.ask(api.home.DRAIN) if status or cancel else _drained(calls)
    if cancel and answer["state"] != "staying":
        settings.view(calls.ask(api.home.STAY), "the node stays; what has moved stays where it is")
        return 0
    if answer["state"] != "staying" and (not status or proof is not None):
        with calls.download(api.home.PROOF) as download:
            write_whole(target, download.blocks())
    settings.view(answer)
    if answer["state"] == "staying":
        show.line("the node is not leaving")
        # Somebody cancelled it: who waits for its end must not stop the node.
        return 0 if status or cancel else EXIT_PARTLY
    show.fields(
        answer,
        "state peers_told released left owed_to_it",
        peers_told="{peers_told} of {peers}".format_map,
        released=partial(_so_much, which="released"),
        left=partial(_so_much, which="left"),
        owed_to_it=lambda answer: f"{units.format_credits(answer['owed_micro'])} credits",
    )
    for line in _drain_warnings(answer):
        show.warn(line)
    if answer["state"] != "done":
        return EXIT_PARTLY
    if not status:
        show.say(
            f"the proof is {target}; `xsc verify` checks it. The node can be stopped for good:"
        )
        show.say(
            "its own objects stay readable by capability, and by its identity (xsc node recover)"
        )
    return 0


def _drained(calls: Calls) -> Document:
    """Begin to leave and wait until all has moved that can; return how it stands then."""
    answer = calls.ask(api.home.LEAVE)
    with show.progress("moving away", answer["total_bytes"]) as progress:
        shown, said = 0, set[object]()
        while answer["state"] == "leaving":
            moved = answer["total_bytes"] - answer["left_bytes"]
            progress(moved - shown)
            shown = moved
            stuck = answer["stuck_objects"] + len(answer["directories_only_here"])
            if stuck and stuck >= answer["left_objects"]:
                break
            news = _stays(answer)
            if not sys.stderr.isatty():
                news[moved] = f"left: {_so_much(answer, 'left')}"
            if silent := answer["peers"] - answer["peers_told"]:
                peers = count_of(answer["peers"], "peer")
                news["silent", silent] = f"waiting for {silent} of {peers}: silent"
            for about, line in news.items():
                if about not in said:
                    show.say(line)
            said |= news.keys()
            answer = calls.ask(api.home.DRAIN, wait_ms=DRAIN_WAIT_MS)
    return answer


def _so_much(answer: Document, which: str) -> str:
    objects = count_of(answer[f"{which}_objects"], "object")
    return f"{objects}, {units.format_size(answer[f'{which}_bytes'])}"


def _stays(answer: Document) -> dict[object, str]:
    """Return a line for each owner and reason why objects of it stay."""
    alike: dict[tuple[str, str], list[Document]] = {}
    for row in answer["stuck"]:
        alike.setdefault((row["owner"], row["reason"]), []).append(row)
    lines: dict[object, str] = {}
    for (owner, reason), rows in alike.items():
        what, stays = count_of(len(rows), "object"), "stay"
        if len(rows) == 1:
            what, stays = f"object {rows[0]['object'][:16]}", "stays"
        size = units.format_size(sum(row["size_bytes"] for row in rows))
        lines[owner, reason] = f"{what} of {show.short(owner)}, {size}, {stays}: {reason}"
    return lines


def _drain_warnings(answer: Document) -> list[str]:
    lines = list(_stays(answer).values())
    more = answer["stuck_objects"] - len(answer["stuck"])
    if more > 0:
        lines.append(f"beside them: {count_of(more, 'object')}")
    lines += [
        f"the directory of {show.short(owner)} lies at no other peer"
        for owner in answer["directories_only_here"]
    ]
    if answer["guarded_at_own_cost"]:
        lines.append(
            f"this node pays for shards of {count_of(answer['guarded_at_own_cost'], 'object')} of "
            "owners that are away; they stay where they are until its leases end"
        )
    return lines


def _passphrase_of(path: Path | None, *, needed: bool, twice: bool = False) -> str:
    """Return the passphrase of a backup: the first line of a file or of standard input (-).

    Where no file is given it is asked for if one is needed, else it is empty.

    Raises:
        ArgumentInvalid: the file cannot be read or holds none, or nobody can be asked.
    """
    if path is None:
        hint = "give it with --passphrase-file FILE"
        return _ask_passphrase(hint, twice=twice) if needed else ""
    raw = options.read_given(path, "passphrase file", PASSPHRASE_BYTES_MAX)
    line = raw.decode(errors="replace").split("\n")[0].rstrip("\r")
    if not line or "\ufffd" in line:
        raise ArgumentInvalid(f"{path} holds no passphrase in its first line")
    return line


passphrase_file = option(
    "--passphrase-file", type=options.PATH, help="Take it from FILE, or from - (stdin)."
)


@node.command()
@argument("file", type=options.PATH, metavar="FILE|DIR")
@option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the backup.")
@passphrase_file
@option("--no-identity", is_flag=True, help="Leave the key out; only the key opens it then.")
@option("--no-bodies", is_flag=True, help="Leave out the shards that lie on this node.")
def backup(
    settings: Settings,
    file: Path,
    passphrase_file: Path | None,
    *,
    passphrase: bool,
    no_identity: bool,
    no_bodies: bool,
) -> None:
    """Write all that the node knows, as of this moment, to FILE.

    In a DIR the file gets a name of its own. The node may run meanwhile.
    FILE appears when all of it is there, readable by its owner only. It holds
    the identity, so whoever reads it is this node: lock it by a passphrase, or
    leave the identity out; then the exported key alone opens it.
    """
    from xsc.node.home.backup import Reader, frames, new_head, seal_of, stream_stopped
    from xsc.node.home.folder import check_format, check_whole

    check_format(settings.home)
    check_whole(settings.home)
    if file.is_dir():
        from datetime import UTC, datetime

        file /= f"xsc-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup"
    check_target(file)
    if file.exists():
        raise ArgumentInvalid(f"{file} exists", hint="name a new file, or a directory")
    if no_identity and (passphrase or passphrase_file is not None):
        raise ArgumentInvalid(
            "a backup without the identity is locked by the identity, and by no passphrase",
            hint="leave out --no-identity or the passphrase",
        )
    secret = _passphrase_of(passphrase_file, needed=passphrase, twice=True)
    identity, bodies = not no_identity, not no_bodies

    with ExitStack() as stack:
        if settings.calls().alive():
            asked = settings.calls().download(api.home.BACKUP, identity=identity, bodies=bodies)
            blocks = iter(stack.enter_context(asked))
        else:
            opened_by = _key_passphrase(settings.home)
            blocks = stream_stopped(settings.home, opened_by, identity=identity, bodies=bodies)
        progress = stack.enter_context(show.progress("backing up", None))
        reader = Reader(_told(blocks, [progress]))
        passed = reader.whole()
        if secret:
            told = reader.head
            head = new_head(told.node, told.network, "passphrase", told.created_ms)
            locks = seal_of(head, passphrase=secret)
            passed = frames(head, reader.entries(seal_of(told)), locks)
        size = write_whole(file, passed, mode=0o600)
    answer = {
        "file": str(file),
        "size_bytes": size,
        "id": ids.to_text(reader.head.node),
        "created_ms": reader.head.created_ms,
        "identity": identity,
        "bodies": bodies,
        "locked": no_identity or bool(secret),
    }
    settings.view(answer, str(file))
    if not no_identity and not secret:
        show.warn(f"{file} is not locked: whoever can read it can act as this node")


def _told(blocks: Iterable[bytes], progress: Sequence[Progress]) -> Iterator[bytes]:
    """Yield blocks; who watches by then is told of each that was taken."""
    for block in blocks:
        yield block
        for each in progress:
            each(len(block))


@node.command()
@argument("file", type=options.PATH, required=False)
@option(
    "--identity",
    type=options.PATH,
    metavar="KEY",
    help="Exported key, where the backup holds none.",
)
@passphrase_file
@option("--check", is_flag=True, help="Only read it, and say what it would bring back.")
@option(
    "--without-silent", is_flag=True, help="Go on without peers and objects that do not answer."
)
def restore(
    settings: Settings,
    file: Path | None,
    identity: Path | None,
    passphrase_file: Path | None,
    *,
    check: bool,
    without_silent: bool,
) -> None:
    """Bring a node back from the backup FILE; the home must be empty.

    The node of the backup must not run any more, here or elsewhere. Then its
    peers are asked what it has signed and stored since the backup: the ledger
    goes on under a new incarnation. While peers are silent the restore is not
    finished; it goes on without FILE, and at each `xsc node start`.
    """
    from xsc.node.daemon import bring_back
    from xsc.node.home.backup import Reader, read_into, restore_home, seal_of

    def unlock(line: str) -> KeyPair:
        from xsc.identity import keyfile

        return keyfile.from_line(line, _line_passphrase(line))

    brought: Brought | None = None
    if file is not None:
        watching: list[Progress] = []
        reader = Reader(_told(blocks_of(file, "backup"), watching))
        line = None if identity is None else _read_key_file(identity)
        key = None if line is None else unlock(line)
        secret = _passphrase_of(passphrase_file, needed=reader.head.seal == "passphrase")
        seal = seal_of(reader.head, passphrase=secret, key=key)
        size_bytes = file.stat().st_size if file.is_file() else None
        with show.progress("checking" if check else "restoring", size_bytes) as progress:
            watching.append(progress)
            if check:
                brought = read_into(reader, seal, {}, unlock)
            else:
                brought = restore_home(reader, seal, settings.home, line, unlock)
    elif check or identity is not None or passphrase_file is not None:
        raise ArgumentInvalid("no backup is named", hint="xsc node restore FILE")
    if check:
        _tell(settings, brought, None)
        return
    try:
        opened_by = _key_passphrase(settings.home)
        _, done = bring_back(
            settings.home, "restored", opened_by, without_silent=without_silent, watch=_RECOVERING
        )
    except errors.UnavailableError as fault:
        if brought is not None:
            fault.message = f"all of the backup is there, but {fault.message}"
        raise
    _tell(settings, brought, _came_back(done))


def _tell(settings: Settings, found: Brought | None, since: Document | None) -> None:
    kept: Document | None = None
    if found is not None:
        kept = {
            "id": ids.to_text(found.head.node),
            "created_ms": found.head.created_ms,
            **found.counts,
            "identity": found.head.identity,
        }
        show.fields(
            kept,
            "id of=created objects peers ledger space shards key",
            ledger=("entries", "{} entries".format),
            space=("space_records", "{} records".format),
            shards=lambda kept: f"{kept['bodies']} ({units.format_size(kept['bodies_bytes'])})",
            key=lambda kept: "in the backup" if kept["identity"] else "not in the backup",
        )
    settings.view({"home": str(settings.home), "backup": kept, "since": since})
    if since is not None:
        show.note(
            "since then: {newer_objects} objects and {newer_entries} ledger entries came from "
            "peers, {deleted_objects} objects had been deleted; "
            "`xsc node start` runs it".format_map(since)
        )


@node.group(cls=Group)
def identity() -> None:
    """Keep the node's key safe."""


@identity.command()
@argument("file", type=options.TARGET)
@option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the copy.")
def export(settings: Settings, file: Path, *, passphrase: bool) -> None:
    """Write a copy of the node's key to FILE, readable by its owner only.

    The copy of a locked key is locked by the same passphrase.
    """
    from xsc.identity import keyfile
    from xsc.node.home.folder import read_identity
    from xsc.node.system import SystemEntropy

    opened_by = _key_passphrase(settings.home)
    key = read_identity(settings.home, opened_by)
    locked_by = _new_passphrase(ask=True) if passphrase else opened_by
    try:
        keyfile.write(file, keyfile.to_line(key, SystemEntropy(), locked_by))
    except OSError as fault:
        raise errors.unwritable(f"{file} cannot be written", fault) from None
    node_id = ids.to_text(key.node_id)
    settings.view({"id": node_id, "file": str(file), "locked": bool(locked_by)}, node_id)
    if not locked_by:
        show.say(f"{file} is not locked: whoever can read it can act as this node")


# Keys and passphrases


def _read_key_file(file: Path) -> str:
    """Return the text of an exported key file, of one that is none its beginning.

    Raises:
        ArgumentInvalid: it cannot be opened.
    """
    with opened(file, "key file") as source:
        return source.read(KEY_FILE_BYTES_MAX).decode("ascii", "replace")


def _key_passphrase(home: Path) -> str:
    """Return the passphrase of a home's key, asked for where it is not set."""
    line = ""
    with suppress(OSError, UnicodeDecodeError):  # whoever reads it next says what is wrong with it
        line = (home / "identity.key").read_text()
    return _line_passphrase(line)


def _line_passphrase(line: str) -> str:
    """Return the passphrase of a key file's text, asked for where it is not set."""
    given = os.environ.get(options.PASSPHRASE, "")
    if given or not sys.stdin.isatty():
        return given
    from xsc.identity.keyfile import LOCKED

    return _typed_for(line) if line.startswith(LOCKED) else ""


@cache
def _typed_for(_: str) -> str:
    """Return the passphrase that a person types for a key, once."""
    return _ask_passphrase("", twice=False)


def _new_passphrase(*, ask: bool) -> str:
    """Return the passphrase for a new key file; an empty one locks nothing."""
    given = os.environ.get(options.PASSPHRASE, "")
    return _ask_passphrase(f"set {options.PASSPHRASE}", twice=True) if ask and not given else given


def _ask_passphrase(hint: str, *, twice: bool) -> str:
    """Return a passphrase that a person types.

    Args:
        hint: how else it can be given.
        twice: whether it is asked for a second time, because it will lock something.

    Raises:
        ArgumentInvalid: nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise ArgumentInvalid("a passphrase can be asked for on a terminal only", hint=hint)
    return str(
        click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True, type=str)
    )
