"""What the hosts hold of an object, or of a whole directory: then the worst of all its files."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from operator import add, and_
from typing import Any

from xsc.base.errors import ObjectUnknown
from xsc.client.calls import Calls, side_by_side
from xsc.client.core import Document, Watch
from xsc.client.targets import Target, tree_of
from xsc.client.tree import Tree

WORST_MAX = 10
"""Files that are listed by name."""
BAD_MAX = 100
"""Damaged shards that are listed."""
UNKNOWN_MARGIN = -1
"""Of an object that no host knows: its code is not known."""

Ask = Callable[[str], Document]
"""Asks the node about one object: what `stat` or `check` of it answers."""


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
    worst, lock = _Worst(listed), threading.Lock()
    files: dict[str, list[str]] = {}
    for node in tree.nodes:
        if node.capability is not None:
            files.setdefault(node.capability, []).append(node.path.decode("utf-8", "replace"))

    def work(found: tuple[str, list[str]]) -> None:
        capability, paths = found
        try:
            answer = ask(capability)
        except ObjectUnknown:
            answer = None
        with lock:
            worst.take(paths, answer)
            progress(0 if answer is None else answer["size_bytes"] * len(paths))

    with watch(sum(node.size_bytes for node in tree.nodes)) as progress:
        side_by_side(work, files.items())
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
        before, base = self._answer, self._answer
        if not before or rank < self._rank:
            self._rank, base = rank, answer
        self._answer = dict(base)
        for key, merge in _MERGED.items():
            if before and key in answer:
                self._answer[key] = merge(before[key], answer[key])
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
