"""xsc store: objects, cut and sealed on this node and kept by others."""

from __future__ import annotations

import os
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Unpack

import click
from click import argument, option

from xsc import api
from xsc.base import errors, limits, units
from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid
from xsc.base.progress import Progress
from xsc.base.text import count_of
from xsc.cli import options, show
from xsc.cli.options import Group, Settings, asks
from xsc.client import targets
from xsc.client.calls import FSCK_TIMEOUT_S, Calls, PutOptions
from xsc.client.core import Document
from xsc.client.files import make_directory, write_whole
from xsc.client.tree import SUFFIX, Node, tree_id


@click.group(cls=Group)
def store() -> None:
    """Store objects so that any four of six nodes can give them back.

    CAP is a capability: the text that `store put` prints, and all that is
    needed to read the object. @FILE takes it from a file and - from standard
    input, so that it need not stand in a list of processes. An object that this
    node stored is found by its NAME, too, and a file of a directory by NAME/PATH.
    """


cap_argument = argument("cap", metavar="CAP|NAME", type=options.OBJECT)
version_option = option(
    "--version", type=options.WHOLE, help="That version of the name.  [the newest]"
)
object_options = options.together(cap_argument, version_option)
_ASKING: Final = partial(show.progress, "asking")
_FETCHING: Final = partial(show.progress, "fetching")


@store.command()
@argument("file", type=options.PATH)
@option("--name", metavar="NAME", help="Name in the list of objects.  [the file's name]")
@option(
    "--survive",
    metavar="2nodes,1site",
    help="Refuse unless so many nodes, sites, owners or introducers may be lost."
    "  [setting survive]",
)
@option("--code", metavar="K,M", help="K data shards and M parity shards.  [4,2]")
@option("-r", "--recursive", is_flag=True, help="FILE is a directory; store all of it.")
@option("--reread", is_flag=True, help="With -r: trust no times, read every file.")
def put(
    settings: Settings, file: Path, *, recursive: bool, reread: bool, **how: Unpack[PutOptions]
) -> int:
    """Store FILE, or standard input (-), and print its capability.

    With -r a whole directory, under NAME/. What has not changed since its last
    version is not sent again. Exits with 7 if something was left out.
    """
    calls, name = settings.calls(), how["name"]
    if recursive:
        from xsc.client.folders import put_tree

        name = (file.absolute().name if name is None else name).rstrip(SUFFIX)
        if not name:
            raise ArgumentInvalid("the directory needs a name", hint="give one with --name")
        tree = put_tree(
            calls,
            file,
            name,
            started_ms=time.time_ns() // 1_000_000,
            warn=show.warn,
            survive=how["survive"],
            code=how["code"],
            reread=reread,
            watch=partial(_storing, calls, name, how["code"]),
        )
        sent = f"sent {tree['sent_files']} of {tree['files']} files"
        show.detail(f"{sent}, {units.format_size(tree['sent_bytes'])}")
        settings.view(tree, tree["capability"])
        return EXIT_PARTLY if tree["left_out"] else 0
    if reread:
        raise ArgumentInvalid("--reread goes with -r")
    if name is not None:
        _check_name(name)
    if file == options.STREAM:
        with show.progress("storing", None) as progress:
            how["wait_for_name"] = bool(name)
            stored = calls.put(sys.stdin.buffer, progress=progress, **how)
    else:
        _check_kind(file)
        how["wait_for_name"] = True
        watch = partial(_storing, calls, file.name, how["code"])
        stored = calls.put_file(file, watch=watch, goes_on=_say_before, **how)
    for warning in stored["warnings"]:
        show.warn(warning)
    settings.view(stored, stored["capability"])
    _say_where(stored)
    return 0


def _check_name(name: str) -> None:
    """Refuse a name by which the object could not be read again."""
    if name in {"", "-"} or name.endswith(SUFFIX) or name.startswith(("@", "xsc:")):
        raise ArgumentInvalid(
            f"'{name}' could not be read again by that name",
            hint="commands take @FILE, - and xsc:… for capabilities, and NAME/ for directories",
        )


def _check_kind(file: Path) -> None:
    with suppress(OSError):  # whoever opens it says what is wrong
        if file.is_dir():
            hint = f"store all of it: xsc store put -r {file}"
            raise ArgumentInvalid(f"{file} is a directory, not a file", hint=hint)
        if file.is_fifo():  # opening one waits for whoever writes, perhaps for ever
            hint = f"xsc store put - < {file}"
            raise ArgumentInvalid(f"{file} is a pipe, not a regular file", hint=hint)


def _say_before(stored_bytes: int) -> None:
    if stored_bytes:
        show.say(f"going on: {units.format_size(stored_bytes)} were stored before")


def _say_where(stored: Document) -> None:
    hosts = len({row["node"] for row in stored["hosts"]})
    where = (
        f"stored {units.format_size(stored['size_bytes'])} on {count_of(hosts, 'node')}, "
        f"survives the loss of {stored['survives']}"
    )
    (show.note if sys.stderr.isatty() else show.detail)(where)
    for row in stored["passed_over"]:
        lease = "" if row["lease_id"] is None else f", lease {show.short(row['lease_id'])}"
        show.detail(f"passed over {show.short(row['node'])}{lease}: {row['reason']}")


def _storing(
    calls: Calls, name: str, code: str | None, size_bytes: int | None
) -> AbstractContextManager[Progress]:
    """Watch what is stored; before more than a GiB, say what that costs a month."""
    if size_bytes is not None and size_bytes > limits.GIB:
        with suppress(errors.XscError):  # of what is wrong the put itself tells
            found = calls.ask(api.market.ESTIMATE, size_bytes=size_bytes, code=code)
            coded, cost = found["coded_bytes"], units.format_credits(found["storage_micro"])
            show.note(
                f"{units.format_size(size_bytes)}, {units.format_size(coded)} coded "
                f"{found['code']}, cost about {cost} credits in 30 days at the prices quoted now"
            )
    return show.progress(f"storing {name}", size_bytes)


@store.command()
@option("-o", "--output", type=options.PATH, required=True, help="File to write, or -.")
@option(
    "--range", "part", type=options.RANGE, help="Only these bytes, like 1000-1999, 1000- or -500."
)
@option("-r", "--recursive", is_flag=True, help="It is a directory; FILE becomes one.")
@object_options
def get(
    settings: Settings,
    cap: str,
    output: Path,
    part: str | None,
    version: int | None,
    *,
    recursive: bool,
) -> None:
    """Fetch the object that CAP or NAME stands for.

    With -r a directory is fetched, or what lies below NAME/PATH.

    FILE appears when all of it is there and has been checked; after an
    interruption the same command goes on where it was. With - the content goes
    to standard output as it arrives, and the exit code says whether it was all.
    """
    if output == options.STREAM and settings.json:
        raise ArgumentInvalid("--json and -o - both want standard output")
    if recursive and (output == options.STREAM or part is not None):
        raise ArgumentInvalid("a directory goes whole, and to the disk: -o DIR")
    calls = settings.calls()
    if recursive:
        from xsc.client.folders import get_tree

        where = _directory(calls, cap, version)
        tree = get_tree(
            calls, where.capability, output, warn=show.warn, path=where.path, watch=_FETCHING
        )
        files = sum(node.kind == "file" for node in tree.nodes)
        size = sum(node.size_bytes for node in tree.nodes)
        settings.view({"directory": str(output), "files": files, "size_bytes": size})
        show.detail(f"fetched {files} files, {units.format_size(size)}, to {output}")
        return
    found = targets.resolve(calls, cap, version)
    if found.kind == "directory":
        raise ArgumentInvalid(
            f"{found.name} is a directory", hint="get -r fetches all of it, NAME/PATH one file"
        )
    if found.kind == "empty file":
        size = options.write_to(output, ())
    elif output != options.STREAM and part is None:
        size = calls.get(found.capability, output, _FETCHING)
    else:
        with (
            calls.open(found.capability, part) as download,
            _FETCHING(download.size_bytes) as progress,
        ):
            size = options.write_to(output, download.blocks(progress))
    if output != options.STREAM:
        settings.view({"file": str(output), "size_bytes": size})
        show.detail(f"fetched {units.format_size(size)} to {output}")


def _directory(calls: Calls, target: str, version: int | None) -> targets.Target:
    """Return what is meant, which is a directory as far as a name says it.

    Raises:
        ArgumentInvalid: a file has that name. ObjectUnknown: nothing has.
    """
    found = targets.resolve(calls, target, version)
    if targets.is_name(target) and found.kind != "directory":
        raise ArgumentInvalid(f"{target} is a file, not a directory", hint="leave -r out")
    return found


@store.command("ls")
@argument("prefix", required=False, default="", type=options.NAME)
@option("--versions", is_flag=True, help="Show all versions of a name, not the newest alone.")
@option("--ending", is_flag=True, help="Show what is kept no longer than lease_warning, and why.")
@option("-r", "--recursive", is_flag=True, help="Show what is in the directory PREFIX or CAP.")
@version_option
def listing(
    settings: Settings,
    prefix: str,
    version: int | None,
    *,
    versions: bool,
    ending: bool,
    recursive: bool,
) -> None:
    """List the objects that this node has stored, those whose names begin with PREFIX.

    Names of directories end with a slash; `xsc store stat` shows how large one is.
    """
    calls = settings.calls()
    if recursive:
        found = _directory(calls, options.object_of(prefix), version)
        tree = targets.read_tree(calls, found.capability)
        nodes = (tree.at(found.path) if found.path else tree).nodes
        settings.view({"entries": [_entry(node) for node in nodes]})
        heads = ("mode", "<size", "changed", "path")
        show.table(heads, [_cells(node) for node in nodes], "the directory is empty")
        return
    if version is not None:
        raise ArgumentInvalid("--version goes with -r", hint="--versions shows all of them")
    answer = calls.objects(prefix, versions=versions or ending)
    soon = [row for row in answer["objects"] if row["ending"]]
    if ending:
        settings.view({"objects": soon})
        show.rows(
            [row | end for row in soon for end in row["ending"]],
            "name <version host kept_until why",
            "nothing ends soon",
            version=_version,
            host=("node", show.short),
            kept_until=("ends_ms", _until),
            why=lambda end: end["reason"] or "not asked yet",
        )
        return
    if soon:
        show.warn(f"{count_of(len(soon), 'object')} may end soon; see: xsc store ls --ending")
    settings.view(answer)
    empty = "this node has stored nothing" + (" under such names" if prefix else "")
    show.rows(
        answer["objects"],
        "name <version <size stored=created <margin capability",
        empty,
        version=_version,
        size=lambda row: "-" if row["name"].endswith(SUFFIX) else show.in_bytes(row["size_bytes"]),
    )


def _version(row: Document) -> str:
    return str(row["version"]) if row["name"] else "-"


def _until(ends_ms: int | None) -> str:
    return "not known" if ends_ms is None else show.moment(ends_ms)


def _margin(answer: Document) -> str:
    margin = answer["margin"]
    if margin < 0:
        return f"{count_of(-margin, 'shard')} too few"
    held = Counter(row["node"] for row in answer["hosts"] if row["state"] == "ok")
    most = max(held.values(), default=0)
    no_node = f", but no node: one holds {most} of them" if 0 < margin < most else ""
    return f"{count_of(margin, 'more shard')} may be lost{no_node}"


def _show_placement(answer: Document, *, deep: bool = False) -> None:
    """Show how the hosts hold an object, and what that is worth where it was checked.

    Said on standard error: which of them do not hold it much longer. Of a directory the files
    follow that are not whole, the worst first.
    """
    about, names = answer.get("tree"), "size readable margin healable"
    if about is not None:
        names = "files size_of_all=size the_worst readable margin healable"
    if "survives" not in answer:
        names += " code"
    else:
        names += " lies_on introduced survives" + " contract" * bool(answer["contract"])
        names += " yearly_loss" + " read" * deep
    show.fields(
        answer,
        f"{names} leases_until",
        files=("tree", _files),
        the_worst=("tree", lambda about: about["path"] or "the list of the directory"),
        margin=_margin,
        code=("code", lambda code: f"any {code['k']} of {code['k'] + code['m']} shards"),
        lies_on=_domains,
        introduced=_introduced,
        survives=("survives", "the loss of {}".format),
        contract=_contract,
        yearly_loss=("yearly_loss_ppb", _yearly_loss),
        leases_until=("ends_ms", _until),
    )
    for end in answer["ending"]:
        reason = f": {end['reason']}" if end["reason"] else ""
        until = f"{_until(end['ends_ms'])}{reason}"
        show.warn(f"the lease at {show.short(end['node'])} was not renewed, its end is {until}")
    if about is not None and about["worst"]:
        show.rows(
            about["worst"], "<margin readable path", path=lambda row: row["path"] or "(the list)"
        )


def _files(about: Document) -> str:
    whole = f", {about['not_whole']} of them not whole" if about["not_whole"] else ""
    return f"{about['files']}{whole}"


def _contract(answer: Document) -> str:
    kept = "kept" if answer["contract_kept"] else "broken"
    return f"the loss of {answer['contract']}: {kept}"


def _yearly_loss(loss_ppb: int) -> str:
    return f"{loss_ppb // 10**7}.{loss_ppb % 10**7:07d}% (an estimate)"


def _introduced(answer: Document) -> str:
    """Return through whom the hosts of an object came: who brought all may have made up all."""
    hosts = len({row["node"] for row in answer["hosts"] if row["state"] == "ok"})
    said = []
    for row in answer["introducers"]:
        of = f"all {hosts}" if row["hosts"] == hosts else f"{row['hosts']} of {hosts}"
        itself = "" if row["hosts"] == row["brought"] else f"are {row['name']} or "
        said.append(f"{of} hosts {itself}came through {row['name']}")
    return "; ".join(said) or "none: all its hosts are known directly"


def _domains(answer: Document) -> str:
    """Return on how many nodes, sites and owners an object lies."""
    parts = []
    for kind, found in answer["domains"].items():
        if kind == "introducer":
            continue  # a line of its own
        unknown = f" ({count_of(found['unknown'], 'node')} without)" if found["unknown"] else ""
        parts.append(
            count_of(found["known"], kind) + unknown if found["known"] else f"no {kind} named"
        )
    return ", ".join(parts)


@store.command()
@object_options
def stat(settings: Settings, cap: str, version: int | None) -> None:
    """Ask an object's hosts which of its shards they still hold.

    Of a directory all files are asked about, and the worst is shown. A
    capability that only checks is enough; of a directory it opens no more than
    the list.
    """
    calls = settings.calls()
    answer = targets.survey(calls, targets.resolve(calls, cap, version), calls.stat, _ASKING)
    settings.view(answer)
    _show_placement(answer)
    empty = "it has no shards: its content is in the manifest"
    show.rows(answer["hosts"], "<shard node state", empty)


@store.command()
@option("--deep", is_flag=True, help="Read every shard and verify it.")
@option("--prove", is_flag=True, help="Have each host prove that it has its part.")
@object_options
def check(settings: Settings, cap: str, version: int | None, *, deep: bool, prove: bool) -> int:
    """Say what an object's placement is worth: what it survives, and for how long.

    Of a directory all files are looked at, and the worst is shown.

    Exits with 6 if a shard is damaged or missing, with 5 if it only cannot be
    asked for, and with 7 if all are there but do not survive what `--survive`
    asked for when it was stored.
    """
    calls = settings.calls()
    ask = partial(calls.check, deep=deep, prove=prove)
    answer = targets.survey(calls, targets.resolve(calls, cap, version), ask, _ASKING)
    settings.view(answer)
    _show_placement(answer, deep=deep)
    about = answer.get("tree")
    if answer["bad"]:
        path = "" if about is None else " path"
        show.rows(answer["bad"], f"<segment <shard node reason{path}")
    if prove:
        show.rows(
            answer["proofs"],
            "node outcome unproven reason",
            "it has no other host than this node",
            node=lambda row: show.named(row, "node"),
            unproven=("shards", lambda shards: " ".join(map(str, shards))),
        )
    states = Counter(row["state"] for row in answer["hosts"]) if about is None else about["shards"]
    lost = sum(states.values()) - states.get("ok", 0)
    if states.keys() & {"corrupt", "missing"}:
        raise errors.ShardsDamaged(f"damaged or gone of it: {count_of(lost, 'shard')}")
    if about is not None and about["unknown"]:
        raise errors.ObjectUnknown(
            f"nobody who answers has {count_of(about['unknown'], 'file')} of it"
        )
    if lost:
        raise errors.PeerSilent(f"{count_of(lost, 'shard')} of it cannot be asked for")
    if not answer["contract_kept"]:
        show.warn(
            f"it was to survive the loss of {answer['contract']}; it is moved back by itself "
            "once there are peers for it"
        )
        return EXIT_PARTLY
    return 0


@store.command()
@argument("cap", metavar="[CAP|NAME]", type=options.OBJECT, required=False)
@version_option
def repair(settings: Settings, cap: str | None, version: int | None) -> int:
    """Rebuild the lost shards of an object now; without CAP, of all objects.

    Of a directory those of all its files. The node does the same by itself.
    Shards of a silent host count as lost after repair_grace. Exits with 7 if
    some shards have no new place yet.
    """
    calls = settings.calls()
    wanted: Sequence[str]
    if cap is None:
        wanted = [row["capability"] for row in calls.objects()["objects"]]
    else:
        wanted = targets.objects_of(calls, targets.resolve(calls, cap, version))
    several = cap is None or len(wanted) > 1
    answers = []
    with show.progress("repairing objects", len(wanted), show.in_number) as progress:
        for number, each in enumerate(wanted, 1):
            answer = calls.repair(each)
            progress(1)
            answers.append(answer)
            where = f"object {number} of {len(wanted)}: " if several else ""
            for row in answer["moved"]:
                way = f"from {show.short(row['from'])} to {show.short(row['to'])}"
                show.say(f"{where}shard {row['shard']} moved {way}")
            if answer["patched"]:
                show.say(
                    f"{where}{count_of(answer['patched'], 'damaged shard')} stored again in place"
                )
            if answer["waiting"]:
                silent = count_of(answer["waiting"], "shard")
                show.say(f"{where}{silent} at silent nodes: they count as lost after repair_grace")
            if answer["left"]:
                kept = count_of(len(answer["left"]), "shard")
                show.warn(f"{where}{kept} left as it was: {answer['reason']}")
    moved = sum(len(answer["moved"]) for answer in answers)
    left = sum(len(answer["left"]) for answer in answers)
    said = f"{count_of(moved, 'shard')} moved, {left} left"
    settings.view({"objects": answers} if several else answers[0], said)
    return EXIT_PARTLY if left else 0


@store.command()
@cap_argument
@option(
    "--receipts",
    type=options.PATH,
    metavar="DIR",
    help="Write the hosts' signed confirmations there.",
)
@option("--version", type=options.WHOLE, help="That version of the name alone.  [all]")
@option("-y", "--yes", is_flag=True, help="Delete a directory without asking.")
def rm(
    settings: Settings, cap: str, receipts: Path | None, version: int | None, *, yes: bool
) -> int:
    """Delete an object at all of its hosts; with a NAME, all its versions.

    A directory goes with its files, once that was confirmed or with --yes.
    Exits with 7 if a host has not confirmed it; what it holds runs out with
    its lease.
    """
    from xsc.client.folders import clean, remove_all

    if receipts is not None:
        make_directory(receipts)
    calls = settings.calls()
    cap, found = _to_delete(calls, cap, version)
    if targets.is_name(cap) and cap.endswith(SUFFIX):
        _confirm_removal(calls, cap, version, yes=yes)
    answers = remove_all(calls, found)
    names = {answer.pop("name", "") for answer in answers}
    if targets.is_name(cap):
        names.add(cap)
    for name in names:
        if name.endswith(SUFFIX):
            answers += clean(calls, name)
    answer = _merged(answers)
    if receipts is not None:
        for number, each in enumerate(answers):
            beside = f".{number}" if len(answers) > 1 else ""
            for host, receipt in each["receipts"].items():
                write_whole(receipts / f"{host}{beside}.receipt", [b64decode(receipt)])
    settings.view(answer, f"deleted at {count_of(len(answer['confirmed']), 'node')}")
    for host in answer["unconfirmed"]:
        show.warn(f"{show.short(host)} has not confirmed that it deleted its shards")
    return EXIT_PARTLY if answer["unconfirmed"] else 0


def _to_delete(calls: Calls, target: str, version: int | None) -> tuple[str, Sequence[str]]:
    """Return what is meant, a directory with its slash, and the capabilities of its versions.

    There are none of a directory of which only files are left, because deleting it broke off.

    Raises:
        ArgumentInvalid: a version of a capability, or what lies in a directory.
        ObjectUnknown: no such name or version.
    """
    if not targets.is_name(target):
        return target, [targets.resolve(calls, target, version).capability]
    folder = target.rstrip(SUFFIX) + SUFFIX
    for each in (target, folder):
        with suppress(errors.ObjectUnknown):
            return each, calls.named(each, version, deleting=True)
    if version is None and calls.parts(tree_id(folder)):
        return folder, ()
    targets.resolve(calls, target, version)
    raise ArgumentInvalid(
        f"{target} lies in a stored directory, and goes with it",
        hint="store the directory again without it: xsc store put -r DIR",
    )


@store.command()
@argument("name", type=options.NAME)
@option("--version", type=options.WHOLE, required=True, help="The version that is wanted.")
def restore(settings: Settings, name: str, version: int) -> None:
    """Make version N of NAME its newest again, under a new number.

    Nothing is copied: number N is free of it. Later versions stay.
    """
    ask = partial(settings.ask, api.objects.RESTORE, version=version)
    try:
        made = ask(name=name)["version"]
    except errors.ObjectUnknown:
        if name.endswith(SUFFIX):
            raise
        name += SUFFIX
        made = ask(name=name)["version"]
    settings.view({"name": name, "version": made}, str(made))


def _merged(answers: Sequence[Document]) -> Document:
    """Return what became of several deletions as of one: a host confirms all or not."""
    unconfirmed = {host for answer in answers for host in answer["unconfirmed"]}
    confirmed = {host for answer in answers for host in answer["confirmed"]}
    receipts = {host: proof for answer in answers for host, proof in answer["receipts"].items()}
    return {
        "confirmed": sorted(confirmed - unconfirmed),
        "unconfirmed": sorted(unconfirmed),
        "receipts": receipts,
    }


@store.command()
@option("--read", is_flag=True, help="Whoever has it may read the object.")
@option("--verify", is_flag=True, help="It may be checked, not read.")
@object_options
def share(settings: Settings, cap: str, version: int | None, *, read: bool, verify: bool) -> None:
    """Print the capability of an object to give to somebody: to read it, or to check it.

    What only checks finds the object and says which shards its hosts hold; it
    opens nothing. What was given cannot be taken back.
    """
    if read == verify:
        raise ArgumentInvalid(
            "a capability is to read, or only to check", hint="use either --read or --verify"
        )
    from xsc.storage.object.capability import parse_read, parse_verify

    given = targets.one_object(settings.calls(), cap, version, whole=True)
    shared = parse_read(given) if read else parse_verify(given)
    allows = "read" if read else "verify"
    settings.view({"capability": shared.to_text(), "allows": allows}, shared.to_text())


@asks(store, api.home.GC, timeout_s=FSCK_TIMEOUT_S)
def gc(answer: Document) -> int:
    """Drop what need not be kept, now, and give its room back to the disk.

    That is: what lies under leases that are long over, what uploads left that
    were given up, and deletions of own objects that some host has not
    confirmed yet. The node does all of it by itself in time. Exits with 7 if a
    host is still to be asked.
    """
    show.fields(
        answer,
        "leases_over=expired uploads_given_up=leftover deletions room_returned",
        deletions=("deletions_confirmed", "{} completed".format),
        room_returned=lambda answer: f"about {units.format_size(answer['reclaimed_bytes'])}",
    )
    if answer["deletions_given_up"]:
        ended = count_of(answer["deletions_given_up"], "deletion")
        show.line(f"{ended} ended unconfirmed: silent hosts' leases and their grace are over")
    if not answer["deletions_open"]:
        return 0
    show.warn(f"{count_of(answer['deletions_open'], 'deletion')} not confirmed by every host yet")
    return EXIT_PARTLY


_LETTERS = {"directory": "d", "file": "-", "link": "l"}


def _entry(node: Node) -> Document:
    return {
        "path": node.path.decode("utf-8", "replace"),
        "path_base64": b64encode(node.path).decode(),
        "kind": node.kind,
        "mode": node.mode,
        "mtime_ns": node.mtime_ns,
        "size_bytes": node.size_bytes,
        "capability": node.capability,
    }


def _cells(node: Node) -> list[str]:
    is_link = node.kind == "link"
    return [
        _LETTERS[node.kind] + ("" if is_link else f"{node.mode:04o}"),
        units.format_size(node.size_bytes) if node.kind == "file" else "-",
        show.moment(node.mtime_ns // 1_000_000),
        os.fsdecode(node.path) + (f" -> {os.fsdecode(node.target)}" if is_link else ""),
    ]


def _confirm_removal(calls: Calls, name: str, version: int | None, *, yes: bool) -> None:
    """Ask whether a directory is to be deleted, unless that was said already.

    Raises:
        ArgumentInvalid: it is not, or nobody can be asked.
    """
    if yes:
        return
    what = f"all of {name}" if version is None else f"version {version} of {name}"
    if not sys.stdin.isatty():
        raise ArgumentInvalid(f"{what} is to be deleted, a directory", hint="--yes says so")
    files = len(calls.parts(tree_id(name)))
    if not click.confirm(f"Delete {what}, a directory of {files} stored files?", err=True):
        raise ArgumentInvalid("it was not confirmed, and nothing was deleted")
