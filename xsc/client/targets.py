"""What a capability or a name stands for, an object or a place in a directory, and how it is.

Every command that takes CAP or NAME asks here, so that `NAME/PATH` means the same to all. What the
hosts hold of a directory is the worst that they hold of any of its files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import add, and_
from typing import Any, Literal, TypeAlias

from xsc.base.errors import ArgumentInvalid, ObjectUnknown
from xsc.base.limits import TREE_BYTES_MAX
from xsc.client.calls import Calls, side_by_side
from xsc.client.core import Document, Watch
from xsc.client.tree import MAGIC, READ, SUFFIX, Tree, unpack

Kind: TypeAlias = Literal["unknown", "file", "empty file", "directory"]
WORST_MAX = 10
"""Files that are listed by name."""
BAD_MAX = 100
"""Damaged shards that are listed."""
UNKNOWN_MARGIN = -1
"""Of an object that no host knows: its code is not known."""

Ask = Callable[[str], Document]
"""Asks the node about one object: what `stat` or `check` of it answers."""


@dataclass(frozen=True, slots=True)
class Named:
    """An object by its name in this node's list, or a place in a directory by NAME/PATH."""

    name: str


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


def resolve(calls: Calls, target: str | Named, version: int | None = None) -> Target:
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
    if isinstance(target, str):
        if version is not None:
            raise ArgumentInvalid(
                "--version goes with a name: a capability stands for one version",
                hint="leave --version out",
            )
        return Target(target)
    found = _newest(calls, target.name, version)
    if isinstance(found, str):
        kind: Kind = "directory" if target.name.endswith(SUFFIX) else "file"
        return Target(found, kind, name=target.name)
    parts = target.name.rstrip(SUFFIX).split(SUFFIX)
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
    calls: Calls, target: str | Named, version: int | None = None, *, whole: bool = False
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
    listed = ask(target.capability)
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

    worst = _Worst(listed)
    with watch(sum(node.size_bytes for node in tree.nodes)) as progress:
        answers = side_by_side(asked, files)
        for paths, answer in zip(files.values(), answers, strict=True):
            worst.take(paths, answer)
            progress(0 if answer is None else answer["size_bytes"] * len(paths))
    return worst.document(tree)


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
    "readable": and_,
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


class _Worst:
    """The worst of what was answered so far, beginning with the list of the directory."""

    def __init__(self, listed: Document) -> None:
        self._unknown = {key: _UNKNOWN.get(key, value) for key, value in listed.items()}
        self._answer: Document = {}
        self._rank: tuple[object, ...] = ()
        self._rows: list[tuple[tuple[object, ...], Document]] = []
        self._states: Counter[str] = Counter()
        self._not_whole = self._unknown_files = 0
        self.take([""], listed)

    def take(self, paths: Sequence[str], answer: Document | None) -> None:
        """Take what was said of an object, which files at some paths share; None: unknown."""
        known = answer is not None
        answer = self._unknown if answer is None else answer
        states = Counter(row["state"] for row in answer["hosts"])
        self._states += states
        kept = answer.get("contract_kept", True)
        rank = (known, answer["readable"], answer["margin"], answer["healable"], kept, paths[0])
        if "bad" in answer:
            answer = {**answer, "bad": [{"path": paths[0], **row} for row in answer["bad"]]}
        before = self._answer
        merged = {
            key: merge(before[key], answer[key])
            for key, merge in _MERGED.items()
            if key in before and key in answer
        }
        if not before or rank < self._rank:
            self._rank, self._answer = rank, answer
        self._answer = self._answer | merged
        if known and answer["readable"] and kept and states.keys() <= {"ok"}:
            return
        self._not_whole += len(paths)
        self._unknown_files += 0 if known else len(paths)
        row = {key: answer[key] for key in ("readable", "margin", "healable")}
        self._rows += [((*rank[:-1], path), {"path": path, **row}) for path in paths]
        self._rows = sorted(self._rows, key=lambda row: row[0])[:WORST_MAX]

    def document(self, tree: Tree) -> Document:
        """Return the answer about a directory."""
        return {
            **self._answer,
            "size_bytes": sum(node.size_bytes for node in tree.nodes),
            "tree": {
                "files": sum(node.kind == "file" for node in tree.nodes),
                "path": self._rank[-1],
                "not_whole": self._not_whole,
                "unknown": self._unknown_files,
                "worst": [row for _, row in self._rows],
                "shards": dict(self._states),
            },
        }
