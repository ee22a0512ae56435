"""What a capability or a name stands for, an object or a place in a directory, and how it is.

Every command that takes CAP or NAME asks here, so that `NAME/PATH` means the same to all. What the
hosts hold of a directory is the worst that they hold of any of its files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import add, and_
from typing import Any, Literal, TypeAlias

from xsc.base.errors import ArgumentInvalid, ObjectUnknown
from xsc.base.limits import TREE_BYTES_MAX
from xsc.base.progress import Watch
from xsc.client.calls import Calls, side_by_side
from xsc.client.core import Document
from xsc.client.tree import MAGIC, READ, SUFFIX, Tree, unpack

Kind: TypeAlias = Literal["unknown", "file", "empty file", "directory"]
WORST_MAX = 10
"""Files that are listed by name."""
BAD_MAX = 100
"""Damaged shards that are listed."""
UNKNOWN_MARGIN = -1
"""Of an object that no host knows: its code is not known."""

Ask = Callable[..., Document]
"""Asks the node about an object, by capability and `Watch`: what `stat` or `check` answers."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a capability or a name stands for."""

    capability: str
    """Of the object; of the list of the directory for a directory or an empty file."""
    kind: Kind = "unknown"
    """A capability alone does not say it."""
    path: bytes = b""
    """Where it lies in the directory by whose name it was found."""
    name: str = ""
    """By which it was found."""
    tree: Tree | None = field(default=None, compare=False)
    """The whole directory, where it was read to find the path."""


def is_name(target: str) -> bool:
    """Say whether a text is no capability: a name of an object, or a place in a directory."""
    return not target.startswith("xsc:")


def resolve(calls: Calls, target: str, version: int | None = None) -> Target:
    """Return what a capability or a name stands for.

    A name is that of an object, or of a directory with or without its slash, or of a
    directory and a path in it.

    Args:
        calls: the node.
        target: a capability, or a name.
        version: of the name; the newest where None.

    Raises:
        ArgumentInvalid: a version of a capability, or the path of a link.
        ObjectUnknown: no such name, version or path.
    """
    if not is_name(target):
        if version is not None:
            raise ArgumentInvalid(
                "--version goes with a name: a capability stands for one version",
                hint="leave --version out",
            )
        return Target(target)
    found = _newest(calls, target, version)
    if isinstance(found, str):
        kind: Kind = "directory" if target.endswith(SUFFIX) else "file"
        return Target(found, kind, name=target)
    parts = target.rstrip(SUFFIX).split(SUFFIX)
    for count in range(len(parts), 0, -1):
        folder, path = SUFFIX.join(parts[:count]) + SUFFIX, SUFFIX.join(parts[count:])
        capability = _newest(calls, folder, version)
        if isinstance(capability, str):
            return _inside(calls, capability, folder, path)
    raise found


def _newest(calls: Calls, name: str, version: int | None) -> str | ObjectUnknown:
    try:
        return calls.named(name, version)[0]
    except ObjectUnknown as fault:
        return fault


def _inside(calls: Calls, capability: str, folder: str, path: str) -> Target:
    name = folder + path
    if not path:
        return Target(capability, "directory", name=name)
    place = os.fsencode(path)
    tree = read_tree(calls, capability)
    found = [node for node in tree.nodes if node.path == place]
    if not found:
        raise ObjectUnknown(
            f"the directory {folder} holds nothing of the path {path}",
            hint=f"`xsc store ls -r {folder}` shows what it holds",
        )
    (node,) = found
    if node.kind == "link":
        raise ArgumentInvalid(
            f"{name} is a link to {os.fsdecode(node.target)}", hint="name what it leads to"
        )
    if node.capability is not None:
        return Target(node.capability, "file", place, name)
    kind: Kind = "directory" if node.kind == "directory" else "empty file"
    return Target(capability, kind, place, name, tree)


def one_object(
    calls: Calls, target: str, version: int | None = None, *, whole: bool = False
) -> str:
    """Return the capability of the one object that is meant.

    Args:
        calls, target, version: as for `resolve`.
        whole: whether a whole directory will do, which is the object that lists it.

    Raises:
        ArgumentInvalid, ObjectUnknown: as `resolve`; or it is no object.
    """
    found = resolve(calls, target, version)
    if found.kind == "empty file":
        raise ArgumentInvalid(
            f"{found.name} is an empty file: the list of its directory is all that is stored of it",
            hint="name the directory",
        )
    if found.kind == "directory" and (found.path or not whole):
        raise ArgumentInvalid(f"{found.name} is a directory", hint="name a file in it")
    return found.capability


def read_tree(calls: Calls, capability: str) -> Tree:
    """Return a stored directory.

    Raises:
        ArgumentInvalid: it is a file. RecordInvalid, TooLarge: it breaks a rule.
        XscError: whatever the download meets.
    """
    with calls.open(capability) as download:
        if download.size_bytes is not None and download.size_bytes > TREE_BYTES_MAX:
            raise ArgumentInvalid("that is a file, not a directory", hint="leave -r out")
        return unpack(b"".join(download.blocks()))


def tree_of(calls: Calls, target: Target, listed: Document) -> Tree | None:
    """Return the directory that is meant; None for a file, or what is not readable.

    An empty file is a directory of that one entry.

    Args:
        calls: the node.
        target: what is meant. Of a capability only the beginning of its object says whether it
            lists a directory; one that only checks does not open it.
        listed: what `stat` or `check` say of its object.
    """
    if target.path:
        return None if target.tree is None else target.tree.at(target.path)
    if (
        target.kind == "file"
        or not READ.fullmatch(target.capability)
        or not listed["readable"]
        or not len(MAGIC) <= listed["size_bytes"] <= TREE_BYTES_MAX
    ):
        return None
    with calls.open(target.capability, f"0-{len(MAGIC) - 1}") as download:
        if b"".join(download.blocks()) != MAGIC:
            return None
    return read_tree(calls, target.capability)


def objects_of(calls: Calls, target: Target) -> Sequence[str]:
    """Return the capabilities of all objects that are meant: those of a directory's files, too."""
    may_list = target.kind != "file" and READ.fullmatch(target.capability)
    listed = calls.stat(target.capability) if may_list else {"readable": False}
    tree = tree_of(calls, target, listed)
    files = () if tree is None else (node.capability for node in tree.nodes)
    return list(dict.fromkeys([target.capability, *filter(None, files)]))


# How it is


def survey(calls: Calls, target: Target, ask: Ask, watch: Watch) -> Document:
    """Return what `ask` says of an object; of a directory the worst that it says of any file.

    A directory's answer has the keys of an object's, and `tree` (docs/cli.md).

    Raises:
        ObjectUnknown: nobody who answers knows the object, or the list of the directory.
        XscError: whatever `ask` and reading the list meet.
    """
    listed = ask(target.capability, watch)
    tree = tree_of(calls, target, listed)
    if tree is None:
        return listed
    files: dict[str, list[str]] = {}
    for node in tree.nodes:
        if node.capability is not None:
            files.setdefault(node.capability, []).append(node.path.decode("utf-8", "replace"))

    def asked(capability: str) -> Document | None:
        try:
            return ask(capability)
        except ObjectUnknown:
            return None

    size_bytes = sum(node.size_bytes for node in tree.nodes)
    unknown: Document = {key: _UNKNOWN.get(key, value) for key, value in listed.items()}
    worst: tuple[Any, str, Document] = (None, "", listed)
    merged, states = dict[str, Any](), Counter[str]()
    rows: list[tuple[Any, str, Document]] = []
    not_whole = unknown_files = 0
    with watch(size_bytes) as progress:
        answers = zip(files.values(), side_by_side(asked, files), strict=True)
        for paths, found in chain([([""], listed)], answers):
            answer = unknown if found is None else found
            if "bad" in answer:
                answer = {**answer, "bad": [{"path": paths[0], **row} for row in answer["bad"]]}
            for key in answer.keys() & _MERGED.keys():
                one = answer[key]
                merged[key] = _MERGED[key](merged[key], one) if key in merged else one
            how = {key: answer[key] for key in ("readable", "margin", "healable")}
            kept = answer.get("contract_kept", True)
            rank = (found is not None, *how.values(), kept)
            if worst[0] is None or (rank, paths[0]) < worst[:2]:
                worst = rank, paths[0], answer
            here = Counter(row["state"] for row in answer["hosts"])
            states += here
            progress(0 if found is None or paths == [""] else found["size_bytes"] * len(paths))
            if found is not None and answer["readable"] and kept and here.keys() <= {"ok"}:
                continue
            not_whole += len(paths)
            unknown_files += len(paths) * (found is None)
            rows += [(rank, path, {"path": path, **how}) for path in paths]
            rows = sorted(rows, key=lambda row: row[:2])[:WORST_MAX]
    about = {
        "files": sum(node.kind == "file" for node in tree.nodes),
        "path": worst[1],
        "not_whole": not_whole,
        "unknown": unknown_files,
        "worst": [row for *_, row in rows],
        "shards": dict(states),
    }
    return {**worst[2], **merged, "size_bytes": size_bytes, "tree": about}


def _first_end(one: int | None, other: int | None) -> int | None:
    return min((end for end in (one, other) if end is not None), default=None)


def _endings(one: list[Document], other: list[Document]) -> list[Document]:
    """Return the leases that end soon, of each host the one that ends first."""
    by_host: dict[str, Document] = {}
    for row in sorted([*one, *other], key=lambda row: (row["ends_ms"] or 0, row["reason"])):
        by_host.setdefault(row["node"], row)
    return list(by_host.values())


def _bad(one: list[Document], other: list[Document]) -> list[Document]:
    return [*one, *other][:BAD_MAX]


_MERGED: dict[str, Callable[[Any, Any], Any]] = {
    "margin": min,
    "healable": and_,
    "ends_ms": _first_end,
    "ending": _endings,
    "contract_kept": and_,
    "yearly_loss_ppb": max,
    "read_bytes": add,
    "bad": _bad,
}
"""How two answers become one; all else is that of the worse of them."""
_UNKNOWN: Document = {
    "hosts": [],
    "readable": False,
    "margin": UNKNOWN_MARGIN,
    "healable": False,
    "ends_ms": None,
    "ending": [],
    "survives": "0nodes",
    "domains": {},
    "contract_kept": False,
    "introducers": [],
    "yearly_loss_ppb": 1_000_000_000,
    "read_bytes": 0,
    "bad": [],
}
